//! What an operator does to a machine that runs in its sandbox, on each kind of adapter.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::asm::*;
use super::guest::{COM1, Guest};
use super::paths::{HBAS, REMEDY, machine, needs_landlock, qcow2};
use super::vm::{Running, Vm, eventually, hypervisor, send_signal, turn};

/// Power management registers (PM1_STS, PM1_EN), and their bit of the power button.
const PM1_STS: u16 = 0x600;
const PM1_EN: u16 = 0x602;
const BUTTON: u16 = 1 << 8;

/// Says `text` when it starts and whenever a key is pressed; its power button powers it off.
fn guest(text: &str) -> Vec<u8> {
    Guest::kernel(|g| {
        g.out16(PM1_EN, BUTTON);
        g.print(text);
        let (top, quiet, end) = (g.here(), g.label(), g.label());
        g.in16(PM1_STS);
        g.and(Eax, BUTTON.into());
        g.cmp(Eax, 0);
        g.jump_if(Cond::NotEqual, end);
        // Line Status Register: data ready.
        g.in8(COM1 + 5);
        g.and(Eax, 1);
        g.cmp(Eax, 0);
        g.jump_if(Cond::Equal, quiet);
        g.in8(COM1);
        g.print(text);
        g.place(quiet);
        g.jmp(top);
        g.place(end);
    })
}

struct Machine {
    running: Running,
    control: BufReader<UnixStream>,
}

impl Machine {
    fn start(vm: &Vm) -> Self {
        let running = vm.start();
        let control = eventually("the control socket", || UnixStream::connect(vm.path("run/control")).ok());
        let mut machine = Self { running, control: BufReader::new(control) };
        machine.settle();
        machine
    }

    /// Until the main thread has done what it was asked, and is in the sandbox.
    fn settle(&mut self) {
        self.done("stop", "", "");
        self.done("cont", "", "");
    }

    fn ask(&mut self, command: &str, arguments: &str, given: &[&File]) -> String {
        let line = format!("{{\"execute\": \"{command}\", \"arguments\": {{{arguments}}}}}\n");
        let numbers: Vec<_> = given.iter().map(|file| file.as_raw_fd()).collect();
        self.control.get_ref().send_with_fds(&[line.as_bytes()], &numbers).unwrap();
        let mut answer = String::new();
        self.control.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// Asks for what is done, and answered with these words.
    #[track_caller]
    fn done(&mut self, command: &str, arguments: &str, answer: &str) {
        assert_eq!(
            self.ask(command, arguments, &[]),
            format!("{{\"return\":{{{answer}}}}}"),
            "{command} {arguments}"
        );
    }

    /// Asks for what is refused with these words.
    #[track_caller]
    fn refused(&mut self, command: &str, arguments: &str, said: &str) {
        let expected = format!("{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"{said}\"}}}}");
        assert_eq!(self.ask(command, arguments, &[]), expected, "{command} {arguments}");
    }

    fn give(&mut self, set: u32, file: &File) {
        let answer = self.ask("add-fd", &format!("\"fdset-id\": {set}"), &[file]);
        assert!(answer.contains("\"return\""), "{answer}");
    }

    /// Each thread has its filter of system calls, and opens no file by its name that is not allowed.
    fn is_confined(&mut self) {
        for task in fs::read_dir(format!("/proc/{}/task", self.running.child.id())).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            assert!(status.is_empty() || status.contains("\nSeccomp:\t2\n"), "{status}");
        }
        let said = format!(
            "`image` in [[hba.lun]]: cannot open other/a.img: the sandbox does not let this machine open it; {REMEDY}"
        );
        self.refused("attach", "\"image\": \"other/a.img\"", &said);
    }
}

fn attached(target: u8) -> String {
    format!("\"lun\":0,\"state\":\"attached\",\"target\":{target}")
}

/// Disks come by path and as descriptors, are others, grow and go.
fn disks(vm: &Vm, machine: &mut Machine) {
    machine.done("attach", "\"image\": \"images/a.img\", \"target\": 5", &attached(5));
    machine.done("resize", "\"target\": 5, \"size\": 131072", "\"size\":131072");
    assert_eq!(fs::metadata(vm.path("images/a.img")).unwrap().len(), 131_072);
    machine.done("change", "\"image\": \"images/b.img\", \"target\": 5", &attached(5));
    // Of a file that could not be opened.
    let passed = OpenOptions::new().read(true).write(true).open(vm.path("other/a.img")).unwrap();
    machine.give(7, &passed);
    machine.done("attach", "\"image\": \"/dev/fdset/7\", \"target\": 6, \"cache\": \"none\"", &attached(6));
    machine.done("resize", "\"target\": 6, \"size\": 262144", "\"size\":262144");
    assert_eq!(passed.metadata().unwrap().len(), 262_144);
    machine.done("detach", "\"target\": 6", "");
    machine.done("change", "\"image\": \"/dev/fdset/7\", \"target\": 5", &attached(5));
    machine.done("detach", "\"target\": 5", "");
    machine.done("remove-fd", "\"fdset-id\": 7", "");
    // What it was started with comes back.
    machine.done("detach", "\"target\": 0", "");
    machine.done("attach", "\"image\": \"disk.img\", \"target\": 1", &attached(1));
}

/// One client of the console after another.
fn clients<T: Read + Write>(text: &str, connect: impl Fn() -> Option<T>) {
    for _ in 0..3 {
        let mut client = eventually("the console", &connect);
        client.write_all(b"x").unwrap();
        let mut lines = BufReader::new(client);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        // What it said before anybody was there is lost: of a line as well.
        if line != text && text.ends_with(&line) {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        assert_eq!(line, text);
    }
}

#[test]
fn all_that_an_operator_does_works_in_the_sandbox() {
    let name = "all_that_an_operator_does_works_in_the_sandbox";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    for hba in HBAS {
        for (console, end) in [("socket", "powerdown"), ("pty", "SIGTERM"), ("file", "quit")] {
            let vm = machine(hba)
                .set("security.directories=['images']")
                .set(&format!("serial.mode={console}"))
                .arg("--log-file")
                .arg("log");
            fs::write(vm.path("boot/kernel"), guest("first\n")).unwrap();
            let path = vm.path("run/console");
            let _turn = turn();
            let mut machine = Machine::start(&vm);
            machine.is_confined();
            disks(&vm, &mut machine);
            let talk = |text: &str| match console {
                "socket" => clients(text, || UnixStream::connect(&path).ok()),
                "pty" => clients(text, || OpenOptions::new().read(true).write(true).open(&path).ok()),
                _ => eventually(text, || fs::read_to_string(&path).ok().filter(|all| all.ends_with(text)))
                    .clear(),
            };
            talk("first\n");
            fs::write(vm.path("boot/new"), guest("second\n")).unwrap();
            fs::rename(vm.path("boot/new"), vm.path("boot/kernel")).unwrap();
            machine.done("reset", "", "");
            machine.settle();
            talk("second\n");
            machine.is_confined();
            let code = match end {
                "SIGTERM" => {
                    send_signal(machine.running.child.id(), "TERM");
                    128 + libc::SIGTERM
                }
                command => {
                    machine.done(command, "", "");
                    0
                }
            };
            let ended = machine.running.wait();
            let log = fs::read_to_string(vm.path("log")).unwrap();
            assert_eq!((ended.code, log.as_str()), (code, ""), "{hba} {console} {end}: {}", ended.errors);
            let left: Vec<_> =
                fs::read_dir(vm.path("run")).unwrap().map(|left| left.unwrap().path()).collect();
            let expected = if console == "file" { vec![path] } else { vec![] };
            assert_eq!(left, expected, "its names are gone");
        }
    }
}

/// Discs come by path and as descriptors that are only read, and go.
#[test]
fn discs_come_and_go_in_the_sandbox() {
    let name = "discs_come_and_go_in_the_sandbox";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    for hba in HBAS {
        let vm = machine(hba).set("security.readonly_directories=['images']");
        let vm = if hba.contains("megasas") { vm.set("hba.0.mode=jbod") } else { vm };
        fs::write(vm.path("boot/kernel"), guest("first\n")).unwrap();
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        machine.is_confined();
        machine.done("attach", "\"type\": \"cd\", \"target\": 5", &attached(5));
        machine.done("insert", "\"image\": \"images/a.img\", \"target\": 5", "");
        machine.done("change", "\"image\": \"images/b.img\", \"target\": 5", &attached(5));
        let remedy = REMEDY.replace("`directories`", "`readonly_directories`");
        let said = format!(
            "`image` in [[hba.lun]]: cannot open other/a.img: the sandbox does not let this machine open it; {remedy}"
        );
        machine.refused("change", "\"image\": \"other/a.img\", \"target\": 5", &said);
        machine.give(7, &File::open(vm.path("other/a.img")).unwrap());
        machine.done("eject", "\"target\": 5", "");
        machine.done("insert", "\"image\": \"/dev/fdset/7\", \"target\": 5", "");
        machine.done("reset", "", "");
        machine.settle();
        assert!(machine.ask("query-hbas", "", &[]).contains("\"image\":\"/dev/fdset/7\""));
        machine.done("eject", "\"target\": 5, \"force\": true", "");
        machine.done("remove-fd", "\"fdset-id\": 7", "");
        machine.done("detach", "\"target\": 5", "");
        machine.done("quit", "", "");
        let ended = machine.running.wait();
        assert_eq!(ended.code, 0, "{hba}: {}", ended.errors);
    }
}

#[test]
fn what_the_sandbox_refuses_says_what_to_allow() {
    let name = "what_the_sandbox_refuses_says_what_to_allow";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    for hba in HBAS {
        let vm = machine(hba).set("security.directories=['images']");
        fs::write(vm.path("boot/kernel"), guest("first\n")).unwrap();
        fs::write(vm.path("images/top.qcow2"), qcow2("../other/a.img")).unwrap();
        fs::write(vm.path("images/set.qcow2"), qcow2("/dev/fdset/9")).unwrap();
        std::os::unix::fs::symlink("../other/a.img", vm.path("images/link.img")).unwrap();
        fs::write(vm.path("other/disk.img"), [0; 1 << 16]).unwrap();
        let _turn = turn();
        let mut machine = Machine::start(&vm);
        machine.give(3, &File::open(vm.path("other/a.img")).unwrap());
        // Another file in the place of one that the machine was started with.
        machine.done("detach", "\"target\": 0", "");
        fs::rename(vm.path("other/disk.img"), vm.path("disk.img")).unwrap();
        let opening = |image: &str| {
            format!("cannot open {image}: the sandbox does not let this machine open it; {REMEDY}")
        };
        let key = "`image` in [[hba.lun]]: ";
        let directory = "name its directory in `directories` of [security] and start the machine anew";
        let table = [
            ("attach", "\"image\": \"other/a.img\"", key, opening("other/a.img")),
            ("attach", "\"image\": \"images/link.img\"", key, opening("images/link.img")),
            ("attach", "\"image\": \"images/../other/a.img\"", key, opening("images/../other/a.img")),
            ("attach", "\"image\": \"disk.img\"", key, opening("disk.img")),
            (
                "attach",
                "\"image\": \"boot/a.img\"",
                key,
                format!("cannot write boot/a.img: the sandbox does not let this machine write it; {REMEDY}"),
            ),
            (
                "attach",
                "\"image\": \"images/top.qcow2\", \"backing\": \"any\"",
                key,
                format!(
                    "images/top.qcow2 cannot use a backing file: cannot open the image images/../other/a.img: the sandbox \
                     does not let this machine open it; {}",
                    directory.replace("`directories`", "`readonly_directories`")
                ),
            ),
            (
                "attach",
                "\"image\": \"/dev/fdset/3\"",
                key,
                "cannot open /dev/fdset/3: it has no descriptor that is open for reading and writing (O_RDWR), only for reading \
                 (O_RDONLY); add one, or set readonly = true"
                    .into(),
            ),
            ("change", "\"target\": 4, \"image\": \"other/a.img\"", key, opening("other/a.img")),
        ];
        machine.done("attach", "\"image\": \"images/a.img\", \"target\": 4", &attached(4));
        for (command, arguments, key, said) in &table {
            machine.refused(command, arguments, &format!("{key}{said}"));
        }
        if hba == "virtio-scsi" {
            machine.refused(
                "attach",
                "\"image\": \"images/b.img\", \"protection\": 1, \"protection_image\": \"other/b.pi\"",
                &format!("opening other/b.pi: the sandbox does not let this machine open it; {directory}"),
            );
        }
        // None of that cost it what it has.
        machine.done("detach", "\"target\": 4", "");
        machine.done("quit", "", "");
        assert_eq!(machine.running.wait().code, 0);
    }
}
