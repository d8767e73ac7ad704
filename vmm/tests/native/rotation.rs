//! Logs that are rotated while the machine runs, in its sandbox, and the signal that comes with it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use super::guest::Guest;
use super::vm::{Vm, eventually, hypervisor, send_signal, turn};

/// The debug console.
const DEBUG: u16 = 0x402;
/// What is printed at each start.
const LINE: &str = "one line of many\n";
/// What is logged at each reset.
const RESET: &str = "the guest reset (control socket)\n";

/// Prints a line on COM1 and on the debug console each time that it starts.
fn guest() -> Vec<u8> {
    Guest::kernel(|g| {
        LINE.bytes().for_each(|byte| g.out8(DEBUG, byte));
        g.print(LINE);
        let top = g.here();
        // hlt, with interrupts off
        g.bytes(&[0xf4]);
        g.jmp(top);
    })
}

struct Machine<'a> {
    vm: &'a Vm,
    control: BufReader<UnixStream>,
}

impl<'a> Machine<'a> {
    fn of(vm: &'a Vm) -> Self {
        let connect = || UnixStream::connect(vm.path("control")).ok();
        Self { vm, control: BufReader::new(eventually("the control socket", connect)) }
    }

    fn ask(&mut self, command: &str) {
        let line = format!("{{\"execute\": \"{command}\"}}\n");
        self.control.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.control.read_line(&mut answer).unwrap();
        assert_eq!(answer, "{\"return\":{}}\n", "{command}");
    }

    /// Has each file get more.
    fn more(&mut self) {
        self.ask("reset");
        self.ask("stop");
        self.ask("cont");
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(fs::read(self.vm.path(name)).unwrap()).unwrap()
    }

    /// What is in a file, once there are so many lines of a kind.
    fn lines(&self, name: &str, count: usize) -> String {
        let line = if name == "log" { RESET } else { LINE };
        eventually(name, || Some(self.text(name)).filter(|text| text.matches(line).count() == count))
    }
}

/// A machine that logs each reset, with all that it can write into.
fn machine() -> Vm {
    let vm = Vm::new(&guest()).set("control.path=control").set("boot.debug_log=debug");
    fs::write(vm.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let vm = vm.set("hba.0.type=megasas").set("hba.0.event_log=events").set("hba.0.lun.0.image=disk.img");
    vm.arg("--log-level").arg("info")
}

/// As logrotate does with `copytruncate`.
fn copy_and_truncate(vm: &Vm, name: &str) {
    fs::copy(vm.path(name), vm.path(&format!("{name}.1"))).unwrap();
    OpenOptions::new().write(true).open(vm.path(name)).unwrap().set_len(0).unwrap();
}

#[test]
fn logs_that_are_copied_and_truncated_go_on_without_a_hole() {
    if !hypervisor("logs_that_are_copied_and_truncated_go_on_without_a_hole") {
        return;
    }
    let _turn = turn();
    // Files that the machine opens, and those that a shell has opened for it.
    for own in [true, false] {
        let vm = machine();
        let vm = if own {
            vm.arg("--log-file").arg("log").set("serial.mode=file").set("serial.path=console")
        } else {
            vm
        };
        let mut command = vm.command();
        if !own {
            let file = |name: &str| Stdio::from(File::create(vm.path(name)).unwrap());
            command.stdout(file("console")).stderr(file("log"));
        }
        let mut child = command.spawn().unwrap();
        let mut machine = Machine::of(&vm);
        for count in 1..4 {
            machine.lines("console", count);
            machine.more();
        }
        let counts = [("console", 4), ("debug", 4), ("log", 3)];
        let before = counts.map(|(name, count)| machine.lines(name, count));
        counts.iter().for_each(|(name, _)| copy_and_truncate(machine.vm, name));
        for count in 1..3 {
            machine.more();
            machine.lines("console", count);
        }
        for ((name, _), before) in counts.into_iter().zip(before) {
            assert_eq!(machine.text(&format!("{name}.1")), before, "{name}");
            let after = machine.lines(name, 2);
            assert!(!after.contains('\0'), "{name}, opened by the machine: {own}: {after:?}");
            assert!(name == "log" || after == LINE.repeat(2), "{name}: {after:?}");
        }
        machine.ask("quit");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", machine.text("log"));
    }
}

/// It is no text and needs no rotation, but a pattern such as `*` may name it.
#[test]
fn an_event_log_that_is_truncated_is_one_still() {
    if !hypervisor("an_event_log_that_is_truncated_is_one_still") {
        return;
    }
    let vm = machine();
    let _turn = turn();
    for _ in 0..2 {
        let running = vm.start();
        let mut machine = Machine::of(&vm);
        machine.more();
        copy_and_truncate(&vm, "events");
        machine.more();
        eventually("events", || fs::metadata(vm.path("events")).ok().filter(|found| found.len() > 512));
        // In no order.
        send_signal(running.child.id(), "KILL");
        drop(running);
        // The lock goes with the process.
        let checked = vm.command().arg("--check").output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

/// The process in a session of its own, without a terminal, as services are.
fn service(command: &mut Command) -> &mut Command {
    let apart = || {
        // SAFETY: the default action is no function. Who runs the tests may have SIGHUP ignored.
        #[allow(unsafe_code)]
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_DFL)
        };
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        let session = unsafe { libc::setsid() };
        if session > 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(apart)
    }
}

#[test]
fn a_service_survives_sighup() {
    if !hypervisor("a_service_survives_sighup") {
        return;
    }
    let vm = machine().arg("--log-file").arg("log").set("serial.mode=file").set("serial.path=console");
    let _turn = turn();
    let mut child = service(&mut vm.command()).spawn().unwrap();
    let mut machine = Machine::of(&vm);
    machine.more();
    // As logrotate does without `copytruncate`: what is open is written to its end, under its new name.
    for name in ["log", "console"] {
        fs::rename(machine.vm.path(name), machine.vm.path(&format!("{name}.1"))).unwrap();
    }
    send_signal(child.id(), "HUP");
    let said = "SIGHUP: the machine goes on, and writes to the files that it has open";
    eventually("a line", || machine.text("log.1").contains(said).then_some(()));
    let before = machine.text("console.1").len();
    machine.more();
    eventually("the guest", || (machine.text("console.1").len() > before).then_some(()));
    assert!(!machine.vm.path("log").exists() && !machine.vm.path("console").exists());
    send_signal(child.id(), "TERM");
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}
