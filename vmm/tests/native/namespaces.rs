//! What the kernel shows to a machine in its sandbox: namespaces of its own, where the host allows them.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use devices::testing::{answer_system_call, answer_system_call_with, end_at_system_call, forbid_system_call};

use super::asm::*;
use super::guest::Guest;
use super::vm::{Running, Vm, eventually, hypervisor, skipped, turn};

/// A user of no file system, and of nobody else.
const USER: u32 = 64_322;

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Does nothing until it is stopped. The control socket is there to see that it has started.
fn machine() -> Vm {
    let kernel = Guest::kernel(|g| {
        g.print("ready\n");
        let top = g.here();
        g.set(Eax, 0);
        g.jmp(top);
    });
    let vm = Vm::new(&kernel).set("vm.cpus=2").set("control.path=control").arg("--log-file").arg("log");
    fs::write(vm.path("disk.img"), [0; 1 << 16]).unwrap();
    vm.set("hba.0.type=megasas").set("hba.0.lun.0.image=disk.img")
}

/// Looks at each thread of a machine that runs, by its directory in /proc; returns the log.
fn running(vm: &Vm, command: &mut Command, mut look: impl FnMut(&Path)) -> String {
    let _turn = turn();
    let mut running = Running::start(command.env("VMM_LOG", "info"));
    let mut connect = || {
        let ended = running.child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", running.errors());
        UnixStream::connect(vm.path("control")).ok()
    };
    let mut control = eventually("the control socket", &mut connect);
    for command in ["stop", "cont"] {
        assert_eq!(ask(&mut control, command), "{\"return\":{}}\n");
    }
    for task in fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap();
        if !name.starts_with("iou-") && !name.starts_with("kvm-") {
            look(&task);
        }
    }
    assert_eq!(ask(&mut control, "reset"), "{\"return\":{}}\n");
    for command in ["stop", "cont", "quit"] {
        assert_eq!(ask(&mut control, command), "{\"return\":{}}\n");
    }
    let ended = running.wait();
    let log = fs::read_to_string(vm.path("log")).unwrap();
    assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{log}");
    assert!(!vm.path("control").exists(), "its name is gone");
    log
}

fn ask(control: &mut UnixStream, command: &str) -> String {
    use std::io::{BufRead, BufReader, Write};
    control.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(control).read_line(&mut answer).unwrap();
    answer
}

fn namespace(task: &Path, kind: &str) -> String {
    fs::read_link(task.join("ns").join(kind)).unwrap().to_str().unwrap().to_owned()
}

/// Whether a namespace of the thread is not this process'.
fn is_own(task: &Path, kind: &str) -> bool {
    namespace(task, kind) != namespace(Path::new("/proc/self"), kind)
}

/// Whether this host gives a child that is run by `change` what it would take.
fn gives(change: impl FnOnce(&mut Command), what: libc::c_int) -> bool {
    let mut command = Command::new("true");
    change(&mut command);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let unshare = move || check(unsafe { libc::unshare(what) });
    // SAFETY: it makes one system call.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(unshare)
    };
    command.status().is_ok_and(|status| status.success())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// There is no way out, and nobody to be reached.
fn assert_empty_network(task: &Path) {
    let read = |name: &str| fs::read_to_string(task.join("net").join(name)).unwrap_or_default();
    let devices = read("dev");
    let devices: Vec<_> = devices.lines().filter_map(|line| line.split_once(':')).collect();
    assert!(matches!(devices[..], [(name, _)] if name.trim() == "lo"), "{devices:?}");
    assert!(!read("fib_trie").contains("127.0.0.1"), "the loopback interface is up");
}

#[test]
fn every_thread_of_root_is_in_an_empty_network() {
    let name = "every_thread_of_root_is_in_an_empty_network";
    if !hypervisor(name) || (!is_root() && !skipped(name, "only root needs no user namespace")) {
        return;
    }
    let given = gives(|_| {}, libc::CLONE_NEWNET) || skipped(name, "the host gives no network namespaces");
    let (vm, mut networks) = (machine(), Vec::new());
    let log = running(&vm, &mut vm.command(), |task| {
        assert_eq!(is_own(task, "net"), given);
        assert!(!is_own(task, "user"), "root needs its rights to open files");
        if given {
            assert_empty_network(task);
        }
        networks.push(namespace(task, "net"));
    });
    assert_eq!(log.contains("the sandbox is without"), !given, "{log}");
    networks.dedup();
    assert_eq!(networks.len(), 1, "one for all");
    let checked = vm.run_with(vm.command().arg("--check"));
    assert_eq!(checked.output.ends_with(", network namespace\n"), given, "{checked:?}");
}

#[test]
fn without_the_sandbox_a_machine_is_where_its_starter_is() {
    if !hypervisor("without_the_sandbox_a_machine_is_where_its_starter_is") {
        return;
    }
    for sandbox in ["log", "off"] {
        let vm = machine().set(&format!("security.sandbox={sandbox}"));
        running(&vm, &mut vm.command(), |task| {
            assert!(["net", "user", "mnt"].iter().all(|kind| !is_own(task, kind)), "{sandbox}");
        });
    }
}

/// Runs the command as an ordinary user, to whom the hypervisor is given, for nobody else to see.
fn as_user(command: &mut Command, vm: &Vm) {
    let node = std::ffi::CString::new(vm.path("kvm").to_str().unwrap()).unwrap();
    let become_user = move || {
        // SAFETY: strings that live on, and numbers; no memory is taken after the fork.
        #[allow(unsafe_code, clippy::multiple_unsafe_ops_per_block)]
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let (no, none) = (ptr::null(), ptr::null());
            check(libc::mount(no, c"/".as_ptr(), no, libc::MS_REC | libc::MS_PRIVATE, none))?;
            check(libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(10, 232)))?;
            check(libc::chmod(node.as_ptr(), 0o666))?;
            check(libc::mount(node.as_ptr(), c"/dev/kvm".as_ptr(), no, libc::MS_BIND, none))?;
            check(libc::setgroups(0, ptr::null()))?;
            check(libc::setresgid(USER, USER, USER))?;
            check(libc::setresuid(USER, USER, USER))
        }
    };
    // SAFETY: it makes system calls only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(become_user)
    };
}

/// A machine of an ordinary user, if there can be one here.
fn of_user(name: &str) -> Option<Vm> {
    if !hypervisor(name) || (!is_root() && !skipped(name, "only root gives the hypervisor to another user")) {
        return None;
    }
    let vm = machine();
    fs::set_permissions(vm.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for path in ["", "disk.img"] {
        chown(vm.path(path), Some(USER), Some(USER)).unwrap();
    }
    let mut command = vm.command();
    as_user(command.arg("--check"), &vm);
    let possible = command.output().is_ok_and(|out| out.status.success());
    let _ = fs::remove_file(vm.path("kvm"));
    (possible || skipped(name, "another user cannot have the hypervisor here")).then_some(vm)
}

#[test]
fn an_ordinary_user_has_namespaces_too() {
    let name = "an_ordinary_user_has_namespaces_too";
    let Some(vm) = of_user(name) else { return };
    let given = gives(|command| as_user(command, &vm), libc::CLONE_NEWUSER)
        || skipped(name, "the host gives no user namespaces to users");
    let _ = fs::remove_file(vm.path("kvm"));
    let mut command = vm.command();
    as_user(&mut command, &vm);
    let log = running(&vm, &mut command, |task| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        for line in ["CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n"] {
            assert!(status.contains(line), "{status}");
        }
        assert_eq!((is_own(task, "user"), is_own(task, "net")), (given, given));
        if given {
            for map in ["uid_map", "gid_map"] {
                let map = fs::read_to_string(task.join(map)).unwrap();
                let words: Vec<_> = map.split_whitespace().collect();
                assert_eq!(words, [USER.to_string().as_str(), &USER.to_string(), "1"]);
            }
            assert!(status.contains("CapBnd:\t0000000000000000\n"), "{status}");
            assert_empty_network(task);
        }
    });
    assert_eq!(log.contains("the sandbox is without"), !given, "{log}");
    let _ = fs::remove_file(vm.path("kvm"));
    let mut command = vm.command();
    as_user(command.arg("--check"), &vm);
    let checked = vm.run_with(&mut command);
    assert_eq!(checked.output.ends_with(", network and user namespaces\n"), given, "{checked:?}");
}

/// A user namespace gives rights to the files of its own user; the modes of files count all the same.
#[test]
fn a_user_namespace_opens_nothing_that_its_user_may_not() {
    let name = "a_user_namespace_opens_nothing_that_its_user_may_not";
    let Some(vm) = of_user(name) else { return };
    fs::set_permissions(vm.path("disk.img"), fs::Permissions::from_mode(0o400)).unwrap();
    let mut command = vm.command();
    as_user(&mut command, &vm);
    let ended = vm.run_with(&mut command);
    assert_eq!(ended.code, 1, "{}", ended.errors);
    assert!(
        ended.errors.contains("disk.img") && ended.errors.contains("ermission denied"),
        "{}",
        ended.errors
    );
}

/// Has the program find something changed. It is done after the fork, so it takes no memory.
fn changed(command: &mut Command, change: &'static (dyn Fn() + Sync)) {
    // SAFETY: it makes system calls only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            change();
            Ok(())
        });
    }
}

/// The log has one line that says what it is without, with the remedy.
#[track_caller]
fn told(log: &str, part: &str) {
    let lines: Vec<_> = log.lines().filter(|line| line.contains("the sandbox is without")).collect();
    assert!(matches!(lines[..], [line] if line.contains("INFO") && line.contains(part)), "{part}: {log}");
}

#[test]
fn a_host_that_gives_none_is_told_once_and_the_machine_starts() {
    let name = "a_host_that_gives_none_is_told_once_and_the_machine_starts";
    if !hypervisor(name) {
        return;
    }
    for change in [
        &(|| forbid_system_call(libc::SYS_unshare)) as &'static (dyn Fn() + Sync),
        &|| forbid_system_call(libc::SYS_setns),
        &|| end_at_system_call(libc::SYS_unshare),
        &|| end_at_system_call(libc::SYS_setns),
    ] {
        let vm = machine();
        let mut command = vm.command();
        changed(&mut command, change);
        told(&running(&vm, &mut command, |task| assert!(!is_own(task, "net"))), "");
    }
}

/// What keeps an ordinary user's machine from namespaces does not keep it from starting, and `--check` says it.
#[test]
fn a_user_namespace_that_is_not_given_in_full_is_left_out() {
    let name = "a_user_namespace_that_is_not_given_in_full_is_left_out";
    let Some(vm) = of_user(name) else { return };
    // As std opens what it writes anew.
    const WRITE: u32 = (libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC) as u32;
    let filter = "SystemCallFilter=";
    let cases: [(&'static (dyn Fn() + Sync), [&str; 2]); 7] = [
        (&|| forbid_system_call(libc::SYS_unshare), ["unshare", "RestrictNamespaces="]),
        (&|| answer_system_call(libc::SYS_unshare, libc::EINVAL), ["unshare", "CONFIG_USER_NS"]),
        (&|| end_at_system_call(libc::SYS_unshare), ["unshare", filter]),
        // As AppArmor and SELinux may: it can be made, and nothing be done in it.
        (&|| answer_system_call_with(libc::SYS_openat, 2, WRITE, libc::EACCES), ["uid_map", "AppArmor"]),
        (&|| forbid_system_call(libc::SYS_capset), ["capset", filter]),
        (&|| end_at_system_call(libc::SYS_capset), ["capset", filter]),
        (&|| end_at_system_call(libc::SYS_setns), ["setns", filter]),
    ];
    for (change, why) in cases {
        let command = || {
            let mut command = vm.command();
            as_user(&mut command, &vm);
            changed(&mut command, change);
            command
        };
        left_out(&vm, command, why);
    }
    // Who may not read the executable may not look into the process either, so its files in /proc are root's.
    fs::copy(env!("CARGO_BIN_EXE_vmm"), vm.path("vmm")).unwrap();
    fs::set_permissions(vm.path("vmm"), fs::Permissions::from_mode(0o711)).unwrap();
    let command = || {
        let mut command = Command::new(vm.path("vmm"));
        command.current_dir(vm.path("")).args(vm.command().get_args());
        as_user(&mut command, &vm);
        command
    };
    left_out(&vm, command, ["uid_map", "executable"]);
}

/// The machine starts without, and says why; so does `--check`.
#[track_caller]
fn left_out(vm: &Vm, command: impl Fn() -> Command, why: [&str; 2]) {
    let checked = vm.run_with(command().arg("--check"));
    let _ = fs::remove_file(vm.path("kvm"));
    let [call, remedy] = why;
    let shown = format!("{why:?}: {checked:?}");
    assert!(checked.code == 0 && checked.output.contains(", no namespaces of its own ("), "{shown}");
    assert!(checked.output.contains(call) && checked.output.contains(remedy), "{shown}");
    let log = running(vm, &mut command(), |task| assert!(!is_own(task, "user") && !is_own(task, "net")));
    for file in ["kvm", "log"] {
        let _ = fs::remove_file(vm.path(file));
    }
    told(&log, call);
    told(&log, remedy);
}

/// A starter that does not want to hear of its children is no reason to do without.
#[test]
fn what_becomes_of_children_is_as_the_starter_has_it() {
    let name = "what_becomes_of_children_is_as_the_starter_has_it";
    let Some(vm) = of_user(name) else { return };
    let given = gives(|command| as_user(command, &vm), libc::CLONE_NEWUSER)
        || skipped(name, "the host gives no user namespaces to users");
    let _ = fs::remove_file(vm.path("kvm"));
    let mut command = vm.command();
    as_user(&mut command, &vm);
    changed(&mut command, &|| {
        // SAFETY: no handler.
        #[allow(unsafe_code)]
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN)
        };
    });
    running(&vm, &mut command, |task| {
        assert_eq!((is_own(task, "user"), is_own(task, "net")), (given, given));
        let status = fs::read_to_string(task.join("status")).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_ne!(ignored & 1 << (libc::SIGCHLD - 1), 0, "{status}");
    });
}

/// As `ProcSubset=pid` of a service has it, whose manager does not know seccomp(2).
#[test]
fn the_kernel_is_known_where_proc_shows_processes_only() {
    let name = "the_kernel_is_known_where_proc_shows_processes_only";
    if !hypervisor(name) || (!is_root() && !skipped(name, "only root mounts")) {
        return;
    }
    let vm = machine();
    let mut command = vm.command();
    let mount = || {
        let none = ptr::null();
        // SAFETY: strings that live on, and numbers; no memory is taken after the fork.
        #[allow(unsafe_code, clippy::multiple_unsafe_ops_per_block)]
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
            let (proc, of_processes) = (c"proc".as_ptr(), c"subset=pid".as_ptr().cast());
            check(libc::mount(proc, c"/proc".as_ptr(), proc, 0, of_processes))
        }
    };
    // SAFETY: it makes system calls only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(mount)
    };
    changed(&mut command, &|| forbid_system_call(libc::SYS_seccomp));
    running(&vm, &mut command, |task| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    });
}
