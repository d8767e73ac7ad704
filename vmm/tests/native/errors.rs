//! What an operator gets wrong: one clear line on standard error, exit code 1, and a terminal that is as it was.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::guest::Guest;
use super::terminal::Terminal;
use super::vm::{
    Ended, Running, Vm, eventually, hypervisor, send_signal, skipped, usual_log, virtualization,
};

fn kernel() -> Vec<u8> {
    Guest::kernel(|g| g.print("started\n"))
}

/// A kernel that says so when it runs, and never ends.
fn endless() -> Vec<u8> {
    Guest::kernel(|g| {
        g.print("started\n");
        g.stop();
    })
}

fn vm() -> Vm {
    let vm = Vm::new(&kernel());
    File::create(vm.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    vm
}

/// Runs `command` on a terminal, to the end that it must come to: this one line, and nothing else.
#[track_caller]
fn refused(command: &mut Command, line: &str) {
    let terminal = Terminal::new();
    let before = terminal.settings();
    let Ended { code, output, errors } = Running::start(command.stdin(terminal.slave())).wait();
    assert_eq!((code, output.as_str(), errors.as_str()), (1, "", format!("vmm: error: {line}\n").as_str()));
    assert_eq!(terminal.settings(), before, "the terminal");
}

#[test]
fn a_kernel_that_cannot_be_read() {
    if !hypervisor("a_kernel_that_cannot_be_read") {
        return;
    }
    let vm = vm().set("boot.kernel=gone");
    refused(
        &mut vm.command(),
        "--set boot.kernel=gone: `kernel` in [boot]: cannot open gone: No such file or directory",
    );
    let vm = self::vm().set("boot.kernel=.");
    refused(&mut vm.command(), "--set boot.kernel=.: `kernel` in [boot]: . is a directory, expected a file");
    let vm = self::vm().set("boot.initrd=gone");
    refused(
        &mut vm.command(),
        "--set boot.initrd=gone: `initrd` in [boot]: cannot open gone: No such file or directory",
    );
}

#[test]
fn a_kernel_that_is_none() {
    if !hypervisor("a_kernel_that_is_none") {
        return;
    }
    let vm = vm();
    for text in ["", "not a kernel", &"long, but still not a kernel\n".repeat(10_000)] {
        fs::write(vm.path("kernel"), text).unwrap();
        let Ended { code, output, errors } = vm.run();
        assert_eq!((code, output.as_str()), (1, ""), "{errors}");
        assert!(errors.starts_with("vmm: error: ") && errors.contains("kernel"), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    // A kernel that ends early.
    let whole = kernel();
    for length in [52, 60, 100, whole.len() - 1] {
        fs::write(vm.path("kernel"), &whole[..length]).unwrap();
        let Ended { code, output, errors } = vm.run();
        assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{length}: {errors}");
    }
}

#[test]
fn an_initrd_larger_than_memory() {
    if !hypervisor("an_initrd_larger_than_memory") {
        return;
    }
    let vm = vm().set("boot.initrd=initrd");
    File::create(vm.path("initrd")).unwrap().set_len(65 << 20).unwrap();
    let Ended { code, output, errors } = vm.run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
    assert!(errors.contains("initrd") && errors.contains("65"), "{errors}");
}

#[test]
fn images_that_cannot_be_disks() {
    if !hypervisor("images_that_cannot_be_disks") {
        return;
    }
    let vm = vm().set("hba.0.lun.0.image=gone.img");
    refused(
        &mut vm.command(),
        "--set hba.0.lun.0.image=gone.img: `image` in [[hba.lun]]: cannot open gone.img: No such file or directory",
    );
    let vm = self::vm().set("hba.0.lun.0.image=.");
    refused(
        &mut vm.command(),
        "--set hba.0.lun.0.image=.: `image` in [[hba.lun]]: . is a directory, expected an image file or a block device",
    );
}

#[test]
fn an_image_that_ends_within_a_block_is_used_with_a_warning() {
    if !hypervisor("an_image_that_ends_within_a_block_is_used_with_a_warning") {
        return;
    }
    let vm = vm().set("hba.0.lun.0.image=odd.img");
    File::create(vm.path("odd.img")).unwrap().set_len((1 << 20) + 100).unwrap();
    let Ended { code, output, errors } = vm.run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (0, "started\n", 1), "{errors}");
    assert!(errors.contains("odd.img: its length of 1048676 bytes is no multiple of 512"), "{errors}");
}

#[test]
fn an_image_of_another_machine() {
    if !hypervisor("an_image_of_another_machine") {
        return;
    }
    let first =
        Vm::new(&endless()).set("hba.0.lun.0.image=disk.img").set("serial.mode=file").set("serial.path=log");
    File::create(first.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let running = first.start();
    let log = first.path("log");
    eventually("the first machine", || fs::read_to_string(&log).ok().filter(|text| text == "started\n"));
    let second = vm().set("hba.0.lun.0.image=shared.img");
    symlink(first.path("disk.img"), second.path("shared.img")).unwrap();
    let Ended { code, output, errors } = second.run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
    assert!(errors.contains("shared.img"), "{errors}");
    send_signal(running.child.id(), "TERM");
    assert_eq!(running.wait().code, 128 + libc::SIGTERM);
    assert_eq!(second.run().ok(), "started\n", "the end of the first gives it free");
}

#[test]
fn one_image_twice_in_a_machine() {
    if !hypervisor("one_image_twice_in_a_machine") {
        return;
    }
    let vm = vm().set("hba.0.lun.0.image=disk.img").set("hba.0.lun.1.image=disk.img");
    let Ended { code, output, errors } = vm.run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
    assert!(errors.contains("disk.img"), "{errors}");
}

#[test]
fn numbers_out_of_range() {
    for (set, hint) in [
        ("vm.cpus=0", "`cpus` in [vm] is 0, expected an integer from 1 to 255"),
        ("vm.cpus=300", "`cpus` in [vm] is 300, expected an integer from 1 to 255"),
        ("vm.memory=0", "`memory` in [vm] is 0, expected a multiple of 4KiB, at least 4MiB"),
    ] {
        refused(&mut vm().set(set).command(), &format!("--set {set}: {hint}"));
    }
    for memory in ["1023TiB", "16EiB", "18446744073709551615"] {
        let Ended { code, output, errors } = vm().set(&format!("vm.memory={memory}")).run();
        assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
        assert!(
            errors.starts_with("vmm: error: --set vm.memory=") && errors.contains("`memory` in [vm]"),
            "{errors}"
        );
    }
}

#[test]
fn memory_of_less_than_a_kernel_needs() {
    if !hypervisor("memory_of_less_than_a_kernel_needs") {
        return;
    }
    let Ended { code, output, errors } = vm().set("vm.memory=1MiB").run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
    assert!(errors.contains("at least 4MiB"), "{errors}");
}

#[test]
fn a_target_twice() {
    let vm = vm();
    let twice = "[vm]\nmemory = \"64MiB\"\n[boot]\nkernel = \"kernel\"\n[[hba]]\n[[hba.lun]]\ntarget = 3\n\
                 image = \"disk.img\"\n[[hba.lun]]\ntarget = 3\nimage = \"disk.img\"\n";
    fs::write(vm.path("vm.toml"), twice).unwrap();
    let Ended { code, output, errors } = vm.run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
    assert!(errors.starts_with("vmm: error: vm.toml:9: ") && errors.contains("target 3 lun 0"), "{errors}");
}

#[test]
fn no_hypervisor() {
    let vm = vm();
    // A mount namespace of its own, in which /dev is empty.
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]);
    if !command.args(["true"]).output().is_ok_and(|output| output.status.success()) {
        skipped("no_hypervisor", "cannot make a mount namespace without /dev/kvm");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_vmm"), "--config", "vm.toml"]);
    refused(
        command.current_dir(vm.path("")),
        "/dev/kvm: does not exist; load the kvm_intel or kvm_amd module, enable virtualization in the firmware, or pass the \
         device into the container (PrivateDevices= of a service hides it)",
    );
}

#[test]
fn a_hypervisor_for_others_only() {
    const TEST: &str = "a_hypervisor_for_others_only";
    if !hypervisor(TEST) {
        return;
    }
    let vm = vm();
    for (name, mode) in [("", 0o755), ("vmm", 0o755), ("kernel", 0o644), ("vm.toml", 0o644)] {
        if name == "vmm" {
            fs::copy(env!("CARGO_BIN_EXE_vmm"), vm.path("vmm")).unwrap();
        }
        fs::set_permissions(vm.path(name), Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(vm.path("vmm"));
    usual_log(command.args(["--config", "vm.toml"]).current_dir(vm.path("")));
    if File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        if fs::metadata("/dev/kvm").unwrap().permissions().mode() & 0o002 != 0 {
            skipped(TEST, "everybody may use /dev/kvm");
            return;
        }
        if !Command::new("true").uid(65534).gid(65534).status().is_ok_and(|status| status.success()) {
            skipped(TEST, "only root can be somebody else");
            return;
        }
        command.uid(65534).gid(65534);
    }
    refused(
        &mut command,
        "/dev/kvm: permission denied; add this user to the group that owns the device (usually `kvm`)",
    );
}

#[test]
fn a_64_bit_kernel_where_none_runs() {
    const TEST: &str = "a_64_bit_kernel_where_none_runs";
    if !hypervisor(TEST) {
        return;
    }
    if virtualization() {
        skipped(TEST, "this processor runs 64-bit guests");
        return;
    }
    let vm = vm();
    fs::write(vm.path("kernel"), boot::testing::bzimage(&[0x90; 0x1000], 0x10_0000)).unwrap();
    let begin = std::time::Instant::now();
    refused(
        &mut vm.command(),
        "this host has /dev/kvm but neither svm nor vmx: its KVM runs real-mode and simple 32-bit code only, and a \
         64-bit guest would hang. Run on hardware with virtualization, enable nested virtualization for this machine, \
         or boot firmware or a 32-bit PVH kernel",
    );
    assert!(begin.elapsed().as_secs() < 5, "at once");
}

#[test]
fn a_signal_ends_the_machine_and_gives_the_terminal_back() {
    if !hypervisor("a_signal_ends_the_machine_and_gives_the_terminal_back") {
        return;
    }
    for (name, number) in [("TERM", libc::SIGTERM), ("INT", libc::SIGINT), ("HUP", libc::SIGHUP)] {
        let vm = Vm::new(&endless());
        let terminal = Terminal::new();
        let before = terminal.settings();
        assert!(before.contains(" icanon") && before.contains(" echo "), "{before}");
        let running = Running::start(vm.command().stdin(terminal.slave()));
        eventually("raw mode", || Some(()).filter(|()| terminal.settings().contains(" -icanon")));
        send_signal(running.child.id(), name);
        let Ended { code, errors, .. } = running.wait();
        assert_eq!((code, errors.as_str()), (128 + number, ""), "{name}");
        assert_eq!(terminal.settings(), before, "{name}");
    }
}

#[test]
fn ctrl_a_x_ends_the_machine_and_gives_the_terminal_back() {
    if !hypervisor("ctrl_a_x_ends_the_machine_and_gives_the_terminal_back") {
        return;
    }
    let vm = Vm::new(&endless());
    let terminal = Terminal::new();
    let before = terminal.settings();
    let running = Running::start(vm.command().stdin(terminal.slave()));
    eventually("raw mode", || Some(()).filter(|()| terminal.settings().contains(" -icanon")));
    terminal.type_in(b"\x01x");
    let ended = running.wait();
    assert_eq!((ended.code, ended.errors.as_str()), (0, ""));
    // The guest may still print after the key.
    assert!(ended.output.contains("\r\nvmm: terminated by Ctrl-A x\r\n"), "{}", ended.output);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn check_looks_and_starts_nothing() {
    if !hypervisor("check_looks_and_starts_nothing") {
        return;
    }
    let Ended { code, output, errors } = vm().set("vm.name=m").set("vm.cpus=2").arg("--check").run();
    assert_eq!((code, errors.as_str()), (0, ""));
    let line = "vm.toml: OK, m: 2 vCPUs, 64MiB, 0 HBAs, 0 logical units; sandbox: seccomp, ";
    assert!(output.starts_with(line) && output.lines().count() == 1, "{output}");
    let Ended { code, output, errors } = vm().set("vm.cpu=2").arg("--check").run();
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
    assert!(errors.starts_with("vmm: error: --set vm.cpu=2: "), "{errors}");
}

/// A start that fails takes nothing from the files of a machine that runs, nor what an earlier run left.
#[test]
fn a_start_that_fails_empties_no_file() {
    if !hypervisor("a_start_that_fails_empties_no_file") {
        return;
    }
    let vm =
        Vm::new(&endless()).set("hba.0.lun.0.image=disk.img").set("serial.mode=file").set("serial.path=log");
    File::create(vm.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let running = vm.start();
    let log = vm.path("log");
    eventually("the machine", || fs::read_to_string(&log).ok().filter(|text| text == "started\n"));
    let Ended { code, errors, .. } = vm.run();
    assert_eq!((code, fs::read_to_string(&log).unwrap().as_str()), (1, "started\n"), "{errors}");
    assert!(errors.contains("log: another process writes to it"), "{errors}");
    fs::write(vm.path("old"), "old").unwrap();
    fs::write(vm.path("debug"), "debug").unwrap();
    let mut other = vm.command();
    other.args(["--set", "serial.path=old", "--set", "boot.debug_log=debug"]);
    let Ended { code, errors, .. } = vm.run_with(&mut other);
    let left = ["old", "debug"].map(|name| fs::read_to_string(vm.path(name)).unwrap());
    assert_eq!((code, left), (1, ["old".to_owned(), "debug".to_owned()]), "{errors}");
    assert!(errors.contains("disk.img"), "{errors}");
    send_signal(running.child.id(), "TERM");
    assert_eq!(running.wait().code, 128 + libc::SIGTERM);
}
