//! UNIX sockets that are listened on: made so that nobody but the user ever gets in, and accepted from also when the process
//! is short of descriptors.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: libc::c_int = 128;
/// How long nobody is accepted when there is nothing to accept with: the connection waits, and this process does not ask
/// again and again.
const PAUSE: Duration = Duration::from_millis(500);

/// Why a path cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Something else is at the path.
    #[error("there is something else of this name")]
    Occupied,
    /// A live process listens there.
    #[error("another process listens on it")]
    InUse,
    /// From the system.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Listens at `path`, in place of a socket that nobody listens on any more. Only the user of this process can connect.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(ListenError::Occupied);
        }
        match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Err(ListenError::InUse),
        }
    }
    let socket = bind(path)?;
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket.into())
}

/// A socket at `path` that nobody can connect to yet, and then the user of this process only: Linux gives the name in the file
/// system the mode that the socket has by then. The mask of the process, which all its threads share, stays as it is.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let number = check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call just gave us this descriptor, which nobody else owns.
    #[allow(unsafe_code)]
    let socket = File::from(unsafe { OwnedFd::from_raw_fd(number) });
    socket.set_permissions(Permissions::from_mode(0o600))?;
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
        listen(&path).expect("what a dead process left is replaced");
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
                drop(listen(&path).unwrap());
                fs::remove_file(&path).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert!(seen > 0);
        assert_eq!(other, 0, "of {seen}");
    }

    #[test]
    fn what_is_there_is_not_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ListenError::InUse)));
        drop(first);
        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        assert!(matches!(listen(&file), Err(ListenError::Occupied)));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        let long = dir.path().join("x".repeat(108));
        assert!(matches!(listen(&long), Err(ListenError::System(_))));
    }
}
