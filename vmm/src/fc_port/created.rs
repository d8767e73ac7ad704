//! The virtual port that a guest creates: made on the host, or refused, with what the guest is told of that.

use std::time::Duration;

use fc::choose::NoPort;
use fc::names::{Names, Unfit};
use fc::state::Store;
use fc::vport::{CreateError, Kernel, Objection, Ports, Request};
use fc::{Roots, Wwn};
use hba_virtio_scsi::fc::VportRefusal;

use super::owned::{self, Owned};
use super::{Origin, Wanted};

/// Why a port that a guest wants is not made: for the guest, and for the operator in one line.
pub(super) type NotMade = (VportRefusal, String);

/// What else is known of a port that a guest wants.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The name of the node of the HBA's own port.
    pub(super) node: Wwn,
    /// One of these names was made before, and could not be deleted.
    pub(super) is_left: bool,
}

/// Makes the port that a guest wants, and waits until the fabric has it. What is there stays whose it is.
///
/// # Errors
/// Why there is none; then nothing is left of it, or the line says what is.
pub(super) fn make<K: Kernel>(
    wanted: &Wanted,
    known: Known,
    roots: &Roots,
    store: &Store,
    mut kernel: impl FnMut() -> K,
) -> Result<Owned, NotMade> {
    let Some((wwnn, wwpn)) = wanted.names else {
        return Err((VportRefusal::Failed, "it has no names".into()));
    };
    if known.is_left {
        owned::delete(wwpn, roots, store, kernel()).map_err(|why| {
            let text = format!("its virtual port of before is still there, and cannot be deleted: {why}");
            (VportRefusal::InUse, text)
        })?;
    }
    let names = Names { wwnn, wwpn };
    let mut create = |any_oui| {
        let request = Request {
            wanted: wanted.rules.wanted(),
            names,
            // Those of definitions are promised to others, whoever knows both of them.
            definition: Some(""),
            any_oui,
            deadline: Duration::from_secs(wanted.timeout.into()),
            owner: Some(&wanted.owner),
            spares: true,
        };
        Ports::new(roots, store, kernel()).create_in_time(&request)
    };
    let made = match create(wanted.any_oui) {
        // The HBA's own port has it; that of the port was looked at before it.
        Err(CreateError::Names(Unfit::Foreign("WWNN", node, ..))) if node == known.node => create(true),
        made => made,
    };
    let vport = made.map_err(|error| (refusal(&error), error.to_string()))?;
    let host = vport.host.ok_or_else(|| (VportRefusal::Failed, format!("{} has no host", vport.name)))?;
    let rules = wanted.rules.clone();
    Ok(Owned { vport: vport.name, host, names, origin: Origin::Made, named: false, rules })
}

/// What the guest is told. The operator reads the error itself.
fn refusal(error: &CreateError) -> VportRefusal {
    match error {
        CreateError::Names(Unfit::Taken(..) | Unfit::LoggedIn(..))
        | CreateError::Owned { .. }
        | CreateError::Unclear { .. }
        | CreateError::Refused { because: Objection::Name, .. } => VportRefusal::InUse,
        CreateError::Names(_) => VportRefusal::NotAllowed,
        CreateError::Port(NoPort::Full { .. }) | CreateError::Refused { because: Objection::Room, .. } => {
            VportRefusal::NoRoom
        }
        CreateError::Left { error, .. } => refusal(error),
        _ => VportRefusal::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fc::testing::Tree;
    use fc::vport::{Pause, WriteError};

    use super::super::owned::tests::{Fake, HOST, tree, wanted};
    use super::*;

    const NODE: Wwn = Wwn::new(0x2000_0212_3456_789a);
    const KNOWN: Known = Known { node: NODE, is_left: false };

    /// A kernel that says no.
    struct Refuses<'a>(Fake<'a>, i32);

    impl Kernel for Refuses<'_> {
        fn write(&mut self, _: &Path, _: &str) -> Result<(), WriteError> {
            Err(WriteError::Write(std::io::Error::from_raw_os_error(self.1)))
        }
        fn pause(&mut self, time: Duration) -> Pause {
            self.0.pause(time)
        }
        fn now(&mut self) -> Duration {
            self.0.now()
        }
    }

    fn makes(tree: &Tree, store: &Store, wanted: &Wanted, known: Known) -> Result<Owned, NotMade> {
        make(wanted, known, &tree.roots(), store, || Fake(tree, Duration::ZERO))
    }

    #[test]
    fn a_port_is_the_machines_and_made_where_it_is_told() {
        let (tree, store) = tree();
        let rules = fc::choose::Rules { parent: Some("host4".into()), ..Default::default() };
        let port = makes(&tree, &store, &Wanted { rules, ..wanted() }, KNOWN).unwrap();
        assert_eq!((&*port.vport, port.host, port.origin), ("vport-3:0-7", 9, Origin::Made));
        let record = store.records().unwrap().pop().unwrap().unwrap();
        assert_eq!((&*record.owner, record.wwpn, record.parent), ("vm1.hba0", port.names.wwpn, 4));
    }

    #[test]
    fn names_of_others_are_refused_and_nothing_of_them_is_deleted() {
        let wwpn = wanted().names.unwrap().1;
        let refused = |tree: &Tree, store: &Store| makes(tree, store, &wanted(), KNOWN).unwrap_err().0;
        // A port of nobody's.
        let (tree, store) = tree();
        tree.vport(HOST, "vport-3:0-1", ("0x210002123456789a", "0x200002123456789a"), "Active", Some(8));
        assert_eq!(refused(&tree, &store), VportRefusal::InUse);
        // Names that are stored, of another one or of this machine.
        for owner in ["vm2.hba0", "vm1.hba0"] {
            let (tree, store) = self::tree();
            let definition =
                fc::state::Definition { wwnn: NODE, wwpn, boot: false, rules: Default::default() };
            store.define(owner, &definition).unwrap();
            assert_eq!(refused(&tree, &store), VportRefusal::InUse, "{owner}");
        }
        // A port that another machine has, and one that an ended one has left.
        let (tree, store) = self::tree();
        makes(&tree, &store, &Wanted { owner: "vm2.hba0".into(), ..wanted() }, KNOWN).unwrap();
        assert_eq!(refused(&tree, &store), VportRefusal::InUse);
        let stat = "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 6 20\n";
        tree.file(&format!("proc/{}/stat", std::process::id()), stat);
        assert_eq!(refused(&tree, &store), VportRefusal::InUse);
        assert_eq!(fc::San::read(&tree.roots()).vports.len(), 1);
        // This machine's own, of before.
        makes(&tree, &store, &Wanted { owner: "vm2.hba0".into(), ..wanted() }, KNOWN).unwrap();
    }

    /// A wide range has names of hardware in it.
    #[test]
    fn names_of_hardware_are_not_allowed() {
        let (tree, store) = tree();
        let wwpn = Wwn::new(0x5006_0160_4460_2199);
        let hardware = Wanted { names: Some((NODE, wwpn)), ..wanted() };
        let (refusal, why) = makes(&tree, &store, &hardware, KNOWN).unwrap_err();
        assert!(
            refusal == VportRefusal::NotAllowed && why.contains(" whose hardware has such names"),
            "{why}"
        );
        makes(&tree, &store, &Wanted { any_oui: true, ..hardware }, KNOWN).unwrap();
        // That of the node of its own port it has already.
        let (tree, store) = self::tree();
        let node = Wwn::new(0x5006_0160_4460_2198);
        let of_node = |wwpn| Wanted { names: Some((node, wwpn)), ..wanted() };
        let own = wanted().names.unwrap().1;
        assert_eq!(makes(&tree, &store, &of_node(own), KNOWN).unwrap_err().0, VportRefusal::NotAllowed);
        let known = Known { node, ..KNOWN };
        assert_eq!(makes(&tree, &store, &of_node(wwpn), known).unwrap_err().0, VportRefusal::NotAllowed);
        makes(&tree, &store, &of_node(own), known).unwrap();
    }

    /// As docs/fc.md says it.
    #[test]
    fn the_guest_hears_whether_there_is_no_room_or_it_does_not_work() {
        let (tree, store) = tree();
        let no = |error: i32| {
            let kernel = || Refuses(Fake(&tree, Duration::ZERO), error);
            make(&wanted(), KNOWN, &tree.roots(), &store, kernel).unwrap_err().0
        };
        for error in [libc::ENOSPC, libc::EAGAIN, libc::ENOMEM, libc::ENOSYS] {
            assert_eq!(no(error), VportRefusal::NoRoom, "{error}");
        }
        for error in [libc::EIO, libc::EOPNOTSUPP, libc::EINVAL, libc::EPERM] {
            assert_eq!(no(error), VportRefusal::Failed, "{error}");
        }
        assert_eq!(no(libc::ENOTUNIQ), VportRefusal::InUse);
        let host4 = || Wanted {
            rules: fc::choose::Rules { parent: Some("host4".into()), ..Default::default() },
            timeout: 1,
            ..wanted()
        };
        tree.file("sys/class/fc_host/host4/port_state", "Linkdown\n");
        let (refusal, why) = makes(&tree, &store, &host4(), KNOWN).unwrap_err();
        assert!(refusal == VportRefusal::Failed && why.starts_with("host4 is Linkdown"), "{why}");
        tree.file("sys/class/fc_host/host4/port_state", "Online\n");
        let most = std::fs::read_to_string(tree.path("sys/class/fc_host/host4/max_npiv_vports")).unwrap();
        tree.file("sys/class/fc_host/host4/npiv_vports_inuse", &most);
        let (refusal, why) = makes(&tree, &store, &host4(), KNOWN).unwrap_err();
        assert!(refusal == VportRefusal::NoRoom && why.contains("virtual ports in use"), "{why}");
    }

    /// It was given up half-made, or could not be deleted.
    #[test]
    fn what_is_left_of_a_port_is_deleted_first() {
        let (tree, store) = tree();
        let port = makes(&tree, &store, &wanted(), KNOWN).unwrap();
        assert_eq!(makes(&tree, &store, &wanted(), KNOWN).unwrap_err().0, VportRefusal::InUse);
        let left = Known { is_left: true, ..KNOWN };
        let refuses = || Refuses(Fake(&tree, Duration::ZERO), libc::EIO);
        let (refusal, why) = make(&wanted(), left, &tree.roots(), &store, refuses).unwrap_err();
        assert!(
            refusal == VportRefusal::InUse
                && why.starts_with("its virtual port of before is still there, and cannot be deleted: host"),
            "{why}"
        );
        assert_eq!(makes(&tree, &store, &wanted(), left), Ok(port));
    }
}
