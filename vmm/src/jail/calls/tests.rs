use libc::c_long;

use super::*;

const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const I386: u32 = 3 | 0x4000_0000;

/// What a program says of a call, as the kernel would run it.
fn run(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
    let word = |at: u32| match at {
        NUMBER => call,
        ARCHITECTURE => architecture,
        at => {
            let argument = arguments[(at - ARGUMENTS) as usize / 8];
            if at % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
        }
    };
    let (mut at, mut value) = (0, 0);
    loop {
        let one = &program[at];
        at += 1;
        match one.code {
            LOAD => value = word(one.k),
            AND => value &= one.k,
            IF_EQUAL => at += usize::from(if value == one.k { one.jt } else { one.jf }),
            // BPF_JMP | BPF_JGT and BPF_JGE, BPF_JA.
            0x25 => at += usize::from(if value > one.k { one.jt } else { one.jf }),
            0x35 => at += usize::from(if value >= one.k { one.jt } else { one.jf }),
            0x05 => at += one.k as usize,
            RETURN => return one.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn says(kind: Kind, call: c_long, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(&filter(kind, Refusal::End).unwrap(), X86_64, call as u32, all)
}

fn error(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

#[test]
fn filters_are_short_and_as_the_compiler_made_them() {
    let values = [0, 1, 2, 3, 4, 7, 36, 0x5401, 0x4c05, 0xae80, 0x1_0000_0000, 0x1000, 0x7fff_0000, u64::MAX]
        .map(|value| [value; 6]);
    for kind in Kind::ALL {
        let rules = || kinds::list(kind).into_rules().unwrap();
        let made = SeccompFilter::new(rules(), SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
        let made = BpfProgram::try_from(made.unwrap()).unwrap();
        let short = compact::compact(&made);
        assert!(
            short.len() * 5 < made.len() * 3 && short.len() < 450,
            "{kind:?}: {} of {}",
            short.len(),
            made.len()
        );
        for call in 0..480 {
            for arguments in values {
                let both = [&made, &short].map(|program| run(program, X86_64, call, arguments));
                assert_eq!(both[0], both[1], "{kind:?} {call} {arguments:x?}");
            }
        }
        assert_eq!(run(&short, I386, 0, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}

#[test]
fn a_thread_may_do_what_those_may_that_it_starts() {
    for (starter, started) in [
        (Kind::Main, Kind::End),
        (Kind::Main, Kind::Load),
        (Kind::Io, Kind::IoHelper),
        (Kind::Io, Kind::IoEcho),
        (Kind::Control, Kind::Client),
        (Kind::Client, Kind::Space),
        (Kind::Client, Kind::Loops),
    ] {
        let lacks = kinds::list(starter).lacks(&kinds::list(started));
        let lacks: Vec<_> = lacks.into_iter().map(|call| names::name(call).unwrap_or("?")).collect();
        assert_eq!(lacks, [""; 0], "{starter:?} starts {started:?}");
    }
}

#[test]
fn other_architectures_have_no_calls_at_all() {
    for kind in Kind::ALL {
        let program = filter(kind, Refusal::End).unwrap();
        assert_eq!(run(&program, I386, 4, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "{kind:?}");
        // x32: the same architecture, with a bit in the number.
        assert_eq!(run(&program, X86_64, 0x4000_0000, [0; 6]), TRAP, "{kind:?}");
    }
}

#[test]
fn libraries_have_a_substitute_for_some_calls() {
    let reading = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    for kind in Kind::ALL {
        assert_eq!(says(kind, libc::SYS_clone3, &[]), error(libc::ENOSYS), "{kind:?}");
        let opened = if kinds::opens(kind) { ALLOW } else { error(libc::EACCES) };
        assert_eq!(says(kind, libc::SYS_openat, &[u64::MAX, 1, reading]), opened, "{kind:?}");
        assert_eq!(says(kind, libc::SYS_open, &[1, reading]), opened, "{kind:?}");
        assert_eq!(says(kind, libc::SYS_readlink, &[1]), opened, "{kind:?}");
        // At a reset files are read.
        let writes = kinds::opens(kind) && !matches!(kind, Kind::Main | Kind::Load);
        let written = if writes { ALLOW } else { TRAP };
        for flags in
            [libc::O_RDWR, libc::O_WRONLY, libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE | libc::O_RDWR]
        {
            assert_eq!(
                says(kind, libc::SYS_openat, &[u64::MAX, 1, flags as u64]),
                written,
                "{kind:?} {flags:#x}"
            );
        }
    }
}

#[test]
fn arguments_are_looked_at_where_they_matter() {
    let thread =
        (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD)
            as u64;
    let own = u64::from(std::process::id());
    for kind in Kind::ALL {
        let says = |call, arguments: &[u64]| says(kind, call, arguments);
        let starts = matches!(kind, Kind::Main | Kind::Io | Kind::Control | Kind::Client);
        let only = |allowed: bool| if allowed { ALLOW } else { TRAP };
        assert_eq!(says(libc::SYS_clone, &[thread | 0x3d_0000]), only(starts), "{kind:?}");
        assert_eq!(says(libc::SYS_clone, &[libc::SIGCHLD as u64]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_clone, &[thread | libc::CLONE_NEWNET as u64]), TRAP, "{kind:?}");
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert_eq!(says(call, &[0, 4096, 3]), ALLOW, "{kind:?}");
            assert_eq!(says(call, &[0, 4096, 5]), TRAP, "{kind:?}");
        }
        assert_eq!(says(libc::SYS_tgkill, &[own, 1, 6]), ALLOW, "{kind:?}");
        assert_eq!(says(libc::SYS_tgkill, &[1, 1, 6]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_ioctl, &[3, 0xae80]), only(kind == Kind::Vcpu), "{kind:?}: KVM_RUN");
        assert_eq!(says(libc::SYS_ioctl, &[3, 0x5412]), TRAP, "{kind:?}: TIOCSTI");
        assert_eq!(says(libc::SYS_ioctl, &[3, 0x5401]), ALLOW, "{kind:?}: TCGETS");
        assert_eq!(says(libc::SYS_prctl, &[16]), ALLOW, "{kind:?}");
        assert_eq!(says(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_prlimit64, &[0, 7, 0]), ALLOW, "{kind:?}");
        assert_eq!(says(libc::SYS_prlimit64, &[0, 7, 1 << 32]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_statx, &[3, 1, 0x1000]), ALLOW, "{kind:?}");
        // Libraries look at what may not be there.
        let looked = if kinds::opens(kind) { ALLOW } else { error(libc::EACCES) };
        assert_eq!(says(libc::SYS_statx, &[3, 1, 0]), looked, "{kind:?}");
        assert_eq!(says(libc::SYS_newfstatat, &[3, 1, 2, 0x100]), looked, "{kind:?}");
        assert_eq!(says(libc::SYS_newfstatat, &[3, 1, 2, 0x1000]), ALLOW, "{kind:?}");
        assert_eq!(says(libc::SYS_flock, &[3, 1]), ALLOW, "{kind:?}: of a name that goes");
        assert_eq!(says(libc::SYS_unlink, &[]), only(kind == Kind::Main), "{kind:?}");
        assert_eq!(says(libc::SYS_io_uring_enter, &[]), only(kind == Kind::Io), "{kind:?}");
        assert_eq!(says(libc::SYS_io_uring_setup, &[]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_io_uring_register, &[3, 0]), TRAP, "{kind:?}");
        let connected = matches!(kind, Kind::Control | Kind::Client | Kind::Console);
        assert_eq!(says(libc::SYS_sendto, &[3, 1, 1, 0, 0]), only(connected), "{kind:?}");
        assert_eq!(says(libc::SYS_sendto, &[3, 1, 1, 0, 1 << 40]), TRAP, "{kind:?}");
    }
}

#[test]
fn what_is_only_logged_is_made() {
    for kind in Kind::ALL {
        let program = filter(kind, Refusal::Log).unwrap();
        for call in [libc::SYS_socket, libc::SYS_execve, libc::SYS_clone3] {
            assert_eq!(run(&program, X86_64, call as u32, [0; 6]), libc::SECCOMP_RET_LOG, "{kind:?}");
        }
    }
}
