//! System calls of both processes: the two ends between them, and what the new one leaves behind.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Files that go with one message at most.
const FILES: usize = 4;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller has just had the kernel make it, so nobody else owns it.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

/// Two ends, which keep messages apart.
pub(crate) fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two ints.
    #[allow(unsafe_code)]
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    let [one, other] = ends.map(|fd| UnixStream::from(owned(fd)));
    Ok((one, other))
}

/// Sends a message with files.
pub(crate) fn send(to: &UnixStream, bytes: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    const HEADER: usize = size_of::<libc::cmsghdr>() / size_of::<u64>();
    let mut control = [0_u64; HEADER + FILES * size_of::<RawFd>() / size_of::<u64>()];
    if files.len() > FILES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (len, level_and_type) = (
        (size_of::<libc::cmsghdr>() + size_of_val(files)) as u64,
        libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32,
    );
    let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let pairs = numbers.chunks(2).map(|pair| {
        let number = |place: usize| u64::from(pair.get(place).copied().unwrap_or(0).cast_unsigned());
        number(0) | number(1) << 32
    });
    for (place, word) in control.iter_mut().zip([len, level_and_type].into_iter().chain(pairs)) {
        *place = word;
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a structure of integers and pointers, for which zeros are a value.
    #[allow(unsafe_code)]
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    if !files.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = len as _;
    }
    loop {
        // SAFETY: the message names the bytes, which are read, and the control message, with their lengths.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match (sent, io::Error::last_os_error()) {
            (0.., _) => return Ok(()),
            (_, error) if error.kind() == io::ErrorKind::Interrupted => {}
            (_, error) => return Err(error),
        }
    }
}

/// Waits for events, for something else that can be read, or for nobody to be at the other end any more: whether there are events, and
/// whether somebody is there.
pub(super) fn wait(
    [events, other]: [BorrowedFd<'_>; 2],
    end: &UnixStream,
    time: Option<Duration>,
) -> (bool, bool) {
    let watch = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
    let mut all = [
        watch(events.as_raw_fd(), libc::POLLIN),
        watch(end.as_raw_fd(), 0),
        watch(other.as_raw_fd(), libc::POLLIN),
    ];
    // Not before its time.
    let time = time.map_or(-1, |time| {
        libc::c_int::try_from(time.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: three live structures.
    #[allow(unsafe_code)]
    let result = unsafe { libc::poll(all.as_mut_ptr(), 3, time) };
    let [events, end, _] = all.map(|one| one.revents);
    if result < 0 { (false, true) } else { (events != 0, end & (libc::POLLHUP | libc::POLLERR) == 0) }
}

/// A child. `None` in the child itself. To be called while the process has one thread.
pub(crate) fn fork() -> io::Result<Option<libc::pid_t>> {
    // SAFETY: no other thread holds a lock that the child would wait for.
    #[allow(unsafe_code)]
    let number = check(unsafe { libc::fork() })?;
    Ok((number > 0).then_some(number))
}

/// What its parent is.
pub(crate) fn parent() -> libc::pid_t {
    // SAFETY: no arguments, cannot fail.
    #[allow(unsafe_code)]
    unsafe {
        libc::getppid()
    }
}

/// What ends a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The end of its parent.
    WithParent,
    /// It alone, whatever is sent to the session or the group of its parent.
    ByItself,
}

/// The child keeps nothing of its parent but these.
pub(crate) fn begin_alone(name: &CStr, ends: Ends, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    let option = |option, value: libc::c_ulong| {
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        check(unsafe { libc::prctl(option, value, none, none, none) })
    };
    match ends {
        Ends::WithParent => drop(option(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?),
        // SAFETY: no arguments. It fails only for the first of a group, which a child is not.
        #[allow(unsafe_code)]
        Ends::ByItself => drop(check(unsafe { libc::setsid() })?),
    }
    // Nobody looks into it, the machine neither.
    option(libc::PR_SET_DUMPABLE, 0)?;
    // SAFETY: a text with its final zero.
    #[allow(unsafe_code)]
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), none, none, none) })?;
    // What a terminal or a service manager sends to all of a group is for the machine, of whose end this process hears.
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it fills in the set.
    #[allow(unsafe_code)]
    check(unsafe { libc::sigfillset(all.as_mut_ptr()) })?;
    // SAFETY: the set is filled in.
    #[allow(unsafe_code)]
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) })?;
    // Whoever reads the machine's output does not wait for this process, and nothing is written to a device by mistake.
    let nothing = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        Ok(null) => OwnedFd::from(null),
        Err(_) => io::pipe()?.0.into(),
    };
    for fd in 0..3 {
        // SAFETY: no pointers; standard descriptors are nobody's in this process.
        #[allow(unsafe_code)]
        check(unsafe { libc::dup2(nothing.as_raw_fd(), fd) })?;
    }
    drop(nothing);
    close_all_but(&kept.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>())
}

/// Closes what else is open: images that were passed, and locks that others go by as long as the machine lives.
fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let entries = std::fs::read_dir("/proc/self/fd");
    let listed: Vec<RawFd> = match entries {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
        Err(_) => (3..1024).collect(),
    };
    for fd in listed.into_iter().filter(|fd| *fd > 2 && !kept.contains(fd)) {
        // SAFETY: no pointers. What owns it in this copy of the parent is never used again, as the child ends without its destructors.
        #[allow(unsafe_code)]
        unsafe {
            libc::close(fd)
        };
    }
    Ok(())
}

/// Ends the child, and nothing of its parent.
pub(crate) fn end() -> ! {
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(0)
    }
}
