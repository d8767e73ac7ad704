//! A fabric over nothing, for emulated disks: names that are made up, and ports that are lost and back as somebody wishes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{
    Active, LocalPort, Names, PortState, RemotePort, RemoteState, San, SanListener, View, VportRefusal,
};

/// What names of nodes and of ports begin with (FC-FS-5, 14.3: NAA 2, and 12 bits of one's own), before the address.
const NODE: u64 = 0x2000;
const PORT: u64 = 0x2100;
/// What the name of a fabric begins with (NAA 1).
const FABRIC: u64 = 0x1000;
/// N_Port_IDs: domain 1 is the switch of the guest's ports, domain 2 that of the others.
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
    vports: OnceLock<Vports>,
}

/// Ports that the guest may create.
struct Vports {
    max: u16,
    allows: Box<dyn Fn(Names) -> bool + Send + Sync>,
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
        Arc::new(Self { seed: seed.to_owned(), state: Mutex::new(state), vports: OnceLock::new() })
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

    /// Lets the guest create up to `max` ports at a time, with names that `allows` says yes to: ports that are online, and see nobody.
    /// Once, before there is an HBA.
    pub fn allow_vports(&self, max: u16, allows: impl Fn(Names) -> bool + Send + Sync + 'static) {
        let _ = self.vports.set(Vports { max, allows: Box::new(allows) });
    }

    /// Changes a port that the guest has created; false where there is none.
    pub fn set_vport(&self, number: u16, change: impl FnOnce(&mut LocalPort)) -> bool {
        self.change(|view| view.vports.get_mut(&number).map(change).is_some())
    }

    /// Creates a port, if nothing is against it.
    fn create(&self, names: Names) -> Result<u16, VportRefusal> {
        let Some(allowed) = self.vports.get().filter(|vports| (vports.allows)(names)) else {
            return Err(VportRefusal::NotAllowed);
        };
        self.change(|view| {
            let locals = view.vports.values().chain([&view.local]);
            let locals = locals.flat_map(|port| [port.primary.wwpn, port.secondary.wwpn]);
            let remotes = view.remotes.values().map(|port| port.names.wwpn);
            if locals.chain(remotes).any(|wwpn| wwpn == names.wwpn) {
                return Err(VportRefusal::InUse);
            }
            let number = (1..=allowed.max).find(|number| !view.vports.contains_key(number));
            let number = number.ok_or(VportRefusal::NoRoom)?;
            let port = LocalPort {
                primary: names,
                secondary: Names::default(),
                active: Active::Primary,
                state: PortState::Online,
                port_id: LOCAL_ID + u32::from(number),
                ..view.local
            };
            view.vports.insert(number, port);
            Ok(number)
        })
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

    fn max_vports(&self) -> u16 {
        self.vports.get().map_or(0, |vports| vports.max)
    }

    fn create_vport(&self, names: Names, done: Box<dyn FnOnce(Result<u16, VportRefusal>) + Send>) {
        let said = self.create(names);
        if let Err(why) = said {
            devices::log_limited!(
                warn,
                "virtio-scsi: the guest wants a port with the names {:016x}:{:016x}, which it does not get: {why}",
                names.wwpn,
                names.wwnn
            );
        }
        done(said);
    }

    fn delete_vport(&self, vport: u16, done: Box<dyn FnOnce(Result<(), VportRefusal>) + Send>) {
        let gone = self.change(|view| view.vports.remove(&vport).is_some());
        done(if gone { Ok(()) } else { Err(VportRefusal::Unknown) });
    }

    fn delete_all_vports(&self) {
        self.change(|view| view.vports.clear());
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
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn ports_have_the_numbers_that_are_free_and_names_of_their_own() {
        let san = Emulated::new("vports", [3]);
        let create = |wwpn| {
            let (tell, told) = mpsc::channel();
            let names = Names { wwnn: 1, wwpn };
            san.create_vport(names, Box::new(move |said| tell.send(said).unwrap()));
            told.recv().unwrap()
        };
        assert_eq!((san.max_vports(), create(20)), (0, Err(VportRefusal::NotAllowed)));
        san.allow_vports(2, |names| names.wwpn != 66);
        assert_eq!(san.max_vports(), 2);
        assert_eq!(create(66), Err(VportRefusal::NotAllowed));
        let own = Names { wwnn: 1, wwpn: 30 };
        san.set_local(|port| port.secondary = own);
        let view = san.view();
        for taken in [view.local.primary.wwpn, own.wwpn, view.remotes[&3].names.wwpn] {
            assert_eq!(create(taken), Err(VportRefusal::InUse));
        }
        assert_eq!([create(20), create(20), create(21)], [Ok(1), Err(VportRefusal::InUse), Ok(2)]);
        assert_eq!(create(22), Err(VportRefusal::NoRoom));
        let view = san.view();
        let port = view.vports[&2];
        assert_eq!((port.primary.wwpn, port.secondary, port.port_id), (21, Names::default(), 0x01_0003));
        assert_eq!((port.state, port.active, port.speed), (PortState::Online, Active::Primary, SPEED));
        let delete = |number| {
            let (tell, told) = mpsc::channel();
            san.delete_vport(number, Box::new(move |said| tell.send(said).unwrap()));
            told.recv().unwrap()
        };
        assert_eq!([delete(1), delete(1)], [Ok(()), Err(VportRefusal::Unknown)]);
        assert_eq!(create(22), Ok(1));
        assert!(san.set_vport(1, |port| port.state = PortState::LinkDown) && !san.set_vport(3, |_| ()));
        san.delete_all_vports();
        assert!(san.view().vports.is_empty());
    }

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
