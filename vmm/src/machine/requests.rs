//! Requests as they come on a control connection: lines, and descriptors with them (unix(7), `SCM_RIGHTS`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};

/// Longest request in bytes.
pub const LINE_MAX: usize = 64 << 10;
/// Descriptors with one request at most.
pub const GIVEN_MAX: usize = 16;
/// Bytes that are received at once.
const PIECE: usize = 4 << 10;

/// Descriptors that came with a request. Those that nobody takes are closed.
#[derive(Default)]
pub struct Given {
    descriptors: Vec<OwnedFd>,
    /// There were more than were received.
    lost: bool,
}

impl Given {
    /// These.
    #[cfg(test)]
    pub fn of(descriptors: Vec<OwnedFd>) -> Self {
        Self { descriptors, lost: false }
    }

    fn is_empty(&self) -> bool {
        self.descriptors.is_empty() && !self.lost
    }

    /// All of them, or none.
    pub fn take(&mut self) -> Result<Vec<OwnedFd>> {
        let Self { descriptors, lost } = std::mem::take(self);
        ensure!(
            !lost,
            "more descriptors came than are taken with one request ({GIVEN_MAX}), or than this process may have open \
             (LimitNOFILE= of its service, or ulimit -n)"
        );
        Ok(descriptors)
    }

    /// Only as many as one request may have: the others of all that come before it ends are closed at once.
    fn add(&mut self, more: Given) {
        self.lost |= more.lost || self.descriptors.len() + more.descriptors.len() > GIVEN_MAX;
        self.descriptors.extend(more.descriptors);
        if self.lost {
            self.descriptors.clear();
        }
    }
}

/// A line of a connection.
pub struct Line {
    /// With its end, if that came.
    pub bytes: Vec<u8>,
    /// It is too long: this is the beginning, and what follows is no request.
    pub cut: bool,
}

/// The requests of a connection.
pub struct Requests<'a> {
    stream: &'a UnixStream,
    buffer: Vec<u8>,
    /// So many bytes of the buffer have no end of a line.
    seen: usize,
    /// What has come for the next request that takes descriptors.
    pub given: Given,
}

impl<'a> Requests<'a> {
    /// Those that come on `stream`.
    pub fn new(stream: &'a UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), seen: 0, given: Given::default() }
    }

    /// The next line; `None` when there is no more.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let rest = self.buffer.get(self.seen..).unwrap_or_default();
            let end = rest.iter().position(|byte| *byte == b'\n').map(|at| self.seen + at + 1);
            if let Some(end) = end.filter(|end| *end <= LINE_MAX) {
                return Ok(Some(self.split(end, false)));
            }
            if self.buffer.len() >= LINE_MAX {
                return Ok(Some(self.split(LINE_MAX, true)));
            }
            self.seen = self.buffer.len();
            let mut piece = [0; PIECE];
            let (len, given) = receive(self.stream, &mut piece)?;
            self.given.add(given);
            self.buffer.extend_from_slice(piece.get(..len).unwrap_or_default());
            if len == 0 {
                let rest = self.buffer.len();
                return Ok((rest > 0).then(|| self.split(rest, false)));
            }
        }
    }

    fn split(&mut self, end: usize, cut: bool) -> Line {
        let rest = self.buffer.split_off(end);
        self.seen = 0;
        Line { bytes: std::mem::replace(&mut self.buffer, rest), cut }
    }

    /// A request was answered. Descriptors that came with it and that it did not take are closed; what follows it already may
    /// be the request that they are for, as the kernel joins what was sent before them with what was sent with them.
    pub fn answered(&mut self) {
        if self.buffer.is_empty() && !self.given.is_empty() {
            self.given = Given::default();
            devices::log_limited!(
                warn,
                "control socket: descriptors came with a request that takes none, and are closed; send them with add-fd"
            );
        }
    }
}

/// Receives bytes, and descriptors with them. What the kernel could not hand over is closed by it.
pub(crate) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Given)> {
    /// Room for a header with so many descriptors, aligned as the kernel wants it.
    const ROOM: usize = 2 + GIVEN_MAX * size_of::<RawFd>() / size_of::<u64>();
    let mut control = [0_u64; ROOM];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a structure of integers and pointers, for which zeros are a value.
    #[allow(unsafe_code)]
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let len = loop {
        // SAFETY: the message names `bytes` and `control` with their lengths, which live on and which nothing else uses.
        #[allow(unsafe_code)]
        let len = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(len) {
            Ok(len) => break len,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let lost = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok((len, Given { descriptors: descriptors(&control), lost }))
}

/// The descriptors of the control message that the kernel wrote, if it did (cmsg(3)): its length with the header's 16 bytes, level
/// and type, and the numbers. There is no other kind without a socket option.
fn descriptors(control: &[u64]) -> Vec<OwnedFd> {
    const RIGHTS: u64 = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
    let [len, RIGHTS, data @ ..] = control else { return Vec::new() };
    let count = usize::try_from(len.saturating_sub(16) / 4).unwrap_or(0);
    let numbers = data.iter().flat_map(|word| [*word as RawFd, (*word >> 32) as RawFd]).take(count);
    // SAFETY: the kernel has just made these descriptors for us, so nobody else owns them.
    #[allow(unsafe_code)]
    numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
