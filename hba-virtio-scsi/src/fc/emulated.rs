//! A fabric over nothing, for emulated disks: names that are made up, and ports that are lost and back as somebody wishes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Active, LocalPort, Names, PortState, RemotePort, RemoteState, San, SanListener, View};

/// What names of nodes and of ports begin with (FC-FS-5, 14.3: NAA 2, and 12 bits of one's own), before the address.
const NODE: u64 = 0x2000;
const PORT: u64 = 0x2100;
/// What the name of a fabric begins with (NAA 1).
const FABRIC: u64 = 0x1000;
/// N_Port_IDs: domain 1 is the switch of the guest's port, domain 2 that of the others.
const LOCAL_ID: u32 = 0x01_0001;
const REMOTE_ID: u32 = 0x02_0001;
/// Mbit/s.
const SPEED: u32 = 16_000;
/// Class 3 (FC_COS_CLASS3 of Linux).
const CLASS_3: u32 = 8;
/// Bytes of data in a frame.
const FRAME: u32 = 2048;

/// An emulated fabric: one port of the guest, and one remote port for each target.
pub struct Emulated {
    seed: String,
    state: Mutex<State>,
}

struct State {
    view: Arc<View>,
    listener: Option<Arc<dyn SanListener>>,
}

impl Emulated {
    /// A fabric on which all is online, with a remote port for each number in `targets`. All names are made from `seed`, such as the
    /// machine's name, and are the same whenever it is: locally administered, so that no hardware has them.
    pub fn new(seed: &str, targets: impl IntoIterator<Item = u8>) -> Arc<Self> {
        let address = address(seed, "port");
        let local = LocalPort {
            primary: names(address, address),
            secondary: Names::default(),
            active: Active::Primary,
            state: PortState::Online,
            port_id: LOCAL_ID,
            fabric: FABRIC << 48 | self::address(seed, "fabric"),
            speed: SPEED,
            classes: CLASS_3,
            max_frame: FRAME,
        };
        let remotes = targets.into_iter().map(|target| (target, remote(seed, target))).collect();
        let state =
            State { view: Arc::new(View { local, remotes, vports: BTreeMap::new() }), listener: None };
        Arc::new(Self { seed: seed.to_owned(), state: Mutex::new(state) })
    }

    /// Adds the port of `target`, if there is none yet.
    pub fn add(&self, target: u8) {
        self.change(|view| {
            view.remotes.entry(target).or_insert_with(|| remote(&self.seed, target));
        });
    }

    /// Has the port of `target` lost or back; false where there is none.
    pub fn set_state(&self, target: u8, state: RemoteState) -> bool {
        self.change(|view| {
            let port = view.remotes.get_mut(&target);
            port.map(|port| port.state = state).is_some()
        })
    }

    /// Changes the port of the guest.
    pub fn set_local(&self, change: impl FnOnce(&mut LocalPort)) {
        self.change(|view| change(&mut view.local));
    }

    /// Says that the array has other units at `target`.
    pub fn units_changed(&self, target: u8) {
        let listener = self.lock().listener.clone();
        if let Some(listener) = listener {
            listener.units_changed(target);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        let mut state = self.lock();
        let done = change(Arc::make_mut(&mut state.view));
        let listener = state.listener.clone();
        // The listener looks at the view.
        drop(state);
        if let Some(listener) = listener {
            listener.changed();
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl San for Emulated {
    fn view(&self) -> Arc<View> {
        self.lock().view.clone()
    }

    fn rescan(&self, done: Box<dyn FnOnce() + Send>) {
        done();
    }

    fn set_listener(&self, listener: Option<Arc<dyn SanListener>>) {
        self.lock().listener = listener;
    }
}

fn remote(seed: &str, target: u8) -> RemotePort {
    RemotePort {
        names: names(address(seed, "array"), address(seed, &format!("target {target}"))),
        port_id: REMOTE_ID + u32::from(target),
        state: RemoteState::Online,
        transport: 0,
        vport: 0,
    }
}

fn names(node: u64, port: u64) -> Names {
    Names { wwnn: NODE << 48 | node, wwpn: PORT << 48 | port }
}

/// 48 bits of an address, of which the first byte says that somebody here gave it, and that it is one station's (IEEE 802, 8.2).
fn address(seed: &str, what: &str) -> u64 {
    let bytes = seed.bytes().chain([0]).chain(what.bytes());
    // FNV-1a, and the finish of MurmurHash3, which spreads the last bytes.
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash >> 16) & 0xf0ff_ffff_ffff | 0x0200_0000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_whenever_the_seed_is() {
        let view = Emulated::new("vm1", [0, 5]).view();
        assert_eq!(*view, *Emulated::new("vm1", [0, 5]).view());
        assert_ne!(view.local.primary, Emulated::new("vm2", [0, 5]).view().local.primary);
        let remotes: Vec<_> = view.remotes.values().map(|port| port.names).collect();
        assert_eq!(remotes[0].wwnn, remotes[1].wwnn, "one array");
        assert_ne!(remotes[0].wwpn, remotes[1].wwpn);
        for name in [view.local.primary.wwpn, remotes[0].wwpn, remotes[1].wwpn] {
            assert_eq!(name >> 48, 0x2100, "{name:016x}");
            assert_eq!(name >> 40 & 3, 2, "{name:016x}: locally administered, of one station");
        }
        assert_eq!(view.local.primary.wwnn >> 48, 0x2000);
        assert_eq!(view.local.fabric >> 48, 0x1000);
        // A name is kept over updates of the program: masking goes by it.
        assert_eq!(format!("{:016x}", view.local.primary.wwpn), "2100a27443fc8f7f");
    }
}
