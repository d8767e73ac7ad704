//! The process itself: from its list, and then for good, it only listens to the kernel.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use devices::scsi::generic::{Lookout, Wanted};
use fc::watch::{Devices, LONGEST};

use super::message::{self, LENGTH};
use super::sys::Ends;
use super::{sys, uevent};
use crate::config::Sandbox;
use crate::jail;

/// Where events come from.
pub(super) trait Events {
    /// What is ready to be read when there is one.
    fn fd(&self) -> BorrowedFd<'_>;

    /// See [`Devices::receive`].
    fn next(&mut self, into: &mut Vec<u8>) -> io::Result<bool>;
}

/// Those of the kernel.
pub(super) struct Kernel(pub(super) Devices);

impl Events for Kernel {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn next(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        self.0.receive(into)
    }
}

/// The whole life of the child.
pub(super) fn live(machine: &UnixStream, events: Devices, sandbox: Sandbox, parent: u32) -> io::Result<()> {
    sys::begin_alone(c"vmm-keeper", Ends::WithParent, &[machine.as_fd(), events.as_fd()])?;
    // It may have ended before it was asked to take this process along.
    if u32::try_from(sys::parent()) != Ok(parent) {
        return Ok(());
    }
    let wanted = list(machine)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let lookout = Lookout::new(wanted)?;
    jail::confine_keeper(sandbox).map_err(io::Error::other)?;
    serve(&mut Kernel(events), machine, lookout)
}

/// The list: until the machine has shut its end for writing, so that nothing comes from there ever again.
fn list(mut machine: &UnixStream) -> io::Result<Vec<Wanted>> {
    let (mut all, mut bytes) = (Vec::new(), vec![0; LENGTH]);
    loop {
        let len = machine.read(&mut bytes)?;
        if len == 0 {
            return Ok(all);
        }
        let wanted = bytes.get(..len).and_then(message::read_wanted);
        all.push(wanted.ok_or(io::ErrorKind::InvalidData)?);
    }
}

/// Looks for devices until nobody is there who wants them.
pub(super) fn serve(events: &mut dyn Events, machine: &UnixStream, mut lookout: Lookout) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(LONGEST);
    // What has happened since they were opened, by what is there, and then by what the kernel has said.
    lookout.look(Instant::now());
    read(events, &mut bytes, &mut lookout)?;
    loop {
        for report in lookout.work(Instant::now()) {
            let (bytes, files) = message::report(report);
            sys::send(machine, &bytes, &files)?;
        }
        let time = lookout.next().map(|next| next.saturating_duration_since(Instant::now()));
        let (ready, wanted) = sys::wait([events.fd(), lookout.fd()], machine, time);
        if !wanted {
            return Ok(());
        }
        if ready {
            read(events, &mut bytes, &mut lookout)?;
        }
    }
}

/// Takes all events that are there.
fn read(events: &mut dyn Events, bytes: &mut Vec<u8>, lookout: &mut Lookout) -> io::Result<()> {
    loop {
        let now = Instant::now();
        match events.next(bytes) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(event) = uevent::parse(bytes) {
                    if event.goes {
                        lookout.removed(event.path, event.node, now)
                    } else {
                        lookout.changed(event.path, now)
                    }
                }
            }
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::WouldBlock, _) => return Ok(()),
                (io::ErrorKind::Interrupted, _) => {}
                (_, Some(libc::ENOBUFS)) => lookout.missed(now),
                _ => return Err(error),
            },
        }
    }
}
