//! What the host allows the process: descriptors, sizes of files, a reader of its messages.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::console::{converse, echo};
use super::guest::Guest;
use super::vm::{Running, Vm, eventually, hypervisor, turn, usual_log};

#[test]
fn a_log_file_at_the_size_limit_costs_its_lines_only() {
    if !hypervisor("a_log_file_at_the_size_limit_costs_its_lines_only") {
        return;
    }
    let vm = Vm::new(&Guest::kernel(|g| g.print("Hello from the guest\r\n")));
    let vm = vm.arg("--log-level").arg("trace").arg("--log-file").arg("log");
    let own = vm.command();
    let mut limited = Command::new("sh");
    // Blocks of 512 bytes.
    limited.args(["-c", "ulimit -f 4; exec \"$0\" \"$@\""]).arg(own.get_program()).args(own.get_args());
    usual_log(limited.current_dir(vm.path("")).stdin(Stdio::null()));
    let ended = vm.run_with(&mut limited);
    assert_eq!((ended.code, ended.output.as_str()), (0, "Hello from the guest\r\n"), "{}", ended.errors);
    let lines: Vec<&str> = ended.errors.lines().collect();
    assert!(matches!(lines[..], [line] if line.starts_with("vmm: error: --log-file log: ")), "{lines:?}");
    assert_eq!(fs::metadata(vm.path("log")).unwrap().len(), 2048);
}

/// What the guest prints, and what the machine says of it, is nobody else's to change.
#[test]
fn cve_2013_2007_files_that_are_made_are_written_by_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    if !hypervisor("cve_2013_2007_files_that_are_made_are_written_by_nobody_else") {
        return;
    }
    let vm = Vm::new(&Guest::kernel(|g| g.print("Hello from the guest\r\n")));
    fs::write(vm.path("disk.img"), [0; 4096]).unwrap();
    fs::write(vm.path("raid.img"), [0; 1 << 20]).unwrap();
    let mut vm = vm.arg("--log-file").arg("log");
    for set in [
        "serial.mode=file",
        "serial.path=console",
        "boot.debug_log=debug",
        "hba.0.lun.0.image=disk.img",
        "hba.0.lun.0.protection=1",
        "hba.1.type=megasas",
        "hba.1.event_log=events",
        "hba.1.lun.0.image=raid.img",
    ] {
        vm = vm.set(set);
    }
    let own = vm.command();
    let mut open = Command::new("sh");
    open.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(own.get_program()).args(own.get_args());
    open.current_dir(vm.path("")).env_remove("VMM_LOG").stdin(Stdio::null());
    let ended = vm.run_with(&mut open);
    assert_eq!(ended.code, 0, "{}", ended.errors);
    let mode = |name: &str| fs::metadata(vm.path(name)).unwrap().permissions().mode() & 0o777;
    for name in ["log", "console", "debug", "disk.img.pi", "events"] {
        assert_eq!(mode(name), 0o644, "{name}");
    }
}

#[test]
fn messages_that_nobody_reads_do_not_matter() {
    if !hypervisor("messages_that_nobody_reads_do_not_matter") {
        return;
    }
    let vm = Vm::new(&Guest::kernel(|g| g.print("Hello from the guest\r\n"))).arg("--log-level").arg("trace");
    let _turn = turn();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended =
        vm.command().stdout(Stdio::piped()).stderr(writer).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "Hello from the guest\r\n");
    assert_eq!(ended.status.code(), Some(0), "{}", ended.status);
}

/// Clock ticks that the threads of this name have had so far, and how many there are.
fn ticks(process: u32, name: &str) -> (u64, usize) {
    let (mut sum, mut count) = (0, 0);
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        if !head.ends_with(&format!("({name}")) {
            continue;
        }
        // proc_pid_stat(5): fields 14 and 15; the first after the name is number 3.
        let words: Vec<&str> = rest.split_whitespace().collect();
        sum += words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap();
        count += 1;
    }
    (sum, count)
}

fn limit_descriptors(process: u32, limit: &str) {
    let set =
        Command::new("prlimit").args([format!("--pid={process}"), format!("--nofile={limit}")]).status();
    assert!(set.unwrap().success());
}

#[test]
fn without_descriptors_connections_wait_and_nobody_spins() {
    if !hypervisor("without_descriptors_connections_wait_and_nobody_spins") {
        return;
    }
    let vm = Vm::new(&echo()).set("control.path=control").set("serial.mode=socket").set("serial.path=serial");
    let _turn = turn();
    let running = Running::start(&mut vm.command());
    let process = running.child.id();
    eventually("both sockets", || (vm.path("control").exists() && vm.path("serial").exists()).then_some(()));
    let threads = || {
        let all = ["control", "console"].map(|name| ticks(process, name));
        (all[0].0 + all[1].0, all[0].1 + all[1].1)
    };
    eventually("both threads", || (threads().1 == 2).then_some(()));
    // The hard limit stays. All numbers below are in use.
    limit_descriptors(process, "8:");
    let control = UnixStream::connect(vm.path("control")).unwrap();
    let serial = UnixStream::connect(vm.path("serial")).unwrap();
    let before = threads().0;
    thread::sleep(Duration::from_millis(700));
    let used = threads().0 - before;
    assert!(used <= 2, "{used} ticks of 10 ms in 0.7 s");
    limit_descriptors(process, "1024:");
    (&control).write_all(b"{\"execute\": \"query-status\"}\n").unwrap();
    let mut line = String::new();
    BufReader::new(&control).read_line(&mut line).unwrap();
    assert!(line.contains("\"running\""), "{line}");
    drop(control);
    converse(serial);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{}", ended.errors);
    for socket in ["control socket: ", "console: "] {
        let told = ended.errors.lines().find(|line| line.contains(socket)).unwrap_or_default();
        assert!(told.contains("LimitNOFILE= of its service, or ulimit -n"), "{}", ended.errors);
    }
}

/// Neither vCPUs nor the console nor the end of the machine wait for whoever reads messages.
#[test]
fn messages_whose_reader_stands_still_do_not_matter() {
    if !hypervisor("messages_whose_reader_stands_still_do_not_matter") {
        return;
    }
    let endless = Guest::kernel(|g| {
        let top = g.here();
        g.print("0123456789abcdef");
        g.jmp(top);
    });
    let vm = Vm::new(&endless).set("serial.mode=socket").set("serial.path=serial");
    let vm = vm.arg("--log-level").arg("info");
    let _turn = turn();
    // Full, and open.
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    writer.write_all(&vec![b'.'; usize::try_from(size).unwrap()]).unwrap();
    let mut child = vm.command().stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    let serial = eventually("the console", || UnixStream::connect(vm.path("serial")).ok());
    // Its buffer fills up, and a line is said about that.
    thread::sleep(Duration::from_secs(3));
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let begin = Instant::now();
    let ended = loop {
        match child.try_wait().unwrap() {
            None if begin.elapsed() < Duration::from_secs(20) => thread::sleep(Duration::from_millis(10)),
            ended => break ended,
        }
    };
    child.kill().unwrap();
    drop((serial, reader));
    assert_eq!(ended.and_then(|ended| ended.signal()), Some(15), "{ended:?} after {:?}", begin.elapsed());
}
