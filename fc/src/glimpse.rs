//! What is behind one host, for who looks again and again: the rest of the kernel's tree is not read, and of units only what changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::address::{Address, port};
use crate::model::{Host, RemotePort};
use crate::sysfs::{Roots, Unreadable, is_gone, number, text};

/// A host, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Glimpse {
    /// Itself.
    pub host: Host,
    /// Classes of service, as bits: bit 3 is class 3.
    pub classes: u32,
    /// Bytes of its largest frame; 0 when unknown.
    pub max_frame: u32,
    /// The remote ports that it sees or has seen.
    pub remotes: Vec<RemotePort>,
    /// Logical units behind them.
    pub units: Vec<Sighting>,
}

/// A logical unit that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Where it is.
    pub address: Address,
    /// The remote port that it is behind.
    pub remote: String,
    /// The number by which the kernel has its directory: another one when it is taken away and comes back.
    pub number: u64,
    /// `running`, `blocked`, `offline`, `transport-offline` ...
    pub state: String,
    /// Its name: `naa.6001405...`.
    pub wwid: Option<String>,
    /// Its directory.
    pub directory: PathBuf,
}

impl Glimpse {
    /// What there is now; `None` if there is no such host.
    ///
    /// # Errors
    /// What there is cannot be listed now: that says nothing of it.
    pub fn read(roots: &Roots, host: u32) -> Result<Option<Self>, Unreadable> {
        let name = format!("host{host}");
        let at = roots.sys.join("class/fc_host").join(&name);
        let (remotes, units) = (roots.class("fc_remote_ports")?, roots.class("scsi_device")?);
        let Some(own) = Host::read(roots, &name, &at) else {
            return match fs::canonicalize(at.join("device")) {
                Err(error) if is_gone(&error) => Ok(None),
                Err(error) => Err(Unreadable { path: at, error }),
                // It has just come, or goes.
                Ok(_) => Err(Unreadable { path: at, error: std::io::ErrorKind::Interrupted.into() }),
            };
        };
        let remotes = remotes.into_iter();
        let remotes = remotes
            .filter(|(name, _)| port(name, "rport-").is_some_and(|(of, ..)| of == host))
            .filter_map(|(name, at)| RemotePort::read(&name, &at));
        let units = units.into_iter().filter_map(|(name, at)| {
            let address = name.parse::<Address>().ok().filter(|address| address.host == host)?;
            Sighting::read(address, fs::canonicalize(at.join("device")).ok()?)
        });
        Ok(Some(Self {
            classes: text(&at.join("supported_classes")).map_or(0, |text| classes(&text)),
            // `2112 bytes`
            max_frame: text(&at.join("maxframe_size"))
                .and_then(|text| text.split(' ').next()?.parse().ok())
                .unwrap_or(0),
            remotes: remotes.collect(),
            units: units.collect(),
            host: own,
        }))
    }

    /// Mbit/s of its link; 0 when unknown.
    pub fn speed(&self) -> u32 {
        let speed = || {
            let (number, unit) = self.host.speed.split_once(' ')?;
            let factor = match unit {
                "Gbit" => 1000,
                "Mbit" => 1,
                _ => return None,
            };
            number.parse::<u32>().ok()?.checked_mul(factor)
        };
        speed().unwrap_or(0)
    }
}

impl Sighting {
    fn read(address: Address, directory: PathBuf) -> Option<Self> {
        let above = directory.iter().rev().skip(1).filter_map(|part| part.to_str());
        let remote = above.take(2).find(|part| port(part, "rport-").is_some())?.to_owned();
        Some(Self {
            address,
            remote,
            number: fs::metadata(&directory).ok()?.ino(),
            state: text(&directory.join("state")).unwrap_or_default(),
            wwid: text(&directory.join("wwid")),
            directory,
        })
    }

    /// Whether commands reach it.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Peripheral device type.
    pub fn device_type(&self) -> Option<u8> {
        number(&self.directory.join("type"))
    }
}

/// `Class 2, Class 3`
fn classes(text: &str) -> u32 {
    let of = |word: &str| word.trim().strip_prefix("Class ")?.parse::<u32>().ok().filter(|class| *class < 8);
    text.split(',').filter_map(of).fold(0, |bits, class| bits | 1 << class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PCI, Tree};

    #[test]
    fn one_host_is_read_and_nothing_else() {
        let tree = Tree::lpfc();
        let host = format!("sys/{PCI}/host5/vport-5:0-0/host8/fc_host/host8");
        tree.file(&format!("{host}/supported_classes"), "Class 2, Class 3\n");
        tree.file(&format!("{host}/maxframe_size"), "2112 bytes\n");
        let glimpse = Glimpse::read(&tree.roots(), 8).unwrap().unwrap();
        assert_eq!((glimpse.host.number, glimpse.host.vport.as_deref()), (8, Some("vport-5:0-0")));
        assert_eq!((glimpse.classes, glimpse.max_frame, glimpse.speed()), (0x0c, 2112, 16_000));
        let names: Vec<_> = glimpse.remotes.iter().map(|remote| &*remote.name).collect();
        assert_eq!(names, ["rport-8:0-0", "rport-8:0-1"]);
        let units: Vec<_> =
            glimpse.units.iter().map(|unit| (unit.address.to_string(), &*unit.remote)).collect();
        assert_eq!(
            units.iter().map(|(address, _)| &**address).collect::<Vec<_>>(),
            ["8:0:0:0", "8:0:0:27", "8:0:0:16897"]
        );
        assert!(units.iter().all(|(_, remote)| *remote == "rport-8:0-0"));
        let disk = &glimpse.units[0];
        assert_eq!(disk.wwid.as_deref(), Some("naa.60060160a1b2c3d4e5f60718293a4b5c"));
        assert!(disk.is_running() && disk.number > 0);
        assert_eq!(glimpse.units[1].device_type(), Some(1));
        assert!(Glimpse::read(&tree.roots(), 77).unwrap().is_none());
    }

    #[test]
    fn words_of_drivers_are_numbers_or_nothing() {
        for (text, bits) in
            [("Class 3", 8), ("Class 2, Class 3", 12), ("unspecified", 0), ("Class 99", 0), ("", 0)]
        {
            assert_eq!(classes(text), bits, "{text}");
        }
        let speed = |text: &str| {
            let host = Host { speed: text.into(), ..Host::default() };
            Glimpse { host, ..Glimpse::default() }.speed()
        };
        for (text, speed_of) in
            [("16 Gbit", 16_000), ("100 Mbit", 100), ("", 0), ("9999999 Gbit", 0), ("fast", 0)]
        {
            assert_eq!(speed(text), speed_of, "{text}");
        }
    }
}
