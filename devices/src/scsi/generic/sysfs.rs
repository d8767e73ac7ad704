//! What the kernel tells of SCSI devices in `/sys`: which one a node leads to, what its queue takes, and which has a name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::GenericError;
use super::kind::Kind;
use super::limits::HostLimits;

/// Where it is; elsewhere in tests.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
    dev: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: "/sys".into(), dev: "/dev".into() }
    }
}

/// By which driver a node leads to its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `/dev/sg3`
    Sg,
    /// `/dev/bsg/2:0:0:5`
    Bsg,
    /// A disk or CD as a block device.
    Block,
}

/// A SCSI device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Host, channel, target and LUN, as the kernel writes them.
    pub(super) address: String,
    /// Its directory.
    pub(super) directory: PathBuf,
}

/// What a node is that no commands can be sent by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// A namespace of NVMe.
    Nvme,
    /// A partition, of this disk.
    Partition(String),
    /// Of another driver of a SCSI device: the node of sg is beside it, if there is one.
    Driver(Option<String>),
    /// Nothing that has to do with SCSI.
    Nothing,
}

impl Sysfs {
    #[cfg(test)]
    pub(super) fn at(root: &Path, dev: &Path) -> Self {
        Self { root: root.into(), dev: dev.into() }
    }

    /// The device that a node with this number leads to.
    pub(super) fn device(&self, block: bool, number: u64) -> Result<(Device, Driver), Other> {
        let kind = if block { "block" } else { "char" };
        let number = format!("{}:{}", libc::major(number), libc::minor(number));
        let entry = self.root.join("dev").join(kind).join(number);
        let entry = fs::canonicalize(entry).map_err(|_| Other::Nothing)?;
        let names: Vec<_> = entry.iter().map(|name| name.to_string_lossy()).collect();
        // The first: bsg calls its own directory like the device.
        let Some(place) = names.iter().position(|name| is_address(name)) else {
            let nvme = names.iter().any(|name| name.starts_with("nvme"));
            return Err(if nvme { Other::Nvme } else { Other::Nothing });
        };
        let directory: PathBuf = entry.iter().take(place + 1).collect();
        let device =
            Device { address: names.get(place).map(|name| name.to_string()).unwrap_or_default(), directory };
        match names.get(place + 1).map(|name| &**name) {
            Some("block") if entry.join("partition").exists() => {
                let disk = names.get(place + 2).map(|name| name.to_string()).unwrap_or_default();
                Err(Other::Partition(self.dev.join(disk).display().to_string()))
            }
            Some("block") => Ok((device, Driver::Block)),
            Some("scsi_generic") => Ok((device, Driver::Sg)),
            Some("bsg") => Ok((device, Driver::Bsg)),
            _ => {
                Err(Other::Driver(self.node(&device, "scsi_generic").map(|node| node.display().to_string())))
            }
        }
    }

    /// The node of a device by one of its drivers, a directory of which has it.
    fn node(&self, device: &Device, driver: &str) -> Option<PathBuf> {
        let name = fs::read_dir(device.directory.join(driver)).ok()?.flatten().next()?.file_name();
        Some(if driver == "bsg" { self.dev.join("bsg").join(name) } else { self.dev.join(name) })
    }

    /// Its node by one of the ways to send commands.
    pub(super) fn node_of(&self, device: &Device, driver: Driver) -> Option<PathBuf> {
        self.node(
            device,
            match driver {
                Driver::Sg => "scsi_generic",
                Driver::Bsg => "bsg",
                Driver::Block => "block",
            },
        )
    }

    /// The device as a block device.
    pub(super) fn block_node(&self, device: &Device) -> Option<PathBuf> {
        self.node_of(device, Driver::Block)
    }

    /// The node of the host's own driver of tapes that leaves the tape where it is: of its many the one that is called just so.
    pub(super) fn tape_node(&self, device: &Device) -> Option<PathBuf> {
        let names = fs::read_dir(device.directory.join("scsi_tape")).ok()?.flatten();
        let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let plain = |name: &String| {
            name.strip_prefix("nst")
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        };
        Some(self.dev.join(names.find(plain)?))
    }

    /// The node that suits best: a block device takes lists of memory without a copy, sg with one in the kernel, bsg none.
    pub(super) fn best_node(&self, device: &Device) -> Option<PathBuf> {
        ["block", "scsi_generic", "bsg"].iter().find_map(|driver| self.node(device, driver))
    }

    /// The devices that have a name: each path to a disk is one.
    pub(super) fn named(&self, name: &str) -> Vec<Device> {
        let wanted = plain(name);
        let mut found = self.all();
        found.retain(|device| names_of(&device.directory).contains(&wanted));
        found.sort_by(|a, b| a.address.cmp(&b.address));
        found
    }

    /// All SCSI devices of the host.
    pub(super) fn all(&self) -> Vec<Device> {
        let class = self.root.join("class/scsi_device");
        let entries = fs::read_dir(&class).inspect_err(|error| {
            // A host that never had one has no such directory.
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(
                    "the SCSI devices of the host are not to be seen, for {} cannot be listed: {error}",
                    class.display()
                );
            }
        });
        let entries = entries.into_iter().flatten().flatten();
        let device = |entry: fs::DirEntry| {
            let address = entry.file_name().to_string_lossy().into_owned();
            Some(Device { address, directory: fs::canonicalize(entry.path().join("device")).ok()? })
        };
        entries.filter_map(device).collect()
    }

    /// Bytes of each element that sg copies into.
    pub(super) fn sg_element(&self) -> u64 {
        let element = read(&self.root.join("module/sg/parameters/scatter_elem_sz"));
        // What Linux begins with.
        element.and_then(|text| text.parse().ok()).unwrap_or(32 << 10)
    }

    /// The name of a block device whose medium the kernel looks for by itself, and how often, in milliseconds.
    pub(super) fn polled(&self, device: &Device) -> Option<(String, u64)> {
        let block = fs::read_dir(device.directory.join("block")).ok()?.flatten().next()?;
        let text = |name| read(&block.path().join(name));
        let looks = text("removable")? == "1"
            && text("events")?.split_whitespace().any(|name| name == "media_change");
        // Below zero: as often as for all.
        let own = text("events_poll_msecs")?.parse::<i64>().ok()?;
        let pause = if own < 0 {
            read(&self.root.join("module/block/parameters/events_dfl_poll_msecs"))?.parse().ok()?
        } else {
            own
        };
        let pause = u64::try_from(pause).ok().filter(|pause| looks && *pause > 0)?;
        Some((block.file_name().to_string_lossy().into_owned(), pause))
    }

    /// The device at an address: host, channel, target and LUN.
    pub(super) fn device_of(&self, address: &str) -> Result<Device, GenericError> {
        let missing = || GenericError::Missing { path: address.to_owned() };
        let place = self.root.join("class/scsi_device").join(address).join("device");
        let place = is_address(address).then_some(place).ok_or_else(missing)?;
        let directory = fs::canonicalize(place).map_err(|_| missing())?;
        Ok(Device { address: address.to_owned(), directory })
    }

    /// The device that a path in sysfs, as the kernel names it in its events, is of or below.
    pub(super) fn device_at(&self, path: &str) -> Option<Device> {
        let below = path.strip_prefix("/devices/")?;
        let names: Vec<_> = below.split('/').collect();
        if names.iter().any(|name| matches!(*name, "" | "." | "..")) {
            return None;
        }
        let place = names.iter().position(|name| is_address(name))?;
        let address = names.get(place)?;
        let root = fs::canonicalize(&self.root).ok()?.join("devices");
        let directory = names.iter().take(place + 1).fold(root, |path, name| path.join(name));
        Some(Device { address: (*address).into(), directory })
    }
}

impl Device {
    pub(super) fn text(&self, name: &str) -> Option<String> {
        read(&self.directory.join(name))
    }

    /// The numbers of all nodes that the kernel has made for it, as udev keeps them: `b8:32`, `c21:2`.
    pub(super) fn node_numbers(&self) -> Vec<String> {
        let of = |(driver, kind): (&str, char)| {
            let nodes = fs::read_dir(self.directory.join(driver)).into_iter().flatten().flatten();
            let number =
                move |entry: fs::DirEntry| Some(format!("{kind}{}", read(&entry.path().join("dev"))?));
            nodes.filter_map(number)
        };
        let drivers =
            [("block", 'b'), ("scsi_generic", 'c'), ("bsg", 'c'), ("scsi_tape", 'c'), ("scsi_changer", 'c')];
        drivers.into_iter().flat_map(of).collect()
    }

    /// The names of the logical unit, without those that are none.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = names_of(&self.directory);
        names.retain(|name| name.bytes().any(|b| b != b'0'));
        names.sort();
        names.dedup();
        names
    }

    /// Its serial number (SPC-5, 7.7.19).
    pub(super) fn serial(&self) -> Option<String> {
        serial(&fs::read(self.directory.join("vpd_pg80")).ok()?)
    }

    /// Peripheral device type (SPC-5, 6.7.2).
    pub(super) fn device_type(&self) -> Option<u8> {
        self.text("type")?.parse().ok()
    }

    /// Whether its commands depend on where the one before has left the medium.
    pub(super) fn is_sequential(&self) -> bool {
        self.device_type().is_some_and(|device_type| Kind::of(device_type).is_sequential())
    }

    /// Whether its medium may become another one, as its block device says.
    pub(super) fn is_removable(&self) -> bool {
        let block = fs::read_dir(self.directory.join("block")).into_iter().flatten().flatten().next();
        block.and_then(|block| read(&block.path().join("removable"))).is_some_and(|text| text == "1")
    }

    /// The number by which the kernel has its directory: another one when the device is taken away and comes back.
    pub(super) fn number(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.directory)?.ino())
    }

    /// Its length in bytes, where it is a block device as well.
    pub(super) fn size(&self) -> Option<u64> {
        let block = fs::read_dir(self.directory.join("block")).ok()?.flatten().next()?.path();
        // In units of 512 bytes, whatever its blocks are.
        read(&block.join("size"))?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// Manufacturer and product, for messages.
    pub(super) fn title(&self) -> String {
        let part = |name| self.text(name).unwrap_or_default();
        format!("{} {}", part("vendor"), part("model")).trim().to_owned()
    }

    /// Commands that it takes at a time.
    pub(super) fn depth(&self) -> usize {
        self.text("queue_depth").and_then(|text| text.parse().ok()).unwrap_or(1)
    }

    /// What its queue takes, and the length of its blocks, where it is a block device as well.
    pub(super) fn queue(&self) -> Option<(HostLimits, Option<u32>)> {
        let block = fs::read_dir(self.directory.join("block")).ok()?.flatten().next()?.path();
        let number = |name: &str| read(&block.join("queue").join(name))?.parse::<u64>().ok();
        let unknown = HostLimits::default();
        let bytes =
            |name: &str| number(name).and_then(|kib| kib.checked_mul(1024)).filter(|bytes| *bytes > 0);
        let max_bytes = bytes("max_hw_sectors_kb").unwrap_or(unknown.max_bytes);
        let limits = HostLimits {
            max_bytes,
            preferred_bytes: bytes("max_sectors_kb").unwrap_or(max_bytes).min(max_bytes),
            max_segments: number("max_segments").filter(|count| *count > 0).unwrap_or(unknown.max_segments),
            max_segment_bytes: number("max_segment_size")
                .filter(|len| *len > 0)
                .unwrap_or(unknown.max_segment_bytes),
            lists: true,
        };
        let length = number("logical_block_size").and_then(|length| u32::try_from(length).ok());
        Some((limits, length.filter(|length| *length > 0)))
    }
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Whether a name is that of a device: four numbers, with colons between them.
fn is_address(name: &str) -> bool {
    let parts: Vec<_> = name.split(':').collect();
    parts.len() == 4 && parts.iter().all(|part| part.parse::<u64>().is_ok())
}

/// A name as it is compared: without what says which kind it is of, where it is in hexadecimal digits.
fn plain(name: &str) -> String {
    let lower = name.trim().to_ascii_lowercase();
    let digits = ["wwn-", "naa.", "eui.", "0x"]
        .iter()
        .fold(&*lower, |rest, start| rest.strip_prefix(start).unwrap_or(rest));
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        digits.to_owned()
    } else {
        lower
    }
}

/// The names of a device: what the kernel calls it by, and what it says in VPD page 83h of the logical unit (SPC-5, 7.7.6).
fn names_of(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = read(&directory.join("wwid")).iter().map(|name| plain(name)).collect();
    names.extend(designators(&fs::read(directory.join("vpd_pg83")).unwrap_or_default()));
    names
}

/// The serial number in VPD page 80h (SPC-5, 7.7.19).
pub(super) fn serial(page: &[u8]) -> Option<String> {
    let [high, low] = *page.get(2..)?.first_chunk::<2>()?;
    let serial = page.get(4..)?;
    let serial = serial.get(..usize::from(u16::from_be_bytes([high, low]))).unwrap_or(serial);
    let serial = String::from_utf8_lossy(serial);
    Some(serial.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned())
}

/// EUI-64 and NAA names of the logical unit in VPD page 83h (SPC-5, 7.7.6).
pub(super) fn designators(page: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = page.get(4..).unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        let [_, kind, _, len] = *head;
        let Some((value, next)) = after.split_at_checked(usize::from(len)) else { break };
        // ASSOCIATION of the logical unit; EUI-64 and NAA.
        if matches!(kind & 0x3f, 0x02 | 0x03) && value.len() >= 8 {
            names.push(value.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        rest = next;
    }
    names
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::temp_dir;

    /// A tree such as the kernel makes, with one disk at 2:0:0:5 and one tape at 3:0:0:0.
    pub(in crate::scsi::generic) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(in crate::scsi::generic) fn new() -> Self {
            let tree = Self(temp_dir());
            let disk = "devices/pci0/host2/rport-2:0-2/target2:0:0/2:0:0:5";
            tree.node(&format!("{disk}/block/sdc"), "block", "8:32");
            tree.node(&format!("{disk}/block/sdc/sdc1"), "block", "8:33");
            tree.file(&format!("{disk}/block/sdc/sdc1/partition"), "1\n");
            tree.node(&format!("{disk}/scsi_generic/sg2"), "char", "21:2");
            tree.node(&format!("{disk}/bsg/2:0:0:5"), "char", "250:1");
            for (name, value) in
                [("vendor", "LIO-ORG \n"), ("model", "d0              \n"), ("queue_depth", "64\n")]
            {
                tree.file(&format!("{disk}/{name}"), value);
            }
            tree.file(&format!("{disk}/wwid"), "naa.600140512345678900000000000abcde\n");
            tree.link("class/scsi_device/2:0:0:5/device", disk);
            let queue = format!("{disk}/block/sdc/queue");
            for (name, value) in [
                ("max_hw_sectors_kb", "8192"),
                ("max_sectors_kb", "1280"),
                ("max_segments", "128"),
                ("max_segment_size", "65536"),
                ("logical_block_size", "4096"),
            ] {
                tree.file(&format!("{queue}/{name}"), &format!("{value}\n"));
            }
            let tape = "devices/pci0/host3/target3:0:0/3:0:0:0";
            for (name, minor) in [("st0", 0), ("st0a", 96), ("nst0l", 160), ("nst0", 128)] {
                tree.node(&format!("{tape}/scsi_tape/{name}"), "char", &format!("9:{minor}"));
            }
            tree.node(&format!("{tape}/scsi_generic/sg3"), "char", "21:3");
            tree.file(&format!("{tape}/queue_depth"), "1\n");
            tree.link("class/scsi_device/3:0:0:0/device", tape);
            // NAA and relative port; the port's NAA is none of the unit's.
            let page = [
                &[1, 0x83, 0, 32][..],
                &[1, 0x03, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7],
                &[1, 0x14, 0, 4, 0, 0, 0, 1],
                &[1, 0x93, 0, 8, 0x51, 1, 2, 3, 4, 5, 6, 7],
            ];
            fs::write(tree.path().join(format!("{tape}/vpd_pg83")), page.concat()).unwrap();
            tree.node("devices/pci0/nvme/nvme0/nvme0n1", "block", "259:0");
            tree.node("devices/virtual/block/dm-0", "block", "253:0");
            tree.node("devices/pci0/host2/rport-2:0-2/bsg/rport-2:0-2", "char", "250:2");
            tree
        }

        pub(in crate::scsi::generic) fn path(&self) -> &Path {
            self.0.path()
        }

        pub(in crate::scsi::generic) fn sysfs(&self) -> Sysfs {
            Sysfs::at(self.path(), Path::new("/dev"))
        }

        pub(in crate::scsi::generic) fn file(&self, path: &str, content: &str) {
            let path = self.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        pub(in crate::scsi::generic) fn bytes(&self, path: &str, content: &[u8]) {
            fs::write(self.path().join(path), content).unwrap();
        }

        pub(in crate::scsi::generic) fn link(&self, path: &str, to: &str) {
            let path = self.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(self.path().join(to), path).unwrap();
        }

        pub(in crate::scsi::generic) fn node(&self, path: &str, kind: &str, number: &str) {
            self.file(&format!("{path}/dev"), &format!("{number}\n"));
            self.link(&format!("dev/{kind}/{number}"), path);
        }
    }

    fn number(text: &str) -> u64 {
        let (major, minor) = text.split_once(':').unwrap();
        libc::makedev(major.parse().unwrap(), minor.parse().unwrap())
    }

    #[test]
    fn each_node_leads_to_its_device_or_to_what_it_is() {
        let tree = Tree::new();
        let of = |block, text| {
            tree.sysfs().device(block, number(text)).map(|(device, driver)| (device.address, driver))
        };
        assert_eq!(of(true, "8:32"), Ok(("2:0:0:5".into(), Driver::Block)));
        assert_eq!(of(false, "21:2"), Ok(("2:0:0:5".into(), Driver::Sg)));
        assert_eq!(of(false, "250:1"), Ok(("2:0:0:5".into(), Driver::Bsg)));
        assert_eq!(of(false, "21:3"), Ok(("3:0:0:0".into(), Driver::Sg)));
        assert_eq!(of(true, "8:33"), Err(Other::Partition("/dev/sdc".into())));
        assert_eq!(of(false, "9:0"), Err(Other::Driver(Some("/dev/sg3".into()))));
        assert_eq!(of(true, "259:0"), Err(Other::Nvme));
        assert_eq!(of(true, "253:0"), Err(Other::Nothing));
        assert_eq!(of(false, "250:2"), Err(Other::Nothing), "a port, which is no device");
        assert_eq!(of(true, "9:0"), Err(Other::Nothing), "no such number");
    }

    #[test]
    fn a_device_is_found_by_its_names() {
        let tree = Tree::new();
        let of = |name| tree.sysfs().named(name).into_iter().map(|device| device.address).collect::<Vec<_>>();
        for name in [
            "naa.600140512345678900000000000abcde",
            "0x600140512345678900000000000ABCDE",
            "wwn-0x600140512345678900000000000abcde",
        ] {
            assert_eq!(of(name), ["2:0:0:5"], "{name}");
        }
        assert_eq!(of("5001020304050607"), ["3:0:0:0"]);
        assert_eq!(of("5101020304050607"), Vec::<String>::new(), "the name of its port");
        assert_eq!(of(""), Vec::<String>::new());
        let found = tree.sysfs().named("5001020304050607").remove(0);
        assert_eq!(tree.sysfs().best_node(&found), Some("/dev/sg3".into()));
        assert_eq!(tree.sysfs().block_node(&found), None);
        assert_eq!(tree.sysfs().tape_node(&found), Some("/dev/nst0".into()));
        let disk = tree.sysfs().named("600140512345678900000000000abcde").remove(0);
        assert_eq!(tree.sysfs().best_node(&disk), Some("/dev/sdc".into()));
        assert_eq!(tree.sysfs().tape_node(&disk), None);
        for (driver, node) in
            [(Driver::Sg, "/dev/sg2"), (Driver::Bsg, "/dev/bsg/2:0:0:5"), (Driver::Block, "/dev/sdc")]
        {
            assert_eq!(tree.sysfs().node_of(&disk, driver), Some(node.into()));
        }
        assert_eq!((disk.title(), disk.depth()), ("LIO-ORG d0".into(), 64));
    }

    #[test]
    fn queues_say_what_they_take() {
        let tree = Tree::new();
        let device = |text| tree.sysfs().device(false, number(text)).unwrap().0;
        let limits = HostLimits {
            max_bytes: 8 << 20,
            preferred_bytes: 1280 << 10,
            max_segments: 128,
            max_segment_bytes: 64 << 10,
            lists: true,
        };
        assert_eq!(device("21:2").queue(), Some((limits, Some(4096))));
        assert_eq!(device("21:3").queue(), None, "a tape is no block device");
        // Older kernels have not all of it; what cannot be is as if it were not there.
        let queue = "devices/pci0/host2/rport-2:0-2/target2:0:0/2:0:0:5/block/sdc/queue";
        fs::remove_file(tree.path().join(queue).join("max_segment_size")).unwrap();
        tree.file(&format!("{queue}/max_hw_sectors_kb"), "0");
        tree.file(&format!("{queue}/max_segments"), "18446744073709551616");
        tree.file(&format!("{queue}/logical_block_size"), "0");
        let limits = HostLimits { preferred_bytes: 512 << 10, ..HostLimits::default() };
        assert_eq!(device("21:2").queue(), Some((limits, None)));
    }

    #[test]
    fn who_looks_for_another_medium_is_told() {
        let tree = Tree::new();
        let (device, _) = tree.sysfs().device(true, number("8:32")).unwrap();
        let block = "devices/pci0/host2/rport-2:0-2/target2:0:0/2:0:0:5/block/sdc";
        let polled = |removable: &str, events: &str, own: &str, all: &str| {
            tree.file(&format!("{block}/removable"), removable);
            tree.file(&format!("{block}/events"), events);
            tree.file(&format!("{block}/events_poll_msecs"), own);
            tree.file("module/block/parameters/events_dfl_poll_msecs", all);
            tree.sysfs().polled(&device).map(|(_, pause)| pause)
        };
        assert_eq!(tree.sysfs().polled(&device), None, "nothing is said");
        assert_eq!(polled("1\n", "media_change eject_request\n", "-1\n", "2000\n"), Some(2000));
        assert_eq!(polled("1\n", "media_change\n", "500\n", "0\n"), Some(500));
        for (removable, events, own, all) in [
            ("0", "media_change", "-1", "2000"),
            ("1", "", "-1", "2000"),
            ("1", "media_change", "0", "2000"),
            ("1", "media_change", "-1", "0"),
        ] {
            assert_eq!(polled(removable, events, own, all), None, "{removable} {events} {own} {all}");
        }
        assert_eq!((tree.sysfs().sg_element(), device.is_sequential()), (32 << 10, false));
        tree.file("module/sg/parameters/scatter_elem_sz", "65536\n");
        tree.file("devices/pci0/host3/target3:0:0/3:0:0:0/type", "1\n");
        let (tape, _) = tree.sysfs().device(false, number("21:3")).unwrap();
        assert_eq!((tree.sysfs().sg_element(), tape.is_sequential()), (65536, true));
    }

    #[test]
    fn pages_that_lie_name_nothing() {
        let tree = Tree::new();
        let place = tree.path().join("devices/pci0/host3/target3:0:0/3:0:0:0/vpd_pg83");
        for page in [
            &[][..],
            &[1, 0x83],
            &[1, 0x83, 0, 4, 1, 3, 0, 255],
            &[1, 0x83, 0, 12, 1, 3, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8],
        ] {
            fs::write(&place, page).unwrap();
            assert!(tree.sysfs().named("0102030405060708").is_empty(), "{page:02x?}");
        }
    }
}
