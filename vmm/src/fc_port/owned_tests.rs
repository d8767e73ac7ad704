//! Ports that are found, made, kept and deleted, with a kernel that does it or not.

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
            let own = std::fs::canonicalize(self.0.path("sys/class/fc_vports/vport-3:0-7/device")).unwrap();
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
    assert_eq!((&*record.owner, record.wwpn, record.pid), ("vm1.hba0", first.names.wwpn, std::process::id()));
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
        said.starts_with("this machine has the virtual port 210002123456789a (vport-3:0-7) already, and two"),
        "{said}"
    );
    // Another process of that name.
    let (path, own) = (store.record_path(first.names.wwpn), format!("pid = {}\n", std::process::id()));
    let written = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, written.replace(&own, "pid = 1\n")).unwrap();
    std::fs::copy(tree.path(&format!("proc/{}/stat", std::process::id())), {
        std::fs::create_dir_all(tree.path("proc/1")).unwrap();
        tree.path("proc/1/stat")
    })
    .unwrap();
    let said = owned(&tree, &store, &wanted()).unwrap_err();
    assert!(
        said.starts_with("machine vm1 runs already, or has ended and its driver logs out at the fabric"),
        "{said}"
    );
    std::fs::write(&path, written).unwrap();
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

/// A kernel that deletes nothing.
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

/// It has changed its names and comes back to those.
#[test]
fn a_port_of_before_is_deleted_or_used_again() {
    let (tree, store) = tree();
    let again = |wanted: &Wanted, refuses: bool| {
        let (fake, roots) = (Fake(&tree, Duration::ZERO), tree.roots());
        if refuses {
            regain(wanted, &roots, &store, Refuses(fake))
        } else {
            regain(wanted, &roots, &store, fake)
        }
    };
    assert_eq!(again(&wanted(), true), Ok(None), "there is none");
    let port = owned(&tree, &store, &wanted()).unwrap();
    let stranger = Wanted { owner: "vm2.hba0".into(), ..wanted() };
    assert_eq!(again(&stranger, false), Ok(None));
    assert_eq!(made(&wanted(), &store), [port.names.wwpn].into());
    assert_eq!(again(&wanted(), true), Ok(Some(port.clone())));
    tree.file("sys/class/fc_vports/vport-3:0-7/vport_state", "Linkdown\n");
    let said = again(&wanted(), true).unwrap_err();
    assert!(
        said.starts_with("its virtual port 210002123456789a of before is still there and logs in no more")
            && said.contains("Input/output error"),
        "{said}"
    );
    assert_eq!(again(&wanted(), false), Ok(None));
    assert!(made(&wanted(), &store).is_empty() && San::read(&tree.roots()).vports.is_empty());
    assert_eq!(owned(&tree, &store, &wanted()), Ok(port));
}

/// `vmm fc define vm1.hba0 --names-only --parent host4`: the port with the other names goes by the same rules.
#[test]
fn a_port_has_the_rules_that_are_stored_with_its_names() {
    let (tree, store) = tree();
    let rules = Rules { parent: Some("host4".into()), ..Rules::default() };
    let (wwnn, wwpn) = wanted().names.unwrap();
    store.define("vm1.hba0", &Definition { wwnn, wwpn, boot: false, rules: rules.clone() }).unwrap();
    let stored = Wanted { names: None, ..wanted() };
    let port = owned(&tree, &store, &stored).unwrap();
    assert_eq!(port.rules, rules);
    // It is there already: by the same.
    assert_eq!(
        regain(
            &Wanted { rules: rules.clone(), ..wanted() },
            &tree.roots(),
            &store,
            Refuses(Fake(&tree, Duration::ZERO))
        )
        .unwrap()
        .unwrap()
        .rules,
        rules
    );
    let own = Rules { parent: Some("host3".into()), ..Rules::default() };
    disown(&port, &tree.roots(), &store, Fake(&tree, Duration::ZERO)).unwrap();
    let said = owned(&tree, &store, &Wanted { rules: own, ..stored }).unwrap_err();
    assert!(said.contains("host3"), "{said}");
}

#[test]
fn a_port_that_cannot_be_deleted_says_why() {
    let (tree, store) = tree();
    let port = owned(&tree, &store, &wanted()).unwrap();
    let kernel = Refuses(Fake(&tree, Duration::ZERO));
    let said = disown(&port, &tree.roots(), &store, kernel).unwrap_err();
    assert!(said.contains("does not delete the virtual port 210002123456789a: Input/output error"), "{said}");
    assert_eq!(store.records().unwrap().len(), 1, "somebody else can try it");
}
