//! Packet sockets (packet(7)), many frames with each system call, and the state of network interfaces.

#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_void};
use std::io::{Error, ErrorKind, Result};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Frames that one system call moves at most.
const BATCH: usize = 64;
/// The longest frame that is taken: an FCoE frame has 2158 bytes.
const LONGEST: usize = 2304;
/// What the kernel holds of frames that come and go. The protocol has no way to ask for a lost frame again, so that each costs a
/// timeout of the host's driver.
const HELD: c_int = 128 << 20;

/// A socket for frames of one type at one interface.
pub struct Socket {
    fd: OwnedFd,
}

/// Frames that came together.
pub struct Batch {
    buffers: Box<[[u8; LONGEST]; BATCH]>,
    lengths: Vec<usize>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { buffers: Box::new([[0; LONGEST]; BATCH]), lengths: Vec::with_capacity(BATCH) }
    }
}

impl Batch {
    /// The frames that the last call received.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().zip(&self.lengths).filter_map(|(buffer, length)| buffer.get(..*length))
    }
}

fn check(result: c_int) -> Result<c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

impl Socket {
    /// Frames of this type at the interface, in both directions. With type 0 none come in, and it can only send.
    pub fn open(interface: &str, ethertype: u16) -> Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: the name ends with a zero byte.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(Error::last_os_error());
        }
        // Of no type until it is bound, so that nothing of other interfaces comes in before.
        // SAFETY: it takes numbers alone.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new, and nobody else has it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        for (force, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            socket.set(force).or_else(|_| socket.set(plain))?;
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ethertype.to_be(),
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is as long as it says, and lives through the call.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
        Ok(socket)
    }

    fn set(&self, option: c_int) -> Result<()> {
        let (value, length) = (HELD, size_of::<c_int>() as libc::socklen_t);
        let pointer: *const c_void = (&raw const value).cast();
        // SAFETY: the value is as long as it says, and lives through the call.
        check(unsafe { libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, option, pointer, length) })?;
        Ok(())
    }

    /// Takes the frames that are there, as many as have a place; whether there are any. A frame that is too long is left out.
    pub fn receive(&self, batch: &mut Batch) -> Result<bool> {
        batch.lengths.clear();
        let mut vectors = batch
            .buffers
            .each_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: LONGEST });
        let mut messages = vectors.each_mut().map(message);
        let flags = libc::MSG_DONTWAIT;
        let count = BATCH as libc::c_uint;
        // SAFETY: each message has one vector, of one buffer of that length; all of them live through the call, and nothing
        // else looks at them meanwhile.
        let received = unsafe {
            libc::recvmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), count, flags, std::ptr::null_mut())
        };
        let received = match check(received) {
            Ok(received) => usize::try_from(received).unwrap_or_default(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        for message in messages.iter().take(received) {
            let cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            batch.lengths.push(if cut { 0 } else { message.msg_len as usize });
        }
        Ok(received > 0)
    }

    /// Sends frames, and waits until the kernel has taken them. Returns how many it did not take, for their length or because the
    /// interface is down.
    pub fn send(&self, frames: &[&[u8]]) -> usize {
        let mut lost = 0;
        for part in frames.chunks(BATCH) {
            let mut vectors: Vec<libc::iovec> = part
                .iter()
                .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = vectors.iter_mut().map(message).collect();
            let mut rest = &mut messages[..];
            while !rest.is_empty() {
                // SAFETY: each message has one vector, of the bytes of one frame, which are only read; all of them live through
                // the call.
                let sent = unsafe {
                    libc::sendmmsg(self.fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0)
                };
                let done = match check(sent) {
                    Ok(sent) => usize::try_from(sent).unwrap_or_default(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    // The first one cannot be sent.
                    Err(_) => {
                        lost += 1;
                        1
                    }
                };
                rest = rest.get_mut(done..).unwrap_or_default();
            }
        }
        lost
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A message of one vector.
fn message(vector: &mut libc::iovec) -> libc::mmsghdr {
    let msg_hdr = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vector,
        msg_iovlen: 1,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    libc::mmsghdr { msg_hdr, msg_len: 0 }
}

/// Waits until one of these can be read, for so many milliseconds at most: which ones can.
pub fn wait(fds: &[RawFd], milliseconds: u64) -> Result<Vec<RawFd>> {
    let ask = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut asked: Vec<libc::pollfd> = fds.iter().map(ask).collect();
    let time = c_int::try_from(milliseconds).unwrap_or(c_int::MAX);
    // SAFETY: the list is as long as it says, and lives through the call.
    match check(unsafe { libc::poll(asked.as_mut_ptr(), asked.len() as libc::nfds_t, time) }) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
        Err(_) => Ok(Vec::new()),
        Ok(_) => Ok(asked.iter().filter(|fd| fd.revents != 0).map(|fd| fd.fd).collect()),
    }
}

/// Takes an interface down, or brings it up.
pub fn set_link(interface: &str, is_up: bool) -> Result<()> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let mut request =
        libc::ifreq { ifr_name: [0; 16], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    if interface.len() >= request.ifr_name.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the request is what this command reads and writes, and the name in it ends with a zero byte.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    let up = libc::IFF_UP as i16;
    // SAFETY: the command before has written the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = if is_up { flags | up } else { flags & !up };
    // SAFETY: as above; it is only read.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}
