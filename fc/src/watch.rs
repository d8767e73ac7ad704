//! What changes, as the kernel tells of it by netlink: events of the Fibre Channel transport, and those of devices that come and go.
//!
//! Neither tells all: that a remote port is lost or back, no event says (`port_state` does, and an RSCN or a link event at about that
//! time). Whoever acts on events looks at sysfs then, and looks anew where events were lost.

mod fc;
mod socket;
mod uevent;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::address::Address;
use crate::model::San;

pub use fc::{Code, FcEvent};
pub use socket::{Devices, Sockets};
pub use uevent::{Action, Node, Reason, Thing, Uevent};

/// Longer than any event: that of a device has 2 KiB of properties at most, that of the transport what an adapter's vendor says.
pub const LONGEST: usize = 16 << 10;

/// Where messages come from: the kernel, or a recording.
pub trait Source {
    /// The next message, into `into`, within `time`, or whenever it comes.
    ///
    /// # Errors
    /// There are none any more.
    fn next(&mut self, into: &mut Vec<u8>, time: Option<Duration>) -> io::Result<Heard>;
}

/// What a source has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message of the Fibre Channel transport.
    Transport,
    /// A message about a device.
    Device,
    /// Some were lost, for nobody took them.
    Lost,
    /// Nothing, within the time.
    Nothing,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Of a port, or what is behind it.
    Transport(FcEvent),
    /// Of something that comes, goes or changes.
    Device(Uevent),
    /// Unknown: some events were lost, so that all may have changed.
    Lost,
}

/// Changes of Fibre Channel, from a source.
pub struct Watch<S> {
    source: S,
    message: Vec<u8>,
}

impl<S: Source> Watch<S> {
    /// From this source.
    pub fn new(source: S) -> Self {
        Self { source, message: Vec::with_capacity(LONGEST) }
    }

    /// What has changed next: usually one thing; none, if it was nothing of Fibre Channel, or the time is over.
    ///
    /// # Errors
    /// The source's.
    pub fn next(&mut self, time: Option<Duration>) -> io::Result<Vec<Change>> {
        self.message.clear();
        Ok(match self.source.next(&mut self.message, time)? {
            Heard::Transport => fc::parse(&self.message).into_iter().map(Change::Transport).collect(),
            Heard::Device => uevent::parse(&self.message).map(Change::Device).into_iter().collect(),
            Heard::Lost => vec![Change::Lost],
            Heard::Nothing => Vec::new(),
        })
    }
}

/// The states of remote ports, of which no event tells.
#[derive(Clone, Debug, Default)]
pub struct States(BTreeMap<String, String>);

/// A remote port in another state than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// `rport-5:0-2`
    pub remote: String,
    /// Its state before.
    pub before: String,
    /// Its state now.
    pub now: String,
}

impl States {
    /// The states as they are.
    pub fn of(san: &San) -> Self {
        Self(san.remotes.iter().map(|remote| (remote.name.clone(), remote.state.clone())).collect())
    }

    /// The ports in other states than before, in the order of their names. Ports that have come or gone are none: of those events tell.
    pub fn turn(&mut self, san: &San) -> Vec<Turn> {
        let before = std::mem::replace(self, Self::of(san)).0;
        let turns = self.0.iter().filter_map(|(name, now)| {
            let before = before.get(name).filter(|before| *before != now)?;
            Some(Turn { remote: name.clone(), before: before.clone(), now: now.clone() })
        });
        turns.collect()
    }
}

impl Change {
    /// The host that it is about.
    pub fn host(&self) -> Option<u32> {
        match self {
            Self::Transport(event) => Some(event.host),
            Self::Device(event) => event.thing.host(),
            Self::Lost => None,
        }
    }

    /// The unit that it is about.
    pub fn unit(&self) -> Option<Address> {
        match self {
            Self::Device(Uevent { thing: Thing::Unit(address) | Thing::Node(address, ..), .. }) => {
                Some(*address)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    struct Recording(VecDeque<(Heard, Vec<u8>)>);

    impl Source for Recording {
        fn next(&mut self, into: &mut Vec<u8>, _: Option<Duration>) -> io::Result<Heard> {
            let (heard, bytes) = self.0.pop_front().ok_or(io::ErrorKind::UnexpectedEof)?;
            into.extend(bytes);
            Ok(heard)
        }
    }

    #[test]
    fn changes_come_in_order_and_what_is_none_is_left_out() {
        let path = "/devices/pci0000:00/host5/rport-5:0-2/target5:0:0/5:0:0:27";
        let device = format!("add@{path}\0ACTION=add\0DEVPATH={path}\0SUBSYSTEM=scsi\0DEVTYPE=scsi_device\0");
        let mut watch = Watch::new(Recording(VecDeque::from([
            (Heard::Transport, fc::tests::message(5, 3, 0)),
            (Heard::Device, device.into_bytes()),
            (Heard::Device, b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=net\0".to_vec()),
            (Heard::Lost, vec![]),
            (Heard::Nothing, vec![]),
        ])));
        let mut next = || watch.next(Some(Duration::ZERO));
        let [change] = &next().unwrap()[..] else { panic!() };
        assert!(matches!(change, Change::Transport(event) if event.code == Code::LinkDown), "{change:?}");
        assert_eq!((change.host(), change.unit()), (Some(5), None));
        let [change] = &next().unwrap()[..] else { panic!() };
        assert_eq!((change.host(), change.unit()), (Some(5), "5:0:0:27".parse().ok()));
        assert_eq!(next().unwrap(), []);
        assert_eq!(next().unwrap(), [Change::Lost]);
        assert_eq!(next().unwrap(), []);
        assert!(next().is_err());
    }

    #[test]
    fn states_of_remote_ports_are_compared() {
        let tree = crate::testing::Tree::lpfc();
        let read = || San::read(&tree.roots());
        let mut states = States::of(&read());
        assert_eq!(states.turn(&read()), []);
        let state = "sys/class/fc_remote_ports/rport-8:0-0/port_state";
        tree.file(state, "Blocked\n");
        let turn = |before: &str, now: &str| Turn {
            remote: "rport-8:0-0".into(),
            before: before.into(),
            now: now.into(),
        };
        assert_eq!(states.turn(&read()), [turn("Online", "Blocked")]);
        assert_eq!(states.turn(&read()), []);
        tree.file(state, "Online\n");
        assert_eq!(states.turn(&read()), [turn("Blocked", "Online")]);
        std::fs::remove_file(tree.path("sys/class/fc_remote_ports/rport-8:0-0")).unwrap();
        assert_eq!(states.turn(&read()), []);
    }
}
