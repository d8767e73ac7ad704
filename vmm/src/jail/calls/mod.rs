//! Which system calls each kind of thread may make: an allow-list for each, as a filter that the kernel runs (seccomp(2)).
//!
//! What works on descriptors that are open already is allowed generously: a call that was forgotten would end a machine
//! that does nothing wrong. What reaches anything new (paths, sockets, processes, memory to be run, other rings) is not, but
//! for the kinds that open images or kernels. Filters add up: a thread inherits that of its starter, so that one contains
//! what those that it starts may do.

mod compact;
mod groups;
mod kinds;
mod list;
pub(super) mod names;
#[cfg(test)]
mod tests;

use devices::threads::Kind;
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};

use compact::compact;

pub(super) use kinds::opens;

/// What becomes of a call that is not in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The process is ended, with a line that says so.
    End,
    /// The kernel makes the call and writes it to its log.
    Log,
}

/// The filter for threads of a kind.
pub(super) fn filter(kind: Kind, refusal: Refusal) -> Result<BpfProgram, BackendError> {
    let list = kinds::list(kind);
    let action = match refusal {
        Refusal::End => SeccompAction::Trap,
        Refusal::Log => SeccompAction::Log,
    };
    let first = first(kind, refusal);
    let filter = SeccompFilter::new(list.into_rules()?, action, SeccompAction::Allow, TargetArch::x86_64)?;
    let rest = BpfProgram::try_from(filter)?;
    Ok(first.into_iter().chain(compact(&rest)).collect())
}

/// What is looked at before the list, in this order.
struct First {
    call: libc::c_long,
    /// Only if this argument, cut to the bits of the mask, has this value.
    only: Option<(u32, u32, u32)>,
    answer: u32,
}

/// Calls that threads make all the time, and those that they have a substitute for: the C library opens files where nobody
/// would think so (glibc: /proc/sys/vm/overcommit_memory when it gives memory back, /sys/devices/system/cpu/online for
/// another arena), as does the report of a panic.
fn first(kind: Kind, refusal: Refusal) -> BpfProgram {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    let error = |number: libc::c_int| libc::SECCOMP_RET_ERRNO | number.cast_unsigned();
    let any = |call, answer| First { call, only: None, answer };
    let mut all = Vec::new();
    match kind {
        Kind::Vcpu => {
            let only = Some((1, u32::MAX, groups::RUN));
            all.push(First { call: libc::SYS_ioctl, only, answer: ALLOW });
        }
        // Without arguments to be looked at, which Linux 5.11 and newer do without running the filter.
        Kind::Io => all.push(any(libc::SYS_io_uring_enter, ALLOW)),
        _ => {}
    }
    if refusal == Refusal::End {
        // Its arguments are in memory, where no filter sees them; clone(2) comes in its place.
        all.push(any(libc::SYS_clone3, error(libc::ENOSYS)));
        if !kinds::opens(kind) {
            // For writing, or to make a file, is no mistake of a library.
            let more = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_PATH;
            let reading = |argument| Some((argument, more.cast_unsigned(), 0));
            let refused = error(libc::EACCES);
            all.push(First { call: libc::SYS_openat, only: reading(2), answer: refused });
            all.push(First { call: libc::SYS_open, only: reading(1), answer: refused });
            all.extend(groups::LOOKS.map(|call| any(call, refused)));
            // What looks at a path, and not at a descriptor.
            let path = |argument| Some((argument, libc::AT_EMPTY_PATH.cast_unsigned(), 0));
            all.push(First { call: libc::SYS_statx, only: path(2), answer: refused });
            all.push(First { call: libc::SYS_newfstatat, only: path(3), answer: refused });
        }
    }
    program(&all)
}

/// `struct seccomp_data` (linux/seccomp.h): where the number of the call, the architecture and the arguments are.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// AUDIT_ARCH_X86_64 (linux/audit.h).
const X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

/// Instructions (linux/bpf_common.h): load a word, cut it, compare it, return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn instruction(code: u16, k: u32, jt: usize, jf: usize) -> sock_filter {
    // All jumps here are short; one that is not would lead astray, and a test looks.
    sock_filter { code, jt: jt as u8, jf: jf as u8, k }
}

/// The program that answers these, and goes on behind its end with all others.
fn program(all: &[First]) -> BpfProgram {
    let mut program = Vec::new();
    for First { call, only, answer } in all {
        let number = *call as u32;
        match *only {
            None => program.push(instruction(IF_EQUAL, number, 0, 1)),
            Some((argument, mask, value)) => program.extend([
                instruction(IF_EQUAL, number, 0, 5),
                instruction(LOAD, ARGUMENTS + 8 * argument, 0, 0),
                instruction(AND, mask, 0, 0),
                instruction(IF_EQUAL, value, 0, 1),
            ]),
        }
        program.push(instruction(RETURN, *answer, 0, 0));
        if only.is_some() {
            // Again, for what comes.
            program.push(instruction(LOAD, NUMBER, 0, 0));
        }
    }
    let start = [
        instruction(LOAD, ARCHITECTURE, 0, 0),
        // Another architecture is the list's business.
        instruction(IF_EQUAL, X86_64, 0, program.len() + 1),
        instruction(LOAD, NUMBER, 0, 0),
    ];
    start.into_iter().chain(program).collect()
}
