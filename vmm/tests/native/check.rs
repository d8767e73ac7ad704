//! `--check` says what a start says, and changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::guest::Guest;
use super::vm::{Ended, Vm, eventually, hypervisor, send_signal, skipped, virtualization};

fn kernel() -> Vec<u8> {
    Guest::kernel(|g| g.print("started\n"))
}

/// A machine that starts, with the files that the cases below make it fail with.
fn vm() -> Vm {
    let vm = Vm::new(&kernel());
    for name in ["disk.img", "other.img"] {
        File::create(vm.path(name)).unwrap().set_len(1 << 20).unwrap();
    }
    fs::hard_link(vm.path("disk.img"), vm.path("link.img")).unwrap();
    File::create(vm.path("large")).unwrap().set_len(65 << 20).unwrap();
    for (name, content) in
        [("empty", &b""[..]), ("text", &b"no such thing\n".repeat(1000)), ("odd", &[1; 1000])]
    {
        fs::write(vm.path(name), content).unwrap();
    }
    fs::write(vm.path("cut"), &kernel()[..60]).unwrap();
    fs::write(vm.path("zeros"), [0; 4096]).unwrap();
    drop(UnixListener::bind(vm.path("stale.sock")).unwrap());
    vm
}

/// Every file below a directory: its length, its times of change and its bytes.
fn state(directory: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let found = fs::symlink_metadata(entry.path()).unwrap();
        let small = found.is_file() && found.len() <= 1 << 20;
        let bytes = if small { fs::read(entry.path()).unwrap() } else { Vec::new() };
        all.insert(entry.path(), (found.len(), found.mtime_nsec(), found.ctime_nsec(), bytes));
    }
    all
}

/// Runs the check and then the start: both have to fail with the same one line.
#[track_caller]
fn same(case: &str, vm: &Vm, command: impl Fn() -> Command) -> String {
    let before = state(&vm.path(""));
    let mut check = command();
    let checked = vm.run_with(check.arg("--check"));
    assert!(state(&vm.path("")) == before, "{case}: the check changed something: {}", checked.errors);
    let Ended { code, output, errors } = vm.run_with(&mut command());
    assert_eq!((code, output.as_str(), errors.lines().count()), (1, "", 1), "{case}: the start: {errors}");
    assert_eq!((checked.code, checked.output.as_str(), &checked.errors), (1, "", &errors), "{case}");
    errors
}

/// Values of `--set`, and what the line has to contain.
const CASES: &[(&[&str], &str)] = &[
    (&["boot.kernel=empty"], "kernel"),
    (&["boot.kernel=text"], "kernel"),
    (&["boot.kernel=cut"], "kernel"),
    (&["boot.initrd=empty"], "initrd"),
    (&["boot.initrd=large"], "initrd"),
    (&["vm.memory=1MiB"], "at least 4MiB"),
    (&["hba.0.lun.0.image=disk.img", "hba.0.lun.1.image=disk.img"], "two disks of this machine"),
    (&["hba.0.lun.0.image=disk.img", "hba.1.lun.0.image=link.img"], "two disks of this machine"),
    (
        &["hba.0.type=megasas", "hba.0.lun.0.image=disk.img", "hba.0.lun.1.image=link.img"],
        "hba hba0, target 1: link.img: two disks",
    ),
    (&["hba.0.lun.0.image=disk.img", "hba.0.io_cpus=1023"], "this process may not run on CPU 1023"),
    (&["hba.0.type=megasas", "hba.0.event_log=text"], "no event log of this program"),
    (
        &["hba.0.lun.0.image=disk.img", "hba.0.lun.0.protection=1", "hba.0.lun.0.protection_image=text"],
        "no protection information of this disk",
    ),
    (&["serial.mode=socket", "serial.path=text"], "expected a socket"),
    (&["serial.mode=pty", "serial.path=text"], "text"),
    (&["serial.mode=file", "serial.path=gone/log"], "no directory"),
];

const FIRMWARE: &[(&[&str], &str)] = &[
    (&["boot.firmware=empty"], "is empty"),
    (&["boot.firmware=odd"], "not a multiple of 4096"),
    (&["boot.firmware=zeros"], "blank"),
];

fn command(vm: &Vm, set: &[&str]) -> Command {
    let mut command = vm.command();
    command.args(set.iter().flat_map(|set| ["--set", *set]));
    command
}

#[test]
fn a_check_says_what_a_start_says() {
    if !hypervisor("a_check_says_what_a_start_says") {
        return;
    }
    let vm = vm();
    for (set, part) in CASES {
        let errors = same(&set.join(" "), &vm, || command(&vm, set));
        assert!(errors.contains(part), "{set:?}: {errors}");
    }
    let hbas: Vec<String> = (0..31).map(|hba| format!("hba.{hba}.queues=1")).collect();
    let hbas: Vec<&str> = hbas.iter().map(String::as_str).collect();
    let errors = same("31 HBAs", &vm, || command(&vm, &hbas));
    assert!(errors.contains("at most 30 HBAs"), "{errors}");
    fs::write(vm.path("vm.toml"), "[vm]\nmemory = \"64MiB\"\n[boot]\n").unwrap();
    for (set, part) in FIRMWARE {
        let errors = same(&set.join(" "), &vm, || command(&vm, set));
        assert!(errors.contains(part), "{set:?}: {errors}");
    }
    if !virtualization() {
        fs::write(vm.path("linux"), boot::testing::bzimage(&[0x90; 0x1000], 0x10_0000)).unwrap();
        let errors = same("a 64-bit kernel", &vm, || command(&vm, &["boot.kernel=linux"]));
        assert!(errors.contains("neither svm nor vmx"), "{errors}");
    }
}

/// As in a container whose filter lets nobody set another, and where signals are scarce.
#[test]
fn a_check_tries_the_sandbox() {
    if !hypervisor("a_check_tries_the_sandbox") {
        return;
    }
    let vm = vm();
    let within = |change: fn() -> io::Result<()>| {
        let mut command = vm.command();
        // SAFETY: between fork and exec the closures make system calls only.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(change)
        };
        command
    };
    let no_filters = || {
        devices::testing::forbid_filters();
        Ok(())
    };
    let no_signals = || {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live structure of the type that the call reads.
        #[allow(unsafe_code)]
        let result = unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let begin = "vmm: error: the host does not let the machine into its sandbox: ";
    assert_eq!(
        same("no filters", &vm, || within(no_filters)),
        format!(
            "{begin}giving up system calls (seccomp): Operation not permitted (os error 1); have the host allow prctl and \
             seccomp to it (SystemCallFilter= of its service, the seccomp profile of its container), or set sandbox = \"off\" \
             in [security] to run it without\n"
        )
    );
    assert_eq!(
        same("no signals", &vm, || within(no_signals)),
        format!(
            "{begin}sending a thread its signal: Resource temporarily unavailable (os error 11); raise the limit of pending \
             signals (LimitSIGPENDING= of its service, or ulimit -i)\n"
        )
    );
    // What is there is said.
    for (sandbox, start, end) in
        [("on", "seccomp, ", "\n"), ("log", "seccomp only logs, no Landlock\n", ""), ("off", "off\n", "")]
    {
        let mut command = command(&vm, &[&format!("security.sandbox={sandbox}")]);
        let checked = vm.run_with(command.arg("--check"));
        let said = checked.output.split("; sandbox: ").nth(1).unwrap_or_default();
        assert!(checked.code == 0 && said.starts_with(start) && said.ends_with(end), "{checked:?}");
    }
}

/// What another machine has.
#[test]
fn a_check_finds_what_another_machine_has() {
    const TEST: &str = "a_check_finds_what_another_machine_has";
    if !hypervisor(TEST) {
        return;
    }
    let endless = Guest::kernel(|g| {
        g.print("started\n");
        g.stop();
    });
    let text = "[vm]\nmemory = \"64MiB\"\n[boot]\nkernel = \"endless\"\ndebug_log = \"debug\"\n[serial]\n\
                mode = \"socket\"\npath = \"serial.sock\"\n[control]\npath = \"control.sock\"\n[[hba]]\n\
                type = \"megasas\"\nevent_log = \"events\"\n[[hba.lun]]\nimage = \"disk.img\"\n";
    let vm = vm();
    fs::write(vm.path("endless"), endless).unwrap();
    fs::write(vm.path("running.toml"), text).unwrap();
    let mut start = Command::new(env!("CARGO_BIN_EXE_vmm"));
    start.args(["--config", "running.toml"]).current_dir(vm.path(""));
    let running = super::vm::Running::start(&mut start);
    eventually("the machine", || fs::symlink_metadata(vm.path("control.sock")).ok());
    // Its event log is written a little later.
    eventually("silence", || {
        let before = state(&vm.path(""));
        std::thread::sleep(std::time::Duration::from_millis(300));
        (state(&vm.path("")) == before).then_some(())
    });
    for (set, part) in [
        (&["hba.0.lun.0.image=link.img"][..], "link.img: cannot open for writing: it is in use by process"),
        (&["hba.0.lun.0.image=link.img", "hba.0.lun.0.readonly=true"], "link.img: cannot open for reading"),
        (&["boot.debug_log=debug"], "debug: another process writes to it"),
        (&["serial.mode=file", "serial.path=debug"], "debug: another process writes to it"),
        (&["serial.mode=socket", "serial.path=serial.sock"], "serial.sock: another process listens there"),
        (&["control.path=control.sock"], "control.sock: another process listens on it"),
        (&["hba.0.type=megasas", "hba.0.event_log=events"], "event log events"),
    ] {
        let errors = same(&set.join(" "), &vm, || command(&vm, set));
        assert!(errors.contains(part), "{set:?}: {errors}");
    }
    // All of them, a line each.
    let checked = vm.run_with(start.arg("--check"));
    assert_eq!((checked.code, checked.output.as_str()), (1, ""), "{}", checked.errors);
    for part in ["debug: ", "serial.sock: ", "control.sock: ", "event log events", "disk.img: "] {
        assert_eq!(
            checked.errors.lines().filter(|line| line.contains(part)).count(),
            1,
            "{part} {}",
            checked.errors
        );
    }
    assert_eq!(checked.errors.lines().count(), 5, "{}", checked.errors);
    send_signal(running.child.id(), "TERM");
    running.wait();
}

/// On a file system that nothing can be written to, and where there is no hypervisor: as another mount namespace has it.
#[test]
fn a_check_finds_what_the_host_lacks() {
    const TEST: &str = "a_check_finds_what_the_host_lacks";
    let vm = vm();
    let within = |script: &str, set: &[&str]| {
        let mut command = Command::new("unshare");
        let script = format!("{script} && cd . && exec \"$@\"");
        command.args([
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
            env!("CARGO_BIN_EXE_vmm"),
            "--config",
            "vm.toml",
        ]);
        command.args(set.iter().flat_map(|set| ["--set", *set]));
        command.current_dir(vm.path("")).env_remove("VMM_LOG").stdin(std::process::Stdio::null());
        command
    };
    let read_only = "mount --bind . . && mount -o remount,ro,bind . && cd \"$PWD\"";
    let there =
        Command::new("unshare").args(["--mount", "sh", "-c", read_only]).current_dir(vm.path("")).output();
    if !there.is_ok_and(|out| out.status.success()) {
        skipped(TEST, "cannot make a mount namespace");
        return;
    }
    let errors = same("no /dev/kvm", &vm, || within("mount -t tmpfs none /dev", &[]));
    assert!(errors.contains("/dev/kvm: does not exist"), "{errors}");
    for (set, part) in [
        (&["hba.0.lun.0.image=disk.img"][..], "cannot write disk.img: Read-only file system"),
        (&["serial.mode=file", "serial.path=log"], "cannot create log: Read-only file system"),
        (&["serial.mode=file", "serial.path=text"], "text"),
        (&["serial.mode=socket", "serial.path=new.sock"], "cannot create new.sock: Read-only file system"),
        (
            &["serial.mode=socket", "serial.path=stale.sock"],
            "cannot create stale.sock: Read-only file system",
        ),
        (&["control.path=new.sock"], "cannot create new.sock: Read-only file system"),
        (&["boot.debug_log=debug"], "cannot create debug: Read-only file system"),
        (&["hba.0.type=megasas", "hba.0.event_log=events"], "cannot create events: Read-only file system"),
    ] {
        let errors = same(&set.join(" "), &vm, || within(read_only, set));
        assert!(errors.contains(part), "{set:?}: {errors}");
    }
    if hypervisor(TEST) {
        let reader = ["hba.0.lun.0.image=disk.img", "hba.0.lun.0.readonly=true"];
        let checked = vm.run_with(within(read_only, &reader).arg("--check"));
        assert_eq!((checked.code, checked.errors.as_str()), (0, ""));
    }
}
