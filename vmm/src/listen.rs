//! UNIX sockets that are listened on: made so that nobody but the user ever gets in, and accepted from also when the process
//! is short of descriptors.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use crate::names::{self, Name};

/// SO_PASSRIGHTS (asm-generic/socket.h), from Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: libc::c_int = 128;
/// How long nobody is accepted when there is nothing to accept with: the connection waits, and this process does not ask
/// again and again.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// Why a path cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Something else is at the path.
    #[error("there is something else of this name; remove it or choose another path")]
    Occupied,
    /// A live process listens there.
    #[error("another process listens on it; end it or choose another path")]
    InUse,
    /// From the system.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// What may be sent to who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Bytes. Where the kernel knows how, descriptors are refused: they would be closed by who reads the bytes, and the last
    /// close of a file may wait for its server.
    Bytes,
    /// Descriptors, too.
    Descriptors,
}

/// Listens at `path`, in place of a socket that nobody listens on any more. Only the user of this process can connect. The
/// name goes when it is dropped, which has to be before the listener.
pub(crate) fn listen(path: &Path, takes: Takes) -> Result<(UnixListener, Name), ListenError> {
    // From the look at what is there until somebody can connect: another start takes a socket without a listener for dead.
    let _turn = names::turn(path);
    if is_taken(path)? {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    let socket = bind(path).map_err(|error| match error.kind() {
        // Where there are no locks.
        io::ErrorKind::AddrInUse => ListenError::InUse,
        _ => error.into(),
    })?;
    if takes == Takes::Bytes {
        refuse_descriptors(&socket);
    }
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok((socket.into(), Name::of(path)?))
}

/// What [`listen`] would find wrong with what is at `path`. Changes nothing.
pub(crate) fn look(path: &Path) -> Result<(), ListenError> {
    address(path)?;
    is_taken(path).map(drop)
}

/// Whether a dead socket is at `path`; an error if something lives there.
pub(crate) fn is_taken(path: &Path) -> Result<bool, ListenError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
    if !found.file_type().is_socket() {
        return Err(ListenError::Occupied);
    }
    match connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        // One that has more to accept than it may.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(ListenError::InUse),
        Err(e) => Err(e.into()),
        Ok(()) => Err(ListenError::InUse),
    }
}

/// Connects without waiting for a process that does not accept.
fn connect(path: &Path) -> io::Result<()> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let (address, length) = address(path)?;
    // SAFETY: the pointer and the length are those of a live address, which the call only reads.
    #[allow(unsafe_code)]
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

/// A socket at `path` that nobody can connect to yet, and then the user of this process only: Linux gives the name in the file
/// system the mode that the socket has by then. The mask of the process, which all its threads share, stays as it is.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(0)?;
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let (address, length) = address(path)?;
    // SAFETY: the pointer and the length are those of a live address, which the call only reads.
    #[allow(unsafe_code)]
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // Where a mode could be lost, nobody could connect in between: it is not listened on yet.
    if let Err(e) = fs::set_permissions(path, Permissions::from_mode(0o600)) {
        let _ = fs::remove_file(path);
        return Err(e);
    }
    Ok(socket.into())
}

/// False of an older kernel. Connections have it from the socket that is listened on.
fn refuse_descriptors(socket: &OwnedFd) -> bool {
    let off: libc::c_int = 0;
    let size = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the kernel reads an integer of this size, which lives on.
    #[allow(unsafe_code)]
    let set = unsafe {
        let (descriptor, value) = (socket.as_raw_fd(), (&raw const off).cast());
        libc::setsockopt(descriptor, libc::SOL_SOCKET, SO_PASSRIGHTS, value, size)
    };
    set == 0
}

fn socket(flags: libc::c_int) -> io::Result<File> {
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let number =
        check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) })?;
    // SAFETY: the call just gave us this descriptor, which nobody else owns.
    #[allow(unsafe_code)]
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no path for a socket"));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let length = size_of_val(&address) as libc::socklen_t;
    Ok((address, length))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What to do after `accept` failed for the socket of `whom`: how long to accept nobody, where trying again at once would
/// fail again. Tells the operator.
pub fn accept_failed(whom: &str, error: &io::Error) -> Option<Duration> {
    match error.raw_os_error() {
        // The client has gone in the meantime, or nothing was there.
        Some(libc::EINTR | libc::EAGAIN | libc::ECONNABORTED | libc::EPROTO) => None,
        Some(libc::EMFILE) => {
            devices::log_limited!(
                warn,
                "{whom}: a connection waits because this process is out of file descriptors; raise its limit \
                 (LimitNOFILE= of its service, or ulimit -n)"
            );
            Some(PAUSE)
        }
        Some(libc::ENFILE) => {
            devices::log_limited!(
                warn,
                "{whom}: a connection waits because the host is out of file descriptors; raise the sysctl fs.file-max"
            );
            Some(PAUSE)
        }
        _ => {
            devices::log_limited!(warn, "{whom}: a connection waits: {error}");
            Some(PAUSE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn the_mode_is_there_before_anybody_can_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let bound = bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(bound);
        listen(&path, Takes::Bytes).expect("what a dead process left is replaced");
    }

    /// Looks at the mode all the time while sockets come and go.
    #[test]
    fn no_other_mode_is_ever_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let ended = AtomicBool::new(false);
        let (seen, other) = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let (mut seen, mut other) = (0_u32, 0_u32);
                while !ended.load(Ordering::Relaxed) {
                    let Ok(found) = fs::symlink_metadata(&path) else { continue };
                    seen += 1;
                    other += u32::from(found.permissions().mode() & 0o777 != 0o600);
                }
                (seen, other)
            });
            for _ in 0..2000 {
                let (listener, name) = listen(&path, Takes::Bytes).unwrap();
                drop(name);
                drop(listener);
            }
            ended.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(seen > 0);
        assert_eq!(other, 0, "of {seen}");
    }

    /// Where the kernel knows how to refuse them; elsewhere both are taken.
    #[test]
    fn descriptors_are_taken_where_they_are_for_something() {
        use vmm_sys_util::sock_ctrl_msg::ScmSocket;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        for takes in [Takes::Descriptors, Takes::Bytes] {
            let (listener, name) = listen(&path, takes).unwrap();
            let mut sender = UnixStream::connect(&path).unwrap();
            let sent = sender.send_with_fds(&[b"x".as_slice()], &[0]);
            let refuses = takes == Takes::Bytes && refuse_descriptors(&socket(0).unwrap().into());
            assert_eq!(sent.is_err(), refuses, "{takes:?} {sent:?}");
            std::io::Write::write_all(&mut sender, b"y").unwrap();
            let received = std::io::Read::read(&mut listener.accept().unwrap().0, &mut [0; 2]).unwrap();
            assert!(received > 0);
            drop(name);
        }
    }

    #[test]
    fn what_is_there_is_not_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = listen(&path, Takes::Bytes).unwrap();
        assert!(matches!(listen(&path, Takes::Bytes), Err(ListenError::InUse)));
        drop(first);
        // One that accepts nobody is not waited for.
        let full = UnixListener::bind(&path).unwrap();
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        check(unsafe { libc::listen(full.as_raw_fd(), 0) }).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path, Takes::Bytes), Err(ListenError::InUse)));
        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        assert!(matches!(listen(&file, Takes::Bytes), Err(ListenError::Occupied)));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        let long = dir.path().join("x".repeat(108));
        assert!(matches!(listen(&long, Takes::Bytes), Err(ListenError::System(_))));
    }

    /// What a process left that is gone.
    fn leave(path: &Path) {
        let _ = fs::remove_file(path);
        drop(UnixListener::bind(path).unwrap());
    }

    #[test]
    fn of_many_starts_at_once_one_has_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        const STARTS: usize = 8;
        let barrier = Barrier::new(STARTS);
        for round in 0..200 {
            leave(&path);
            let all: Vec<_> = thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    listen(&path, Takes::Bytes)
                };
                let threads: Vec<_> = (0..STARTS).map(|_| scope.spawn(start)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let winners = all.iter().filter(|result| result.is_ok()).count();
            let losers = all.iter().filter(|result| matches!(result, Err(ListenError::InUse))).count();
            assert_eq!((winners, losers), (1, STARTS - 1), "round {round}");
            assert!(UnixStream::connect(&path).is_ok(), "round {round}");
        }
    }

    #[test]
    fn the_socket_of_another_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, name) = listen(&path, Takes::Bytes).unwrap();
        fs::remove_file(&path).unwrap();
        let (other, others) = listen(&path, Takes::Bytes).unwrap();
        drop(name);
        drop(listener);
        UnixStream::connect(&path).expect("the other one's is there");
        drop(others);
        assert!(fs::symlink_metadata(&path).is_err());
        drop(other);
    }
}
