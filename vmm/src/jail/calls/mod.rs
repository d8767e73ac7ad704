//! Which system calls each kind of thread may make: an allow-list for each, as a filter that the kernel runs (seccomp(2)).
//!
//! What works on descriptors that are open already is allowed generously: a call that was forgotten would end a machine
//! that does nothing wrong. What reaches anything new (paths, sockets, processes, memory to be run, other rings) is not, but
//! for the kinds that open images or kernels. Filters add up: a thread inherits that of its starter, so that one contains
//! what those that it starts may do.

mod groups;
mod keeper;
mod kinds;
mod list;
pub(super) mod names;
mod program;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use devices::threads::Kind;
use libc::sock_filter;

use list::Argument;
use program::{Answer, program};

pub(super) use kinds::{like, opens};

/// What becomes of a call that is not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The process is ended, with a line that says so.
    End,
    /// The kernel makes the call and writes it to its log.
    Log,
}

/// What a process has that others have not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    /// Its console has a terminal.
    pub(super) terminal: bool,
    /// Devices of the host are passed through, or may come.
    pub(super) host_devices: bool,
    /// A target of the host's kernel serves an adapter.
    pub(super) vhost: bool,
}

/// The filter for threads of a kind, of a process with these.
pub(super) fn filter(kind: Kind, refusal: Refusal, extras: Extras) -> Vec<sock_filter> {
    let rest = match refusal {
        Refusal::End => libc::SECCOMP_RET_TRAP,
        Refusal::Log => libc::SECCOMP_RET_LOG,
    };
    let mut answers = kinds::list(kind, extras).into_answers(rest);
    substitute(kind, refusal, rest, &mut answers);
    // What is called all the time, of which the kernel has to look at an argument each time.
    let first = match kind {
        Kind::Vcpu => Some(libc::SYS_ioctl),
        _ => None,
    };
    program(answers, rest, first)
}

/// The filter for the process that looks for devices of the host.
pub(super) fn keeper(refusal: Refusal) -> Vec<sock_filter> {
    beside(list::List::keeper(), refusal)
}

/// The filter for the process that has Fibre Channel ports.
pub(super) fn port(refusal: Refusal) -> Vec<sock_filter> {
    beside(list::List::port(), refusal)
}

/// The filter for a process beside the machine.
fn beside(list: list::List, refusal: Refusal) -> Vec<sock_filter> {
    let rest = match refusal {
        // Nobody is there who could say which call it was.
        Refusal::End => libc::SECCOMP_RET_KILL_PROCESS,
        Refusal::Log => libc::SECCOMP_RET_LOG,
    };
    let mut answers = list.into_answers(rest);
    let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    answers.insert(libc::SYS_clone3 as u32, Answer::any(unknown));
    program(answers, rest, None)
}

/// Calls that threads have a substitute for are answered with an error: the C library opens files where nobody would think so
/// (glibc: /proc/sys/vm/overcommit_memory when it gives memory back, /sys/devices/system/cpu/online for another arena), as
/// does the report of a panic.
fn substitute(kind: Kind, refusal: Refusal, rest: u32, answers: &mut BTreeMap<u32, Answer>) {
    let error = |number: libc::c_int| libc::SECCOMP_RET_ERRNO | number.cast_unsigned();
    // Its arguments are in memory, where no filter sees them; clone(2) comes in its place, and is looked at.
    answers.insert(libc::SYS_clone3 as u32, Answer::any(error(libc::ENOSYS)));
    // Urgent data has the kernel of the peer, which knows nothing of it, run code of its own.
    if let Some(answer) = answers.get_mut(&(libc::SYS_sendto as u32)) {
        let urgent = libc::MSG_OOB.cast_unsigned();
        answer.checks.insert(0, (Argument::Has { number: 3, mask: urgent, value: urgent }, rest));
    }
    if kinds::opens(kind) {
        return;
    }
    let refused = match refusal {
        Refusal::End => error(libc::EACCES),
        // Without a line of the kernel's log: it would be one of a machine that is well.
        Refusal::Log => libc::SECCOMP_RET_ALLOW,
    };
    for call in groups::LOOKS {
        answers.insert(call as u32, Answer::any(refused));
    }
    let mut refuse = |call: libc::c_long, argument| {
        let answer = answers.entry(call as u32).or_insert(Answer::any(rest));
        answer.checks.insert(0, (argument, refused));
    };
    // For writing, or to make a file, is no mistake of a library.
    let more = (groups::ACCESS_MODE | libc::O_CREAT | libc::O_TRUNC | libc::O_PATH).cast_unsigned();
    let reading = |number| Argument::Has { number, mask: more, value: 0 };
    refuse(libc::SYS_openat, reading(2));
    refuse(libc::SYS_open, reading(1));
    // What looks at a path, and not at a descriptor.
    let path = |number| Argument::Has { number, mask: libc::AT_EMPTY_PATH.cast_unsigned(), value: 0 };
    refuse(libc::SYS_statx, path(2));
    refuse(libc::SYS_newfstatat, path(3));
}
