mod checks;
mod doubts;
mod looks;
mod moves;
mod refusals;
mod returns;
mod stuck;
mod units;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use fc::testing::{NPORT, Port, Tree};

use super::super::message::tests::{arrival, device, example};
use super::*;

const HOST: &str = "devices/pci0/host5/vport-5:0-0/host8";
const FIRST: (&str, &str) = ("0x5006016044602198", "0x50060160c4602198");
const SECOND: (&str, &str) = ("0x5006016144602198", "0x50060160c4602198");

/// A host with one virtual port, what its target ports have for it, and what the machine has heard.
struct World {
    tree: Tree,
    /// The number of the host by which all is seen.
    host: u32,
    inventory: Inventory,
    now: Instant,
    /// By the kernel's number of the target.
    arrays: BTreeMap<u32, Luns>,
    /// Names of the units, where they are not the usual ones.
    names: BTreeMap<String, String>,
    /// Names that units say, by address, where the kernel has kept others; empty: nothing is said.
    says: BTreeMap<String, String>,
    /// Devices that are somebody's, by address.
    busy: BTreeMap<String, String>,
    heard: Vec<String>,
    stored: fc::targets::Numbers,
    jobs: Vec<(u8, Job)>,
    /// Devices can be opened; else it hangs, and these are under way.
    opens: bool,
    left_open: Vec<Opening>,
    /// Jobs of this target never end.
    hangs: Option<u8>,
    /// Nor do these, which are kept.
    stuck: fn(&Job) -> bool,
    kept: Vec<(u8, Job)>,
    /// Why the kernel does not do it.
    fails: fn(&Job) -> Option<&'static str>,
}

fn wanted() -> Wanted {
    Wanted { luns: vec![], fast_io_fail_tmo: 5, dev_loss_tmo: Some(30), ..example() }
}

fn lun(number: u64) -> Lun {
    fc::Lun(number).bytes()
}

fn luns(numbers: &[u64]) -> Luns {
    Luns::All(numbers.iter().map(|number| lun(*number)).collect())
}

impl World {
    fn new(wanted: Wanted) -> Self {
        let tree = Tree::new();
        let port = Port {
            number: 8,
            wwpn: "0x210002123456789a",
            wwnn: "0x200002123456789a",
            state: "Online",
            kind: NPORT,
            driver: "lpfc",
            npiv: None,
        };
        tree.host(&HOST[..HOST.rfind('/').unwrap()], &port);
        let now = Instant::now();
        let names = Names { wwnn: 1, wwpn: 2 };
        let inventory = Inventory::new(wanted, names, Default::default(), now);
        Self {
            tree,
            host: 8,
            inventory,
            now,
            arrays: BTreeMap::new(),
            names: BTreeMap::new(),
            says: BTreeMap::new(),
            busy: BTreeMap::new(),
            heard: Vec::new(),
            stored: Default::default(),
            jobs: Vec::new(),
            opens: true,
            left_open: Vec::new(),
            hangs: None,
            stuck: |_| false,
            kept: Vec::new(),
            fails: |_| None,
        }
    }

    /// A machine that starts anew.
    fn restart(&mut self, wanted: Wanted) {
        let names = Names { wwnn: 1, wwpn: 2 };
        self.inventory = Inventory::new(wanted, names, (self.stored.clone(), Space::default()), self.now);
    }

    /// A target port, with units that the kernel has found.
    fn target(&mut self, name: &str, names: (&str, &str), target: i32, numbers: &[u64]) {
        self.tree.remote(HOST, name, names, "FCP Target", target);
        self.arrays.insert(target as u32, luns(numbers));
        for number in numbers {
            self.unit(name, &format!("8:0:{target}:{number}"));
        }
    }

    fn unit(&self, remote: &str, address: &str) {
        let at = self.tree.unit(&format!("{HOST}/{remote}"), address, 0, &[("block", "sdc")]);
        self.tree.file(&format!("sys/{at}/wwid"), &format!("{}\n", self.name_of(address)));
    }

    /// The name that the kernel hears of a unit.
    fn name_of(&self, address: &str) -> String {
        let number = address.rsplit(':').next().unwrap();
        self.names.get(address).cloned().unwrap_or_else(|| format!("naa.6{number:0>15}"))
    }

    fn remove(&self, address: &str) {
        let class = self.tree.path(&format!("sys/class/scsi_device/{address}"));
        let Ok(own) = fs::canonicalize(class.join("device")) else { return };
        fs::remove_file(class).unwrap();
        fs::remove_dir_all(own).unwrap();
    }

    fn remote_state(&self, name: &str, state: &str) {
        self.tree.file(&format!("sys/class/fc_remote_ports/{name}/port_state"), &format!("{state}\n"));
    }

    fn unit_state(&self, address: &str, state: &str) {
        self.tree.file(&format!("sys/class/scsi_device/{address}/device/state"), &format!("{state}\n"));
    }

    fn work_on(&mut self, target: u8, job: Job) -> Done {
        self.jobs.push((target, job.clone()));
        if let Some(why) = (self.fails)(&job) {
            return Done::Over(Some(why.into()));
        }
        match &job {
            Job::Ask(address) => {
                return Done::Asked(
                    self.arrays.get(&address.target).cloned().unwrap_or(Luns::Nothing("x".into())),
                );
            }
            Job::Who(address, was) => {
                return Done::Who(match self.says.get(&address.to_string()) {
                    Some(name) if name.is_empty() => Who::Nothing("busy".into()),
                    Some(name) if !was.names.contains(name) => Who::Other,
                    _ => Who::Same,
                });
            }
            Job::Scan(address, one) => {
                let Some(Luns::All(all)) = self.arrays.get(&address.target) else { return Done::Over(None) };
                let remotes = Glimpse::read(&self.tree.roots(), 8).unwrap().unwrap().remotes;
                let remote = remotes.iter().find(|remote| remote.target == Some(address.target)).unwrap();
                for lun in all.iter().map(|lun| fc::Lun::from_bytes(*lun)) {
                    let place = Address { lun, ..*address }.to_string();
                    let there = self.tree.path(&format!("sys/class/scsi_device/{place}")).exists();
                    if !there && (!one || lun == address.lun) {
                        self.unit(&remote.name, &place);
                    }
                }
            }
            Job::Delete(unit) => self.remove(&unit.address.to_string()),
            Job::Tune(remote, times) => {
                for (name, seconds) in times {
                    let file = format!("sys/class/fc_remote_ports/{remote}/{name}");
                    self.tree.file(&file, &format!("{seconds}\n"));
                }
            }
            // The kernel hears its names again.
            Job::Rescan(unit, _) => {
                let address = unit.address.to_string();
                let file = format!("sys/class/scsi_device/{address}/device/wwid");
                self.tree.file(&file, &format!("{}\n", self.name_of(&address)));
            }
        }
        Done::Over(None)
    }

    fn open(&mut self, opening: Opening) {
        let name = |address: &str| {
            let file = self.tree.path(&format!("sys/class/scsi_device/{address}/device/wwid"));
            fs::read_to_string(file).unwrap().trim().to_owned()
        };
        let address = opening.address.clone();
        let opened = match (self.busy.get(&address), opening.again) {
            (Some(why), _) => Opened::Failed(why.clone()),
            (None, Some(was)) if was.identity.names != [name(&address)] => Opened::Other,
            (None, Some(_)) => Opened::Again(Box::new(arrival(&address))),
            (None, None) => {
                let directory = self.tree.path(&format!("sys/class/scsi_device/{address}/device"));
                let mut device = device(&address, &name(&address));
                device.number = fs::metadata(directory).unwrap().ino();
                Opened::New(Box::new(device), Box::new(arrival(&address)))
            }
        };
        assert!(self.inventory.opened(opening.ticket, opened, self.now).is_none());
    }

    /// Looks once, and does everything that is to be done now.
    fn step(&mut self) {
        for _ in 0..20 {
            self.inventory.saw(Glimpse::read(&self.tree.roots(), self.host).unwrap().as_ref(), self.now);
            let orders = self.inventory.work(self.now);
            if orders.is_empty() {
                let next = self.inventory.next();
                assert!(next.is_none_or(|next| next > self.now), "it would be done at once, again and again");
                break;
            }
            for order in orders {
                match order {
                    Order::Say(news) => self.hear(news),
                    Order::Keep(numbers) => self.stored = numbers,
                    Order::Open(opening) if !self.opens => self.left_open.push(opening),
                    Order::Open(opening) => self.open(opening),
                    Order::Do(target, _) if self.hangs == Some(target) => {}
                    Order::Do(target, job) if (self.stuck)(&job) => self.kept.push((target, job)),
                    Order::Do(target, job) => {
                        let done = self.work_on(target, job.clone());
                        self.inventory.done(target, &job, done, self.now);
                    }
                }
            }
        }
    }

    /// So long, with a look every half second.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.now += Duration::from_millis(500);
            self.step();
        }
    }

    fn hear(&mut self, news: News) {
        self.heard.push(match news {
            News::View(view) => {
                let remotes =
                    view.remotes.iter().map(|(number, remote)| format!(" {number} {:?}", remote.state));
                format!("view{}", remotes.collect::<String>())
            }
            News::Heard => "heard".into(),
            News::Looked(number) => format!("looked {number}"),
            News::Warning(text) | News::Failed(text) => text,
            News::Unit(target, lun, news) => {
                let lun = fc::Lun::from_bytes(lun);
                match news {
                    UnitNews::Came(_, arrival, _) => format!("{target} {lun} came at {}", arrival.address()),
                    UnitNews::Back(arrival, _) => format!("{target} {lun} back at {}", arrival.address()),
                    other => format!("{target} {lun} {}", format!("{other:?}").to_lowercase()),
                }
            }
            // Not of an inventory.
            other => format!("{other:?}"),
        });
    }

    #[track_caller]
    fn heard(&mut self, wanted: &[&str]) {
        assert_eq!(std::mem::take(&mut self.heard), wanted);
    }
}

/// One target port with some units, of which the machine has heard.
fn with_units(numbers: &[u64]) -> World {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, numbers);
    // What is not there by then has gone.
    world.pass(31);
    world.heard.clear();
    world.jobs.clear();
    world
}

/// What the array has behind a LUN is another device, which the kernel does not see.
fn remap(world: &mut World, number: u64) {
    let address = format!("8:0:0:{number}");
    world.names.insert(address.clone(), "naa.6other".into());
    world.says.insert(address, "naa.6other".into());
}

fn uevent(world: &mut World, number: u64, reason: Reason) {
    let thing = Thing::Unit(format!("8:0:0:{number}").parse().unwrap());
    let change = Change::Device(Uevent { action: fc::watch::Action::Changed, thing, reason: Some(reason) });
    world.inventory.heard(&change, world.now);
}

const ANOTHER: &str =
    "LUN 5 of target 0 (8:0:0:5) has become another device at the array; the guest gets it as a new one";
