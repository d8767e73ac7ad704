//! Filters of system calls, as container engines and service managers install them.

use std::io;

/// Has one system call of the calling thread fail with EPERM from now on, and of threads that it starts.
///
/// # Panics
/// When the kernel takes no filter.
pub fn forbid_system_call(number: libc::c_long) {
    answer_system_call(number, libc::EPERM);
}

/// The same with another error number.
///
/// # Panics
/// When the kernel takes no filter.
pub fn answer_system_call(number: libc::c_long, error: i32) {
    // A comparison of the number with itself.
    add(number, NUMBER, number as u32, answers(error));
}

/// The same only where an argument of the call, the first is 0, has this value in its lower half.
///
/// # Panics
/// When the kernel takes no filter.
pub fn answer_system_call_with(number: libc::c_long, argument: u32, value: u32, error: i32) {
    add(number, FIRST_ARGUMENT + argument * 8, value, answers(error));
}

/// Has one system call end the process by SIGSYS, as service managers do with what they do not allow.
///
/// # Panics
/// When the kernel takes no filter.
pub fn end_at_system_call(number: libc::c_long) {
    add(number, NUMBER, number as u32, libc::SECCOMP_RET_KILL_PROCESS);
}

/// Has the calling thread, and those that it starts, get no filter of system calls any more, by whichever call.
///
/// # Panics
/// When the kernel takes no filter.
pub fn forbid_filters() {
    forbid_system_call(libc::SYS_seccomp);
    answer_system_call_with(libc::SYS_prctl, 0, libc::PR_SET_SECCOMP as u32, libc::EPERM);
}

/// `struct seccomp_data` (linux/seccomp.h): where the number of the call and the lower half of its first argument are.
const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = 16;

fn answers(error: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | error as u32
}

/// Has something else become of a system call if the word at `place` has this value.
#[allow(clippy::panic)]
fn add(number: libc::c_long, place: u32, value: u32, action: u32) {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 3, number as u32),
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, place),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, value),
        step(libc::BPF_RET | libc::BPF_K, 0, action),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (none, yes, mode): (libc::c_ulong, libc::c_ulong, _) =
        (0, 1, libc::c_ulong::from(libc::SECCOMP_MODE_FILTER));
    let pointer = &raw const program;
    // SAFETY: plain numbers, and a program that the kernel copies and checks.
    #[allow(unsafe_code, clippy::multiple_unsafe_ops_per_block)]
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, none, none, none) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, mode, pointer, none, none) == 0
    };
    if !set {
        panic!("no filter of system calls: {}", io::Error::last_os_error());
    }
}
