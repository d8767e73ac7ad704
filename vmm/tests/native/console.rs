//! The serial console in all its modes.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use super::asm::*;
use super::guest::{COM1, Guest};
use super::vm::{Running, Vm, eventually, hypervisor, skipped, usual_log};

/// Prints every byte that it gets, with its case changed; `!` powers it off.
pub fn echo() -> Vec<u8> {
    Guest::kernel(|g| {
        let (top, end) = (g.here(), g.label());
        // Line status, bit 0: a byte has come.
        g.in8(COM1 + 5);
        g.and(Eax, 1);
        g.jump_if(Cond::Equal, top);
        g.in8(COM1);
        g.cmp(Eax, b'!'.into());
        g.jump_if(Cond::Equal, end);
        // xor al, 20h
        g.bytes(&[0x34, 0x20]);
        g.out_al(COM1);
        g.jmp(top);
        g.place(end);
    })
}

/// Talks to [`echo`] from the other end of its line. What a guest prints before anybody listens is lost, so this side
/// begins.
pub fn converse(mut line: impl Read + Write) {
    // The second is more than a FIFO holds.
    for text in ["guest".to_owned(), "abcdefghijklmnopqrstuvwxyz".repeat(20)] {
        line.write_all(text.as_bytes()).unwrap();
        let mut got = vec![0; text.len()];
        line.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), text.to_uppercase());
    }
    line.write_all(b"!").unwrap();
}

#[test]
fn text_reaches_standard_output_and_s5_ends_with_0() {
    if !hypervisor("text_reaches_standard_output_and_s5_ends_with_0") {
        return;
    }
    let kernel = Guest::kernel(|g| g.print("Hello from the guest\r\n"));
    assert_eq!(Vm::new(&kernel).run().ok(), "Hello from the guest\r\n");
}

#[test]
fn standard_input_reaches_the_guest() {
    if !hypervisor("standard_input_reaches_the_guest") {
        return;
    }
    let vm = Vm::new(&echo());
    fs::write(vm.path("input"), "Some Text\r!").unwrap();
    let input = fs::File::open(vm.path("input")).unwrap();
    let output = vm.run_with(vm.command().stdin(input)).ok();
    assert_eq!(output, "sOME\0tEXT-");
}

#[test]
fn a_file_takes_the_output() {
    if !hypervisor("a_file_takes_the_output") {
        return;
    }
    let vm = Vm::new(&Guest::kernel(|g| g.print("new\n"))).set("serial.mode=file").set("serial.path=log");
    fs::write(vm.path("log"), "what an earlier run left").unwrap();
    assert_eq!(vm.run().ok(), "");
    assert_eq!(fs::read_to_string(vm.path("log")).unwrap(), "new\n");
}

#[test]
fn a_console_that_is_off_is_silent_and_never_blocks() {
    if !hypervisor("a_console_that_is_off_is_silent_and_never_blocks") {
        return;
    }
    let vm = Vm::new(&Guest::kernel(|g| g.print(&"nobody hears this\n".repeat(100)))).set("serial.mode=off");
    assert_eq!(vm.run().ok(), "");
}

#[test]
fn a_socket_goes_both_ways() {
    if !hypervisor("a_socket_goes_both_ways") {
        return;
    }
    let vm = Vm::new(&echo()).set("serial.mode=socket").set("serial.path=line");
    let running = vm.start();
    converse(eventually("the socket", || UnixStream::connect(vm.path("line")).ok()));
    assert_eq!(running.wait().ok(), "");
    assert!(!vm.path("line").exists(), "the socket is removed at the end");
}

#[test]
fn a_pseudoterminal_goes_both_ways() {
    if !hypervisor("a_pseudoterminal_goes_both_ways") {
        return;
    }
    let vm = Vm::new(&echo()).set("serial.mode=pty").set("serial.path=tty");
    let running = vm.start();
    let open = || OpenOptions::new().read(true).write(true).open(vm.path("tty")).ok();
    let terminal = eventually("the link to the terminal", open);
    let name = fs::read_link(vm.path("tty")).unwrap();
    converse(terminal);
    let ended = running.wait();
    assert_eq!((ended.code, ended.output.as_str()), (0, ""));
    assert_eq!(ended.errors, format!("vmm: the serial console is {}\n", name.display()));
    assert!(fs::symlink_metadata(vm.path("tty")).is_err(), "the link is removed at the end");
}

/// On Debian those of group tty may write to every terminal, and so would type into the guest.
#[test]
fn a_pseudoterminal_is_nobody_else_s() {
    const TEST: &str = "a_pseudoterminal_is_nobody_else_s";
    // As Debian mounts it.
    const MOUNT: &str = "mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts /dev/pts && \
                         mount --bind /dev/pts/ptmx /dev/ptmx";
    if !hypervisor(TEST) {
        return;
    }
    let apart = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{MOUNT} && {then}")]);
        command
    };
    if !apart("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        skipped(TEST, "no file systems can be mounted");
        return;
    }
    let vm = Vm::new(&echo()).set("serial.mode=pty").set("serial.path=tty");
    let own = vm.command();
    let mut command = apart("exec \"$0\" \"$@\"");
    command.arg(own.get_program()).args(own.get_args());
    usual_log(command.current_dir(vm.path("")).stdin(Stdio::null()));
    let running = Running::start(&mut command);
    let name = eventually("the link to the terminal", || fs::read_link(vm.path("tty")).ok());
    let seen = format!("/proc/{}/root{}", running.child.id(), name.display());
    assert_eq!(fs::metadata(seen).unwrap().permissions().mode() & 0o777, 0o600);
}
