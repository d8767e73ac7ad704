//! Disks as descriptors on the control socket: of files that the machine could not open.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::guest::Guest;
use super::vm::{Running, Vm, eventually, hypervisor, skipped, turn};

/// A connection to the control socket.
struct Client {
    stream: UnixStream,
    answers: Lines<BufReader<UnixStream>>,
}

impl Client {
    fn new(path: &Path) -> Self {
        let stream = eventually("the control socket", || UnixStream::connect(path).ok());
        let answers = BufReader::new(stream.try_clone().unwrap()).lines();
        Self { stream, answers }
    }

    fn ask(&mut self, command: &str, arguments: Value, descriptors: &[&File]) -> Value {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        let numbers: Vec<RawFd> = descriptors.iter().map(|file| file.as_raw_fd()).collect();
        self.stream.send_with_fds(&[line.as_bytes()], &numbers).unwrap();
        serde_json::from_str(&self.answers.next().unwrap().unwrap()).unwrap()
    }

    #[track_caller]
    fn done(&mut self, command: &str, arguments: Value, descriptors: &[&File]) -> Value {
        let answer = self.ask(command, arguments, descriptors);
        answer.get("return").unwrap_or_else(|| panic!("{command}: {answer}")).clone()
    }
}

fn machine(more: &str) -> Vm {
    let vm = Vm::new(&Guest::kernel(|g| {
        let top = g.here();
        g.bytes(&[0xf4]);
        g.jmp(top);
    }));
    let config = fs::read_to_string(vm.path("vm.toml")).unwrap();
    let config = config + "[serial]\nmode = \"off\"\n[control]\npath = \"control\"\n" + more;
    fs::write(vm.path("vm.toml"), config).unwrap();
    vm
}

/// A file that never had a name.
fn nameless(directory: &Path, len: u64) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)
        .or_else(|_| tempfile::tempfile_in(directory))
        .unwrap();
    file.set_len(len).unwrap();
    file
}

#[test]
fn files_without_names_are_disks_of_both_adapters() {
    if !hypervisor("files_without_names_are_disks_of_both_adapters") {
        return;
    }
    let vm = machine("[[hba]]\nid = \"scsi0\"\n[[hba]]\nid = \"raid0\"\ntype = \"megasas\"\n");
    let _turn = turn();
    let running = Running::start(&mut vm.command());
    let mut client = Client::new(&vm.path("control"));
    for (id, cache) in [("scsi0", "none"), ("raid0", "writeback"), ("scsi0", "writethrough")] {
        let file = nameless(&vm.path(""), 1 << 20);
        let added = client.done("add-fd", json!({"fdset-id": 7, "opaque": "no name"}), &[&file]);
        assert_eq!(added["fdset-id"], 7);
        let sets = json!([{"fdset-id": 7, "fds": [{"fd": added["fd"], "opaque": "no name"}]}]);
        assert_eq!(client.done("query-fdsets", json!({}), &[]), sets);
        // The sets are those of the machine, not of a connection.
        client = Client::new(&vm.path("control"));
        assert_eq!(client.done("query-fdsets", json!({}), &[]), sets);
        let disk = json!({"hba": id, "target": 3, "image": "/dev/fdset/7", "cache": cache});
        assert_eq!(client.done("attach", disk.clone(), &[])["state"], "attached");
        let units = client.done("query-hbas", json!({}), &[]);
        let unit = units.as_array().unwrap().iter().find(|hba| hba["id"] == id).unwrap()["units"][0].clone();
        assert_eq!((&unit["image"], &unit["size"]), (&json!("/dev/fdset/7"), &json!(1 << 20)));
        assert!(unit.to_string().contains("attached"), "{unit}");
        let place = json!({"hba": id, "target": 3, "size": 2 << 20});
        assert_eq!(client.done("resize", place, &[])["size"], 2 << 20);
        assert_eq!(file.metadata().unwrap().len(), 2 << 20);
        // Another one at the same place, of a set of its own.
        let other = nameless(&vm.path(""), 4 << 20);
        let set = client.done("add-fd", json!({}), &[&other])["fdset-id"].clone();
        let change = json!({"hba": id, "target": 3, "image": format!("/dev/fdset/{set}"), "cache": cache});
        client.done("change", change, &[]);
        client.done("remove-fd", json!({"fdset-id": 7}), &[]);
        client.done("remove-fd", json!({"fdset-id": set}), &[]);
        client.done("detach", json!({"hba": id, "target": 3}), &[]);
        assert_eq!(client.done("query-fdsets", json!({}), &[]), json!([]));
    }
    client.done("quit", json!({}), &[]);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{}", ended.errors);
}

#[test]
fn what_comes_instead_of_images_costs_the_request_only() {
    if !hypervisor("what_comes_instead_of_images_costs_the_request_only") {
        return;
    }
    let vm = machine("[[hba]]\nid = \"scsi0\"\n");
    let _turn = turn();
    let running = Running::start(&mut vm.command());
    let mut client = Client::new(&vm.path("control"));
    let open = || fs::read_dir(format!("/proc/{}/fd", running.child.id())).unwrap().count();
    let image = nameless(&vm.path(""), 1 << 20);
    // With a first line of the log, for which its thread opens standard error.
    let closed = "descriptors came with a request that takes none, and are closed";
    assert_eq!(client.ask("query-status", json!({}), &[&image])["return"]["status"], "running");
    thread::sleep(Duration::from_millis(500));
    let before = open();
    let null = File::open("/dev/null").unwrap();
    let directory = File::open(vm.path("")).unwrap();
    for bad in [&null, &directory] {
        let answer = client.ask("add-fd", json!({}), &[bad]);
        assert!(
            answer["error"]["desc"].as_str().unwrap().contains("expected one of a regular file"),
            "{answer}"
        );
    }
    let answer = client.ask("add-fd", json!({}), &[&image; 17]);
    assert!(answer["error"]["desc"].as_str().unwrap().contains("more descriptors came"), "{answer}");
    assert_eq!(client.ask("query-status", json!({}), &[&image; 5])["return"]["status"], "running");
    assert_eq!(open(), before, "all are closed");
    // As many sets as anybody likes, up to an end.
    let mut sets = 0;
    let refused = loop {
        match client.ask("add-fd", json!({}), &[&image]) {
            answer if answer.get("return").is_some() => sets += 1,
            answer => break answer,
        }
    };
    assert!(refused["error"]["desc"].as_str().unwrap().contains("remove-fd"), "{refused}");
    assert!(sets <= 1024 && open() <= before + sets, "{sets}");
    for set in 0..sets {
        client.done("remove-fd", json!({"fdset-id": set}), &[]);
    }
    assert_eq!(open(), before);
    // And what was refused has not been touched.
    image.write_all_at(b"x", 0).unwrap();
    (&client.stream).write_all(b"{\"execute\": \"quit\"}\n").unwrap();
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{}", ended.errors);
    assert!(ended.errors.contains(closed), "{}", ended.errors);
}

#[test]
fn a_reset_does_not_end_a_machine_whose_clients_have_all_descriptors() {
    const MOST: usize = 256;
    if !hypervisor("a_reset_does_not_end_a_machine_whose_clients_have_all_descriptors") {
        return;
    }
    let vm = machine("");
    let mut command = vm.command();
    let few = || {
        let limit = libc::rlimit { rlim_cur: MOST as u64, rlim_max: MOST as u64 };
        // SAFETY: the kernel reads a structure that lives on.
        #[allow(unsafe_code)]
        unsafe {
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
        };
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes a system call only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(few)
    };
    let _turn = turn();
    let mut running = Running::start(&mut command);
    let mut client = Client::new(&vm.path("control"));
    let process = running.child.id();
    let open = || fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let image = nameless(&vm.path(""), 1 << 20);
    // A first line of the log, for which its thread opens standard error.
    client.ask("query-status", json!({}), &[&image]);
    let refused = loop {
        let answer = client.ask("add-fd", json!({}), &[&image]);
        if answer.get("return").is_none() {
            break answer;
        }
    };
    let added = open();
    client.done("reset", json!({}), &[]);
    thread::sleep(Duration::from_millis(300));
    let ended = running.child.try_wait().unwrap();
    assert!(ended.is_none(), "{ended:?}: {}", running.errors());
    assert_eq!(client.done("query-status", json!({}), &[])["status"], "running");
    client.done("stop", json!({}), &[]);
    assert!(refused["error"]["desc"].as_str().unwrap().contains("hardly any place left"), "{refused}");
    assert!(added < MOST - 50, "{added}");
    client.done("quit", json!({}), &[]);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{}", ended.errors);
}

#[test]
fn a_disk_of_the_start_is_passed_by_who_starts_the_machine() {
    let name = "a_disk_of_the_start_is_passed_by_who_starts_the_machine";
    if !hypervisor(name) {
        return;
    }
    if !Command::new("bash").arg("--version").output().is_ok_and(|out| out.status.success()) {
        skipped(name, "there is no bash");
        return;
    }
    let vm = machine("[[hba]]\n[[hba.lun]]\nimage = \"/dev/fdset/4\"\ncache = \"none\"\n");
    File::create(vm.path("disk")).unwrap().set_len(1 << 20).unwrap();
    let started = |arguments: &str, redirection: &str| {
        let vmm = vm.command();
        let script = format!("exec \"$0\" \"$@\" {arguments} {redirection}");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).arg(vmm.get_program()).args(vmm.get_args()).stdin(Stdio::null());
        bash.current_dir(vm.path(""));
        bash
    };
    let said = |arguments: &str, redirection: &str| {
        let ended = vm.run_with(&mut started(arguments, redirection));
        assert_eq!(ended.code, 1, "{}", ended.output);
        ended.errors
    };
    assert!(said("", "").contains("cannot open /dev/fdset/4: no descriptors were added as set 4"));
    let none = said("--add-fd fd=7,set=4", "");
    assert!(none.starts_with("vmm: error: --add-fd fd=7,set=4: no descriptor 7 was passed"), "{none}");
    let read_only = said("--add-fd fd=7,set=4,opaque=data", "7<disk");
    assert!(
        read_only
            .contains("/dev/fdset/4 (\"data\"): it has no descriptor that is open for reading and writing")
    );
    let twice = said("--add-fd fd=7,set=4 --add-fd fd=7,set=5", "7<>disk");
    assert!(twice.contains("descriptor 7 was taken already"), "{twice}");
    let checked = vm.run_with(&mut started("--check --add-fd fd=7,set=4", "7<>disk"));
    assert!(checked.ok().contains("OK"));
    let _turn = turn();
    let running = Running::start(&mut started("--add-fd fd=7,set=4", "7<>disk"));
    let mut client = Client::new(&vm.path("control"));
    let sets = client.done("query-fdsets", json!({}), &[]);
    assert_eq!(sets, json!([{"fdset-id": 4, "fds": [{"fd": 7}]}]));
    assert_eq!(client.done("query-hbas", json!({}), &[])[0]["units"][0]["image"], "/dev/fdset/4");
    client.done("quit", json!({}), &[]);
    assert_eq!(running.wait().code, 0);
}
