use super::*;
use crate::testing::Tree;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn definition() -> Definition {
    Definition {
        wwnn: Wwn::new(0x2000_0212_3456_789a),
        wwpn: Wwn::new(0x2100_0212_3456_789a),
        boot: true,
        rules: Rules { parent: Some("host5".into()), ..Rules::default() },
    }
}

#[test]
fn definitions_are_there_whole_and_never_replaced() {
    let directory = TempDir::new().unwrap();
    let store = Store::below(directory.path());
    assert!(store.definitions().unwrap().is_empty());
    store.define("vm1", &definition()).unwrap();
    assert_eq!(store.definition("vm1").unwrap(), definition());
    let path = directory.path().join("var/lib/vmm/fc/vm1.toml");
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "wwnn = \"200002123456789a\"\nwwpn = \"210002123456789a\"\nboot = true\nparent = \"host5\"\n"
    );
    let said = store.define("vm1", &Definition { boot: false, ..definition() }).unwrap_err().to_string();
    assert_eq!(
        said,
        format!(
            "vm1 is defined already ({}); vmm fc undefine vm1 removes it, and its names with it",
            path.display()
        )
    );
    assert!(store.definition("vm1").unwrap().boot);
    store.redefine("vm1", &Definition { boot: false, ..definition() }).unwrap();
    assert!(!store.definition("vm1").unwrap().boot);
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing is left beside it");
    store.undefine("vm1").unwrap();
    for said in [store.undefine("vm1").unwrap_err(), store.definition("vm1").unwrap_err()] {
        assert_eq!(said.to_string(), "vm1 is not defined; vmm fc define vm1 does it");
    }
}

#[test]
fn files_that_say_something_else_are_named() {
    let directory = TempDir::new().unwrap();
    let store = Store::below(directory.path());
    store.define("a", &definition()).unwrap();
    let file = directory.path().join("var/lib/vmm/fc/a.toml");
    for (text, why) in [
        ("wwnn = \"2000\"\nwwpn = \"210002123456789a\"\n", "\"2000\" is no World Wide Name"),
        ("wwnn = \"200002123456789a\"\n", "missing field `wwpn`"),
        ("\u{0}", "; mend or remove it"),
        ("wwnn", "; mend or remove it"),
    ] {
        fs::write(&file, text).unwrap();
        let said = store.definition("a").unwrap_err().to_string();
        assert!(said.starts_with(&format!("{}: ", file.display())) && said.contains(why), "{said}");
        assert!(store.definitions().unwrap()[0].1.is_err());
    }
    for name in ["", ".a", "-a", "a/b", "..", "a b", &"a".repeat(65), "ä"] {
        let said = store.define(name, &definition()).unwrap_err();
        assert!(matches!(said, StateError::Name(_)), "{name}");
    }
    assert_eq!(
        store.definition("../a").unwrap_err().to_string(),
        "\"../a\" is no name for a definition: that is up to 64 letters, digits, dots, dashes and underscores, and begins with \
         none of the last three"
    );
}

#[test]
fn whose_a_port_is_is_written_down_and_forgotten() {
    let tree = Tree::new();
    let (store, roots) = (Store::below(&tree.path("")), tree.roots());
    let stat = |start: u64| format!("77 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {start} 20\n");
    tree.file("proc/1/stat", &stat(0));
    tree.file("proc/77/stat", &stat(1234));
    tree.file("proc/sys/kernel/random/boot_id", "first\n");
    let record = Record::new(&roots, definition().names(), 5, 77, "machine m").unwrap();
    assert_eq!(Record::new(&roots, definition().names(), 5, 78, "none"), None);
    store.record(&record).unwrap();
    store.record(&record).unwrap();
    let records = || store.records().unwrap().into_iter().flatten().collect::<Vec<_>>();
    assert_eq!(records(), std::slice::from_ref(&record));
    assert_eq!(record.life(&roots), Life::Lives);
    // Once the port is there.
    let named = Record { vport: Some("vport-5:0-1".into()), id: Some(77), ..record.clone() };
    store.record(&named).unwrap();
    assert_eq!(store.record_of(record.wwpn).unwrap(), Some(named.clone()));
    tree.file("run/vmm/fc/vports/broken.toml", "pid = -1\n");
    assert!(store.records().unwrap().iter().any(Result::is_err));
    // It has become somebody else's.
    for other in [
        Record { start: 1235, ..named.clone() },
        Record { pid: 78, ..named.clone() },
        Record { vport: Some("vport-5:0-2".into()), ..named.clone() },
    ] {
        store.forget(&other).unwrap();
        assert_eq!(records(), std::slice::from_ref(&named));
    }
    store.forget(&record).unwrap();
    store.forget(&record).unwrap();
    assert!(records().is_empty());
    // What an older version wrote.
    let old = "wwpn = \"210002123456789a\"\nwwnn = \"200002123456789a\"\nparent = 5\npid = 77\nstart = 1234\nboot = \"first\"\n\
               owner = \"machine m\"\n";
    tree.file("run/vmm/fc/vports/210002123456789a.toml", old);
    assert_eq!(records(), [record]);
}

#[test]
fn what_cannot_be_listed_is_not_nothing() {
    let directory = TempDir::new().unwrap();
    let store = Store::below(directory.path());
    assert!(store.definitions().unwrap().is_empty() && store.records().unwrap().is_empty());
    for place in ["var/lib/vmm", "run/vmm/fc"] {
        fs::create_dir_all(directory.path().join(place)).unwrap();
    }
    fs::write(directory.path().join("var/lib/vmm/fc"), "").unwrap();
    fs::write(directory.path().join("run/vmm/fc/vports"), "").unwrap();
    for said in [store.definitions().unwrap_err(), store.records().unwrap_err()] {
        assert!(said.to_string().contains(": cannot read: Not a directory"), "{said}");
    }
    assert!(store.record_of(definition().wwpn).is_err());
}

/// A definition's name stands for its port.
#[test]
fn names_of_ports_are_no_names_of_definitions() {
    let directory = TempDir::new().unwrap();
    let store = Store::below(directory.path());
    for name in ["host8", "scsi_host8", "210002123456789a", "21-00-02-12-34-56-78-9a", "naa.210002123456789a"]
    {
        let said = store.define(name, &definition()).unwrap_err().to_string();
        assert_eq!(
            said,
            format!("\"{name}\" is no name for a definition, for a port may have it; take another one")
        );
    }
    for name in ["host", "host8a", "hosta", "vm1"] {
        store.define(name, &definition()).unwrap();
    }
    // What an older version stored can be removed.
    fs::copy(store.place("vm1").unwrap(), store.place("host8").unwrap()).unwrap();
    store.undefine("host8").unwrap();
}

#[test]
fn one_at_a_time() {
    let directory = TempDir::new().unwrap();
    let store = Store::below(directory.path());
    let lock = store.try_lock().unwrap();
    assert!(lock.is_some() && store.try_lock().unwrap().is_none());
    let one = store.try_lock_one(Wwn::new(1)).unwrap();
    assert!(one.is_some() && store.try_lock_one(Wwn::new(1)).unwrap().is_none());
    assert!(store.try_lock_one(Wwn::new(2)).unwrap().is_some());
    drop(lock);
    // Nobody else can open it, and keep root waiting; nor what an older version made.
    let path = store.lock_path();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&store.lock_path_of(Wwn::new(1)))), (0o600, 0o600));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(store.try_lock().unwrap().is_some());
    assert_eq!(mode(&path), 0o600);
    fs::write(directory.path().join("file"), "").unwrap();
    let said = Store::below(&directory.path().join("file")).try_lock().unwrap_err().to_string();
    assert!(said.contains("run/vmm/fc: cannot make the directory: Not a directory"), "{said}");
}
