//! Whose a port is: nobody's goes for another one's.

use super::*;
use crate::state::Definition;

fn definition(boot: bool) -> Definition {
    Definition { wwnn: NAMES.wwnn, wwpn: NAMES.wwpn, boot, rules: Default::default() }
}

/// A machine's port, which is there.
fn owned<'a>(tree: &'a Tree) -> Fake<'a> {
    let mut kernel = Fake::new(tree, "Active");
    with(tree, &mut kernel, |ports| ports.create(&Request { owner: Some("machine web"), ..request() }))
        .unwrap();
    kernel.written.clear();
    kernel
}

/// As `kill -9` does.
fn kill(tree: &Tree) {
    fs::remove_dir_all(tree.path(&format!("proc/{}", std::process::id()))).unwrap();
}

fn clean(tree: &Tree, kernel: &mut Fake<'_>) -> Vec<Result<Cleaned, DeleteError>> {
    with(tree, kernel, |ports| ports.clean()).unwrap().done.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn a_process_that_cannot_be_seen_keeps_its_port() {
    for path in ["proc/sys/kernel/random/boot_id", "proc/1/stat", "proc"] {
        let tree = tree();
        let mut kernel = owned(&tree);
        if path == "proc/1/stat" {
            // Hidden, as by hidepid.
            kill(&tree);
        }
        let path = tree.path(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        assert_eq!(clean(&tree, &mut kernel), [Ok(Cleaned::Unclear)]);
        let said =
            with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-1", false)).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            said,
            format!(
                "vport-5:0-1 belongs to machine web (process {pid}), and whether that runs cannot be seen from here; look where it would, \
                 or say --force"
            )
        );
        assert_quoted(&said.replace(&pid.to_string(), "4711"));
        assert!(kernel.written.is_empty() && records(&tree).len() == 1);
        super::remove(&tree, "vport-5:0-1");
        let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
        assert!(
            said.contains(" (machine web) has it, and cannot be seen from here; if it has ended, remove "),
            "{said}"
        );
    }
    // A container that shares /run.
    let tree = tree();
    tree.file("proc/self/ns/pid", "");
    let mut kernel = owned(&tree);
    kill(&tree);
    // Before the first goes, whose number may be given anew.
    tree.file("proc/other", "");
    fs::remove_file(tree.path("proc/self/ns/pid")).unwrap();
    tree.link("proc/self/ns/pid", "../../other");
    assert_eq!(clean(&tree, &mut kernel), [Ok(Cleaned::Unclear)]);
    assert!(kernel.written.is_empty());
}

#[test]
fn what_an_ended_process_left_is_not_taken_from_others() {
    let tree = tree();
    let mut kernel = owned(&tree);
    kill(&tree);
    let host = format!("{PCI}/host5/vport-5:0-1/host9");
    let remote =
        tree.remote(&host, "rport-9:0-0", ("0x5006016044602198", "0x50060160c4602198"), "FCP Target", 0);
    tree.unit(&remote, "9:0:0:0", 0, &[("block", "sdd"), ("scsi_generic", "sg9")]);
    tree.file("proc/4711/comm", "qemu\n");
    tree.link("proc/4711/fd/7", "/dev/sdd");
    let said = "vport-5:0-1 has units that are in use: sdd is open by qemu (4711); free it, or vmm fc delete --force vport-5:0-1";
    assert_eq!(clean(&tree, &mut kernel)[0].as_ref().unwrap_err().to_string(), said);
    process(&tree, std::process::id());
    tree.file(
        &format!("proc/{}/stat", std::process::id()),
        "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 100 20\n",
    );
    let failed = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(failed, format!("what an ended process has left is still there: {said}"));
    assert_quoted(&failed);
    assert!(kernel.written.is_empty());
    // Who cannot be looked at may have it.
    fs::remove_dir_all(tree.path("proc/4711/fd")).unwrap();
    tree.file("proc/4711/fd", "");
    assert!(
        clean(&tree, &mut kernel)[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .starts_with("whether units of vport-5:0-1 are in use cannot be seen: ")
    );
    assert!(kernel.written.is_empty());
    fs::remove_file(tree.path("proc/4711/fd")).unwrap();
    // multipathd notices that it goes.
    tree.file("proc/4711/comm", "multipathd\n");
    tree.link("proc/4711/fd/7", "/dev/sdd");
    assert_eq!(clean(&tree, &mut kernel), [Ok(Cleaned::Deleted)]);
}

/// Somebody made one with the same names, by another tool, after the host or the adapter began anew.
#[test]
fn a_port_that_the_process_did_not_make_stays() {
    let tree = tree();
    let mut kernel = owned(&tree);
    tree.file("proc/sys/kernel/random/boot_id", "second\n");
    assert_eq!(clean(&tree, &mut kernel), [Ok(Cleaned::Gone)]);
    assert!(kernel.written.is_empty() && records(&tree).is_empty() && vports(&tree.roots()).len() == 2);

    for (name, keep) in
        [("vport-5:0-2", None), ("vport-5:0-1", Some("keeps its number from being used again"))]
    {
        let tree = self::tree();
        let mut kernel = owned(&tree);
        kill(&tree);
        if keep.is_some() {
            fs::rename(
                tree.path(&format!("sys/{PCI}/host5/vport-5:0-1")),
                tree.path(&format!("sys/{PCI}/host5/old")),
            )
            .unwrap();
            for link in ["fc_vports/vport-5:0-1", "fc_host/host9", "scsi_host/host9"] {
                fs::remove_file(tree.path(&format!("sys/class/{link}"))).unwrap();
            }
        } else {
            super::remove(&tree, "vport-5:0-1");
        }
        let names = ("0x210002123456789a", "0x200002123456789a");
        tree.vport(&format!("{PCI}/host5"), name, names, "Active", Some(9));
        assert_eq!(clean(&tree, &mut kernel), [Ok(Cleaned::Gone)], "{name}");
        assert!(kernel.written.is_empty() && records(&tree).is_empty() && vports(&tree.roots()).len() == 2);
    }
}

#[test]
fn who_waits_for_a_port_does_not_take_another_one_for_it() {
    for state in ["Active", "Initializing"] {
        let tree = tree();
        process(&tree, 4711);
        let mut kernel = Fake::new(&tree, "Initializing").later(2, move |tree| {
            super::remove(tree, "vport-5:0-1");
            let names = ("0x210002123456789a", "0x200002123456789a");
            tree.vport(&format!("{PCI}/host5"), "vport-5:0-2", names, state, Some(10));
            let record = Record::new(&tree.roots(), NAMES, 5, 4711, "machine b").unwrap();
            store(tree).record(&record).unwrap();
        });
        let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
        assert!(said.contains("has gone again"), "{said}");
        assert_eq!(kernel.written.len(), 1);
        assert_eq!(records(&tree)[0].owner, "machine b");
        assert!(vports(&tree.roots()).iter().any(|vport| vport.name == "vport-5:0-2"));
    }
}

#[test]
fn what_cannot_be_read_is_not_taken_for_gone() {
    let tree = tree();
    let mut kernel = owned(&tree);
    kill(&tree);
    fs::rename(tree.path("sys/class/fc_vports"), tree.path("sys/vports")).unwrap();
    tree.file("sys/class/fc_vports", "");
    let cannot = |said: String| {
        assert!(said.contains("sys/class/fc_vports cannot be read: Not a directory"), "{said}")
    };
    cannot(clean(&tree, &mut kernel)[0].as_ref().unwrap_err().to_string());
    cannot(with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-1", true)).unwrap_err().to_string());
    process(&tree, std::process::id());
    let other = Names { wwpn: Wwn::new(0x2100_0200_0000_0009), wwnn: Wwn::new(0x2000_0200_0000_0009) };
    cannot(
        with(&tree, &mut kernel, |ports| ports.create(&Request { names: other, ..request() }))
            .unwrap_err()
            .to_string(),
    );
    fs::remove_file(tree.path("sys/class/fc_vports")).unwrap();
    fs::rename(tree.path("sys/vports"), tree.path("sys/class/fc_vports")).unwrap();
    kill(&tree);
    // A name that cannot be read.
    let name = tree.path("sys/class/fc_vports/vport-5:0-1/port_name");
    fs::remove_file(&name).unwrap();
    fs::create_dir(&name).unwrap();
    let said = clean(&tree, &mut kernel)[0].as_ref().unwrap_err().to_string();
    assert!(said.contains("vport-5:0-1/port_name cannot be read: Is a directory"), "{said}");
    fs::remove_dir(&name).unwrap();
    tree.file("sys/class/fc_vports/vport-5:0-1/port_name", "0x210002123456789a\n");
    // It may be of this port, which stays then.
    tree.file("var/lib/vmm/fc/web.toml", "wwpn = \"2100");
    let said = clean(&tree, &mut kernel)[0].as_ref().unwrap_err().to_string();
    assert!(said.contains("var/lib/vmm/fc/web.toml: ") && said.ends_with("; mend or remove it"), "{said}");
    tree.file("run/vmm/fc/vports/x.toml", "nonsense");
    let cleanup = with(&tree, &mut kernel, |ports| ports.clean()).unwrap();
    assert_eq!((cleanup.broken.len(), cleanup.done.len()), (1, 1));
    assert!(kernel.written.is_empty() && vports(&tree.roots()).len() == 2);
    fs::remove_file(tree.path("var/lib/vmm/fc/web.toml")).unwrap();
    assert_eq!(clean(&tree, &mut kernel), [Ok(Cleaned::Deleted)]);
}

/// lpfc waits for the fabric to answer a logout, and wants to be asked again; a port that is being created or deleted is none to the kernel.
#[test]
fn the_kernel_is_asked_again_until_the_port_has_gone() {
    for number in [libc::EAGAIN, libc::ENODEV, libc::EBUSY] {
        let tree = tree();
        let answers = (0..3).map(|_| WriteError::Write(io::Error::from_raw_os_error(number)));
        let mut kernel = Fake::new(&tree, "").answering(answers);
        kernel.takes = Duration::from_secs(33);
        with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-0", false)).unwrap();
        assert_eq!((kernel.written.len(), vports(&tree.roots()).len()), (4, 0));
        assert!(kernel.time < Duration::from_secs(4 * 33 + 2), "{:?}", kernel.time);
    }
}

/// One that hangs is in nobody's way.
#[test]
fn others_create_while_one_is_deleted() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "");
    kernel.during = Some(Box::new(|tree| {
        let mut kernel = Fake::new(tree, "Active");
        with(tree, &mut kernel, |ports| ports.create(&request())).unwrap();
        assert_eq!(kernel.time, Duration::ZERO, "it waited for nobody");
        kernel.written.clear();
        with(tree, &mut kernel, |ports| ports.delete("vport-5:0-1", false)).unwrap();
        assert_eq!((kernel.time, kernel.written.len()), (Duration::ZERO, 1));
        // Nobody else asks for this one, and whoever wants it to go waits.
        let mut kernel = Fake::new(tree, "Active");
        let said =
            with(tree, &mut kernel, |ports| ports.delete("vport-5:0-0", false)).unwrap_err().to_string();
        assert!(
            said.starts_with("host5 has not deleted the virtual port 2100000000000a01 for 150 s"),
            "{said}"
        );
        assert!(kernel.written.is_empty());
    }));
    with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-0", false)).unwrap();
    assert!(kernel.during.is_none());
}

/// A copy of a definition has its names, and only one of them can have the port.
#[test]
fn names_are_of_one_definition() {
    let tree = tree();
    for name in ["vm1", "vm2"] {
        store(&tree).define(name, &definition(false)).unwrap();
    }
    let mut kernel = Fake::new(&tree, "Active");
    let request = |definition| Request { definition: Some(definition), ..request() };
    let taken = "WWPN 210002123456789a is taken: the definition vm1 has it";
    let said = with(&tree, &mut kernel, |ports| ports.create(&request("vm2"))).unwrap_err().to_string();
    assert_eq!(said, taken);
    assert!(kernel.written.is_empty());
    fs::rename(tree.path("var/lib/vmm/fc/vm2.toml"), tree.path("vm2")).unwrap();
    with(&tree, &mut kernel, |ports| ports.create(&request("vm1"))).unwrap();
    fs::rename(tree.path("vm2"), tree.path("var/lib/vmm/fc/vm2.toml")).unwrap();
    let said = with(&tree, &mut kernel, |ports| ports.start(&request("vm2"))).unwrap_err().to_string();
    assert_eq!(said, taken);
}

/// Names that no standard knows, which other tools gave: the kernel writes no zeros before them.
#[test]
fn a_port_of_any_name_is_deleted_by_that() {
    for (shown, line) in
        [("0x21", "0000000000000021:0000000000000000"), ("0x0", "0000000000000000:0000000000000000")]
    {
        let tree = tree();
        tree.file("sys/class/fc_vports/vport-5:0-0/port_name", &format!("{shown}\n"));
        tree.file("sys/class/fc_vports/vport-5:0-0/node_name", "0x0\n");
        let mut kernel = Fake::new(&tree, "");
        with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-0", false)).unwrap();
        assert_eq!(kernel.written[0].1, line);
    }
}

#[test]
fn what_a_process_made_goes_when_it_is_no_more_and_nothing_else() {
    let tree = tree();
    let owned = Request { owner: Some("machine web"), ..request() };
    let mut kernel = Fake::new(&tree, "Active");
    with(&tree, &mut kernel, |ports| ports.create(&owned)).unwrap();
    let record = records(&tree).remove(0);
    assert_eq!((record.wwpn, record.pid, &*record.owner), (NAMES.wwpn, std::process::id(), "machine web"));
    assert_eq!(with(&tree, &mut kernel, |ports| ports.clean()).unwrap().done, [], "it lives");
    let said = with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-1", false)).unwrap_err().to_string();
    assert_eq!(
        said,
        format!(
            "vport-5:0-1 belongs to machine web (process {}), which runs; end that, or say --force",
            std::process::id()
        )
    );
    assert_quoted(&said.replace(&std::process::id().to_string(), "4711"));
    // kill -9, and the next start with the same names.
    let stat = format!("proc/{}/stat", std::process::id());
    tree.file(&stat, "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 100 20\n");
    with(&tree, &mut kernel, |ports| ports.create(&owned)).unwrap();
    let deeds: Vec<&str> = kernel.written.iter().map(|(path, _)| path.rsplit_once('/').unwrap().1).collect();
    assert_eq!(deeds, ["vport_create", "vport_delete", "vport_create"]);
    assert_eq!(vports(&tree.roots()).len(), 2);
    // kill -9 again; the definition wants it whenever the host runs.
    tree.file(&stat, "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 101 20\n");
    let definition =
        Definition { wwnn: NAMES.wwnn, wwpn: NAMES.wwpn, boot: true, rules: crate::choose::Rules::default() };
    store(&tree).define("web", &definition).unwrap();
    let cleaned = with(&tree, &mut kernel, |ports| ports.clean()).unwrap().done;
    assert_eq!((cleaned.len(), &cleaned[0].1), (1, &Ok(Cleaned::Kept)));
    assert_eq!((vports(&tree.roots()).len(), records(&tree).len()), (2, 0));
    // A record without a port.
    let record = Record { pid: 2, ..record };
    store(&tree).record(&record).unwrap();
    super::remove(&tree, "vport-5:0-1");
    let cleaned = with(&tree, &mut kernel, |ports| ports.clean()).unwrap().done;
    assert_eq!(cleaned, [(record, Ok(Cleaned::Gone))]);
    nothing_is_left(&tree);
}

#[test]
fn names_of_others_are_not_taken_away() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "Active");
    let definition = Definition {
        wwnn: Wwn::new(0x2000_0200_0000_0001),
        wwpn: NAMES.wwpn,
        boot: false,
        rules: Default::default(),
    };
    store(&tree).define("other", &definition).unwrap();
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(said, "WWPN 210002123456789a is taken: the definition other has it");
    store(&tree).undefine("other").unwrap();
    let record = Record::new(&tree.roots(), NAMES, 5, std::process::id(), "machine db").unwrap();
    store(&tree).record(&record).unwrap();
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    let pid = std::process::id();
    assert_eq!(said, format!("WWPN 210002123456789a is taken: process {pid} (machine db) has it"));
    assert!(kernel.written.is_empty());
}

/// A guest asks for a name: what anybody else has left of it is not deleted for that.
#[test]
fn whoever_spares_others_deletes_nothing_of_theirs() {
    let tree = tree();
    let mut kernel = owned(&tree);
    kill(&tree);
    process(&tree, 1);
    tree.file(
        &format!("proc/{}/stat", std::process::id()),
        "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 20\n",
    );
    let of = |owner| Request { owner: Some(owner), spares: true, ..request() };
    let said = with(&tree, &mut kernel, |ports| ports.create(&of("machine db"))).unwrap_err().to_string();
    assert!(said.contains(&format!("WWPN {} is taken: ", NAMES.wwpn)), "{said}");
    assert!(
        kernel.written.is_empty() && vports(&tree.roots()).iter().any(|vport| vport.wwpn == Some(NAMES.wwpn))
    );
    // Nothing is there but what was written down of it.
    super::remove(&tree, "vport-5:0-1");
    let said = with(&tree, &mut kernel, |ports| ports.create(&of("machine db"))).unwrap_err().to_string();
    assert!(said.ends_with(" (machine web) has it, which has ended; vmm fc clean deletes it"), "{said}");
    assert!(records(&tree)[0].owner == "machine web" && kernel.written.is_empty());
    with(&tree, &mut kernel, |ports| ports.create(&of("machine web"))).unwrap();
    assert_eq!(records(&tree).len(), 1);
    // All ports of before went with that start of the host.
    super::remove(&tree, "vport-5:0-1");
    tree.file("proc/sys/kernel/random/boot_id", "other\n");
    with(&tree, &mut kernel, |ports| ports.create(&of("machine db"))).unwrap();
    assert_eq!(records(&tree)[0].owner, "machine db");
}
