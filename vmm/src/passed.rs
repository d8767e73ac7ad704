//! `--add-fd fd=N,set=M[,opaque=TEXT]`: a descriptor that whoever started the process left open for it, for images called
//! `/dev/fdset/M`. The option is QEMU's.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use devices::storage::fdset;

/// The first that is not standard input, output or error.
const FIRST: RawFd = 3;

/// Takes the descriptors of all such arguments.
///
/// # Errors
/// One line that names the argument.
pub fn take(arguments: &[String]) -> Result<()> {
    for argument in arguments {
        let taken = read(argument).and_then(|passed| {
            let Passed { fd, set, opaque } = passed;
            fdset::add(vec![own(fd)?], Some(set), opaque.as_deref())?;
            Ok(())
        });
        taken.with_context(|| format!("--add-fd {argument}"))?;
    }
    Ok(())
}

/// What else whoever started the process has left open.
static OTHERS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Finds what else whoever started the process has left open. To be called once [`take`] has its own, before other threads have
/// opened anything.
///
/// # Errors
/// There is no /proc to look in.
pub fn find_others() -> io::Result<()> {
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        // SAFETY: a call without pointers.
        #[allow(unsafe_code)]
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        // See `own`: what has the flag is this process's.
        if fd < FIRST || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
            continue;
        }
        // SAFETY: as above: nothing here owns it.
        #[allow(unsafe_code)]
        others.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// Closes them: nothing here knows of them, and who has taken over a thread could use one, a socket above all. By then names
/// such as `/dev/fd/3` have been opened. One that holds a lock stays open: others go by it, as long as this process lives
/// (flock(1)).
pub(crate) fn close_others() {
    let others = std::mem::take(&mut *OTHERS.lock().unwrap_or_else(PoisonError::into_inner));
    for other in others {
        let fd = other.as_raw_fd();
        let name = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        let locked = has_lock(fd);
        let what = if locked { "stays open, for it holds a lock" } else { "is closed" };
        tracing::info!(
            "descriptor {fd} ({}) was open at the start, and no --add-fd names it: it {what}",
            name.display()
        );
        if locked {
            std::mem::forget(other);
        }
    }
}

/// Whether there is a lock by what is open as `fd` (proc(5), fdinfo).
fn has_lock(fd: RawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    // Locks of images (OFDLCK) are of machines, and none is started with one.
    info.lines().any(|line| line.starts_with("lock:") && !line.contains("OFDLCK"))
}

/// An argument in its parts.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    fd: RawFd,
    set: u64,
    opaque: Option<String>,
}

fn read(argument: &str) -> Result<Passed> {
    let (mut fd, mut set, mut opaque, mut rest) = (None, None, None, argument);
    while !rest.is_empty() {
        // The text is the last, for it may have commas.
        if let Some(text) = rest.strip_prefix("opaque=") {
            opaque = Some(text.to_owned());
            break;
        }
        let (part, more) = rest.split_once(',').unwrap_or((rest, ""));
        rest = more;
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let number = |most| value.parse::<u64>().ok().filter(|number| *number <= most);
        let wrong = |most: u64| anyhow!("{key} is \"{value}\", expected a number of at most {most}");
        match key {
            "fd" => {
                let most = RawFd::MAX as u64;
                fd = Some(RawFd::try_from(number(most).ok_or_else(|| wrong(most))?)?);
            }
            "set" => set = Some(number(fdset::NUMBER_MAX).ok_or_else(|| wrong(fdset::NUMBER_MAX))?),
            _ => bail!("unknown part \"{key}\", expected fd=N,set=M,opaque=TEXT"),
        }
    }
    let (fd, set) = (fd.context("no fd=N")?, set.context("no set=M")?);
    Ok(Passed { fd, set, opaque })
}

/// A descriptor that was passed. What this process opened itself is closed when another program runs in its place, and what was
/// passed is not, until it is taken here.
fn own(fd: RawFd) -> Result<OwnedFd> {
    ensure!(fd >= FIRST, "{fd} is standard input, output or error");
    // SAFETY: a call without pointers.
    #[allow(unsafe_code)]
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    ensure!(flags >= 0, "no descriptor {fd} was passed: {}", io::Error::last_os_error());
    ensure!(flags & libc::FD_CLOEXEC == 0, "descriptor {fd} was taken already, or is this process's own");
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) };
    ensure!(result == 0, "descriptor {fd}: {}", io::Error::last_os_error());
    // SAFETY: the flag was not set, so nothing here has opened it or taken it: nobody else owns it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_qemu_reads_them() {
        let passed = |fd, set, opaque: Option<&str>| Passed { fd, set, opaque: opaque.map(str::to_owned) };
        assert_eq!(read("fd=3,set=1").unwrap(), passed(3, 1, None));
        assert_eq!(read("set=0,fd=17").unwrap(), passed(17, 0, None));
        assert_eq!(read("fd=3,set=1,opaque=rdwr:/a, b=c").unwrap(), passed(3, 1, Some("rdwr:/a, b=c")));
        let said = |argument| read(argument).unwrap_err().to_string();
        assert_eq!(said("fd=3"), "no set=M");
        assert_eq!(said(""), "no fd=N");
        assert_eq!(said("fd=x,set=1"), "fd is \"x\", expected a number of at most 2147483647");
        assert_eq!(said("fd=-1,set=1"), "fd is \"-1\", expected a number of at most 2147483647");
        assert_eq!(
            said("fd=3,set=9223372036854775808"),
            "set is \"9223372036854775808\", expected a number of at most 9223372036854775807"
        );
        assert_eq!(said("3,1"), "unknown part \"3\", expected fd=N,set=M,opaque=TEXT");
    }

    #[test]
    fn what_was_not_passed_is_not_taken() {
        let said = |fd| own(fd).unwrap_err().to_string();
        assert_eq!(said(1), "1 is standard input, output or error");
        let file = tempfile::tempfile().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert_eq!(said(number), format!("descriptor {number} was taken already, or is this process's own"));
        assert!(said(1 << 30).starts_with("no descriptor 1073741824 was passed: Bad file descriptor"));
        drop(file);
    }
}
