//! The end of a process that made a system call which the sandbox does not allow: one line that says which, of which thread.

use std::io;
use std::mem::MaybeUninit;

use super::calls::names;
use super::signals;
use crate::console;

/// `si_code` of a SIGSYS that a filter sent (asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;
/// Where the number of the call is in the signal's information: behind the address that it came from.
const CALL: usize = 24;
/// How long the reader of standard error may take, in milliseconds. The machine ends whether he reads or not.
const PATIENCE: libc::c_int = 1000;

/// A line that is put together without memory of its own.
pub(super) struct Line {
    bytes: [u8; 400],
    len: usize,
}

impl Line {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; 400], len: 0 }
    }

    /// As much of `part` as there is room for.
    pub(super) fn add(&mut self, part: &[u8]) {
        let rest = self.bytes.get_mut(self.len..).unwrap_or_default();
        let added = rest.iter_mut().zip(part).map(|(to, from)| *to = *from).count();
        self.len += added;
    }

    pub(super) fn number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let (mut rest, mut first) = (number, digits.len());
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (rest % 10) as u8;
            (rest, first) = (rest / 10, at);
            if rest == 0 {
                break;
            }
        }
        self.add(digits.get(first..).unwrap_or_default());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// What is said of a call that a thread of this name made.
pub(super) fn line(thread: &[u8], call: i32) -> Line {
    let mut line = Line::new();
    line.add(b"vmm: error: the sandbox ended the machine: its thread \"");
    let shown = thread.iter().take_while(|byte| **byte != 0);
    shown.for_each(|byte| line.add(&[if byte.is_ascii_graphic() { *byte } else { b' ' }]));
    line.add(b"\" made the system call ");
    if let Some(name) = names::name(call.into()) {
        line.add(name.as_bytes());
        line.add(b" (");
    }
    line.number(call.cast_unsigned());
    if names::name(call.into()).is_some() {
        line.add(b")");
    }
    line.add(b", which it never needs: it is attacked, or this is our mistake; please report it. ");
    line.add(b"sandbox = \"log\" in [security] only logs such calls\n");
    line
}

/// Has refused calls end the process with their line.
pub(super) fn explain() -> io::Result<()> {
    // On a stack of its own: that of the thread may be at its end.
    let flags = libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    signals::catch(libc::SIGSYS, on_refusal, flags)
}

#[allow(unsafe_code)]
extern "C" fn on_refusal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    console::give_back();
    // SAFETY: the kernel hands the handler a live structure (SA_SIGINFO).
    let code = unsafe { info.as_ref() }.map_or(0, |info| info.si_code);
    if code == SYS_SECCOMP {
        // SAFETY: within the structure, which is of 128 bytes.
        let call = unsafe { info.cast::<u8>().wrapping_add(CALL).cast::<i32>().read_unaligned() };
        let mut name = MaybeUninit::<[u8; 16]>::zeroed();
        // SAFETY: the call writes 16 bytes at most.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        // SAFETY: it was all zero, and any bytes are valid.
        let name = unsafe { name.assume_init() };
        say(&line(&name, call));
    }
    // The handler is gone (SA_RESETHAND) and the signal open (SA_NODEFER): this ends the process.
    // SAFETY: no pointers; `raise` may be called in signal handlers.
    unsafe { libc::raise(signal) };
}

/// Writes to standard error, unless its reader makes us wait.
#[allow(unsafe_code)]
fn say(line: &Line) {
    let mut entry = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry.
    if unsafe { libc::poll(&raw mut entry, 1, PATIENCE) } == 1 {
        let bytes = line.bytes();
        // SAFETY: the pointer and the length are those of live bytes.
        unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_call_and_thread() {
        let text = |thread: &[u8], call| String::from_utf8(line(thread, call).bytes().to_vec()).unwrap();
        let begin = "vmm: error: the sandbox ended the machine: its thread ";
        assert!(
            text(b"io-scsi0\0old", 59)
                .starts_with(&format!("{begin}\"io-scsi0\" made the system call execve (59), "))
        );
        assert!(
            text(b"\x1b[2J", 4_000_000_000_u32.cast_signed())
                .starts_with(&format!("{begin}\" [2J\" made the system call 4000000000, "))
        );
        assert!(text(&[b'x'; 16], 0).ends_with("only logs such calls\n"), "all of it has room");
    }
}
