//! The sandbox of a machine that runs: every thread of the process is in it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::asm::*;
use super::guest::Guest;
use super::vm::{Running, Vm, eventually, hypervisor, skipped, turn};

/// Says that it is there, and does nothing until it is stopped.
fn waiter() -> Vec<u8> {
    Guest::kernel(|g| {
        g.print("ready\n");
        let top = g.here();
        g.set(Eax, 0);
        g.jmp(top);
    })
}

/// A value of /proc/PID/task/TID/status.
fn value<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t")).unwrap_or("")
}

/// The names of the machine's threads, and what `look` says of each. The kernel's own threads are left out.
fn threads(process: u32, mut look: impl FnMut(&str, &str)) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut names = Vec::new();
    for task in tasks {
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let name = value(&status, "Name").to_owned();
        if !name.starts_with("iou-") && !name.starts_with("kvm-") {
            look(&name, &status);
            names.push(name);
        }
    }
    names.sort();
    names
}

/// A machine with a disk and all that has a thread; `look` at it once its guest runs.
fn running(sandbox: &str, look: impl FnOnce(&Vm, u32)) -> String {
    running_with(sandbox, |_| {}, look)
}

/// The same, of a process that `change` is done to.
fn running_with(sandbox: &str, change: impl FnOnce(&mut Command), look: impl FnOnce(&Vm, u32)) -> String {
    let vm = Vm::new(&waiter())
        .set(&format!("security.sandbox={sandbox}"))
        .set("vm.cpus=2")
        .set("control.path=control")
        .set("serial.mode=socket")
        .set("serial.path=serial")
        .arg("--log-file")
        .arg("log");
    fs::File::create(vm.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let mut text = fs::read_to_string(vm.path("vm.toml")).unwrap();
    text.push_str(
        "debug_log = \"debug\"\n[[hba]]\ntype = \"megasas\"\nid = \"raid\"\nevent_log = \"events\"\n",
    );
    text.push_str("[[hba.lun]]\nimage = \"disk.img\"\non_no_space = \"pause\"\n");
    fs::write(vm.path("vm.toml"), text).unwrap();
    let _turn = turn();
    let mut command = vm.command();
    change(&mut command);
    let running = Running::start(&mut command);
    // With what `change` has given it.
    drop(command);
    let control = eventually("the control socket", || UnixStream::connect(vm.path("control")).ok());
    let ask = |command: &str| {
        (&control).write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&control).read_line(&mut answer).unwrap();
        answer
    };
    // It is answered when the machine has started.
    assert_eq!(ask("stop"), "{\"return\":{}}\n");
    assert_eq!(ask("cont"), "{\"return\":{}}\n");
    look(&vm, running.child.id());
    assert_eq!(ask("reset"), "{\"return\":{}}\n");
    assert_eq!(ask("stop"), "{\"return\":{}}\n");
    assert_eq!(ask("cont"), "{\"return\":{}}\n");
    assert_eq!(ask("quit"), "{\"return\":{}}\n");
    let ended = running.wait();
    let log = fs::read_to_string(vm.path("log")).unwrap();
    assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{log}");
    assert!(!vm.path("control").exists() && !vm.path("serial").exists(), "its names are gone");
    log
}

#[test]
fn every_thread_is_in_the_sandbox() {
    if !hypervisor("every_thread_is_in_the_sandbox") {
        return;
    }
    let log = running("on", |_, process| {
        let names = threads(process, |name, status| {
            assert_eq!((value(status, "Seccomp"), value(status, "NoNewPrivs")), ("2", "1"), "{name}");
            for set in ["CapEff", "CapPrm", "CapInh", "CapBnd"] {
                let set = u64::from_str_radix(value(status, set), 16).unwrap();
                // CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of those that open files.
                let kept = if matches!(name, "vmm" | "control" | "control-client") { 6 } else { 0 };
                assert!(set & !kept == 0, "{name}: {status}");
            }
        });
        for name in [
            "vmm",
            "vcpu0",
            "vcpu1",
            "io-raid",
            "io-close",
            "control",
            "control-client",
            "console",
            "event-log",
        ] {
            assert!(names.iter().any(|other| other == name), "{name}: {names:?}");
        }
    });
    assert_eq!(log, "");
}

/// What a program has blocked stays so for those that it starts.
#[test]
fn signals_that_were_blocked_before_confine_all_the_same() {
    if !hypervisor("signals_that_were_blocked_before_confine_all_the_same") {
        return;
    }
    let block = || {
        // All of them: every bit of the kernel's set of 64.
        let all = u64::MAX;
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: a live set, whose size is told, and no place for the old one. No memory is taken after the fork.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, none, size_of::<u64>())
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    let change = |command: &mut Command| {
        // SAFETY: it makes one system call.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(block)
        };
    };
    running_with("on", change, |_, process| {
        threads(process, |name, status| assert_eq!(value(status, "Seccomp"), "2", "{name}"));
    });
}

/// A socket of the parent would be a way out of the host.
#[test]
fn what_the_parent_left_open_is_closed() {
    if !hypervisor("what_the_parent_left_open_is_closed") {
        return;
    }
    const NUMBER: i32 = 400;
    for (sandbox, stays) in [("on", false), ("off", true)] {
        let socket = UnixDatagram::unbound().unwrap();
        let name = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let duplicate = move || {
            // SAFETY: a call without pointers.
            #[allow(unsafe_code)]
            match unsafe { libc::dup2(socket.as_raw_fd(), NUMBER) } {
                NUMBER => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        let change = |command: &mut Command| {
            command.env("VMM_LOG", "vmm::passed=info");
            // SAFETY: it makes one system call.
            #[allow(unsafe_code)]
            unsafe {
                command.pre_exec(duplicate)
            };
        };
        let log = running_with(sandbox, change, |_, process| {
            let found = fs::read_link(format!("/proc/{process}/fd/{NUMBER}"));
            assert_eq!(found.is_ok_and(|found| found == name), stays, "{sandbox}");
        });
        let line = format!(
            "descriptor {NUMBER} ({}) was open at the start, and no --add-fd names it: it is closed\n",
            name.display()
        );
        assert_eq!(log.contains(&line), !stays, "{log}");
    }
}

/// As flock(1) and its like have it: the lock is held as long as the process lives. And names such as /dev/fd/N are opened before
/// descriptors are closed.
#[test]
fn a_lock_that_the_parent_took_for_the_machine_stays() {
    if !hypervisor("a_lock_that_the_parent_took_for_the_machine_stays") {
        return;
    }
    const LOCK: i32 = 400;
    const DEBUG: i32 = 401;
    let (lock, debug) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let (held, written) = (lock.reopen().unwrap(), debug.reopen().unwrap());
    held.lock().unwrap();
    let duplicate = move || {
        for (file, number) in [(&held, LOCK), (&written, DEBUG)] {
            // SAFETY: a call without pointers.
            #[allow(unsafe_code)]
            if unsafe { libc::dup2(file.as_raw_fd(), number) } != number {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    let change = |command: &mut Command| {
        command.args(["--set", &format!("boot.debug_log=/dev/fd/{DEBUG}")]);
        // SAFETY: it makes system calls only.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(duplicate)
        };
    };
    let (lock, mut running) = (lock, None);
    running_with("on", change, |_, process| {
        // The command is gone, and with it the descriptor of this process.
        running = Some(lock.reopen().unwrap().try_lock().is_err());
        assert!(fs::read_link(format!("/proc/{process}/fd/{DEBUG}")).is_err(), "it is closed");
        assert!(fs::read_link(format!("/proc/{process}/fd/{LOCK}")).is_ok(), "it stays");
    });
    assert_eq!(running, Some(true), "the lock is free while the machine runs");
}

#[test]
fn a_machine_without_the_sandbox_keeps_its_rights() {
    if !hypervisor("a_machine_without_the_sandbox_keeps_its_rights") {
        return;
    }
    running("off", |_, process| {
        threads(process, |name, status| assert_eq!(value(status, "Seccomp"), "0", "{name}"));
    });
}

#[test]
fn a_machine_that_only_logs_keeps_its_capabilities() {
    if !hypervisor("a_machine_that_only_logs_keeps_its_capabilities") {
        return;
    }
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let mut number = 0;
    running("log", |_, process| {
        number = process;
        threads(process, |name, status| {
            assert_eq!((value(status, "Seccomp"), value(status, "NoNewPrivs")), ("2", "1"), "{name}");
            assert_eq!(value(status, "CapEff"), value(&own, "CapEff"), "{name}");
        });
    });
    // A healthy machine is silent in the kernel's log.
    let Some(log) = Command::new("dmesg").output().ok().filter(|log| log.status.success()) else {
        skipped("a_machine_that_only_logs_keeps_its_capabilities", "who reads the kernel's log");
        return;
    };
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let pid = format!(" pid={number} ");
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("type=1326") && line.contains(&pid)).collect();
    assert!(lines.is_empty(), "{} lines, the first: {}", lines.len(), lines[0]);
}
