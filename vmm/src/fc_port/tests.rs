//! The process and the machine's end together, and what it may do in its sandbox.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use devices::scsi::generic::{Opening, open_at, report_luns};
use fc::glimpse::{Glimpse, Sighting};
use fc::state::Store;
use fc::watch::{Sockets, Watch};
use fc::{Address, Roots, San};

use super::inventory::Job;
use super::machine::{Left, begin};
use super::message::tests::{example, host_port};
use super::{FcPorts, HostPort, News, Origin, Process, Wanted, message, work};
use crate::config::Sandbox;
use crate::jail;
use crate::keeper::sys;

const CHILD: &str = "VMM_FC_PORT_CHILD";

/// In a process of its own: what the process calls, once it is confined. Paths are refused here, which is an error and no end.
#[test]
fn child() {
    match std::env::var(CHILD).as_deref() {
        Ok("calls") => calls(),
        Ok("refused") => {
            jail::confine_port(Sandbox::On).unwrap();
            let _ = std::net::TcpListener::bind("127.0.0.1:0");
            println!("made a socket");
        }
        Ok("process") => process(),
        _ => {}
    }
}

fn calls() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = sys::pair().unwrap();
    let sockets = Sockets::open();
    jail::confine_port(Sandbox::On).unwrap();
    let roots = Roots::default();
    let address: Address = "9999:0:0:5".parse().unwrap();
    let _ = (San::read(&roots), Glimpse::read(&roots, 9999), report_luns("9999:0:0:5"));
    let how = Opening { ring: true, allow: example().allow, shared: false, fresh: false };
    assert!(open_at("9999:0:0:5", how).is_err());
    let unit = Sighting {
        address,
        remote: "rport-9999:0-0".into(),
        number: fs::metadata(directory.path()).unwrap().ino(),
        state: "running".into(),
        wwid: None,
        directory: directory.path().into(),
    };
    for job in [Job::Scan(address, true), Job::Delete(unit.clone()), Job::Rescan(unit, true)] {
        work::work(&roots, &job);
    }
    let store = Store::below(directory.path());
    let _ = (
        store.records(),
        store.definitions(),
        store.targets("a"),
        store.keep_targets("a", &Default::default()),
    );
    let place = directory.path().join("x");
    let _ =
        (fs::create_dir(&place), fs::hard_link(&place, place.with_extension("y")), fs::rename(&place, "/x"));
    let _ =
        (fs::remove_file(&place), OpenOptions::new().create_new(true).write(true).mode(0o644).open(&place));
    let mut random = [0; 8];
    fc::names::random(&mut random).unwrap();
    // Whoever goes by it deletes nothing: it cannot see who has a unit open.
    println!("unseen {}", fc::users::Users::read(&roots).unseen().is_some());
    sys::send(&one, b"text", &[fs::File::open("/dev/null").unwrap().into()]).unwrap();
    let (len, files) = crate::machine::receive(&other, &mut [0; 64]).unwrap();
    assert_eq!((len, { files }.take().unwrap().len()), (4, 1));
    if let Ok((sockets, _)) = sockets {
        let _ = Watch::new(sockets).next(Some(Duration::ZERO)).unwrap();
    }
    one.shutdown(std::net::Shutdown::Both).unwrap();
    thread::spawn(|| thread::sleep(Duration::from_millis(1))).join().unwrap();
    println!("outside {}", fs::File::open("/etc/passwd").is_ok());
    println!("calls done");
}

/// As the machine has it: started, given a list, and ended.
fn process() {
    let ports = FcPorts::start(Sandbox::On);
    let Err(error) = ports.begin(&[Wanted { timeout: 1, ..example() }]) else { panic!() };
    println!("said {error:#}");
}

fn run(what: &str) -> (bool, String) {
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["fc_port::tests::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, what)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn it_can_do_in_its_sandbox_what_it_takes() {
    let (well, said) = run("calls");
    assert!(well && said.contains("calls done\n"), "{said}");
    if fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|all| all.contains("landlock")) {
        assert!(said.contains("outside false\n") && said.contains("unseen true\n"), "{said}");
    }
    let (well, said) = run("refused");
    assert!(!well && !said.contains("made a socket"), "{said}");
}

/// This host has no such port, so that the line says so.
#[test]
fn the_machine_hears_in_one_line_why_there_is_no_port() {
    if fs::exists("/sys/class/fc_host").unwrap() {
        return;
    }
    let (well, said) = run("process");
    assert!(well, "{said}");
    assert!(said.contains("said hba0: "), "{said}");
    println!("{said}");
}

/// What the process says of the port of an HBA before the guest runs.
fn begins(process: &UnixStream, hba: usize, origin: Origin) {
    let port = HostPort { origin, wwpn: 0xa00 + hba as u64, ..host_port() };
    for one in [News::Port(Box::new(port)), News::Looked(0)] {
        sys::send(process, &message::news(hba, one).0, &[]).unwrap();
    }
}

/// A machine with ports of these kinds, and the process's end.
fn machine(origins: &[Origin]) -> (Process, UnixStream) {
    let (ours, theirs) = sys::pair().unwrap();
    origins.iter().enumerate().for_each(|(hba, origin)| begins(&theirs, hba, *origin));
    let wanted: Vec<_> =
        (0..origins.len()).map(|hba| Wanted { hba: format!("hba {hba}"), ..example() }).collect();
    let (process, _) = begin(ours, &wanted).unwrap();
    (process, theirs)
}

const LONG: Duration = Duration::from_secs(30);

/// Whether to wait on, for a test that does not hang.
fn long() -> impl FnMut() -> bool {
    let until = Instant::now() + LONG;
    move || Instant::now() < until
}

#[test]
fn a_process_that_was_killed_has_deleted_nothing() {
    let (process, theirs) = machine(&[Origin::Made, Origin::Adopted, Origin::Made, Origin::Persistent]);
    let said = message::news(2, News::Closed(0xa02, Some("it does not answer".into()))).0;
    sys::send(&theirs, &said, &[]).unwrap();
    drop(theirs);
    assert_eq!(
        process.closed(long()),
        Left {
            errors: vec![
                "hba 0: its virtual port 0000000000000a00 (vport-5:0-3) may still be there, for the process that had it (vmm-fcport) has \
                 ended without deleting it; vmm fc clean does that"
                    .into(),
                "hba 2: its virtual port 0000000000000a02 (vport-5:0-3) is still there, and vmm fc clean tries again to delete it: it \
                 does not answer"
                    .into(),
            ],
            warning: None,
        }
    );
}

/// It was given up while it was made, and the machine has never heard of it.
#[test]
fn a_port_that_was_not_made_whole_and_is_left_is_told() {
    let (process, theirs) = machine(&[Origin::Adopted]);
    let said = message::news(0, News::Closed(0xb00, Some("host5 has not deleted it".into()))).0;
    sys::send(&theirs, &said, &[]).unwrap();
    drop(theirs);
    let errors = vec![
        "hba 0: the virtual port 0000000000000b00 that was to be its own is still there, and vmm fc clean tries again to delete it: host5 has not deleted it"
            .into(),
    ];
    assert_eq!(process.closed(long()), Left { errors, warning: None });
}

#[test]
fn nothing_is_said_of_ports_that_are_deleted_or_stay() {
    let (process, theirs) = machine(&[Origin::Made, Origin::Adopted]);
    sys::send(&theirs, &message::news(0, News::Closed(0xa00, None)).0, &[]).unwrap();
    drop(theirs);
    assert_eq!(process.closed(long()), Left::default());
}

/// As at a fabric that does not answer the logout, with an operator who does not want to wait for that.
#[test]
fn the_wait_for_ports_ends_when_nobody_wants_it() {
    let (process, theirs) = machine(&[Origin::Made, Origin::Made]);
    sys::send(&theirs, &message::news(1, News::Closed(0xa01, None)).0, &[]).unwrap();
    let (begin, mut asked) = (Instant::now(), 0);
    let left = process.closed(|| {
        asked += 1;
        asked < 4
    });
    assert!(begin.elapsed() < LONG && asked == 4, "{:?}", begin.elapsed());
    let warning = "the virtual port 0000000000000a00 is not deleted yet; the process that does it (vmm-fcport) goes on with it, and vmm fc \
                   list shows what is left";
    assert_eq!(left, Left { errors: vec![], warning: Some(warning.into()) });
    drop(theirs);
}
