use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::super::sysfs::tests::Tree;
use super::*;
use crate::storage::{CacheMode, RawImage, RawOptions, Sharing};
use crate::testing::{LoopDevice, answer_system_call, answer_system_call_with, temp_file};

fn refused(place: Place) -> String {
    let options = GenericOptions { place, shared: false, allow: Allow::All, bounce: false };
    Node::open(&Tree::new().sysfs(), &options).expect_err("it opened").to_string()
}

#[test]
fn what_cannot_be_is_said_in_one_line_with_what_to_do() {
    let file = temp_file();
    let path = |path: &str| refused(Place::Path(path.into()));
    let name = |name: &str| refused(Place::Name(name.into()));
    let plain = file.path().display().to_string();
    for (said, wanted) in [
        (path("/dev/sg4711"), "/dev/sg4711: there is no such device"),
        (path(&plain), "is no device, which takes no SCSI commands; set type = \"disk\""),
        (path("/"), "/ is a directory"),
        (path("/dev/fdset/3"), "/dev/fdset/3: a device of the host is not taken as a descriptor"),
        (path("/dev/null"), "/dev/null is no SCSI device"),
        (name("0x5000000000000001"), "no SCSI device of the host is called \"0x5000000000000001\""),
    ] {
        assert!(said.contains(wanted) && !said.contains('\n'), "{said}");
    }
    assert!(!Taken::is_taken("2:0:0:5"));
}

/// A block device of the host that the tree takes for a SCSI disk.
#[test]
fn what_is_in_use_is_refused_and_what_is_refused_is_let_go_of() {
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let (tree, number) = (Tree::new(), fs::metadata(device.path()).unwrap().rdev());
    let number = format!("{}:{}", libc::major(number), libc::minor(number));
    tree.node("devices/pci0/host9/target9:0:0/9:0:0:0/block/sdz", "block", &number);
    let refused = |shared| {
        let place = Place::Path(device.path().into());
        let options = GenericOptions { place, shared, allow: Allow::NoManagement, bounce: false };
        Node::open(&tree.sysfs(), &options).expect_err("it opened").to_string()
    };
    let exclusive = || OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path()).unwrap();
    let path = device.path().display();
    let no_scsi = "whose driver takes no commands (SG_IO), which takes no SCSI commands; set type = \"disk\"";
    let busy = format!("{path} is in use: another program has it for itself; free it, or set shared = true");
    let host = exclusive();
    assert!(refused(false).starts_with(&busy), "{}", refused(false));
    assert!(refused(true).contains(no_scsi), "others may have it: {}", refused(true));
    drop(host);
    assert!(refused(false).contains(no_scsi), "{}", refused(false));
    // Nothing is kept of what was refused.
    drop(exclusive());
    let other = Taken::new("9:0:0:0").unwrap();
    let twice = format!("{path} is the device 9:0:0:0, which another unit of this machine is already");
    assert!(refused(true).starts_with(&twice), "{}", refused(true));
    drop(other);
}

#[test]
fn a_node_that_another_has_open_is_refused() {
    std::thread::spawn(|| {
        answer_system_call(libc::SYS_openat, libc::EBUSY);
        let busy = "/dev/null is in use: another program has it open; free it, or set shared = true";
        let said = open_node(Path::new("/dev/null"), true, true).unwrap_err().to_string();
        assert!(said.starts_with(busy), "{said}");
        let said = leave_to_its_driver(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(said.starts_with(busy), "{said}");
    })
    .join()
    .unwrap();
    leave_to_its_driver(Path::new("/dev/null")).unwrap();
    leave_to_its_driver(Path::new("/dev/no-tape")).unwrap();
}

/// The kernel filters the commands of who has a node of sg open for reading: that is the last resort.
#[test]
fn a_node_of_sg_is_opened_for_writing_whatever_the_guest_may() {
    let options = |allow| GenericOptions {
        place: Place::Path("/dev/null".into()),
        shared: false,
        allow,
        bounce: false,
    };
    let writes = |file: &File| {
        // SAFETY: it takes no memory.
        #[allow(unsafe_code)]
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        flags & libc::O_ACCMODE == libc::O_RDWR
    };
    let open = |driver, allow| open_as(Path::new("/dev/null"), driver, &options(allow));
    for (driver, wanted) in [(Driver::Sg, true), (Driver::Bsg, true), (Driver::Block, false)] {
        assert_eq!(writes(&open(driver, Allow::ReadOnly).unwrap()), wanted, "{driver:?}");
        assert!(writes(&open(driver, Allow::NoManagement).unwrap()), "{driver:?}");
    }
    std::thread::spawn(move || {
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_EXCL | libc::O_CLOEXEC;
        answer_system_call_with(libc::SYS_openat, 2, flags as u32, libc::EACCES);
        let open = |allow| open_as(Path::new("/dev/null"), Driver::Sg, &options(allow));
        assert!(!writes(&open(Allow::ReadOnly).unwrap()));
        assert!(matches!(open(Allow::All), Err(GenericError::Forbidden { .. })));
    })
    .join()
    .unwrap();
}

#[test]
fn two_paths_to_one_disk_are_not_chosen_from() {
    let tree = Tree::new();
    tree.file("devices/pci0/host3/target3:0:0/3:0:0:0/wwid", "naa.600140512345678900000000000abcde\n");
    let said =
        find(&tree.sysfs(), &Place::Name("600140512345678900000000000abcde".into())).unwrap_err().to_string();
    assert!(said.contains("2:0:0:5, 3:0:0:0"), "{said}");
}

#[test]
fn locks_keep_others_away() {
    let file = temp_file();
    file.as_file().set_len(4096).unwrap();
    let open = || File::open(file.path()).unwrap();
    let (first, second) = (open(), open());
    lock(file.path(), &first, true).unwrap();
    lock(file.path(), &second, true).unwrap();
    drop(second);
    let said = lock(file.path(), &open(), false).unwrap_err().to_string();
    assert!(
        said.contains("another virtual machine or program has locked it; ") && said.contains("shared = true"),
        "{said}"
    );
    drop(first);
    let alone = open();
    lock(file.path(), &alone, false).unwrap();
    lock(file.path(), &open(), true).unwrap_err();
    // udev handles no event of a disk that it cannot lock like this, and `udevadm settle` waits for it.
    open().try_lock_shared().unwrap();
    // Whoever uses it as an image keeps off as well.
    let image = |sharing| {
        let cache = CacheMode::Writeback;
        RawImage::open(&RawOptions { path: file.path().into(), read_only: true, cache, sharing })
    };
    assert!(image(Sharing::Exclusive).err().unwrap().to_string().contains("use the same image"));
    drop(alone);
    let image = image(Sharing::Exclusive).unwrap();
    lock(file.path(), &open(), false).unwrap_err();
    drop(image);
    lock(file.path(), &open(), false).unwrap();
}

#[test]
fn tapes_go_by_sg_where_there_is_one() {
    let open = || File::open("/dev/null").unwrap();
    let parts = |driver, sequential, there: &[Driver]| {
        let beside = |driver| Ok(there.contains(&driver).then(open));
        arrange(open(), driver, sequential, beside).unwrap().parts()
    };
    let all = [Driver::Block, Driver::Sg, Driver::Bsg];
    assert_eq!(parts(Driver::Sg, true, &all), [Part::Sg]);
    assert_eq!(parts(Driver::Bsg, true, &all), [Part::Sg]);
    assert_eq!(parts(Driver::Bsg, true, &[]), [Part::Bsg]);
    assert_eq!(parts(Driver::Sg, false, &all), [Part::Block, Part::Sg]);
    assert_eq!(parts(Driver::Sg, false, &[Driver::Bsg]), [Part::Bsg, Part::Sg]);
    assert_eq!(parts(Driver::Bsg, false, &all), [Part::Bsg, Part::Sg]);
    assert_eq!(parts(Driver::Block, false, &all), [Part::Block, Part::Sg]);
}

/// Of one machine that has a device by one node, another hears whichever it takes. The tree takes /dev/full for a node of sg.
#[test]
fn locks_are_of_all_nodes() {
    let (tree, full) = (Tree::new(), Path::new("/dev/full"));
    tree.node("devices/pci0/host9/target9:0:0/9:0:0:0/scsi_generic/full", "char", "1:7");
    let (device, ..) = look(&tree.sysfs(), full).unwrap();
    let beside = |shared| {
        let place = Place::Path("/dev/sdz".into());
        let options = GenericOptions { place, shared, allow: Allow::All, bounce: false };
        sibling(&tree.sysfs(), &device, Driver::Sg, &options)
    };
    let other = File::open(full).unwrap();
    lock(full, &other, false).unwrap();
    for shared in [false, true] {
        let said = beside(shared).expect_err("it is another's").to_string();
        assert!(said.starts_with("/dev/full is in use: another virtual machine"), "{said}");
    }
    drop(other);
    assert!(beside(true).unwrap().is_none(), "it takes no commands");
}

#[test]
fn a_group_has_a_name() {
    let groups = "root:x:0:\ndisk:x:6:backup,vmm\nbroken\ntape:x:26:\n";
    assert_eq!(group_named(groups, 6), Some("disk".into()));
    assert_eq!(group_named(groups, 7), None);
    let file = temp_file();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o000)).unwrap();
    let said = failed(file.path(), io::Error::from_raw_os_error(libc::EACCES)).to_string();
    assert!(said.contains("group") && said.contains("CAP_DAC_OVERRIDE"), "{said}");
    // It is no use to be of root's group.
    assert_eq!(remedy_for(0o020_660, "disk"), "add its user to the group disk");
    for mode in [0o020_600, 0o020_640] {
        let said = remedy_for(mode, "root");
        assert!(said.contains("ATTRS{type}==\"13\"") && !said.contains("group root"), "{said}");
    }
}
