//! Netlink sockets of this host's kernel (netlink(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::{Heard, LONGEST, Source};

/// Room for events that have not been read: a storage network that comes back has many at once.
const ROOM: libc::c_int = 4 << 20;
/// The kernel's own events about devices: the first group.
const DEVICES: u32 = 1;
/// Events of the Fibre Channel transport: group 4 (`SCSI_NL_GRP_FC_EVENTS`, which the kernel takes for a number, and not, as it is
/// written, for a set).
const TRANSPORT: u32 = 1 << 3;

/// The kernel's own events about devices, of which everybody may hear.
#[derive(Debug)]
pub struct Devices(OwnedFd);

impl Devices {
    /// Begins to listen.
    ///
    /// # Errors
    /// There is no netlink.
    pub fn open() -> io::Result<Self> {
        open(libc::NETLINK_KOBJECT_UEVENT, DEVICES).map(Self)
    }

    /// One event, into `into`, without waiting: false if somebody else has sent it.
    ///
    /// # Errors
    /// There is none now (`WouldBlock`); some were lost (ENOBUFS).
    pub fn receive(&self, into: &mut Vec<u8>) -> io::Result<bool> {
        receive(&self.0, into)
    }
}

impl AsFd for Devices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Events of the kernel.
#[derive(Debug)]
pub struct Sockets {
    devices: Devices,
    transport: Option<OwnedFd>,
}

impl Sockets {
    /// Opens both. Everybody may hear of devices, of the transport only who has CAP_NET_ADMIN, and in the host's own network alone: the
    /// error of that comes with the rest.
    ///
    /// # Errors
    /// There is no netlink.
    pub fn open() -> io::Result<(Self, Option<io::Error>)> {
        let devices = Devices::open()?;
        Ok(match open(libc::NETLINK_SCSITRANSPORT, TRANSPORT) {
            Ok(socket) => (Self { devices, transport: Some(socket) }, None),
            Err(error) => (Self { devices, transport: None }, Some(error)),
        })
    }
}

impl Sockets {
    /// Both, for who closes all others.
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        [Some(self.devices.as_fd()), self.transport.as_ref().map(AsFd::as_fd)].into_iter().flatten().collect()
    }
}

impl Source for Sockets {
    fn next(&mut self, into: &mut Vec<u8>, time: Option<Duration>) -> io::Result<Heard> {
        let transport = self.transport.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let [devices, transport] = wait([self.devices.0.as_raw_fd(), transport], time)?;
        let (socket, heard) = match (&self.transport, devices, transport) {
            (Some(socket), _, true) => (socket, Heard::Transport),
            (_, true, _) => (&self.devices.0, Heard::Device),
            _ => return Ok(Heard::Nothing),
        };
        match receive(socket, into) {
            Ok(true) => Ok(heard),
            // Of another program.
            Ok(false) => Ok(Heard::Nothing),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Heard::Lost),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
            Err(error) => Err(error),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A socket of one protocol, in some groups.
fn open(protocol: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let number = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: the kernel has just made it, so nobody else owns it.
    #[allow(unsafe_code)]
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let room = ROOM;
    // With rights to it as much as is asked for, else as much as there is for all. Less does as well.
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        let (room, len) = ((&raw const room).cast(), size_of_val(&room) as libc::socklen_t);
        // SAFETY: the kernel reads one int.
        #[allow(unsafe_code)]
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, room, len) };
        if set == 0 {
            break;
        }
    }
    let mut address = nobody();
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let (place, len) = ((&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
    // SAFETY: a live address, with its length.
    #[allow(unsafe_code)]
    check(unsafe { libc::bind(socket.as_raw_fd(), place, len) })?;
    Ok(socket)
}

fn nobody() -> libc::sockaddr_nl {
    // SAFETY: a structure of integers.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::zeroed()
    }
}

/// Which of them has something, within a time.
fn wait(sockets: [RawFd; 2], time: Option<Duration>) -> io::Result<[bool; 2]> {
    // One that is not there has a negative number, which the kernel passes by.
    let mut both = sockets.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let time = time.map_or(-1, |time| {
        libc::c_int::try_from(time.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: two live structures.
    #[allow(unsafe_code)]
    let result = unsafe { libc::poll(both.as_mut_ptr(), 2, time) };
    match check(result) {
        Ok(_) => Ok(both.map(|one| one.revents != 0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; 2]),
        Err(error) => Err(error),
    }
}

/// Whether there was a message of the kernel.
fn receive(socket: &OwnedFd, into: &mut Vec<u8>) -> io::Result<bool> {
    into.resize(LONGEST, 0);
    let mut from = nobody();
    let mut len = size_of_val(&from) as libc::socklen_t;
    let (place, room) = (into.as_mut_ptr().cast(), into.len());
    // SAFETY: the memory and the address are live, with their lengths.
    #[allow(unsafe_code)]
    let got = unsafe {
        libc::recvfrom(socket.as_raw_fd(), place, room, libc::MSG_TRUNC, (&raw mut from).cast(), &raw mut len)
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // A message that is too long is cut off, and what is there counts.
    into.truncate(got);
    // Programs with rights may send to the groups as well, and have a number.
    Ok(len as usize == size_of_val(&from) && from.nl_pid == 0 && from.nl_groups != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of this host: there may be events of its devices meanwhile, or none.
    #[test]
    fn the_kernel_is_listened_to() {
        let Ok((mut sockets, transport)) = Sockets::open() else { return };
        if let Some(error) = transport {
            let known = [libc::EPERM, libc::EACCES, libc::EPROTONOSUPPORT];
            assert!(known.contains(&error.raw_os_error().unwrap()), "{error}");
        }
        let mut message = Vec::new();
        let heard = sockets.next(&mut message, Some(Duration::from_millis(10))).unwrap();
        assert!([Heard::Nothing, Heard::Device, Heard::Transport].contains(&heard));
    }
}
