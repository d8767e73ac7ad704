use super::*;
use crate::model::San;
use crate::testing::Tree;

#[test]
fn who_has_a_unit_is_said() {
    let tree = Tree::lpfc();
    let sdc = "devices/pci0000:00/0000:00:04.0/0000:10:00.0/host5/vport-5:0-0/host8/rport-8:0-0/target8:0:0/8:0:0:0/block/sdc";
    tree.files(&[
        (&format!("sys/{sdc}/dev"), "8:32\n"),
        (&format!("sys/{sdc}/sdc1/partition"), "1\n"),
        (&format!("sys/{sdc}/sdc1/dev"), "8:33\n"),
        (&format!("sys/{sdc}/sdc2/partition"), "2\n"),
        (&format!("sys/{sdc}/sdc2/holders/dm-3/dm/name"), "vg-root\n"),
        (&format!("sys/{sdc}/sdc2/holders/md127/level"), "raid1\n"),
        (&format!("sys/{sdc}/queue/rotational"), "0\n"),
        (
            "proc/self/mountinfo",
            "29 1 8:33 / /srv/a\\040b\\134\\012 rw - ext4 /dev/sdc1 rw\nbroken\n30 1 8:98 / /x rw - ext4 x rw\n",
        ),
        ("proc/swaps", "Filename\t\tType\n/dev/sdc2  partition 1 0 -2\n"),
        ("proc/4711/comm", "qemu\n"),
        ("proc/4712/comm", "vmm\n"),
    ]);
    tree.link("proc/4711/fd/7", "/dev/sdc");
    tree.link("proc/4711/fd/8", "/dev/sdc");
    tree.link("proc/4711/fd/9", "socket:[1]");
    tree.link("proc/4712/fd/3", "/dev/sg2");
    let (san, users) = (San::read(&tree.roots()), Users::read(&tree.roots()));
    let unit = san.units.iter().find(|unit| unit.block.as_deref() == Some("sdc")).unwrap();
    let said: Vec<String> = users.of(unit).iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "mounted at /srv/a b\\ ",
            "swap",
            "part of dm-3 (vg-root)",
            "part of md127",
            "open by qemu (4711)",
            "open by vmm (4712)"
        ]
    );
    let other = san.units.iter().find(|unit| unit.block.as_deref() == Some("sdb")).unwrap();
    assert_eq!(users.of(other), []);
}

const HOST8: &str =
    "devices/pci0000:00/0000:00:04.0/0000:10:00.0/host5/vport-5:0-0/host8/rport-8:0-0/target8:0:0";

fn said(tree: &Tree, address: &str) -> Vec<String> {
    let (san, users) = (San::read(&tree.roots()), Users::read(&tree.roots()));
    let unit = san.units.iter().find(|unit| unit.address.to_string() == address).unwrap();
    users.of(unit).iter().map(ToString::to_string).collect()
}

/// btrfs has a number of its own, and tells its devices elsewhere.
#[test]
fn mounts_are_known_by_their_source_in_every_namespace() {
    let tree = Tree::lpfc();
    let sdc = format!("sys/{HOST8}/8:0:0:0/block/sdc");
    tree.file(&format!("{sdc}/sdc1/partition"), "1\n");
    tree.file(&format!("{sdc}/sdc1/dev"), "8:33\n");
    tree.file(
        "proc/self/mountinfo",
        "31 1 0:45 / /b rw - btrfs /dev/sdc1 rw\n32 1 0:46 / /f rw - fuse.x /dev/sdc1 rw\n33 1 0:47 / /t rw - tmpfs sdc1 rw\n",
    );
    assert_eq!(said(&tree, "8:0:0:0"), ["mounted at /b"]);
    tree.file("proc/self/mountinfo", "");
    assert_eq!(said(&tree, "8:0:0:0"), [""; 0]);
    tree.link("proc/4711/ns/mnt", "mnt:[4026532]");
    tree.file("proc/4711/mountinfo", "31 1 0:45 / /c rw - btrfs /dev/disk/by-id/x rw\n");
    tree.file("dev/sdc1", "");
    tree.link("dev/disk/by-id/x", "../../sdc1");
    tree.link("proc/4712/ns/mnt", "mnt:[4026532]");
    tree.file("proc/4712/mountinfo", "31 1 0:45 / /of-the-same-namespace rw - btrfs /dev/sdc1 rw\n");
    assert_eq!(said(&tree, "8:0:0:0"), ["mounted at /c"]);
    // The second device of a file system.
    tree.file("sys/fs/btrfs/features/raid56", "0\n");
    tree.file("sys/fs/btrfs/1f2e/devices/sdb", "");
    tree.file("sys/fs/btrfs/1f2e/devices/sdc1", "");
    assert_eq!(said(&tree, "5:0:0:0"), ["part of btrfs 1f2e"]);
    // A list that is longer than a page of sysfs.
    let many = "1 1 0:1 / /x rw - proc proc rw\n".repeat(9000);
    tree.file("proc/4711/mountinfo", &format!("{many}31 1 8:33 / /last rw - ext4 x rw\n"));
    assert_eq!(said(&tree, "8:0:0:0"), ["mounted at /last", "part of btrfs 1f2e"]);
}

#[test]
fn what_the_kernel_has_without_a_holder_is_in_use() {
    let tree = Tree::lpfc();
    tree.file("sys/class/block/loop3/loop/backing_file", "/dev/sdc\n");
    tree.file("sys/class/block/loop4/loop/backing_file", "/srv/image\n");
    tree.file("sys/class/block/loop5/size", "0\n");
    tree.file("sys/kernel/config/target/core/iblock_0/disk/udev_path", "/dev/sdc\n");
    tree.file("sys/kernel/config/target/core/alua/lu_gps", "");
    tree.file("sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path", "/dev/sdc\n");
    assert_eq!(
        said(&tree, "8:0:0:0"),
        ["part of loop3", "part of target iblock_0/disk", "part of nvmet nqn.x/1"]
    );
    tree.file(&format!("sys/{HOST8}/8:0:0:27/scsi_changer/sch0/dev"), "86:0\n");
    tree.file("proc/4711/comm", "mtx\n");
    tree.link("proc/4711/fd/3", "/dev/sch0");
    tree.file("proc/4712/comm", "tar\n");
    // Behind many others.
    for file in 0..200 {
        tree.link(&format!("proc/4712/fd/{file}"), if file == 199 { "/dev/st0a" } else { "socket:[1]" });
    }
    assert_eq!(said(&tree, "8:0:0:27"), ["open by mtx (4711)", "open by tar (4712)"]);
    assert_eq!(Users::read(&tree.roots()).unseen(), None);
}

/// Whoever takes a disk away asks for that.
#[test]
fn what_cannot_be_looked_at_is_told() {
    let tree = Tree::lpfc();
    assert!(Users::read(&tree.roots()).unseen().unwrap().contains("no processes"));
    tree.file("proc/4711/comm", "mtx\n");
    assert_eq!(Users::read(&tree.roots()).unseen(), None);
    tree.file("proc/4711/fd", "");
    let users = Users::read(&tree.roots());
    assert!(users.unseen().unwrap().contains("proc/4711/fd cannot be read: Not a directory"), "{users:?}");
    std::fs::remove_dir_all(tree.path("proc")).unwrap();
    assert!(Users::read(&tree.roots()).unseen().unwrap().contains("; mount sysfs and proc"));
}

/// Root without CAP_SYS_PTRACE, as in a service with few capabilities: what it may not look at may have a unit open.
#[test]
fn what_may_not_be_looked_at_is_told() {
    let tree = Tree::lpfc();
    for code in [libc::EACCES, libc::EPERM] {
        let mut users = Users::default();
        let error = std::io::Error::from_raw_os_error(code);
        assert_eq!(users.seen::<()>(Err(Unreadable { path: tree.path("proc/1/fd"), error })), None);
        let said = users.unseen().unwrap();
        assert!(said.ends_with("proc/1/fd may not be read; be root, with CAP_SYS_PTRACE"), "{said}");
    }
    let mut users = Users::default();
    let error = std::io::Error::from_raw_os_error(libc::ESRCH);
    assert_eq!(users.seen::<()>(Err(Unreadable { path: tree.path("proc/1/fd"), error })), None);
    assert_eq!(users.unseen(), None, "it has ended");
}

/// multipathd has the paths of all maps, and a map that nobody has is its own.
#[test]
fn who_notices_that_a_port_goes_does_not_keep_it() {
    let tree = Tree::lpfc();
    let sdc = format!("sys/{HOST8}/8:0:0:0/block/sdc");
    tree.file(&format!("{sdc}/holders/dm-3/dm/name"), "mpatha\n");
    tree.file("sys/class/block/dm-3/dm/uuid", "mpath-36001405\n");
    tree.file("sys/class/block/dm-3/dev", "254:3\n");
    tree.file("proc/4711/comm", "multipathd\n");
    tree.link("proc/4711/fd/3", "/dev/sdc");
    let keeps = || {
        let (san, users) = (San::read(&tree.roots()), Users::read(&tree.roots()));
        let unit = san.units.iter().find(|unit| unit.block.as_deref() == Some("sdc")).unwrap();
        let all: Vec<User> = users.of(unit);
        assert_eq!(all.len(), 2);
        all.iter().filter(|user| !users.goes_with_port(user)).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(keeps(), [""; 0]);
    tree.file("proc/self/mountinfo", "31 1 254:3 / /m rw - ext4 /dev/mapper/mpatha rw\n");
    assert_eq!(keeps(), ["part of dm-3 (mpatha)"]);
    tree.file("proc/self/mountinfo", "");
    tree.file("sys/class/block/dm-3/holders/dm-4/dm/name", "mpatha1\n");
    tree.file("sys/class/block/dm-4/dm/uuid", "part1-mpath-36001405\n");
    assert_eq!(keeps(), [""; 0]);
    tree.file("proc/4712/comm", "qemu\n");
    tree.link("proc/4712/fd/3", "/dev/dm-4");
    assert_eq!(keeps(), ["part of dm-3 (mpatha)"]);
    tree.link("proc/4712/fd/4", "/dev/null");
    std::fs::remove_file(tree.path("proc/4712/fd/3")).unwrap();
    tree.file("sys/class/block/dm-4/dm/uuid", "LVM-x\n");
    assert_eq!(keeps(), ["part of dm-3 (mpatha)"]);
}
