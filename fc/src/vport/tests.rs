mod owners;
mod starting;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;

use super::*;
use crate::testing::{PCI, Tree, assert_quoted};

/// What happens at some time.
type Deed = Box<dyn Fn(&Tree)>;

/// A kernel that does what a test has in mind.
struct Fake<'a> {
    tree: &'a Tree,
    time: Duration,
    /// The state of a new port; `None`: there is none.
    state: Option<&'static str>,
    /// What the first writes end with.
    answers: VecDeque<WriteError>,
    /// How long a write takes.
    takes: Duration,
    /// What happens while it deletes.
    during: Option<Deed>,
    later: Vec<(Duration, Deed)>,
    interrupt_at: Duration,
    written: Vec<(String, String)>,
}

impl<'a> Fake<'a> {
    fn new(tree: &'a Tree, state: &'static str) -> Self {
        Self {
            tree,
            time: Duration::ZERO,
            state: Some(state),
            answers: VecDeque::new(),
            takes: Duration::ZERO,
            during: None,
            later: Vec::new(),
            interrupt_at: Duration::MAX,
            written: Vec::new(),
        }
    }

    fn later(mut self, seconds: u64, deed: impl Fn(&Tree) + 'static) -> Self {
        self.later.push((Duration::from_secs(seconds), Box::new(deed)));
        self
    }

    fn answering(mut self, answers: impl IntoIterator<Item = WriteError>) -> Self {
        self.answers.extend(answers);
        self
    }
}

impl Kernel for &mut Fake<'_> {
    fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
        let path = path.strip_prefix(self.tree.path("")).unwrap().to_str().unwrap().to_owned();
        self.written.push((path.clone(), text.to_owned()));
        self.time += self.takes;
        if let Some(deed) = self.during.take_if(|_| path.ends_with("vport_delete")) {
            deed(self.tree);
        }
        if let Some(error) = self.answers.pop_front() {
            return Err(error);
        }
        let (wwpn, wwnn) = text.split_once(':').unwrap();
        if path.ends_with("vport_delete") {
            let vports = vports(&self.tree.roots());
            let vport = vports.iter().find(|vport| vport.wwpn == wwpn.parse().ok());
            let Some(vport) = vport else {
                return Err(WriteError::Write(io::Error::from_raw_os_error(libc::ENODEV)));
            };
            remove(self.tree, &vport.name);
        } else if let Some(state) = self.state {
            let host = format!("{PCI}/host5");
            self.tree.vport(
                &host,
                "vport-5:0-1",
                (&format!("0x{wwpn}"), &format!("0x{wwnn}")),
                state,
                Some(9),
            );
        }
        Ok(())
    }

    fn pause(&mut self, time: Duration) -> Pause {
        self.time += time;
        let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= self.time);
        self.later = later;
        let due: Vec<(Duration, Deed)> = due;
        due.iter().for_each(|(_, deed)| deed(self.tree));
        if self.time >= self.interrupt_at { Pause::Interrupted } else { Pause::Over }
    }

    fn now(&mut self) -> Duration {
        self.time
    }
}

fn vports(roots: &Roots) -> Vec<Vport> {
    super::vports(roots).unwrap()
}

fn records(tree: &Tree) -> Vec<Record> {
    store(tree).records().unwrap().into_iter().map(Result::unwrap).collect()
}

fn remove(tree: &Tree, vport: &str) {
    let device = fs::canonicalize(tree.path(&format!("sys/class/fc_vports/{vport}/device"))).unwrap();
    let host = vports(&tree.roots()).into_iter().find(|known| known.name == vport).unwrap().host;
    fs::remove_file(tree.path(&format!("sys/class/fc_vports/{vport}"))).unwrap();
    if let Some(host) = host {
        fs::remove_file(tree.path(&format!("sys/class/fc_host/host{host}"))).unwrap();
        fs::remove_file(tree.path(&format!("sys/class/scsi_host/host{host}"))).unwrap();
    }
    fs::remove_dir_all(device).unwrap();
}

fn says(tree: &Tree, state: &str) {
    tree.file("sys/class/fc_vports/vport-5:0-1/vport_state", state);
}

const NAMES: Names = Names { wwnn: Wwn::new(0x2000_0212_3456_789a), wwpn: Wwn::new(0x2100_0212_3456_789a) };

fn request() -> Request<'static> {
    Request {
        wanted: Wanted::Any,
        names: NAMES,
        definition: None,
        any_oui: false,
        deadline: Duration::from_secs(10),
        owner: None,
        spares: false,
    }
}

/// An adapter on a host on which this process runs.
fn tree() -> Tree {
    let tree = Tree::lpfc();
    process(&tree, 1);
    process(&tree, std::process::id());
    tree.file("proc/sys/kernel/random/boot_id", "this\n");
    tree
}

fn process(tree: &Tree, pid: u32) {
    tree.file(
        &format!("proc/{pid}/stat"),
        &format!("{pid} (vmm) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 20\n"),
    );
}

fn with<T>(tree: &Tree, kernel: &mut Fake<'_>, deed: impl Fn(&mut Ports<'_, &mut Fake<'_>>) -> T) -> T {
    let (roots, store) = (tree.roots(), Store::below(&tree.path("")));
    deed(&mut Ports::new(&roots, &store, kernel))
}

fn store(tree: &Tree) -> Store {
    Store::below(&tree.path(""))
}

/// Nothing but what the tree began with.
fn nothing_is_left(tree: &Tree) {
    assert_eq!(vports(&tree.roots()).len(), 1);
    assert!(records(tree).is_empty());
}

#[test]
fn a_port_is_there_when_the_fabric_has_it() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "Linkdown")
        .later(1, |tree| says(tree, "Initializing"))
        .later(8, |tree| says(tree, "Active\n"));
    let vport = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap();
    assert_eq!((&*vport.name, vport.host, vport.state), ("vport-5:0-1", Some(9), VportState::Active));
    assert_eq!(kernel.time, Duration::from_secs(8));
    let written = ("sys/class/fc_host/host5/vport_create".into(), "210002123456789a:200002123456789a".into());
    assert_eq!(kernel.written, [written]);
    // It is nobody's, and stays.
    assert!(records(&tree).is_empty());
    assert_eq!(with(&tree, &mut kernel, |ports| ports.clean()).unwrap().done, []);
}

impl PartialEq for DeleteError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// Word for word, as docs/fc.md quotes them.
#[test]
fn when_the_fabric_does_not_take_it_the_reason_is_said_and_nothing_is_left() {
    for (state, after, why) in [
        ("Linkdown", 10, "the link of host5 is down; look at cable, transceiver and switch port"),
        (
            "Initializing",
            10,
            "the fabric does not answer its login (FDISC), or refuses it again and again; look at the switch port: NPIV, its limit of \
             logins, port security, and whether the WWPN is logged in elsewhere",
        ),
        (
            "No Fabric Support",
            5,
            "the switch port of host5 does not offer NPIV, or there is no switch; enable it there (Brocade: portcfgnpivport, Cisco: \
             feature npiv)",
        ),
        (
            "No Fabric Resources",
            5,
            "the fabric has no room for another login; raise the limit of logins of the switch port, or take another port",
        ),
        (
            "Fabric Rejected WWN",
            5,
            "the fabric does not take the names (210002123456789a, node 200002123456789a); they may be logged in elsewhere, or port \
             security keeps them away",
        ),
        ("Fabric Logout", 10, "the fabric has logged it out; look at the switch's log"),
        ("Disabled", 5, "the driver has it disabled; see the kernel's log (dmesg)"),
        ("VPort Failed", 5, "the driver says no more; see the kernel's log (dmesg) and the switch's log"),
        ("Asleep", 10, "see the kernel's log (dmesg)"),
    ] {
        let tree = tree();
        let mut kernel = Fake::new(&tree, state);
        if state == "Linkdown" {
            kernel = kernel.later(1, |tree| tree.file("sys/class/fc_host/host5/port_state", "Linkdown\n"));
        }
        let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
        let wanted = format!("the virtual port 210002123456789a is \"{state}\" after {after} s: {why}");
        assert_eq!(said, wanted);
        if state != "Asleep" {
            assert_quoted(&said);
        }
        nothing_is_left(&tree);
        assert_eq!(kernel.written[1].0, "sys/class/fc_host/host5/vport_delete");
    }
    let tree = tree();
    let mut kernel = Fake::new(&tree, "Unknown").later(1, |tree| {
        tree.file("sys/class/fc_host/host5/port_state", "Offline\n");
    });
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert!(said.contains("after 10 s: host5 itself is Offline; the fabric does not answer"), "{said}");
    // lpfc takes back what the fabric said.
    let tree = self::tree();
    let mut kernel = Fake::new(&tree, "VPort Failed").later(1, |tree| {
        tree.file("sys/class/fc_vports/vport-5:0-1/vport_last_state", "Fabric Rejected WWN\n");
    });
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(
        said,
        "the virtual port 210002123456789a is \"VPort Failed\" after 5 s: it was \"Fabric Rejected WWN\" before: the fabric does not \
         take the names (210002123456789a, node 200002123456789a); they may be logged in elsewhere, or port security keeps them away"
    );
    assert_quoted(&said);
    // A loop.
    let tree = self::tree();
    let mut kernel = Fake::new(&tree, "Linkdown").later(1, |tree| {
        tree.file("sys/class/fc_host/host5/port_type", "NLPort (fabric via loop)\n");
    });
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(
        said,
        "the virtual port 210002123456789a is \"Linkdown\" after 10 s: host5 itself is Online (NLPort (fabric via loop)), but takes no \
         virtual port: that takes a switch, and no loop; see the kernel's log (dmesg)"
    );
    assert_quoted(&said);
}

/// A link that comes up passes through states that are final where they last.
#[test]
fn states_that_pass_are_no_failure() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "No Fabric Support")
        .later(4, |tree| says(tree, "Initializing"))
        .later(5, |tree| says(tree, "No Fabric Support"))
        .later(9, |tree| says(tree, "Active"));
    assert!(with(&tree, &mut kernel, |ports| ports.create(&request())).is_ok());
}

/// Word for word, as docs/fc.md quotes them.
#[test]
fn what_the_driver_says_is_understood() {
    let error = |number| io::Error::from_raw_os_error(number);
    for (answer, why) in [
        (
            WriteError::Open(error(libc::EACCES)),
            "only root may (the files vport_create and vport_delete in sysfs are root's; CAP_DAC_OVERRIDE does it as well)",
        ),
        (
            WriteError::Open(error(libc::EROFS)),
            "sysfs is mounted read-only, as containers have it; do it on the host",
        ),
        (
            WriteError::Write(error(libc::EINVAL)),
            "it has a port of this name already, or does not take the names; see the kernel's log (dmesg)",
        ),
        (WriteError::Write(error(libc::ENOTUNIQ)), "the adapter has a port of this name already"),
        (
            WriteError::Write(error(libc::EOPNOTSUPP)),
            "there is no fabric, or the switch port does not offer NPIV; enable it there",
        ),
        (
            WriteError::Write(error(libc::ENOSPC)),
            "all of its virtual ports are in use; delete one, or take another port",
        ),
        (WriteError::Write(error(libc::ENOSYS)), "its firmware, or the adapter, has none left or no NPIV"),
        // Numbers of lpfc.
        (WriteError::Write(error(1)), "the driver failed; see the kernel's log (dmesg)"),
        (
            WriteError::Write(error(2)),
            "lpfc has NPIV off (option lpfc_enable_npiv), or does not take the names; see the kernel's log (dmesg)",
        ),
        (WriteError::Write(error(3)), "it has no room for another one; see the kernel's log (dmesg)"),
        (WriteError::Write(error(4)), "it has no room for another one; see the kernel's log (dmesg)"),
        // bfa.
        (WriteError::Short, "the driver failed; see the kernel's log (dmesg)"),
        (
            WriteError::Write(error(libc::EIO)),
            "Input/output error (os error 5); see the kernel's log (dmesg)",
        ),
    ] {
        let tree = tree();
        let mut kernel = Fake::new(&tree, "Active").answering([answer]);
        let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
        assert_eq!(said, format!("host5 does not create the virtual port: {why}"));
        if !said.contains("os error") {
            assert_quoted(&said);
        }
        nothing_is_left(&tree);
    }
}

#[test]
fn what_goes_wrong_meanwhile_leaves_nothing() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "Initializing");
    kernel.interrupt_at = Duration::from_secs(3);
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(said, "interrupted before the fabric had the virtual port 210002123456789a");
    assert_quoted(&said);
    nothing_is_left(&tree);

    let mut kernel = Fake::new(&tree, "Initializing").later(2, |tree| remove(tree, "vport-5:0-1"));
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(
        said,
        "the virtual port 210002123456789a has gone again: somebody else has deleted it, or the adapter was reset or taken away"
    );
    assert_quoted(&said);
    nothing_is_left(&tree);

    let mut kernel = Fake::new(&tree, "");
    kernel.state = None;
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert_eq!(
        said,
        "host5 has taken the names of 210002123456789a, and there is no virtual port; see the kernel's log (dmesg)"
    );
    nothing_is_left(&tree);
}

/// It is to be seen a moment after the kernel has said yes.
#[test]
fn a_port_that_shows_late_is_waited_for() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "").later(1, |tree| {
        let names = ("0x210002123456789a", "0x200002123456789a");
        tree.vport(&format!("{PCI}/host5"), "vport-5:0-1", names, "Active", Some(9));
    });
    kernel.state = None;
    assert_eq!(with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap().name, "vport-5:0-1");
}

/// A port that stays is said, and its record too: the next one that cleans finds it.
#[test]
fn what_cannot_be_deleted_is_said_and_found_again() {
    struct Stubborn<'a>(Fake<'a>);
    impl Kernel for &mut Stubborn<'_> {
        fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
            let busy = || WriteError::Write(io::Error::from_raw_os_error(libc::EBUSY));
            if path.ends_with("vport_delete") { Err(busy()) } else { (&mut &mut self.0).write(path, text) }
        }

        fn pause(&mut self, time: Duration) -> Pause {
            (&mut &mut self.0).pause(time)
        }

        fn now(&mut self) -> Duration {
            self.0.time
        }
    }
    let tree = tree();
    let (roots, store) = (tree.roots(), store(&tree));
    let down = |tree: &Tree| tree.file("sys/class/fc_host/host5/port_state", "Linkdown\n");
    let mut kernel = Stubborn(Fake::new(&tree, "Linkdown").later(1, down));
    let said = Ports::new(&roots, &store, &mut kernel).create(&request()).unwrap_err().to_string();
    assert_eq!(
        said,
        "the virtual port 210002123456789a is \"Linkdown\" after 10 s: the link of host5 is down; look at cable, \
         transceiver and switch port; and it is still there: host5 has not deleted the virtual port 210002123456789a for 150 s; vmm fc \
         delete 210002123456789a tries again"
    );
    assert_eq!(records(&tree).len(), 1);
    // That process is no more.
    fs::remove_dir_all(tree.path(&format!("proc/{}", std::process::id()))).unwrap();
    let mut kernel = Fake::new(&tree, "");
    let cleaned = with(&tree, &mut kernel, |ports| ports.clean()).unwrap().done;
    assert_eq!(cleaned[0].1, Ok(Cleaned::Deleted));
    nothing_is_left(&tree);
}

/// The fabric still tells of a port that was deleted a moment ago.
#[test]
fn a_login_that_has_just_ended_is_waited_for() {
    let tree = tree();
    let names = ("0x210002123456789a", "0x200002123456789a");
    tree.remote(&format!("{PCI}/host5"), "rport-5:0-9", names, "FCP Initiator", -1);
    let state = "sys/class/fc_remote_ports/rport-5:0-9/port_state";
    let mut kernel = Fake::new(&tree, "Active").later(2, move |tree| tree.file(state, "Not Present\n"));
    assert!(with(&tree, &mut kernel, |ports| ports.create(&request())).is_ok());
    let mut kernel = Fake::new(&tree, "Active");
    with(&tree, &mut kernel, |ports| ports.delete("210002123456789a", false)).unwrap();
    tree.file(state, "Online\n");
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert!(said.starts_with("WWPN 210002123456789a is logged in on the fabric (rport-5:0-9"), "{said}");
}

#[test]
fn ports_are_deleted_by_any_of_their_names() {
    for name in ["vport-5:0-0", "21:00:00:00:00:00:0a:01", "host8", "scsi_host8"] {
        let tree = tree();
        let mut kernel = Fake::new(&tree, "");
        let vport = with(&tree, &mut kernel, |ports| ports.delete(name, false)).unwrap();
        assert_eq!(vport.name, "vport-5:0-0");
        let line = "2100000000000a01:2000000000000a01".to_owned();
        assert_eq!(kernel.written, [("sys/class/fc_host/host5/vport_delete".into(), line)]);
        assert!(vports(&tree.roots()).is_empty());
    }
}

#[test]
fn what_is_in_use_is_not_deleted() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "");
    let said = |kernel: &mut Fake<'_>, name| {
        let said = with(&tree, kernel, |ports| ports.delete(name, false)).unwrap_err().to_string();
        assert_quoted(&said);
        said
    };
    assert_eq!(
        said(&mut kernel, "vport-9:0-0"),
        "there is no virtual port vport-9:0-0; vmm fc list shows what there is"
    );
    assert_eq!(said(&mut kernel, "host5"), "host5 is a port of an adapter, and no virtual one");
    tree.file("proc/4711/comm", "qemu\n");
    tree.link("proc/4711/fd/7", "/dev/sg4");
    assert_eq!(
        said(&mut kernel, "host8"),
        "vport-5:0-0 has units that are in use: 8:0:0:27 is open by qemu (4711); free it, or vmm fc delete --force vport-5:0-0"
    );
    assert!(kernel.written.is_empty());
    let closed = WriteError::Open(io::Error::from_raw_os_error(libc::EACCES));
    let mut kernel = Fake::new(&tree, "").answering([closed]);
    let said = with(&tree, &mut kernel, |ports| ports.delete("host8", true)).unwrap_err().to_string();
    assert_eq!(
        said,
        "host5 does not delete the virtual port 2100000000000a01: only root may (the files vport_create and vport_delete in sysfs \
         are root's; CAP_DAC_OVERRIDE does it as well)"
    );
    let busy = || WriteError::Write(io::Error::from_raw_os_error(libc::EBUSY));
    let mut kernel = Fake::new(&tree, "").answering([busy(), busy()]);
    with(&tree, &mut kernel, |ports| ports.delete("host8", true)).unwrap();
    assert_eq!(kernel.written.len(), 3);
}

#[test]
fn one_who_waits_for_the_lock_gives_up() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "Active");
    let _lock = store(&tree).try_lock().unwrap();
    let said = with(&tree, &mut kernel, |ports| ports.create(&request())).unwrap_err().to_string();
    assert!(
        said.starts_with("another process has been at work on virtual ports for too long (")
            && said.ends_with("run/vmm/fc/lock is locked); see what it waits for"),
        "{said}"
    );
    assert_eq!(kernel.time, PATIENCE);
}

/// One system call, whatever it says.
#[test]
fn a_line_is_written_at_once() {
    let tree = Tree::new();
    tree.file("sys/vport_create", "");
    let mut live = Live::new(|_| Pause::Over);
    live.write(&tree.path("sys/vport_create"), "a:b").unwrap();
    assert_eq!(fs::read_to_string(tree.path("sys/vport_create")).unwrap(), "a:b");
    assert!(matches!(live.write(&tree.path("sys/none"), "a:b"), Err(WriteError::Open(_))));
    assert!(matches!(live.write(Path::new("/dev/full"), "a:b"), Err(WriteError::Write(_))));
}
