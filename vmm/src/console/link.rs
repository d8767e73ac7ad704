//! Where the serial line leads: what there is to read from and to write to at the moment.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::ConsoleError;
use super::sys;
use super::terminal::{self, RawTerminal};
use crate::listen::{self, ListenError, Takes, accept_failed};
use crate::names::{self, Name};
use crate::output_file;

/// How often a pseudoterminal is asked whether somebody opened it (nothing tells), and a terminal whether it is ours.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The other end of the serial line.
pub(super) enum Link {
    /// Two descriptors, usually standard input and output.
    Stdio(Stdio),
    /// Output only.
    File(File),
    /// The master side of a pseudoterminal.
    Pty(Pty),
    /// A server for one client at a time.
    Socket(Socket),
}

pub(super) struct Stdio {
    input: Option<File>,
    output: File,
    /// It is a file, at a position that others share.
    regular: bool,
    terminal: Option<RawTerminal>,
}

pub(super) struct Pty {
    /// The link, once it is there. It goes before the master.
    name: Option<Name>,
    link: Option<PathBuf>,
    slave: String,
    master: File,
    connected: bool,
}

pub(super) struct Socket {
    /// It goes before the listener.
    _name: Name,
    listener: UnixListener,
    client: Option<UnixStream>,
    /// The client will send nothing more, but may still read.
    input_ended: bool,
    /// Until then nobody is accepted: the last time failed.
    not_before: Option<Instant>,
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// Nothing ever again from this peer.
    Ended,
    /// The peer left; another may come.
    Left,
}

impl Link {
    /// Input and output of the process, a terminal being made raw. `changed` is told when that begins and ends.
    pub(super) fn stdio(
        input: BorrowedFd<'_>,
        output: BorrowedFd<'_>,
        changed: fn(bool),
    ) -> Result<Self, ConsoleError> {
        let output = private_output(output).map_err(ConsoleError::Resources)?;
        let terminal = RawTerminal::enter(input, changed).map_err(ConsoleError::Resources)?;
        let input = sys::duplicate(input).map_err(ConsoleError::Resources)?;
        let regular = output_file::is_regular(&output);
        Ok(Self::Stdio(Stdio { input: Some(input), output, regular, terminal }))
    }

    /// Whether somebody types here.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Stdio(Stdio { terminal: Some(_), .. }))
    }

    /// A file, which [`Self::begin`] empties.
    pub(super) fn file(path: &Path) -> Result<Self, ConsoleError> {
        let file =
            output_file::open(path).map_err(|source| ConsoleError::File { path: path.into(), source })?;
        Ok(Self::File(file))
    }

    /// The machine starts: a file is emptied, and the link to a pseudoterminal made. Before, these may be those of a machine
    /// that runs.
    pub(super) fn begin(&mut self) -> Result<(), ConsoleError> {
        match self {
            Self::File(file) => output_file::empty(file).map_err(ConsoleError::Empty),
            Self::Pty(Pty { name, link: Some(link), slave, .. }) => {
                *name = Some(place_link(link, slave)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A new pseudoterminal, and its path. `link` is to become a symbolic link to it when the machine starts.
    pub(super) fn pty(link: Option<&Path>) -> Result<(Self, String), ConsoleError> {
        let master = sys::open_pty_master().map_err(ConsoleError::Pty)?;
        let slave = sys::pty_slave_path(&master).map_err(ConsoleError::Pty)?;
        // Opened and closed once: only then does the master show a hang-up while nobody is there.
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&slave);
        let opened = opened.map_err(ConsoleError::Pty)?;
        // Where group tty may write to terminals it would type into the guest.
        if let Err(error) = opened.set_permissions(Permissions::from_mode(0o600)) {
            tracing::warn!("[serial] mode \"pty\": cannot keep others off {slave}: {error}");
        }
        let settings = sys::get_terminal(opened.as_raw_fd()).map_err(ConsoleError::Pty)?;
        sys::set_terminal(opened.as_raw_fd(), &sys::raw_settings(settings)).map_err(ConsoleError::Pty)?;
        if let Some(link) = link {
            is_replaceable(link)?;
        }
        let pty =
            Pty { name: None, link: link.map(Into::into), slave: slave.clone(), master, connected: false };
        Ok((Self::Pty(pty), slave))
    }

    /// A listening socket. One that a dead process left behind is replaced.
    pub(super) fn socket(path: &Path) -> Result<Self, ConsoleError> {
        let (listener, name) = listen::listen(path, Takes::Bytes).map_err(|error| no_socket(path, error))?;
        listener.set_nonblocking(true).map_err(|error| no_socket(path, error.into()))?;
        Ok(Self::Socket(Socket { _name: name, listener, client: None, input_ended: false, not_before: None }))
    }

    /// Where to read, now.
    pub(super) fn input_fd(&self) -> Option<RawFd> {
        match self {
            Self::Stdio(stdio) if stdio.is_terminal_of_others() => None,
            Self::Stdio(stdio) => stdio.input.as_ref().map(AsRawFd::as_raw_fd),
            Self::File(_) => None,
            Self::Pty(pty) => pty.connected.then(|| pty.master.as_raw_fd()),
            Self::Socket(socket) => socket.client.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// Whether the input has more than hang-ups to offer.
    pub(super) fn input_open(&self) -> bool {
        !matches!(self, Self::Socket(Socket { input_ended: true, .. }))
    }

    /// Where to write, now.
    pub(super) fn output_fd(&self) -> Option<RawFd> {
        match self {
            Self::Stdio(stdio) => Some(stdio.output.as_raw_fd()),
            Self::File(file) => Some(file.as_raw_fd()),
            Self::Pty(_) | Self::Socket(_) => self.input_fd(),
        }
    }

    /// Where clients come, while there is none.
    pub(super) fn listener_fd(&self) -> Option<RawFd> {
        match self {
            Self::Socket(socket) if socket.client.is_none() && socket.pause().is_none() => {
                Some(socket.listener.as_raw_fd())
            }
            _ => None,
        }
    }

    /// After which time to call [`Self::ask`] because no descriptor will tell.
    pub(super) fn ask_again(&self) -> Option<Duration> {
        match self {
            Self::Pty(pty) if !pty.connected => Some(ASK_AGAIN),
            Self::Stdio(stdio) if stdio.is_terminal_of_others() => Some(ASK_AGAIN),
            // It came back in the hands of another job, and to be ours again takes no signal.
            Self::Stdio(stdio) if stdio.terminal.is_some() && terminal::is_due() => Some(ASK_AGAIN),
            Self::Socket(socket) if socket.client.is_none() => socket.pause(),
            _ => None,
        }
    }

    /// Looks for what no descriptor tells. Returns whether somebody has connected.
    pub(super) fn ask(&mut self) -> bool {
        match self {
            Self::Pty(pty) if !pty.connected => {
                let mut entries = [sys::entry(Some(pty.master.as_raw_fd()), 0)];
                let asked = sys::poll(&mut entries, Some(Duration::ZERO));
                let [entry] = entries;
                pty.connected = asked.is_ok() && entry.revents & libc::POLLHUP == 0;
                pty.connected
            }
            Self::Stdio(_) => {
                terminal::renew();
                false
            }
            _ => false,
        }
    }

    /// Takes a client that waits. Returns whether there was one.
    pub(super) fn accept(&mut self) -> bool {
        let Self::Socket(socket) = self else { return false };
        match socket.listener.accept() {
            Ok((client, _)) if client.set_nonblocking(true).is_ok() => {
                socket.client = Some(client);
                socket.input_ended = false;
                true
            }
            Ok(_) => false,
            Err(error) => {
                let pause = accept_failed("console", &error);
                socket.not_before = pause.and_then(|pause| Instant::now().checked_add(pause));
                false
            }
        }
    }

    /// Reads what is there. `hung_up`: polling showed that the other side is gone altogether.
    pub(super) fn read(&mut self, buffer: &mut [u8], hung_up: bool) -> Input {
        let result = match self {
            // It was ours when the wait for it began, and reading would stop the process.
            Self::Stdio(stdio) if stdio.is_terminal_of_others() => return Input::Nothing,
            Self::Stdio(Stdio { input: Some(input), .. }) => input.read(buffer),
            Self::Stdio(_) | Self::File(_) => Ok(0),
            Self::Pty(pty) => pty.master.read(buffer),
            Self::Socket(Socket { client: Some(client), .. }) => client.read(buffer),
            Self::Socket(_) => Ok(0),
        };
        match result {
            Ok(0) => {}
            Ok(count) => return Input::Bytes(count),
            Err(error) if is_temporary(&error) => return Input::Nothing,
            Err(_) => {}
        }
        match self {
            Self::Stdio(stdio) => {
                stdio.input = None;
                Input::Ended
            }
            Self::File(_) => Input::Ended,
            Self::Socket(socket) if !hung_up => {
                socket.input_ended = true;
                Input::Ended
            }
            Self::Pty(_) | Self::Socket(_) => self.leave(),
        }
    }

    /// Writes some of `bytes`; returns how many, 0 when the reader is slow. An error means that the reader is gone.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = match self {
            Self::Stdio(stdio) => {
                if stdio.regular {
                    output_file::follow(&stdio.output);
                }
                stdio.output.write(bytes)
            }
            Self::File(file) => file.write(bytes),
            Self::Pty(pty) => pty.master.write(bytes),
            Self::Socket(Socket { client: Some(client), .. }) => client.write(bytes),
            Self::Socket(_) => Ok(bytes.len()),
        };
        match result {
            Err(error) if is_temporary(&error) => Ok(0),
            result => result,
        }
    }

    /// Lets go of the peer.
    pub(super) fn leave(&mut self) -> Input {
        match self {
            Self::Pty(pty) => pty.connected = false,
            Self::Socket(socket) => socket.client = None,
            Self::Stdio(_) | Self::File(_) => {}
        }
        Input::Left
    }
}

/// What is wrong with an output file that is there.
pub(super) fn check_file(path: &Path) -> Result<(), ConsoleError> {
    output_file::look(path).map_err(|source| ConsoleError::File { path: path.into(), source })
}

/// What is wrong with what is at the path of a socket.
pub(super) fn check_socket(path: &Path) -> Result<(), ConsoleError> {
    listen::look(path).map_err(|error| no_socket(path, error))
}

fn no_socket(path: &Path, error: ListenError) -> ConsoleError {
    let path = path.into();
    match error {
        ListenError::Occupied => ConsoleError::Occupied { path, expected: "socket" },
        ListenError::InUse => ConsoleError::SocketInUse { path },
        ListenError::System(source) => ConsoleError::Socket { path, source },
    }
}

impl Stdio {
    /// Whether another job has the terminal.
    fn is_terminal_of_others(&self) -> bool {
        self.input.is_some() && self.terminal.as_ref().is_some_and(RawTerminal::in_background)
    }
}

impl Socket {
    /// How long nobody is to be accepted.
    fn pause(&self) -> Option<Duration> {
        self.not_before?.checked_duration_since(Instant::now()).filter(|pause| !pause.is_zero())
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn place_link(link: &Path, target: &str) -> Result<Name, ConsoleError> {
    let failed = |source| ConsoleError::Link { path: link.into(), source };
    let _turn = names::turn(link);
    if is_replaceable(link)? {
        fs::remove_file(link).map_err(failed)?;
    }
    std::os::unix::fs::symlink(target, link).map_err(failed)?;
    Name::of(link).map_err(failed)
}

/// Whether there is a link to a pseudoterminal, or to one that is gone, as an earlier run leaves it; an error for anything else.
fn is_replaceable(link: &Path) -> Result<bool, ConsoleError> {
    let Ok(found) = fs::symlink_metadata(link) else { return Ok(false) };
    let left = fs::read_link(link).is_ok_and(|old| old.starts_with("/dev/pts")) || !link.exists();
    if found.is_symlink() && left {
        return Ok(true);
    }
    Err(ConsoleError::Occupied { path: link.into(), expected: "link to a pseudoterminal" })
}

/// Standard output under a file description of our own, so that making it non-blocking does not change it for the
/// shell and others who share it. What cannot be reopened (a socket), or must not be because the position is shared
/// (a regular file), is used as it is: the console polls before it writes.
fn private_output(output: BorrowedFd<'_>) -> io::Result<File> {
    let shared = sys::duplicate(output)?;
    let kind = shared.metadata()?.file_type();
    if kind.is_fifo() || kind.is_char_device() {
        let path = format!("/proc/self/fd/{}", output.as_fd().as_raw_fd());
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        if let Ok(file) = OpenOptions::new().write(true).custom_flags(flags).open(path) {
            return Ok(file);
        }
    }
    Ok(shared)
}
