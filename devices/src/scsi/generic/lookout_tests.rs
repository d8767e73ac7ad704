use std::fs::{self, File};
use std::sync::Mutex;

use super::super::sysfs::tests::Tree;
use super::super::taken::Taken;
use super::*;

#[path = "lookout_waiting_tests.rs"]
mod waiting;

const RPORT: &str = "/devices/pci0/host2/rport-2:0-2";
const NAME: &str = "naa.600140512345678900000000000abcde\n";

/// What stands for the opening of nodes: what was tried, and what comes of it.
#[derive(Clone, Default)]
struct Door(Arc<Mutex<(Vec<String>, bool)>>);

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

impl Door {
    fn shut(&self, shut: bool) {
        self.0.lock().unwrap().1 = shut;
    }

    /// The nodes that were tried since the last time.
    fn tried(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    fn open(&self, sysfs: &Sysfs, wanted: &Wanted, device: &Device) -> Result<Arrival, GenericError> {
        let path = sysfs.node_of(device, wanted.driver).map(|path| path.display().to_string());
        let path = path.unwrap_or_default();
        self.0.lock().unwrap().0.push(path.clone());
        if path.is_empty() || self.0.lock().unwrap().1 {
            return Err(GenericError::Missing { path });
        }
        let found = Found {
            path,
            address: device.address.clone(),
            limits: HostLimits::default(),
            block: None,
            size: None,
            depth: 1,
        };
        Ok(Arrival::from_files(found, vec![(Part::Block, null())]).unwrap())
    }
}

/// All that is to be done now, with what threads do.
fn work(lookout: &mut Lookout, now: Instant) -> Vec<Report> {
    let mut reports = lookout.work(now);
    while lookout.is_opening() {
        std::thread::sleep(Duration::from_millis(1));
        reports.extend(lookout.work(now));
    }
    reports
}

fn disk(tree: &Tree, address: &str, node: &str, name: &str) -> String {
    let directory = format!("devices/pci0/host{0}/target{0}:0:0/{address}", &address[..1]);
    let dev = format!("block/{node}/dev");
    for (file, content) in
        [("vendor", "LIO-ORG \n"), ("model", "d0              \n"), ("wwid", name), (&dev, "8:160\n")]
    {
        tree.file(&format!("{directory}/{file}"), content);
    }
    if !tree.path().join("class/scsi_device").join(address).exists() {
        tree.link(&format!("class/scsi_device/{address}/device"), &directory);
    }
    format!("/{directory}")
}

fn remove(tree: &Tree, path: &str) {
    let address = path.rsplit('/').next().unwrap();
    fs::remove_dir_all(tree.path().join(&path[1..])).unwrap();
    fs::remove_dir_all(tree.path().join("class/scsi_device").join(address)).unwrap();
}

fn wanted(tree: &Tree, address: &str, driver: Driver) -> Wanted {
    let all = tree.sysfs().all();
    let device = all.iter().find(|device| device.address == address).unwrap();
    let options = GenericOptions {
        place: Place::Name("x".into()),
        shared: false,
        allow: Allow::NoManagement,
        bounce: false,
    };
    Wanted::new(device, driver, vec![Part::Block], &options).unwrap()
}

fn lookout(tree: &Tree, wanted: Vec<Wanted>) -> (Lookout, Door) {
    let door = Door::default();
    let opener = door.clone();
    let open = move |sysfs: &Sysfs, wanted: &Wanted, device: &Device| opener.open(sysfs, wanted, device);
    let udev = Udev::at(&tree.path().join("run/udev"));
    (Lookout::of(tree.sysfs(), udev, wanted, Arc::new(open)).unwrap(), door)
}

fn said(reports: Vec<Report>) -> Vec<String> {
    let line = |report: Report| match report {
        Report::Lost(index) => format!("lost {index}"),
        Report::Back(index, arrival) => {
            format!("back {index} {} {}", arrival.found.path, arrival.found.address)
        }
        Report::Failed(index, error) => format!("failed {index} {error}"),
        Report::Slow(index, address) => format!("slow {index} {address}"),
        Report::Queued(index, address) => format!("queued {index} {address}"),
    };
    reports.into_iter().map(line).collect()
}

#[test]
fn what_goes_is_not_taken_for_what_has_come() {
    let tree = Tree::new();
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let now = Instant::now();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    // What is below it goes first, and does not count.
    lookout.removed(&format!("{old}/block/sdc"), None, now);
    lookout.changed(&format!("{old}/block/sdc"), now);
    assert_eq!(said(work(&mut lookout, now)), [""; 0]);
    lookout.removed(&old, None, now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 0"]);
    assert_eq!((door.tried(), lookout.next()), (Vec::new(), None), "its directory goes last");
}

/// The whole way, with the directories as the kernel makes and removes them.
#[test]
fn devices_go_and_come_back() {
    let tree = Tree::new();
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let now = Instant::now();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    assert_eq!((said(work(&mut lookout, now)), lookout.next()), (vec!["lost 0".to_owned()], None));
    // Another disk, and no disk at all.
    let other = disk(&tree, "7:0:0:0", "sdx", "naa.6001405000000000\n");
    for path in [
        &*other,
        "/devices/pci0/nvme/nvme0",
        "/devices/../2:0:0:5",
        "devices/2:0:0:5",
        "",
        "/devices/9:9:9:9",
    ] {
        lookout.changed(path, now);
        lookout.removed(path, None, now);
    }
    assert_eq!((said(work(&mut lookout, now)), lookout.next()), (Vec::<String>::new(), None));
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    lookout.changed(&format!("{new}/block/sdk"), now);
    lookout.changed(&format!("{new}/block/sdk"), now);
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdk 7:0:0:1"]);
    assert_eq!(door.tried(), ["/dev/sdk"]);
    lookout.changed(&new, now);
    assert_eq!((said(work(&mut lookout, now)), lookout.next()), (Vec::<String>::new(), None), "it is there");
}

/// The events of a return were all lost but one, or come before that of the removal.
#[test]
fn what_is_there_counts_more_than_events() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let (mut lookout, _door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let now = Instant::now();
    remove(&tree, &old);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    lookout.changed(&new, now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 0", "back 0 /dev/sdk 7:0:0:1"]);
    lookout.removed(&old, None, now);
    assert_eq!(said(work(&mut lookout, now)), [""; 0], "late");
    // The same place again, with everything lost.
    fs::rename(tree.path().join(&new[1..]), tree.path().join("devices/pci0/aside")).unwrap();
    disk(&tree, "7:0:0:1", "sdl", NAME);
    lookout.look(now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 0", "back 0 /dev/sdl 7:0:0:1"]);
    lookout.look(now);
    assert_eq!(said(work(&mut lookout, now)), [""; 0]);
}

/// The other path to the disk is there all the time, and is taken when this one goes.
#[test]
fn each_path_is_taken_for_itself() {
    let tree = Tree::new();
    let other = disk(&tree, "7:0:0:1", "sdk", NAME);
    let both = vec![wanted(&tree, "7:0:0:1", Driver::Block), wanted(&tree, "2:0:0:5", Driver::Block)];
    let (mut lookout, door) = lookout(&tree, both);
    let (now, old) = (Instant::now(), format!("{RPORT}/target2:0:0/2:0:0:5"));
    for path in [&old, &other] {
        remove(&tree, path);
        lookout.removed(path, None, now);
    }
    assert_eq!(said(work(&mut lookout, now)), ["lost 1", "lost 0"]);
    let new = disk(&tree, "2:0:0:5", "sdm", NAME);
    lookout.changed(&new, now);
    assert_eq!(said(work(&mut lookout, now)), ["back 1 /dev/sdm 2:0:0:5"]);
    let third = disk(&tree, "8:0:0:0", "sdn", NAME);
    lookout.changed(&third, now);
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdn 8:0:0:0"]);
    door.tried();
    let fourth = disk(&tree, "9:0:0:0", "sdo", NAME);
    lookout.changed(&fourth, now);
    assert_eq!(
        (said(work(&mut lookout, now)), door.tried()),
        (Vec::<String>::new(), Vec::new()),
        "nobody lacks it"
    );
    remove(&tree, &new);
    lookout.removed(&new, None, now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 1", "back 1 /dev/sdo 9:0:0:0"]);
}

/// Both paths of a disk come back elsewhere before the first is open.
#[test]
fn two_units_of_one_disk_have_both_when_both_paths_come_at_once() {
    let tree = Tree::new();
    let other = disk(&tree, "7:0:0:1", "sdk", NAME);
    let both = vec![wanted(&tree, "7:0:0:1", Driver::Block), wanted(&tree, "2:0:0:5", Driver::Block)];
    let (mut lookout, _door) = lookout(&tree, both);
    let (now, old) = (Instant::now(), format!("{RPORT}/target2:0:0/2:0:0:5"));
    for path in [&old, &other] {
        remove(&tree, path);
        lookout.removed(path, None, now);
    }
    assert_eq!(said(work(&mut lookout, now)), ["lost 1", "lost 0"]);
    for (address, name) in [("8:0:0:0", "sdm"), ("9:0:0:0", "sdn")] {
        let new = disk(&tree, address, name, NAME);
        lookout.changed(&new, now);
    }
    let mut back = said(work(&mut lookout, now));
    back.sort();
    assert_eq!(back.len(), 2, "{back:?}");
    assert!(back[0].starts_with("back 0 /dev/sd") && back[1].starts_with("back 1 /dev/sd"), "{back:?}");
    // One path comes twice as the other does not: it is not opened for both.
    assert_eq!(said(work(&mut lookout, now)), [""; 0]);
}

/// It goes while its node is waited for.
#[test]
fn what_goes_again_is_waited_for_no_more() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let now = Instant::now();
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    door.shut(true);
    lookout.changed(&new, now);
    said(work(&mut lookout, now));
    remove(&tree, &new);
    lookout.removed(&new, None, now);
    let later = lookout.next().unwrap();
    assert_eq!((said(work(&mut lookout, later)), lookout.next()), (Vec::<String>::new(), None));
}

/// A device of which the kernel does not come back from opening it, and another that is there.
#[test]
fn a_node_that_does_not_open_holds_up_no_other() {
    const OTHER: &str = "naa.5000000000000018\n";
    let tree = Tree::new();
    let (hangs, comes) =
        (disk(&tree, "7:0:0:1", "sdk", OTHER), disk(&tree, "8:0:0:0", "sdm", "naa.5000000000000017\n"));
    let both = vec![wanted(&tree, "7:0:0:1", Driver::Block), wanted(&tree, "8:0:0:0", Driver::Block)];
    let (door, gate) = (Door::default(), Arc::new(Mutex::new(())));
    let (opener, shut) = (door.clone(), gate.clone());
    let open = move |sysfs: &Sysfs, wanted: &Wanted, device: &Device| {
        let _gate = (device.address == "7:0:0:2").then(|| shut.lock());
        opener.open(sysfs, wanted, device)
    };
    let udev = Udev::at(&tree.path().join("run/udev"));
    let mut lookout = Lookout::of(tree.sysfs(), udev, both, Arc::new(open)).unwrap();
    let now = Instant::now();
    for path in [&hangs, &comes] {
        remove(&tree, path);
        lookout.removed(path, None, now);
    }
    let hangs = disk(&tree, "7:0:0:2", "sdl", OTHER);
    let comes = disk(&tree, "8:0:0:1", "sdn", "naa.5000000000000017\n");
    assert_eq!(said(lookout.work(now)), ["lost 0", "lost 1"]);
    let closed = gate.lock().unwrap();
    lookout.changed(&hangs, now);
    lookout.changed(&comes, now);
    let mut all = Vec::new();
    let until = Instant::now() + Duration::from_secs(10);
    while all.is_empty() {
        all.extend(said(lookout.work(now)));
        assert!(Instant::now() < until, "it waits for the other");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(all, ["back 1 /dev/sdn 8:0:0:1"]);
    // It is not tried twice at a time, and the log has a line.
    lookout.changed(&hangs, now);
    assert_eq!((said(lookout.work(now)), lookout.next()), (vec![], Some(now + PATIENCE)));
    assert_eq!(said(lookout.work(now + PATIENCE)), ["slow 0 7:0:0:2"]);
    assert_eq!((said(lookout.work(now + PATIENCE)), lookout.next()), (vec![], None));
    drop(closed);
    assert_eq!(said(work(&mut lookout, now + PATIENCE)), ["back 0 /dev/sdl 7:0:0:2"]);
    assert_eq!(door.tried(), ["/dev/sdn", "/dev/sdl"]);
}

/// It has gone again while the kernel opened it.
#[test]
fn what_opens_too_late_is_closed() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let gate = Arc::new(Mutex::new(()));
    let (shut, door) = (gate.clone(), Door::default());
    let open = move |sysfs: &Sysfs, wanted: &Wanted, device: &Device| {
        drop(shut.lock());
        door.open(sysfs, wanted, device)
    };
    let udev = Udev::at(&tree.path().join("run/udev"));
    let all = vec![wanted(&tree, "2:0:0:5", Driver::Block)];
    let mut lookout = Lookout::of(tree.sysfs(), udev, all, Arc::new(open)).unwrap();
    let now = Instant::now();
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    let closed = gate.lock().unwrap();
    let new = disk(&tree, "9:1:0:0", "sdk", NAME);
    lookout.changed(&new, now);
    assert_eq!(said(lookout.work(now)), ["lost 0"]);
    remove(&tree, &new);
    let again = disk(&tree, "9:1:0:0", "sdq", NAME);
    lookout.changed(&again, now);
    drop(closed);
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdq 9:1:0:0"]);
}

/// The whole of what opens it, with a block device that takes no SCSI commands.
#[test]
fn a_node_is_opened_as_at_the_start() {
    let tree = Tree::new();
    let wanted = wanted(&tree, "2:0:0:5", Driver::Block);
    let device = tree.sysfs().all().into_iter().find(|device| device.address == "2:0:0:5").unwrap();
    let said = open(&tree.sysfs(), &wanted, &device).unwrap_err().to_string();
    assert!(said.starts_with("/dev/sdc"), "{said}");
    let bsg = Wanted { driver: Driver::Bsg, ..wanted };
    let gone = Device { directory: "/nowhere".into(), ..device };
    let said = open(&tree.sysfs(), &bsg, &gone).unwrap_err().to_string();
    assert!(said.contains("at 2:0:0:5 has no node"), "{said}");
}

/// One that hangs while it is opened may have gone, and another come to its address. The tree takes /dev/zero for a node of sg.
#[test]
fn an_address_is_nobodys_while_a_node_is_opened_for_another_process() {
    let tree = Tree::new();
    let directory = "devices/pci0/host9/target96:0:0/96:0:0:7";
    tree.node(&format!("{directory}/scsi_generic/zero"), "char", "1:5");
    tree.link("class/scsi_device/96:0:0:7/device", directory);
    let (wanted, _hangs) = (wanted(&tree, "96:0:0:7", Driver::Sg), Taken::new("96:0:0:7").unwrap());
    let device = tree.sysfs().all().into_iter().find(|device| device.address == "96:0:0:7").unwrap();
    let said = open(&tree.sysfs(), &wanted, &device).unwrap_err().to_string();
    assert!(said.contains("whose driver takes no commands (SG_IO)"), "{said}");
}

#[test]
fn files_come_as_they_went() {
    let found = Found {
        path: "/dev/sg1".into(),
        address: "11:0:0:0".into(),
        limits: HostLimits::default(),
        block: Some(512),
        size: Some(4096),
        depth: 1,
    };
    let of = |parts: &[Part]| {
        let files = parts.iter().map(|part| (*part, null())).collect();
        let (again, files) = Arrival::from_files(found.clone(), files)?.into_files();
        assert_eq!(again, found);
        Some(files.into_iter().map(|(part, _)| part).collect::<Vec<_>>())
    };
    use Part::{Block, Bsg, Claim, Ring, Sg};
    assert_eq!((of(&[]), of(&[Claim])), (None, None));
    assert_eq!(of(&[Ring]), None);
    for parts in [&[Block, Sg][..], &[Bsg, Sg, Claim], &[Sg], &[Sg, Claim], &[Block], &[Block, Sg, Ring]] {
        assert_eq!(of(parts).unwrap(), parts);
    }
    assert_eq!(of(&[Claim, Sg, Bsg]).unwrap(), [Bsg, Sg, Claim]);
}
