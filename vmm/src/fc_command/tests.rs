use std::fs;
use std::path::PathBuf;

use fc::testing::{PCI, Tree};
use serde_json::Value;

use super::*;

fn options(arguments: &[&str]) -> Options {
    let all = ["vmm", "fc"].iter().chain(arguments).map(OsString::from);
    options::read(all).unwrap().unwrap_or_else(|stop| panic!("{stop:?}"))
}

fn usage(arguments: &[&str]) -> String {
    match options::read(["vmm", "fc"].iter().chain(arguments).map(OsString::from)) {
        Some(Err(Stop::Usage(line))) => line,
        other => panic!("{other:?}"),
    }
}

fn tool(tree: &Tree) -> Tool {
    Tool { roots: tree.roots(), store: Store::below(&tree.path("")), json: false }
}

fn does(tree: &Tree, arguments: &[&str]) -> Result<(), String> {
    tool(tree).run(options(arguments).what).map_err(|error| explain(&error))
}

const NAMES: [&str; 4] = ["--wwpn", "21:00:02:12:34:56:78:9a", "--wwnn", "0x200002123456789A"];

#[test]
fn words_after_fc_are_read_and_nothing_else() {
    assert!(options::read(["vmm", "--config", "x"].map(OsString::from)).is_none());
    assert!(options::read(["vmm".into()]).is_none());
    let options =
        options(&[&["create"], &NAMES[..], &["--parent", "host5", "--json", "--root", "/x"]].concat());
    assert!(options.json && options.root == Some(PathBuf::from("/x")));
    let What::Create { name, given, timeout } = options.what else { panic!() };
    assert_eq!((name, timeout, given.rules().parent.as_deref()), (None, 30, Some("host5")));
    assert_eq!(given.names().unwrap().wwpn, Wwn::new(0x2100_0212_3456_789a));
    assert_eq!(usage(&[]), "no command; see vmm fc --help");
    assert_eq!(
        usage(&["create", "--wwpn", "20:00", "--wwnn", "200002123456789a"]),
        "invalid value '20:00' for '--wwpn <NAME>': \"20:00\" is no World Wide Name: that is 16 hex digits, such as 2100001b32a9da4e \
         or 21:00:00:1b:32:a9:da:4e; see vmm fc --help"
    );
    assert_eq!(
        usage(&["create", "--wwpn", "210002123456789a"]),
        "the following required arguments were not provided: --wwnn <NAME>; see vmm fc --help"
    );
    assert!(usage(&["nodedev-list"]).starts_with("unrecognized subcommand 'nodedev-list'"));
    assert!(
        usage(&["create", "a", "--parent", "host5", "--parent-fabric", "1000000000000009"])
            .contains("cannot be used with")
    );
    let told = options::read(["vmm", "fc", "--help"].map(OsString::from));
    assert!(matches!(told, Some(Err(Stop::Told(text))) if text.contains("start-defined")));
}

#[test]
fn tables_are_for_people() {
    let tree = Tree::lpfc();
    let wanted = "\
PORT   STATE     SPEED    ID      WWPN              WWNN              FABRIC            VPORTS   DRIVER  PARENT
host5  Online    16 Gbit  010105  10000000c9aabb05  20000000c9aabb05  100000fcf0000001  1 of 64  lpfc    0000:10:00.0
host6  Linkdown  16 Gbit  -       10000000c9aabb06  20000000c9aabb06  100000fcf0000001  0 of 64  lpfc    0000:10:00.1

VPORT        ON     STATE   HOST   ID      WWPN              WWNN              OWNER
vport-5:0-0  host5  Active  host8  010108  2100000000000a01  2000000000000a01  -
";
    assert_eq!(table::list(&tool(&tree).view()), wanted);
    does(
        &tree,
        &["define", "web", "--wwpn", "2100000000000a09", "--wwnn", "2000000000000a09", "--parent", "host5"],
    )
    .unwrap();
    let wanted = "
DEFINITION  AT BOOT  THERE  WWPN              WWNN              ON
web         yes      -      2100000000000a09  2000000000000a09  host5
";
    assert!(table::list(&tool(&tree).view()).ends_with(wanted));
    assert_eq!(table::list(&tool(&Tree::new()).view()), "no Fibre Channel ports\n");
    assert!(table::list(&tool(&Tree::zfcp()).view()).contains("none    zfcp    0.0.1900"));

    let san = San::read(&tree.roots());
    let units = units(&san, Some(8), &Users::read(&tree.roots()));
    let wanted = "\
UNIT         TARGET            LUN  TYPE  SIZE   STATE    NODES    NAME                                  DEVICE      USED BY
8:0:0:0      5006016044602198  0    disk  1 GiB  running  sdc sg2  naa.60060160a1b2c3d4e5f60718293a4b5c  ACME Array  -
    /dev/disk/by-path/pci-0000:10:00.0-vport-0x2100000000000a01-fc-0x5006016044602198-lun-0
    /dev/disk/by-id/wwn-0x60060160a1b2c3d4e5f60718293a4b5c
8:0:0:27     5006016044602198  27   tape  -      running  st0 sg4  -                                     ACME Array  -
8:0:0:16897  5006016044602198  513  disk  -      running  sg3      -                                     ACME Array  -
";
    assert_eq!(table::luns(&san, &units, true), wanted);
    assert_eq!(table::luns(&san, &[], true), "no logical units\n");
}

#[test]
fn a_port_is_shown_by_any_of_its_names() {
    let tree = Tree::lpfc();
    let view = tool(&tree).view();
    for what in ["vport-5:0-0", "2100000000000a01", "host8", "scsi_host8"] {
        let (host, vport) = find(&view.san, what).unwrap();
        assert_eq!((host.unwrap().number, vport.unwrap().name.as_str()), (8, "vport-5:0-0"), "{what}");
    }
    for what in ["host5", "scsi_host5", "10:00:00:00:c9:aa:bb:05", "0000:10:00.0"] {
        let (host, vport) = find(&view.san, what).unwrap();
        assert_eq!((host.unwrap().number, vport), (5, None), "{what}");
    }
    assert_eq!(
        does(&tree, &["show", "host9"]).unwrap_err(),
        "there is no port host9; vmm fc list shows what there is"
    );
    let (host, vport) = find(&view.san, "host8").unwrap();
    let text = table::show(&view, host, vport, &[]);
    for line in [
        "virtual port   vport-5:0-0\n",
        "on             host5\n",
        "state          Active\n",
        "port ID        010108\n",
        "rport-8:0-0  Online  010201  5006016044602198  50060160c4602198  0       60 s      off        FCP Target\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// Keys are for good: what is new is added, and these stay.
#[test]
fn values_for_programs_have_their_keys() {
    let tree = Tree::lpfc();
    tree.file("proc/4711/comm", "qemu\n");
    tree.link("proc/4711/fd/7", "/dev/sg2");
    let view = tool(&tree).view();
    let list = json::list(&view);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&list), "definitions ports vports");
    assert_eq!(
        keys(&list["ports"][0]),
        "dev_loss_tmo driver fabric host max_vports name parent path permanent_wwpn port_id speed state supported_speeds symbolic_name \
         type vport vports_in_use wwnn wwpn"
    );
    assert_eq!(
        keys(&list["vports"][0]),
        "host last_state name owner parent roles state symbolic_name type wwnn wwpn"
    );
    assert_eq!(list["ports"][0]["port_id"], 0x01_0105);
    assert_eq!(list["ports"][1]["port_id"], Value::Null);
    assert_eq!(list["vports"][0]["host"], 8);
    let users = Users::read(&tree.roots());
    let units = units(&view.san, Some(8), &users);
    let (host, vport) = find(&view.san, "host8").unwrap();
    let show = json::show(&view, host, vport, &units);
    assert_eq!(keys(&show), "luns port remote_ports vport");
    assert_eq!(
        keys(&show["remote_ports"][0]),
        "dev_loss_tmo fast_io_fail_tmo host name port_id roles state target wwnn wwpn"
    );
    let lun = &show["luns"][2];
    assert_eq!(
        keys(lun),
        "address block bsg bytes host in_use links lun lun_number model name remote_port revision sg state tape target_wwpn type users \
         vendor"
    );
    assert_eq!(
        (&lun["lun"], &lun["lun_number"], &lun["sg"]),
        (&"4201000000000000".into(), &513.into(), &"/dev/sg3".into())
    );
    let disk = &show["luns"][0];
    assert_eq!((&disk["bytes"], &disk["in_use"]), (&(1 << 30).into(), &true.into()));
    assert_eq!(disk["users"], serde_json::json!([{ "kind": "process", "name": "qemu", "pid": 4711 }]));
}

#[test]
fn names_are_made_once_and_never_change() {
    let tree = Tree::lpfc();
    let stored = || tool(&tree).store.definition("vm1").unwrap();
    does(&tree, &["define", "vm1", "--names-only"]).unwrap();
    let names = stored().names();
    assert_eq!((names.wwpn.bits() >> 48, stored().boot), (0x2100, false));
    does(&tree, &["define", "vm1", "--parent-fabric", "100000fcf0000001"]).unwrap();
    assert_eq!((stored().names(), stored().boot), (names, true));
    assert_eq!(stored().rules.parent_fabric, Some(Wwn::new(0x1000_00fc_f000_0001)));
    let said = does(&tree, &[&["define", "vm1"], &NAMES[..]].concat()).unwrap_err();
    assert_eq!(
        said,
        format!(
            "vm1 is defined with WWPN {} and WWNN {} already, and names never change; leave them out, or vmm fc undefine vm1 first",
            names.wwpn, names.wwnn
        )
    );
    does(&tree, &[&["define", "vm2"], &NAMES[..]].concat()).unwrap();
    assert_eq!(
        does(&tree, &[&["define", "vm3"], &NAMES[..]].concat()).unwrap_err(),
        "WWPN 210002123456789a is taken: the definition vm2 has it"
    );
    does(&tree, &["undefine", "vm1"]).unwrap();
    assert_eq!(
        does(&tree, &["undefine", "vm1"]).unwrap_err(),
        "vm1 is not defined; vmm fc define vm1 does it"
    );
}

/// A port that is not there, or does not come: each says why, and the names that were made stay.
#[test]
fn what_cannot_be_created_is_one_line() {
    let tree = Tree::lpfc();
    assert_eq!(
        does(&tree, &["create"]).unwrap_err(),
        "no names: say --wwpn and --wwnn, or a name of your own, under which they are made once and stored (vmm fc create vm1)"
    );
    assert_eq!(
        does(&tree, &["create", "vm1", "--parent", "host9"]).unwrap_err(),
        "there is no Fibre Channel port host9; there are host5, host6"
    );
    assert!(tool(&tree).store.definition("vm1").is_ok());
    // No process of this number in that tree.
    let said = does(&tree, &["create", "vm1"]).unwrap_err();
    assert!(
        said.ends_with("does not show this process, or not sys/kernel/random/boot_id (ProcSubset=pid of a service), so that nobody could clean up after \
             it; mount /proc whole"),
        "{said}"
    );
    assert_eq!(
        does(&tree, &["start-defined", "vm9"]).unwrap_err(),
        "vm9 is not defined; vmm fc define vm9 does it"
    );
    assert_eq!(
        does(&tree, &["delete", "vport-9:0-0"]).unwrap_err(),
        "there is no virtual port vport-9:0-0; vmm fc list shows what there is"
    );
    does(&tree, &["clean"]).unwrap();
}

/// With files in place of the kernel: what is written comes there, and the port by another hand.
#[test]
fn a_virtual_port_is_created_and_what_is_defined_is_started() {
    let tree = Tree::lpfc();
    let pid = std::process::id();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    tree.file(&format!("proc/{pid}/stat"), &stat);
    tree.file("proc/sys/kernel/random/boot_id", "this\n");
    does(&tree, &[&["define", "web"], &NAMES[..]].concat()).unwrap();
    // The link comes up a moment later.
    tree.file("sys/class/fc_host/host5/port_state", "Linkdown\n");
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            tree.file("sys/class/fc_host/host5/port_state", "Online\n");
            let file = tree.path("sys/class/fc_host/host5/vport_create");
            while fs::read_to_string(&file).unwrap() != "210002123456789a:200002123456789a" {
                std::thread::sleep(Duration::from_millis(5));
            }
            let names = ("0x210002123456789a", "0x200002123456789a");
            tree.vport(&format!("{PCI}/host5"), "vport-5:0-1", names, "Active", Some(9));
        });
        does(&tree, &["start-defined"]).unwrap();
        kernel.join().unwrap();
    });
    // Which is there.
    does(&tree, &["start-defined", "web"]).unwrap();
    let view = tool(&tree).view();
    assert!(
        table::list(&view).contains("vport-5:0-1  host5  Active  host9  010109"),
        "{}",
        table::list(&view)
    );
    assert!(table::list(&view).contains("definition web"));
    assert!(view.records.is_empty(), "it belongs to nobody");
    // A definition stands for its port.
    let (host, vport) = find(&view.san, &tool(&tree).meant("web")).unwrap();
    assert_eq!((host.unwrap().number, vport.unwrap().name.as_str()), (9, "vport-5:0-1"));
    // One that does not come, in time.
    does(&tree, &["define", "db", "--parent", "host7"]).unwrap();
    assert_eq!(
        does(&tree, &["start-defined", "--timeout", "0"]).unwrap_err(),
        "1 of the definitions could not be started"
    );
    // Many of them wait together.
    for name in ["a", "b", "c", "d", "e"] {
        does(&tree, &["define", name, "--parent", "host6"]).unwrap();
    }
    let begin = std::time::Instant::now();
    let said = does(&tree, &["start-defined", "--timeout", "1"]).unwrap_err();
    assert_eq!(said, "6 of the definitions could not be started");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn a_port_is_meant_before_a_definition_that_has_its_name() {
    let tree = Tree::lpfc();
    assert_eq!(
        does(&tree, &[&["define", "host8"], &NAMES[..]].concat()).unwrap_err(),
        "\"host8\" is no name for a definition, for a port may have it; take another one"
    );
    // An older version did not mind.
    tree.file("var/lib/vmm/fc/host8.toml", "wwpn = \"210002123456789a\"\nwwnn = \"200002123456789a\"\n");
    assert_eq!(tool(&tree).meant("host8"), "host8");
    does(&tree, &["undefine", "host8"]).unwrap();
}

/// Whoever reads and writes what is stored does so alone.
#[test]
fn what_is_stored_has_a_lock() {
    let tree = Tree::lpfc();
    let lock = tool(&tree).lock().unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| does(&tree, &["define", "web"]));
        std::thread::sleep(Duration::from_millis(200));
        assert!(tool(&tree).store.definition("web").is_err());
        drop(lock);
        other.join().unwrap().unwrap();
    });
    tree.file("run/vmm/fc/vports/x.toml", "nonsense");
    assert_eq!(
        does(&tree, &["clean"]).unwrap_err(),
        "1 of the virtual ports of ended processes are still there"
    );
}
