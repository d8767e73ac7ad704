//! The virtual port of one HBA: found or made at the start, and deleted at the end if it was made.

use std::time::Duration;

use fc::model::{Host, San, Vport, VportState};
use fc::names::{Names, Unfit, random};
use fc::state::{Definition, Life, Record, StateError, Store};
use fc::vport::{CreateError, Kernel, Pause, Ports, Request};
use fc::{Roots, Wwn};

use hba_virtio_scsi::fc::VportRefusal;

use super::{HostPort, Origin, Wanted};

/// How often a port that is there already is looked at while it is not active.
const STEP: Duration = Duration::from_millis(100);

/// The port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    /// `vport-5:0-0`
    pub(super) vport: String,
    /// The number of its host.
    pub(super) host: u32,
    pub(super) names: Names,
    /// How it came.
    pub(super) origin: Origin,
    /// Its names were made just now.
    pub(super) named: bool,
}

/// Finds or makes the port that an HBA wants, and waits until the fabric has it. `kernel` makes it.
///
/// # Errors
/// Why there is none, in one line; then nothing is left of it.
pub(super) fn own<K: Kernel>(
    wanted: &Wanted,
    roots: &Roots,
    store: &Store,
    mut kernel: impl FnMut() -> K,
) -> Result<Owned, String> {
    let Named { names, definition, new } = names(wanted, roots, store, &mut kernel)?;
    let deadline = Duration::from_secs(wanted.timeout.into());
    let rules = match definition {
        Some(definition) if wanted.rules == Default::default() => definition.rules,
        _ => wanted.rules.clone(),
    };
    let seen = San::try_read(roots).map_err(|error| error.to_string())?;
    let there = seen.vport(names.wwpn).cloned();
    if let Some(vport) = there
        && is_adopted(&vport, wanted, names, roots, store)?
    {
        let origin =
            if is_defined(names, store).unwrap_or(false) { Origin::Persistent } else { Origin::Adopted };
        return adopt(vport, names, origin, roots, deadline, kernel());
    }
    let request = Request {
        wanted: rules.wanted(),
        names,
        definition: wanted.names.is_none().then_some(&*wanted.owner),
        // Those that are stored were looked at when they were made.
        any_oui: wanted.any_oui || wanted.names.is_none(),
        deadline,
        owner: Some(&wanted.owner),
    };
    let vport =
        Ports::new(roots, store, kernel()).create_in_time(&request).map_err(|error| error.to_string())?;
    let host = vport.host.ok_or_else(|| format!("{} has no host", vport.name))?;
    Ok(Owned { vport: vport.name, host, names, origin: Origin::Made, named: new })
}

/// Why a port that a guest wants is not made: for the guest, and for the operator in one line.
pub(super) type NotMade = (VportRefusal, String);

/// Makes the port that a guest wants, and waits until the fabric has it. What is there stays whose it is.
///
/// # Errors
/// Why there is none; then nothing is left of it, or the line says what is.
pub(super) fn make<K: Kernel>(
    wanted: &Wanted,
    roots: &Roots,
    store: &Store,
    kernel: K,
) -> Result<Owned, NotMade> {
    let Some((wwnn, wwpn)) = wanted.names else {
        return Err((VportRefusal::Failed, "it has no names".into()));
    };
    let names = Names { wwnn, wwpn };
    let request = Request {
        wanted: wanted.rules.wanted(),
        names,
        // Those of definitions are promised to others, whoever knows both of them.
        definition: Some(""),
        // The operator has listed it.
        any_oui: true,
        deadline: Duration::from_secs(wanted.timeout.into()),
        owner: Some(&wanted.owner),
    };
    let made = Ports::new(roots, store, kernel).create_in_time(&request);
    let vport = made.map_err(|error| (refusal(&error), error.to_string()))?;
    let host = vport.host.ok_or_else(|| (VportRefusal::Failed, format!("{} has no host", vport.name)))?;
    Ok(Owned { vport: vport.name, host, names, origin: Origin::Made, named: false })
}

fn refusal(error: &CreateError) -> VportRefusal {
    match error {
        CreateError::Names(Unfit::Taken(..) | Unfit::LoggedIn(..)) => VportRefusal::InUse,
        CreateError::Owned { .. } | CreateError::Unclear { .. } => VportRefusal::InUse,
        CreateError::Names(_) => VportRefusal::NotAllowed,
        CreateError::Port(_) => VportRefusal::NoRoom,
        CreateError::Left { error, .. } => refusal(error),
        _ => VportRefusal::Failed,
    }
}

impl Owned {
    /// What the operator wants to know of it.
    pub(super) fn shown(&self, roots: &Roots) -> HostPort {
        let san = San::read(roots);
        let parent = san.vport(self.names.wwpn).and_then(|vport| san.host(vport.parent));
        HostPort {
            vport: self.vport.clone(),
            host: self.host,
            wwpn: self.names.wwpn.bits(),
            wwnn: self.names.wwnn.bits(),
            parent: parent.map(Host::name).unwrap_or_default(),
            driver: parent.map(|host| host.driver.clone()).unwrap_or_default(),
            device: parent.and_then(|host| host.parent.clone()).unwrap_or_default(),
            origin: self.origin,
        }
    }
}

/// Deletes the port, if it was made.
///
/// # Errors
/// Why it is still there. Its record stays then, and the next start or vmm fc clean tries again.
pub(super) fn disown<K: Kernel>(
    owned: &Owned,
    roots: &Roots,
    store: &Store,
    kernel: K,
) -> Result<(), String> {
    if owned.origin != Origin::Made {
        return Ok(());
    }
    // Somebody may have deleted it before, and another one may have its name by now.
    let deleted = Ports::new(roots, store, kernel).delete_own(owned.names.wwpn, std::process::id());
    deleted.map_err(|error| error.to_string())
}

/// The name of a port of which something is left, and which this process has not got, unlike `had`: what was written down of it stays as
/// long as it does.
pub(super) fn left<'a>(
    wanted: &Wanted,
    had: impl IntoIterator<Item = &'a Owned>,
    store: &Store,
) -> Option<Wwn> {
    let own = std::process::id();
    let had: Vec<Wwn> = had.into_iter().map(|owned| owned.names.wwpn).collect();
    let mut all = store.records().unwrap_or_default().into_iter().flatten();
    let is_left =
        |record: &Record| record.pid == own && record.owner == wanted.owner && !had.contains(&record.wwpn);
    all.find(is_left).map(|record| record.wwpn)
}

/// The names of a port.
struct Named {
    names: Names,
    /// Where they are stored with rules.
    definition: Option<Definition>,
    /// They were made just now.
    new: bool,
}

/// The names of the port: given, or stored, or made and stored now, for good.
fn names<K: Kernel>(
    wanted: &Wanted,
    roots: &Roots,
    store: &Store,
    kernel: &mut impl FnMut() -> K,
) -> Result<Named, String> {
    let of = |names, definition, new| Ok(Named { names, definition, new });
    if let Some((wwnn, wwpn)) = wanted.names {
        return of(Names { wwnn, wwpn }, None, false);
    }
    match store.definition(&wanted.owner) {
        Ok(definition) => of(definition.names(), Some(definition), false),
        Err(StateError::Missing(_)) => {
            let taken = Ports::new(roots, store, kernel()).taken().map_err(|error| error.to_string())?;
            let made =
                Names::make(&taken, random).map_err(|error| format!("making names for its port: {error}"))?;
            let Names { wwnn, wwpn } = made;
            // The rules are those of the configuration, each time.
            let definition = Definition { wwnn, wwpn, boot: false, rules: Default::default() };
            match store.define(&wanted.owner, &definition) {
                Ok(()) => of(made, None, true),
                // Another first start of this name was quicker. Whoever removed its names lost the data behind them.
                Err(StateError::Exists(..)) => {
                    let stored = store.definition(&wanted.owner).map_err(|error| error.to_string())?;
                    of(stored.names(), Some(stored), false)
                }
                Err(error) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Whether a port that is there is nobody's, so that it is used, and stays. One of an ended process is made anew.
fn is_adopted(
    vport: &Vport,
    wanted: &Wanted,
    names: Names,
    roots: &Roots,
    store: &Store,
) -> Result<bool, String> {
    let record = store.record_of(names.wwpn).map_err(|error| error.to_string())?;
    // What was before the host started anew says nothing of a port that is there.
    match record.filter(|record| record.life(roots) != Life::OtherStart) {
        Some(record) if record.owner == wanted.owner && record.life(roots) == Life::Lives => {
            let id = wanted.hba.strip_prefix("hba ").unwrap_or(&wanted.hba);
            let machine = wanted.owner.strip_suffix(&format!(".{id}")).unwrap_or(&wanted.owner);
            Err(format!(
                "machine {machine} runs already, or has ended and its driver logs out at the fabric, which may take {} s: its process \
                 vmm-fcport ({}) has the virtual port {} ({}) of this HBA. End that machine, or give this one another name; if it has \
                 ended, start this one once that process has",
                fc::vport::DELETION.as_secs(),
                record.pid,
                names.wwpn,
                vport.name
            ))
        }
        Some(record) if record.life(roots) == Life::Lives => Err(format!(
            "the virtual port {} ({}) belongs to {} (process {}), which runs; end that, or give this HBA another wwpn",
            names.wwpn, vport.name, record.owner, record.pid
        )),
        Some(record) if record.life(roots) == Life::Unknown => Err(format!(
            "the virtual port {0} ({1}) belongs to {2} (process {3}), and whether that runs cannot be seen from here; look where it \
             would, and if it has ended, vmm fc delete --force {0}; or give this HBA another wwpn",
            names.wwpn, vport.name, record.owner, record.pid
        )),
        // What is defined stays all the same.
        Some(_) => is_defined(names, store).map_err(|error| error.to_string()),
        None if vport.wwnn != Some(names.wwnn) => Err(format!(
            "the virtual port {} is there already ({}), with the WWNN {}, and wwnn is {}; set wwnn to that, or delete the port (vmm fc \
             delete {0})",
            names.wwpn,
            vport.name,
            vport.wwnn.as_ref().map(Wwn::to_string).unwrap_or_default(),
            names.wwnn
        )),
        None => Ok(true),
    }
}

/// Whether a port is there whenever the host runs.
fn is_defined(names: Names, store: &Store) -> Result<bool, StateError> {
    let of_this = |definition: Definition| definition.boot && definition.wwpn == names.wwpn;
    Ok(store.definitions()?.into_iter().any(|(_, definition)| definition.is_ok_and(of_this)))
}

fn adopt(
    mut vport: Vport,
    names: Names,
    origin: Origin,
    roots: &Roots,
    deadline: Duration,
    mut kernel: impl Kernel,
) -> Result<Owned, String> {
    let begin = kernel.now();
    loop {
        if let (VportState::Active, Some(host)) = (&vport.state, vport.host) {
            return Ok(Owned { vport: vport.name, host, names, origin, named: false });
        }
        let waited = kernel.now().saturating_sub(begin);
        if waited >= deadline {
            return Err(format!(
                "the virtual port {} ({}), which was there already, is \"{}\" after {} s; see vmm fc show {0}, or delete it",
                names.wwpn,
                vport.name,
                vport.state.word(),
                waited.as_secs()
            ));
        }
        if kernel.pause(STEP) == Pause::Interrupted {
            return Err(CreateError::Interrupted { wwpn: names.wwpn }.to_string());
        }
        match San::read(roots).vport(names.wwpn) {
            Some(now) => vport = now.clone(),
            None => return Err(CreateError::Gone { wwpn: names.wwpn }.to_string()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use fc::testing::Tree;
    use fc::vport::WriteError;

    use super::super::message::tests::example;
    use super::*;

    /// A kernel that makes one port, and counts time.
    pub(in crate::fc_port) struct Fake<'a>(pub(in crate::fc_port) &'a Tree, pub(in crate::fc_port) Duration);

    pub(in crate::fc_port) const HOST: &str = "devices/pci0000:00/0000:00:04.0/0000:10:00.0/host3";

    impl Kernel for Fake<'_> {
        fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
            let (wwpn, wwnn) = text.split_once(':').unwrap();
            if path.ends_with("vport_create") {
                let host = HOST.replace("host3", path.iter().rev().nth(1).unwrap().to_str().unwrap());
                let host = host.replace("00.0/host4", "00.1/host4");
                let names = (&*format!("0x{wwpn}"), &*format!("0x{wwnn}"));
                self.0.vport(&host, "vport-3:0-7", names, "Active", Some(9));
            } else {
                let own =
                    std::fs::canonicalize(self.0.path("sys/class/fc_vports/vport-3:0-7/device")).unwrap();
                std::fs::remove_dir_all(own).unwrap();
                for link in ["fc_vports/vport-3:0-7", "fc_host/host9", "scsi_host/host9"] {
                    std::fs::remove_file(self.0.path(&format!("sys/class/{link}"))).unwrap();
                }
            }
            Ok(())
        }
        fn pause(&mut self, time: Duration) -> Pause {
            self.1 += time;
            Pause::Over
        }
        fn now(&mut self) -> Duration {
            self.1
        }
    }

    pub(in crate::fc_port) fn tree() -> (Tree, Store) {
        let tree = Tree::qla2xxx();
        let own = std::process::id();
        tree.files(&[
            (&format!("proc/{own}/stat"), "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 5 20\n"),
            ("proc/sys/kernel/random/boot_id", "first\n"),
        ]);
        let store = Store::below(&tree.path(""));
        (tree, store)
    }

    pub(in crate::fc_port) fn wanted() -> Wanted {
        Wanted { hba: "hba hba0".into(), rules: Default::default(), any_oui: false, ..example() }
    }

    pub(in crate::fc_port) fn owned(tree: &Tree, store: &Store, wanted: &Wanted) -> Result<Owned, String> {
        own(wanted, &tree.roots(), store, || Fake(tree, Duration::ZERO))
    }

    #[test]
    fn a_port_is_made_with_names_that_stay_and_goes_with_the_machine() {
        let (tree, store) = tree();
        let first = owned(&tree, &store, &Wanted { names: None, ..wanted() }).unwrap();
        assert_eq!((first.host, first.origin, first.named), (9, Origin::Made, true));
        let record = store.records().unwrap().pop().unwrap().unwrap();
        assert_eq!(
            (&*record.owner, record.wwpn, record.pid),
            ("vm1.hba0", first.names.wwpn, std::process::id())
        );
        assert_eq!(store.definition("vm1.hba0").unwrap().names(), first.names);
        let gone = || disown(&first, &tree.roots(), &store, Fake(&tree, Duration::ZERO));
        assert_eq!(gone(), Ok(()));
        assert_eq!(gone(), Ok(()), "it may be gone already");
        assert!(store.records().unwrap().is_empty() && San::read(&tree.roots()).vports.is_empty());
        let (tree, _) = self::tree();
        let second = owned(&tree, &store, &Wanted { names: None, ..wanted() }).unwrap();
        assert_eq!((second.names, second.named), (first.names, false), "never anew");
    }

    /// Somebody has deleted it, and made one of its name that he or another machine has.
    #[test]
    fn what_has_the_name_of_a_port_since_stays() {
        for record in [false, true] {
            let (tree, store) = tree();
            let port = owned(&tree, &store, &wanted()).unwrap();
            let (path, own) = (store.record_path(port.names.wwpn), format!("pid = {}\n", std::process::id()));
            let written = std::fs::read_to_string(&path).unwrap();
            assert!(written.contains(&own), "{written}");
            let kernel = Fake(&tree, Duration::ZERO);
            Ports::new(&tree.roots(), &store, kernel).delete(&port.names.wwpn.to_string(), true).unwrap();
            let names = ("0x210002123456789a", "0x200002123456789a");
            tree.vport(HOST, "vport-3:0-8", names, "Active", Some(8));
            if record {
                std::fs::write(&path, written.replace(&own, "pid = 1\n")).unwrap();
            }
            assert_eq!(disown(&port, &tree.roots(), &store, Fake(&tree, Duration::ZERO)), Ok(()));
            assert_eq!(San::read(&tree.roots()).vports.len(), 1, "record: {record}");
            assert_eq!(store.records().unwrap().len(), usize::from(record));
        }
    }

    #[test]
    fn a_port_that_is_nobodys_is_used_and_stays() {
        let (tree, store) = tree();
        let names = ("0x210002123456789a", "0x200002123456789a");
        tree.vport(HOST, "vport-3:0-1", names, "Active", Some(8));
        let port = owned(&tree, &store, &wanted()).unwrap();
        assert_eq!((port.host, port.origin, &*port.vport), (8, Origin::Adopted, "vport-3:0-1"));
        assert_eq!(disown(&port, &tree.roots(), &store, Fake(&tree, Duration::ZERO)), Ok(()));
        assert_eq!(San::read(&tree.roots()).vports.len(), 1);
        let other = Wanted { names: Some((Wwn::new(0x2000_0212_3456_789b), port.names.wwpn)), ..wanted() };
        let said = owned(&tree, &store, &other).unwrap_err();
        assert!(
            said.contains("with the WWNN 200002123456789a, and wwnn is 200002123456789b; set wwnn"),
            "{said}"
        );
        tree.file("sys/class/fc_vports/vport-3:0-1/vport_state", "Linkdown\n");
        let said = owned(&tree, &store, &wanted()).unwrap_err();
        assert!(said.contains("is \"Linkdown\" after 30 s; see vmm fc show 210002123456789a"), "{said}");
    }

    #[test]
    fn a_port_of_another_machine_is_not_touched_and_one_of_an_ended_machine_is_made_anew() {
        let (tree, store) = tree();
        let first = owned(&tree, &store, &wanted()).unwrap();
        let said = owned(&tree, &store, &Wanted { owner: "vm2.hba0".into(), ..wanted() }).unwrap_err();
        assert!(said.contains("(vport-3:0-7) belongs to vm1.hba0 (process "), "{said}");
        let said = owned(&tree, &store, &wanted()).unwrap_err();
        assert!(
            said.starts_with("machine vm1 runs already, or has ended and its driver logs out at the fabric"),
            "{said}"
        );
        assert!(said.contains("which may take 155 s"), "{said}");
        // Another process has its number.
        let stat = "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 6 20\n";
        tree.file(&format!("proc/{}/stat", std::process::id()), stat);
        let again = owned(&tree, &store, &wanted()).unwrap();
        assert_eq!((again.names, again.origin), (first.names, Origin::Made));
        assert_eq!(store.records().unwrap().len(), 1);
    }

    /// Two first starts at once: names that the other has stored are its own, and nobody is told to remove them.
    #[test]
    fn names_that_somebody_else_has_just_stored_are_taken() {
        let (tree, store) = tree();
        let (wwnn, wwpn) = wanted().names.unwrap();
        let wanted = Wanted { names: None, ..wanted() };
        let mut first = true;
        let named = names(&wanted, &tree.roots(), &store, &mut || {
            // Between the look and the write.
            if std::mem::take(&mut first) {
                let definition = Definition { wwnn, wwpn, boot: false, rules: Default::default() };
                store.define(&wanted.owner, &definition).unwrap();
            }
            Fake(&tree, Duration::ZERO)
        });
        let Named { names, definition, new } = named.unwrap();
        assert_eq!((names.wwpn, definition.is_some(), new), (wwpn, true, false));
    }

    #[test]
    fn a_port_that_stays_is_told_from_one_that_goes_with_the_machine() {
        let (tree, store) = tree();
        let made = owned(&tree, &store, &wanted()).unwrap().shown(&tree.roots());
        assert_eq!(
            (made.origin, &*made.parent, &*made.driver, &*made.device, made.wwpn),
            (Origin::Made, "host3", "qla2xxx", "0000:10:00.0", 0x2100_0212_3456_789a)
        );
        let (tree, store) = self::tree();
        let names = ("0x210002123456789a", "0x200002123456789a");
        tree.vport(HOST, "vport-3:0-1", names, "Active", Some(8));
        let (wwnn, wwpn) = wanted().names.unwrap();
        let definition = Definition { wwnn, wwpn, boot: true, rules: Default::default() };
        store.define("web", &definition).unwrap();
        let port = owned(&tree, &store, &wanted()).unwrap();
        assert_eq!((port.origin, &*port.vport), (Origin::Persistent, "vport-3:0-1"));
    }

    /// As in a container, or where proc hides the processes of others.
    #[test]
    fn whether_another_machine_runs_may_be_unknown() {
        let (tree, store) = tree();
        owned(&tree, &store, &wanted()).unwrap();
        std::fs::remove_dir_all(tree.path(&format!("proc/{}", std::process::id()))).unwrap();
        let said = owned(&tree, &store, &wanted()).unwrap_err();
        assert!(!said.contains("which runs"), "{said}");
        assert!(
            said.ends_with(
                "whether that runs cannot be seen from here; look where it would, and if it has ended, vmm fc delete --force \
                 210002123456789a; or give this HBA another wwpn"
            ),
            "{said}"
        );
    }

    #[test]
    fn a_port_that_cannot_be_deleted_says_why() {
        struct Refuses<'a>(Fake<'a>);
        impl Kernel for Refuses<'_> {
            fn write(&mut self, _: &Path, _: &str) -> Result<(), WriteError> {
                Err(WriteError::Write(std::io::Error::from_raw_os_error(5)))
            }
            fn pause(&mut self, time: Duration) -> Pause {
                self.0.pause(time)
            }
            fn now(&mut self) -> Duration {
                self.0.now()
            }
        }
        let (tree, store) = tree();
        let port = owned(&tree, &store, &wanted()).unwrap();
        let kernel = Refuses(Fake(&tree, Duration::ZERO));
        let said = disown(&port, &tree.roots(), &store, kernel).unwrap_err();
        assert!(
            said.contains("does not delete the virtual port 210002123456789a: Input/output error"),
            "{said}"
        );
        assert_eq!(store.records().unwrap().len(), 1, "somebody else can try it");
    }
}
