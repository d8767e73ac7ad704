use libc::c_long;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::program::*;
use super::*;

const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const I386: u32 = 3 | 0x4000_0000;
/// The bit of x32's numbers (asm/unistd.h).
const X32: u32 = 1 << 30;

/// What a program says of a call, as the kernel would run it, and in how many steps.
fn steps(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> (u32, usize) {
    let word = |at: u32| match at {
        NUMBER => call,
        ARCHITECTURE => architecture,
        at => {
            let argument = arguments[(at - ARGUMENTS) as usize / 8];
            if at % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
        }
    };
    let (mut at, mut value, mut step) = (0, 0, 0);
    loop {
        let one = &program[at];
        (at, step) = (at + 1, step + 1);
        match one.code {
            LOAD => value = word(one.k),
            AND => value &= one.k,
            IF_EQUAL => at += usize::from(if value == one.k { one.jt } else { one.jf }),
            IF_AT_LEAST => at += usize::from(if value >= one.k { one.jt } else { one.jf }),
            // BPF_JMP | BPF_JGT.
            0x25 => at += usize::from(if value > one.k { one.jt } else { one.jf }),
            GO_ON => at += one.k as usize,
            RETURN => return (one.k, step),
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn run(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
    steps(program, architecture, call, arguments).0
}

/// The filter as the compiler of others makes it: the list, without substitutes.
fn compiled(kind: Kind, refusal: Refusal, extras: Extras) -> Vec<sock_filter> {
    let condition = |argument: &Argument| {
        let masked = |(number, mask, value): (u8, u32, u32)| {
            (number, Dword, SeccompCmpOp::MaskedEq(mask.into()), value.into())
        };
        let all = match *argument {
            Argument::Is(number, value) => vec![(number, Dword, SeccompCmpOp::Eq, value.into())],
            Argument::Not(number, value) => vec![(number, Dword, SeccompCmpOp::Ne, value.into())],
            Argument::Null(number) => vec![(number, Qword, SeccompCmpOp::Eq, 0)],
            Argument::Has { number, mask, value } => vec![masked((number, mask, value))],
            Argument::Both(arguments) => arguments.map(masked).to_vec(),
        };
        let condition = |(number, length, operator, value)| {
            SeccompCondition::new(number, length, operator, value).unwrap()
        };
        SeccompRule::new(all.into_iter().map(condition).collect()).unwrap()
    };
    let list = kinds::list(kind, extras);
    let rules = list.calls().map(|(call, all)| (call, all.iter().map(condition).collect())).collect();
    let action = match refusal {
        Refusal::End => SeccompAction::Trap,
        Refusal::Log => SeccompAction::Log,
    };
    let made = SeccompFilter::new(rules, action, SeccompAction::Allow, TargetArch::x86_64).unwrap();
    let made = BpfProgram::try_from(made).unwrap();
    made.iter().map(|one| sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k }).collect()
}

/// What is said of a call in place of what the list says.
fn substituted(kind: Kind, refusal: Refusal, call: u32, arguments: [u64; 6]) -> Option<u32> {
    let call = c_long::from(call);
    let reading = |argument: usize| arguments[argument] & 0o10_001_103 == 0;
    let refused = match call {
        libc::SYS_clone3 => return Some(error(libc::ENOSYS)),
        libc::SYS_sendto if arguments[3] & 1 != 0 => {
            return Some(if refusal == Refusal::End { TRAP } else { libc::SECCOMP_RET_LOG });
        }
        _ if kinds::opens(kind) => false,
        libc::SYS_open => reading(1),
        libc::SYS_openat => reading(2),
        libc::SYS_statx => arguments[2] & 0x1000 == 0,
        libc::SYS_newfstatat => arguments[3] & 0x1000 == 0,
        _ => groups::LOOKS.contains(&call),
    };
    // What only logs lets them be done, without a line: a machine that is well does them.
    refused.then_some(if refusal == Refusal::End { error(libc::EACCES) } else { ALLOW })
}

/// Arguments that make a difference for some call of the kind, each in all places, and others beside them.
fn arguments(kind: Kind, list: &list::List, call: u32) -> Vec<[u64; 6]> {
    let mut values = vec![0, 0x1001, 1 << 32, u64::MAX];
    let mut pairs = Vec::new();
    let own = list.calls().filter(|(one, _)| *one == c_long::from(call)).flat_map(|(_, all)| all);
    for argument in own {
        match *argument {
            Argument::Is(_, value) | Argument::Not(_, value) => values.push(value.into()),
            Argument::Null(_) => {}
            Argument::Has { mask, value, .. } => {
                values.extend([value, mask, value ^ mask].map(u64::from));
                values.extend((0..32).map(|bit| u64::from(value) ^ 1 << bit));
            }
            Argument::Both([(first, _, value), (second, _, other)]) => {
                for bit in 0..64 {
                    for (one, two) in [(0, 0), (1 << bit, 0), (0, 1 << bit), (1 << bit, 1 << bit)] {
                        let mut both = [0; 6];
                        both[usize::from(first)] = u64::from(value) ^ one;
                        both[usize::from(second)] = u64::from(other) ^ two;
                        pairs.push(both);
                    }
                }
            }
        }
    }
    if substituted(kind, Refusal::End, call, [0; 6]).is_some() {
        values.extend((0..64).map(|bit| 1 << bit));
    }
    let near =
        values.iter().flat_map(|value| [*value, value ^ 1, value.wrapping_add(1), value | 0xdead << 32]);
    let mut all: Vec<u64> = if values.len() > 4 { near.collect() } else { values };
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(|value| [value; 6]).chain(pairs).collect()
}

fn says(kind: Kind, call: c_long, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(&filter(kind, Refusal::End, Extras::default()), X86_64, call as u32, all)
}

fn error(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

const ALL: Extras = Extras { terminal: true, host_devices: true, vhost: true };
const EXTRAS: [Extras; 2] = [Extras { terminal: false, host_devices: false, vhost: false }, ALL];

#[test]
fn filters_say_of_each_call_what_the_lists_say() {
    for (kind, extras) in Kind::ALL.into_iter().flat_map(|kind| EXTRAS.map(|extras| (kind, extras))) {
        let both = |refusal| (compiled(kind, refusal, extras), filter(kind, refusal, extras));
        let ((made, ours), (logs, our_logs)) = (both(Refusal::End), both(Refusal::Log));
        let list = kinds::list(kind, extras);
        for call in (0..=600).flat_map(|call| [call, X32 | call, 1 << 31 | call, u32::MAX - call]) {
            for arguments in arguments(kind, &list, call) {
                let say = |program: &[sock_filter]| run(program, X86_64, call, arguments);
                for (refusal, ours, made) in [(Refusal::End, &ours, &made), (Refusal::Log, &our_logs, &logs)]
                {
                    let expected = substituted(kind, refusal, call, arguments).unwrap_or_else(|| say(made));
                    assert_eq!(say(ours), expected, "{kind:?} {refusal:?} {call} {arguments:x?}");
                }
            }
            for architecture in [I386, 0, u32::MAX] {
                let says = run(&ours, architecture, call, [0; 6]);
                assert_eq!(says, libc::SECCOMP_RET_KILL_PROCESS, "{kind:?} {call}");
            }
        }
    }
}

#[test]
fn filters_are_short_and_quickly_searched() {
    for kind in Kind::ALL {
        let program = filter(kind, Refusal::End, Extras::default());
        let (mut all, mut most) = (0, 0);
        for call in 0..460 {
            // As the kernel looks at it: until an argument matters.
            let (_, steps) = steps(&program, X86_64, call, [0; 6]);
            (all, most) = (all + steps, most.max(steps));
        }
        println!("{kind:?}: {} instructions, {} steps in the mean", program.len(), all / 460);
        assert!(program.len() < 260 && all / 460 < 13, "{kind:?}: {} {}", program.len(), all / 460);
        assert!(most < 60, "{kind:?}: {most}");
    }
}

/// A program with far more than a jump reaches over.
#[test]
fn long_programs_are_right_too() {
    let check = |call: u32| match call % 7 {
        0 => (Argument::Is(call as u8 % 6, call), ALLOW),
        1 => (Argument::Null(3), error(1)),
        2 => (Argument::Not(2, call), ALLOW),
        3 => (Argument::Both([(5, 0xff, call & 0xff), (1, 0xf00, call & 0xf00)]), error(2)),
        _ => (Argument::Has { number: 4, mask: 0xff, value: call & 0xff }, error(2)),
    };
    let answer = |call: u32| {
        let checks = (call..call + call % 300).map(check).collect();
        Answer { checks, rest: if call.is_multiple_of(2) { ALLOW } else { error(3) } }
    };
    let answers: BTreeMap<u32, Answer> =
        (0..200).filter(|call| call % 5 != 0).map(|call| (call * 3, answer(call))).collect();
    let program = program(answers.clone(), TRAP, Some(30));
    assert!(program.len() > 10_000);
    let holds = |argument: &Argument, value: u64| match *argument {
        Argument::Is(_, wanted) => value as u32 == wanted,
        Argument::Not(_, other) => value as u32 != other,
        Argument::Null(_) => value == 0,
        Argument::Has { mask, value: wanted, .. } => value as u32 & mask == wanted,
        Argument::Both(both) => both.iter().all(|(_, mask, wanted)| value as u32 & mask == *wanted),
    };
    for call in 0..620 {
        for value in [0, 1 << 32, 5, 77, 150, 199, 0xffff_ffff_0000_0096, u64::MAX] {
            let expected = answers.get(&call).map_or(TRAP, |answer| {
                let found = answer.checks.iter().find(|(argument, _)| holds(argument, value));
                found.map_or(answer.rest, |(_, answer)| *answer)
            });
            assert_eq!(run(&program, X86_64, call, [value; 6]), expected, "{call} {value:x}");
        }
    }
}

#[test]
fn kinds_that_share_a_filter_may_do_the_same() {
    for kind in Kind::ALL {
        let code = |kind| {
            filter(kind, Refusal::End, Extras::default())
                .iter()
                .map(|one| (one.code, one.jt, one.jf, one.k))
                .collect::<Vec<_>>()
        };
        assert_eq!(code(kind), code(kinds::like(kind)), "{kind:?}");
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
        (Kind::Client, Kind::Returns),
        (Kind::Returns, Kind::IoHelper),
        (Kind::Returns, Kind::Returns),
    ] {
        let lacks = kinds::list(starter, ALL).lacks(&kinds::list(started, ALL));
        let lacks: Vec<_> = lacks.into_iter().map(|call| names::name(call).unwrap_or("?")).collect();
        assert_eq!(lacks, [""; 0], "{starter:?} starts {started:?}");
    }
}

#[test]
fn other_architectures_have_no_calls_at_all() {
    for kind in Kind::ALL {
        let program = filter(kind, Refusal::End, Extras::default());
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
        let path_only = [u64::MAX, 1, (libc::O_PATH | libc::O_CLOEXEC) as u64];
        let named = if kinds::opens(kind) { ALLOW } else { TRAP };
        assert_eq!(says(kind, libc::SYS_openat, &path_only), named, "{kind:?}");
        // At a reset files are read.
        let writes = kinds::opens(kind) && !matches!(kind, Kind::Main | Kind::Load);
        let written = if writes { ALLOW } else { TRAP };
        for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_CREAT, libc::O_TMPFILE | libc::O_RDWR] {
            assert_eq!(
                says(kind, libc::SYS_openat, &[u64::MAX, 1, flags as u64, 0o777]),
                written,
                "{kind:?} {flags:#x}"
            );
        }
        // Nobody empties files, or makes some for others to run; or opens what is not to be read or written.
        for (flags, mode) in [
            (3, 0),
            (3 | libc::O_EXCL | libc::O_NONBLOCK, 0),
            (3 | libc::O_PATH, 0),
            (libc::O_TRUNC, 0),
            (libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o600),
            (libc::O_CREAT, 0o4700),
            (libc::O_CREAT, 0o2070),
            (libc::O_CREAT, 0o1777),
        ] {
            assert_eq!(says(kind, libc::SYS_openat, &[u64::MAX, 1, flags as u64, mode]), TRAP, "{kind:?}");
            assert_eq!(says(kind, libc::SYS_open, &[1, flags as u64, mode]), TRAP, "{kind:?}");
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
        let starts = matches!(kind, Kind::Main | Kind::Io | Kind::Control | Kind::Client | Kind::Returns);
        let only = |allowed: bool| if allowed { ALLOW } else { TRAP };
        assert_eq!(says(libc::SYS_clone, &[thread | 0x3d_0000]), only(starts), "{kind:?}");
        assert_eq!(says(libc::SYS_clone, &[libc::SIGCHLD as u64]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_clone, &[thread | libc::CLONE_NEWNET as u64]), TRAP, "{kind:?}");
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert_eq!(says(call, &[0, 4096, 3]), ALLOW, "{kind:?}");
            assert_eq!(says(call, &[0, 4096, 5]), TRAP, "{kind:?}");
        }
        for signal in 1..=64 {
            // With any upper half, which the kernel does not look at.
            let other = only(signal != libc::SIGSYS as u64);
            for signal in [signal, signal | 7 << 32] {
                assert_eq!(says(libc::SYS_rt_sigaction, &[signal, 1, 0, 8]), other, "{kind:?}: {signal:#x}");
            }
        }
        assert_eq!(says(libc::SYS_tgkill, &[own, 1, 6]), ALLOW, "{kind:?}");
        assert_eq!(says(libc::SYS_tgkill, &[1, 1, 6]), TRAP, "{kind:?}");
        assert_eq!(says(libc::SYS_ioctl, &[3, 0xae80]), only(kind == Kind::Vcpu), "{kind:?}: KVM_RUN");
        let commands = filter(kind, Refusal::End, Extras { host_devices: true, ..Extras::default() });
        for (number, who) in [
            (
                0x2285,
                vec![Kind::Io, Kind::IoHelper, Kind::EventLog, Kind::Control, Kind::Client, Kind::Returns],
            ),
            (0x2282, vec![Kind::Control, Kind::Client]),
            (0x2283, vec![]),
        ] {
            assert_eq!(says(libc::SYS_ioctl, &[3, number]), TRAP, "{kind:?}: {number:#x}");
            let said = run(&commands, X86_64, libc::SYS_ioctl as u32, [3, number, 0, 0, 0, 0]);
            assert_eq!(said, only(who.contains(&kind)), "{kind:?}: {number:#x}");
        }
        assert_eq!(says(libc::SYS_ioctl, &[3, 0x5412]), TRAP, "{kind:?}: TIOCSTI");
        assert_eq!(says(libc::SYS_ioctl, &[3, 0x5401]), ALLOW, "{kind:?}: TCGETS");
        for change in [0x5402, 0x402c_542b] {
            assert_eq!(says(libc::SYS_ioctl, &[3, change]), TRAP, "{kind:?}: TCSETS, TCSETS2");
            let with_terminal = filter(kind, Refusal::End, Extras { terminal: true, ..Extras::default() });
            let said = run(&with_terminal, X86_64, libc::SYS_ioctl as u32, [3, change, 0, 0, 0, 0]);
            assert_eq!(said, ALLOW, "{kind:?}: TCSETS, TCSETS2");
        }
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
        assert_eq!(says(libc::SYS_sendto, &[3, 1, 1, 0x4000, 0]), only(connected), "{kind:?}");
        assert_eq!(says(libc::SYS_sendto, &[3, 1, 1, 0x4001, 0]), TRAP, "{kind:?}: MSG_OOB");
        assert_eq!(
            says(libc::SYS_recvmsg, &[3, 1, 0x4000_0040]),
            only(connected || kind == Kind::Returns),
            "{kind:?}"
        );
        assert_eq!(says(libc::SYS_recvmsg, &[3, 1, 1]), TRAP, "{kind:?}: MSG_OOB");
        assert_eq!(says(libc::SYS_recvfrom, &[3, 1, 1, 0x40]), only(connected), "{kind:?}");
        assert_eq!(says(libc::SYS_recvfrom, &[3, 1, 1, 0x41]), TRAP, "{kind:?}: MSG_OOB");
    }
}

#[test]
fn the_process_that_looks_for_devices_opens_nodes_and_makes_nothing() {
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    let (ends, logs) = (keeper(Refusal::End), keeper(Refusal::Log));
    let says = |call: c_long, arguments: &[u64]| {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let said = [&ends, &logs].map(|program| run(program, X86_64, call as u32, all));
        assert_eq!(said[1], if said[0] == KILL { libc::SECCOMP_RET_LOG } else { said[0] });
        said[0]
    };
    let node = (libc::O_RDWR | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC) as u64;
    for flags in [node, libc::O_RDONLY as u64, (libc::O_PATH | libc::O_CLOEXEC) as u64] {
        assert_eq!(says(libc::SYS_openat, &[u64::MAX, 1, flags]), ALLOW, "{flags:#x}");
    }
    for flags in [libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE] {
        assert_eq!(says(libc::SYS_openat, &[u64::MAX, 1, node | flags as u64, 0o600]), KILL, "{flags:#x}");
    }
    for call in [libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_poll, libc::SYS_getdents64, libc::SYS_flock]
    {
        assert_eq!(says(call, &[3]), ALLOW, "{call}");
    }
    for call in [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_execve,
        libc::SYS_fork,
        libc::SYS_kill,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_mknodat,
        libc::SYS_setns,
        libc::SYS_setuid,
        libc::SYS_io_uring_setup,
    ] {
        assert_eq!(says(call, &[0]), KILL, "{call}");
    }
    assert_eq!(says(libc::SYS_clone3, &[0]), error(libc::ENOSYS));
    assert_eq!(says(libc::SYS_ioctl, &[3, 0x2282]), ALLOW);
    assert_eq!(says(libc::SYS_ioctl, &[3, 0x2285]), KILL, "it sends no commands");
    assert_eq!(says(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1]), KILL);
    assert!(ends.len() < 260, "{}", ends.len());
}

#[test]
fn what_is_only_logged_is_made() {
    for kind in Kind::ALL {
        let program = filter(kind, Refusal::Log, Extras::default());
        for call in [libc::SYS_socket, libc::SYS_execve] {
            assert_eq!(run(&program, X86_64, call as u32, [0; 6]), libc::SECCOMP_RET_LOG, "{kind:?}");
        }
    }
}
