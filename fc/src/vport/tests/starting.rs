//! What is defined, while the host starts.

use super::*;
use crate::choose::Wanted;

fn request() -> Request<'static> {
    Request { wanted: Wanted::Number(5), deadline: Duration::from_secs(60), ..super::request() }
}

fn start(tree: &Tree, kernel: &mut Fake<'_>) -> Result<Vport, String> {
    with(tree, kernel, |ports| ports.start(&request())).map_err(|error| error.to_string())
}

/// A port on the way: there is no driver, then its set-up is not done, then it has no link, and then the fabric has not answered.
#[test]
fn a_port_that_comes_late_is_waited_for() {
    let tree = tree();
    let host = |file: &str| format!("sys/class/fc_host/host5/{file}");
    let (max, state) = (host("max_npiv_vports"), host("port_state"));
    tree.file(&max, "0\n");
    tree.file(&state, "Linkdown\n");
    let fcs = tree.path("sys/class/fc_host");
    fs::rename(&fcs, tree.path("sys/hosts")).unwrap();
    let not_yet = |number| WriteError::Write(io::Error::from_raw_os_error(number));
    let mut kernel = Fake::new(&tree, "Active")
        .later(5, |tree| fs::rename(tree.path("sys/hosts"), tree.path("sys/class/fc_host")).unwrap())
        .later(10, move |tree| tree.file(&max, "64\n"))
        .later(20, move |tree| tree.file(&state, "Online\n"))
        .answering([not_yet(libc::EOPNOTSUPP), not_yet(libc::EOPNOTSUPP), not_yet(libc::EIO)]);
    let vport = start(&tree, &mut kernel).unwrap();
    assert_eq!((&*vport.name, kernel.written.len()), ("vport-5:0-1", 4));
    assert!(
        kernel.time > Duration::from_secs(20) && kernel.time < Duration::from_secs(23),
        "{:?}",
        kernel.time
    );
    assert!(records(&tree).is_empty());
    // What is not there at the end, says why.
    let tree = self::tree();
    tree.file("sys/class/fc_host/host5/port_state", "Linkdown\n");
    let mut kernel = Fake::new(&tree, "Active");
    let said = start(&tree, &mut kernel).unwrap_err();
    assert_eq!(
        (&*said, kernel.written.len()),
        ("host5 is Linkdown; look at cable, transceiver and switch port", 0)
    );
    assert_quoted(&said);
    assert!(kernel.time >= Duration::from_secs(60));
    // And what will never be, at once.
    let tree = self::tree();
    fs::remove_file(tree.path("sys/class/fc_host/host5/vport_create")).unwrap();
    let mut kernel = Fake::new(&tree, "Active");
    assert!(start(&tree, &mut kernel).unwrap_err().contains("creates no virtual ports"));
    assert_eq!(kernel.time, Duration::ZERO);
}

/// A machine that starts with the host: its port is there, and the link and the fabric come later.
#[test]
fn a_machine_waits_for_the_link_of_its_port() {
    let create = |tree: &Tree, kernel: &mut Fake<'_>| {
        let owned = Request { owner: Some("web1.fc0"), ..request() };
        with(tree, kernel, |ports| ports.create_in_time(&owned)).map_err(|error| error.to_string())
    };
    let tree = tree();
    let state = "sys/class/fc_host/host5/port_state";
    tree.file(state, "Linkdown\n");
    let not_yet = |number| WriteError::Write(io::Error::from_raw_os_error(number));
    let mut kernel = Fake::new(&tree, "Active")
        .later(20, move |tree| tree.file(state, "Online\n"))
        .answering([not_yet(libc::EOPNOTSUPP)]);
    let vport = create(&tree, &mut kernel).unwrap();
    assert_eq!((&*vport.name, kernel.written.len()), ("vport-5:0-1", 2));
    assert!(kernel.time > Duration::from_secs(20) && kernel.time < Duration::from_secs(22));
    assert_eq!(records(&tree).len(), 1, "it is the machine's");
    // What is asked for wrongly is said at once.
    let tree = self::tree();
    fs::remove_dir_all(tree.path("sys/class/fc_host")).unwrap();
    let mut kernel = Fake::new(&tree, "Active");
    let said = create(&tree, &mut kernel).unwrap_err();
    assert!(said.contains("no Fibre Channel port"), "{said}");
    assert_eq!(kernel.time, Duration::ZERO);
}

/// As of the time before the host crashed.
#[test]
fn a_login_of_before_is_waited_for() {
    let tree = tree();
    let names = ("0x210002123456789a", "0x200002123456789a");
    tree.remote(&format!("{PCI}/host5"), "rport-5:0-9", names, "FCP Initiator", -1);
    let state = "sys/class/fc_remote_ports/rport-5:0-9/port_state";
    let mut kernel = Fake::new(&tree, "Active").later(20, move |tree| tree.file(state, "Not Present\n"));
    start(&tree, &mut kernel).unwrap();
    assert!(kernel.time < Duration::from_secs(22), "{:?}", kernel.time);
}

/// What was created too early is deleted, and created anew.
#[test]
fn a_port_that_does_not_get_better_is_created_anew() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "No Fabric Support").later(12, |tree| says(tree, "Active"));
    assert!(start(&tree, &mut kernel).is_ok());
    let deeds: Vec<&str> = kernel.written.iter().map(|(path, _)| path.rsplit_once('/').unwrap().1).collect();
    assert_eq!(deeds, ["vport_create", "vport_delete", "vport_create", "vport_delete", "vport_create"]);
    let mut kernel = Fake::new(&tree, "");
    kernel.interrupt_at = Duration::ZERO;
    with(&tree, &mut kernel, |ports| ports.delete("vport-5:0-1", false)).unwrap();
    tree.file("sys/class/fc_host/host5/port_state", "Linkdown\n");
    assert!(start(&tree, &mut kernel).unwrap_err().starts_with("interrupted before"));
}

/// A tool that was killed while it waited has left a port that comes: it is the definition's now, and nobody deletes it.
#[test]
fn a_port_that_is_there_becomes_nobodys() {
    let tree = tree();
    let stat = format!("proc/{}/stat", std::process::id());
    let ended = "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 100 20\n";
    let mut kernel = Fake::new(&tree, "Active");
    let owned = Request { owner: Some("vmm fc create"), ..request() };
    with(&tree, &mut kernel, |ports| ports.create(&owned)).unwrap();
    says(&tree, "Initializing");
    // It runs: it may delete the port.
    let said = start(&tree, &mut kernel).unwrap_err();
    let pid = std::process::id();
    assert_eq!(
        said,
        format!(
            "the virtual port 210002123456789a is there, but goes with process {pid} (vmm fc create); end that, and start this anew"
        )
    );
    assert_quoted(&said.replace(&pid.to_string(), "4711"));
    let end = stat.clone();
    let began = kernel.time.as_secs();
    let mut kernel = kernel
        .later(began + 2, move |tree| tree.file(&end, ended))
        .later(began + 10, |tree| says(tree, "Active"));
    assert_eq!(start(&tree, &mut kernel).unwrap().name, "vport-5:0-1");
    assert!(kernel.time >= Duration::from_secs(began + 10));
    assert!(records(&tree).is_empty());
    assert!(with(&tree, &mut kernel, |ports| ports.clean()).unwrap().done.is_empty());
    assert_eq!(kernel.written.len(), 1);
    // One that never comes stays as it is: it is not this one's to delete.
    says(&tree, "Linkdown");
    assert!(start(&tree, &mut kernel).unwrap_err().contains("is \"Linkdown\" after"));
    assert_eq!(kernel.written.len(), 1);
    // One with another node's name is another one.
    tree.file("sys/class/fc_vports/vport-5:0-1/node_name", "0x2000021234567800\n");
    let said = start(&tree, &mut kernel).unwrap_err();
    assert_eq!(said, "WWPN 210002123456789a is taken: the virtual port vport-5:0-1 of host5 has it");
}

/// As in a container, or where proc hides the processes of others.
#[test]
fn a_port_of_a_process_that_cannot_be_seen_stays_as_it_is() {
    let tree = tree();
    let mut kernel = Fake::new(&tree, "Active");
    let owned = Request { owner: Some("web1.fc0"), ..request() };
    with(&tree, &mut kernel, |ports| ports.create(&owned)).unwrap();
    let pid = std::process::id().to_string();
    for hidden in ["1", &pid] {
        fs::remove_dir_all(tree.path(&format!("proc/{hidden}"))).unwrap();
    }
    let begin = kernel.time;
    let said = start(&tree, &mut kernel).unwrap_err();
    assert!(!said.contains("end that"), "{said}");
    assert_quoted(&said.replace(&pid, "4711"));
    assert_eq!((kernel.time, kernel.written.len(), records(&tree).len()), (begin, 1, 1));
}
