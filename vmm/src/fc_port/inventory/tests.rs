mod doubts;

use std::fs;
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
    /// Jobs of this target never end.
    hangs: Option<u8>,
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
            inventory,
            now,
            arrays: BTreeMap::new(),
            names: BTreeMap::new(),
            says: BTreeMap::new(),
            busy: BTreeMap::new(),
            heard: Vec::new(),
            stored: Default::default(),
            jobs: Vec::new(),
            hangs: None,
        }
    }

    /// A machine that starts anew.
    fn restart(&mut self, wanted: Wanted) {
        let names = Names { wwnn: 1, wwpn: 2 };
        self.inventory = Inventory::new(wanted, names, self.stored.clone(), self.now);
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
        let number = address.rsplit(':').next().unwrap();
        let name = self.names.get(address).cloned().unwrap_or_else(|| format!("naa.6{number:0>15}"));
        self.tree.file(&format!("sys/{at}/wwid"), &format!("{name}\n"));
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
            Job::Rescan(..) => {}
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
                Opened::New(Box::new(device(&address, &name(&address))), Box::new(arrival(&address)))
            }
        };
        assert!(self.inventory.opened(opening.ticket, opened, self.now).is_none());
    }

    /// Looks once, and does everything that is to be done now.
    fn step(&mut self) {
        for _ in 0..20 {
            self.inventory.saw(Glimpse::read(&self.tree.roots(), 8).unwrap().as_ref(), self.now);
            let orders = self.inventory.work(self.now);
            if orders.is_empty() {
                break;
            }
            for order in orders {
                match order {
                    Order::Say(news) => self.hear(news),
                    Order::Keep(numbers) => self.stored = numbers,
                    Order::Open(opening) => self.open(opening),
                    Order::Do(target, _) if self.hangs == Some(target) => {}
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
            News::Looked(number) => format!("looked {number}"),
            News::Warning(text) | News::Failed(text) => text,
            News::Unit(target, lun, news) => {
                let lun = fc::Lun::from_bytes(lun);
                match news {
                    UnitNews::Came(_, arrival) => format!("{target} {lun} came at {}", arrival.address()),
                    UnitNews::Back(arrival) => format!("{target} {lun} back at {}", arrival.address()),
                    other => format!("{target} {lun} {}", format!("{other:?}").to_lowercase()),
                }
            }
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
    world.pass(3);
    world.heard.clear();
    world.jobs.clear();
    world
}

#[test]
fn ports_and_units_come() {
    let mut world = World::new(wanted());
    world.step();
    world.heard(&["view"]);
    world.target("rport-8:0-0", FIRST, 0, &[0, 5, 0x4201]);
    world.target("rport-8:0-1", SECOND, 1, &[27]);
    world.tree.remote(HOST, "rport-8:0-2", ("0x2100000000000a01", "0x2000000000000a01"), "FCP Initiator", -1);
    world.pass(4);
    world.heard(&[
        "view 0 Online 1 Online",
        "0 0 came at 8:0:0:0",
        "0 5 came at 8:0:0:5",
        "0 513 came at 8:0:0:16897",
        "1 27 came at 8:0:1:27",
        "looked 0",
    ]);
    let first = |name: &str| world.jobs.iter().position(|(_, job)| format!("{job:?}").starts_with(name));
    let tuned = world.jobs[first("Tune").unwrap()].1.clone();
    assert_eq!(tuned, Job::Tune("rport-8:0-0".into(), vec![("fast_io_fail_tmo", 5), ("dev_loss_tmo", 30)]));
    assert!(first("Ask").is_some() && first("Scan").is_none() && first("Delete").is_none());
    assert_eq!(world.jobs.iter().filter(|(_, job)| matches!(job, Job::Tune(..))).count(), 2, "once each");
    // Asked again and again, and nothing comes of it.
    world.jobs.clear();
    world.pass(6);
    world.heard(&[]);
    let asks = world.jobs.iter().filter(|(target, job)| *target == 1 && matches!(job, Job::Ask(..))).count();
    assert_eq!((asks, world.jobs.len()), (4, 8));
}

#[test]
fn what_is_masked_otherwise_comes_and_goes() {
    let mut world = with_units(&[0, 5]);
    world.arrays.insert(0, luns(&[0, 5, 27]));
    world.pass(2);
    world.heard(&["0 27 came at 8:0:0:27"]);
    assert!(world.jobs.iter().any(|(_, job)| *job == Job::Scan("8:0:0:27".parse().unwrap(), true)));
    world.arrays.insert(0, luns(&[0, 27]));
    world.pass(4);
    world.heard(&["0 5 gone"]);
    assert!(!world.tree.path("sys/class/scsi_device/8:0:0:5").exists());
    world.pass(4);
    world.heard(&[]);
    // All of them: the unit that is asked says that it is none.
    world.arrays.insert(0, Luns::NoUnit);
    world.pass(6);
    world.heard(&["0 0 gone", "0 27 gone"]);
    // The kernel looks by itself, and the first that comes is found by that.
    world.arrays.insert(0, luns(&[9]));
    world.pass(4);
    world.heard(&["0 9 came at 8:0:0:9"]);
}

#[test]
fn an_answer_that_is_none_or_wrong_once_takes_nothing_away() {
    let mut world = with_units(&[0, 5]);
    world.arrays.insert(0, Luns::Nothing("busy".into()));
    world.pass(10);
    world.arrays.insert(0, luns(&[0]));
    world.jobs.clear();
    while world.jobs.is_empty() {
        world.now += Duration::from_millis(100);
        world.step();
    }
    world.arrays.insert(0, luns(&[0, 5]));
    world.pass(10);
    world.heard(&[]);
    // What the kernel does not take is tried now and then.
    world.arrays.insert(0, luns(&[0, 5, 7]));
    world.hangs = None;
    world.jobs.clear();
    for _ in 0..80 {
        world.now += Duration::from_millis(500);
        world.step();
        world.remove("8:0:0:7");
        world.inventory.units.remove(&(0, lun(7)));
    }
    let scans = world.jobs.iter().filter(|(_, job)| matches!(job, Job::Scan(..))).count();
    assert_eq!(scans, 2);
}

#[test]
fn a_port_that_is_lost_and_back_has_its_units_again() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Blocked");
    world.step();
    world.heard(&["view 0 Blocked"]);
    world.jobs.clear();
    world.pass(4);
    world.heard(&[]);
    assert!(world.jobs.is_empty(), "nothing waits for it");
    world.pass(1);
    world.heard(&["view 0 Lost"]);
    // Within dev_loss_tmo: the same devices.
    world.remote_state("rport-8:0-0", "Online");
    world.pass(2);
    world.heard(&["view 0 Blocked", "view 0 Online"]);
    // The kernel fails commands sooner than was thought.
    world.remote_state("rport-8:0-0", "Blocked");
    world.unit_state("8:0:0:5", "transport-offline");
    world.step();
    world.heard(&["view 0 Lost"]);
    // And then it forgets the units.
    world.remote_state("rport-8:0-0", "Not Present");
    world.tree.file("sys/class/fc_remote_ports/rport-8:0-0/node_name", "0xffffffffffffffff\n");
    world.tree.file("sys/class/fc_remote_ports/rport-8:0-0/roles", "unknown\n");
    for unit in ["8:0:0:0", "8:0:0:5"] {
        world.remove(unit);
    }
    world.pass(60);
    world.heard(&["0 0 lost", "0 5 lost"]);
    // Another remote port of the kernel's, with another target, is the same to the guest.
    fs::remove_file(world.tree.path("sys/class/fc_remote_ports/rport-8:0-0")).unwrap();
    world.target("rport-8:0-7", FIRST, 3, &[0, 5]);
    world.pass(3);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:3:0", "0 5 back at 8:0:3:5", "view 0 Online"]);
}

#[test]
fn what_is_another_device_than_before_is_another_unit() {
    let mut world = with_units(&[0, 5, 6]);
    // While it was away.
    world.remote_state("rport-8:0-0", "Not Present");
    ["8:0:0:0", "8:0:0:5", "8:0:0:6"].iter().for_each(|unit| world.remove(unit));
    world.step();
    world.heard(&["view 0 Lost", "0 0 lost", "0 5 lost", "0 6 lost"]);
    world.names.insert("8:0:1:5".into(), "naa.6other".into());
    fs::remove_file(world.tree.path("sys/class/fc_remote_ports/rport-8:0-0")).unwrap();
    // One is not there any more, too.
    world.target("rport-8:0-1", FIRST, 1, &[0, 5]);
    world.pass(32);
    world.heard(&[
        "view 0 Blocked",
        "0 0 back at 8:0:1:0",
        "0 5 gone",
        "0 5 came at 8:0:1:5",
        "view 0 Online",
        "0 6 gone",
    ]);
    // Under the machine's hands.
    world.tree.file("sys/class/scsi_device/8:0:1:0/device/wwid", "naa.6third\n");
    world.pass(1);
    world.heard(&["0 0 lost", "0 0 gone", "0 0 came at 8:0:1:0"]);
}

#[test]
fn a_target_without_units_that_is_back_has_none() {
    let mut world = with_units(&[0]);
    world.remote_state("rport-8:0-0", "Not Present");
    world.remove("8:0:0:0");
    world.step();
    world.heard.clear();
    world.arrays.insert(0, luns(&[]));
    world.remote_state("rport-8:0-0", "Online");
    world.pass(29);
    world.heard(&["view 0 Blocked", "view 0 Online"]);
    world.pass(5);
    world.heard(&["0 0 gone"]);
}

#[test]
fn the_machine_sees_what_it_shall() {
    let mut world =
        World::new(Wanted { luns: vec![(5, 20), (513, 513), (0x4010_0000_0000_0000, u64::MAX)], ..wanted() });
    // 0xc101: a well known unit.
    world.target("rport-8:0-0", FIRST, 0, &[0, 5, 21, 0x4201, 0x400a_4010, 0xc101, 0x0001_0000_0000_4010]);
    world.tree.file("sys/class/scsi_device/8:0:0:5/device/type", "1\n");
    world.pass(4);
    world.heard(&[
        "LUN 0x4010000000000001 has four levels, of which a guest can be told three; it is left out",
        "view 0 Online",
        "0 5 came at 8:0:0:5",
        "0 0x4010400a00000000 came at 8:0:0:1074413584",
        "0 513 came at 8:0:0:16897",
        "looked 0",
    ]);
    world.arrays.insert(0, luns(&[0, 5, 6, 22, 0x4201, 0x400a_4010]));
    world.jobs.clear();
    world.pass(3);
    world.heard(&["0 6 came at 8:0:0:6"]);
    let scans: Vec<_> = world.jobs.iter().filter(|(_, job)| matches!(job, Job::Scan(..))).collect();
    assert_eq!(scans.len(), 1, "{scans:?}");
}

#[test]
fn numbers_of_targets_stay_over_a_restart() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", SECOND, 0, &[1]);
    world.pass(2);
    world.target("rport-8:0-1", FIRST, 1, &[2]);
    world.pass(2);
    world.heard(&[
        "view 0 Online",
        "0 1 came at 8:0:0:1",
        "looked 0",
        "view 0 Online 1 Online",
        "1 2 came at 8:0:1:2",
    ]);
    // The kernel finds them in another order now.
    let mut next = World::new(wanted());
    next.stored = world.stored;
    next.restart(wanted());
    next.target("rport-8:0-0", FIRST, 0, &[2]);
    next.step();
    next.heard(&["view 1 Online", "1 2 came at 8:0:0:2"]);
    next.target("rport-8:0-1", SECOND, 1, &[1]);
    next.step();
    next.heard(&["view 0 Online 1 Online", "0 1 came at 8:0:1:1"]);
}

#[test]
fn more_ports_than_there_are_numbers_are_said() {
    let mut world = World::new(wanted());
    for number in 0..258 {
        let wwpn = format!("0x50060160446{number:05x}");
        world.tree.remote(HOST, &format!("rport-8:0-{number}"), (&wwpn, FIRST.1), "FCP Target", number);
    }
    world.step();
    assert_eq!(world.inventory.targets.len(), 256);
    let said: Vec<_> = world.heard.iter().filter(|line| !line.starts_with("view")).cloned().collect();
    assert_eq!(
        said,
        [
            "there are more than 256 target ports, and the guest does not see the others; zone fewer to this port"
        ]
    );
}

#[test]
fn a_unit_that_is_in_use_costs_no_other() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[0, 5]);
    world.busy.insert("8:0:0:0".into(), "/dev/sdc is in use: part of dm-0 (mpatha)".into());
    world.pass(30);
    world.heard(&[
        "view 0 Online",
        "LUN 0 of target 0 (8:0:0:0) is not shown to the guest: /dev/sdc is in use: part of dm-0 (mpatha)",
        "0 5 came at 8:0:0:5",
        "looked 0",
    ]);
    world.busy.clear();
    world.pass(16);
    world.heard(&["0 0 came at 8:0:0:0"]);
}

#[test]
fn a_look_is_over_when_all_was_told_or_it_takes_too_long() {
    let mut world = with_units(&[0]);
    world.arrays.insert(0, luns(&[0, 1]));
    world.inventory.look(7, world.now);
    world.step();
    world.heard(&["0 1 came at 8:0:0:1", "looked 7"]);
    // A port that does not answer keeps a guest waiting for five seconds, and no other port.
    world.target("rport-8:0-1", SECOND, 1, &[3]);
    world.pass(2);
    world.heard.clear();
    world.hangs = Some(0);
    world.inventory.look(8, world.now);
    world.arrays.insert(1, luns(&[3, 4]));
    world.pass(4);
    world.heard(&["1 4 came at 8:0:1:4"]);
    world.pass(1);
    world.heard(&["looked 8"]);
}

#[test]
fn the_first_look_waits_for_targets_but_not_for_ever() {
    let mut world = World::new(wanted());
    world.pass(9);
    world.heard(&["view"]);
    world.pass(1);
    world.heard(&[
        "its port 0000000000000002 sees no target port on the fabric; look at the zoning of that WWPN, and whether the array's ports are \
         online",
        "looked 0",
    ]);
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[0]);
    world.hangs = Some(0);
    world.pass(29);
    world.heard(&["view 0 Online", "0 0 came at 8:0:0:0"]);
    world.pass(1);
    world.heard(&["looked 0"]);
}

#[test]
fn sizes_and_lists_that_change_are_heard_of() {
    let mut world = with_units(&[0, 5]);
    let event = |reason| {
        Change::Device(Uevent {
            action: fc::watch::Action::Changed,
            thing: Thing::Unit("8:0:0:5".parse().unwrap()),
            reason: Some(reason),
        })
    };
    world.inventory.heard(&event(Reason::Capacity), world.now);
    world.step();
    world.heard(&["0 5 resized"]);
    assert!(matches!(&world.jobs[..], [(0, Job::Rescan(unit, true))] if unit.address.lun.0 == 5));
    world.pass(2);
    world.arrays.insert(0, luns(&[0, 5, 6]));
    world.inventory.heard(&event(Reason::Luns), world.now);
    world.step();
    world.heard(&["0 6 came at 8:0:0:6"]);
    world.inventory.heard(&event(Reason::Inquiry), world.now);
    world.step();
    world.heard(&["0 5 lost", "0 5 back at 8:0:0:5"]);
}

#[test]
fn a_tree_that_says_nothing_loses_ports_and_nothing_else() {
    let mut world = with_units(&[0]);
    world.inventory.saw(None, world.now);
    world.inventory.work(world.now).into_iter().for_each(|order| match order {
        Order::Say(news) => world.heard.push(format!("{news:?}").split('(').next().unwrap().to_owned()),
        other => panic!("{other:?}"),
    });
    world.heard(&["View", "Warning", "Unit"]);
    world.pass(1);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:0:0", "view 0 Online"]);
    world.tree.file("sys/class/fc_remote_ports/rport-8:0-0/port_name", "nonsense\n");
    world.step();
    world.heard(&["view 0 Lost", "0 0 lost"]);
}

#[test]
fn results_that_nobody_waits_for_are_given_back() {
    let mut world = World::new(wanted());
    assert!(world.inventory.opened(77, Opened::Later, world.now).is_some());
    world.inventory.done(3, &Job::Ask("8:0:0:0".parse().unwrap()), Done::Over(None), world.now);
    assert!(world.inventory.work(world.now).is_empty());
}

#[test]
fn the_operator_hears_of_ports_without_luns_and_of_luns_that_the_host_does_not_take() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[]);
    world.pass(4);
    world.heard(&[
        "view 0 Online",
        "its port 0000000000000002 sees 1 target port and no LUN; map LUNs to that WWPN at the array",
        "looked 0",
    ]);
    for number in [300, 301] {
        let job = Job::Scan(format!("8:0:0:{number}").parse().unwrap(), true);
        world.inventory.done(0, &job, Done::Over(Some("above the limit".into())), world.now);
    }
    world.step();
    world.heard(&["the guest does not get LUN 300 of target 0: above the limit"]);
}
