//! The process and the machine's end together, and what it may do in its sandbox.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use devices::scsi::generic::{Opening, open_at, report_luns};
use fc::glimpse::{Glimpse, Sighting};
use fc::state::Store;
use fc::watch::{Sockets, Watch};
use fc::{Address, Roots, San};

use super::inventory::Job;
use super::message::tests::example;
use super::{FcPorts, Wanted, work};
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
        number: 1,
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
    let users = fc::users::Users::read(&roots);
    drop(users);
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
        assert!(said.contains("outside false\n"), "{said}");
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
