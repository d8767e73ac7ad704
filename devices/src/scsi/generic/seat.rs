//! Where devices are, or were, and those that cannot be opened there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::GenericError;
use super::sysfs::Device;

/// How soon a device is tried again that could not be opened. To try is to cause events.
pub(super) const RETRY: Duration = Duration::from_secs(60);

/// A directory in sysfs.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) directory: PathBuf,
    number: u64,
    /// The device has not gone.
    pub(super) taken: bool,
    /// The numbers of its nodes, as udev keeps them, if it is known which it had.
    nodes: Vec<String>,
}

impl Seat {
    pub(super) fn of(device: &Device) -> Option<Self> {
        let (directory, number) = (device.directory.clone(), device.number().ok()?);
        Some(Self { directory, number, taken: true, nodes: Vec::new() })
    }

    /// That of a device which was there a moment ago, with this number.
    pub(super) fn had_by(device: &Device, number: u64) -> Self {
        let mut seat = Self { directory: device.directory.clone(), number, taken: true, nodes: Vec::new() };
        if seat.lives() {
            seat.learn(device);
        }
        seat
    }

    /// Remembers the nodes that the device has.
    pub(super) fn learn(&mut self, device: &Device) {
        self.nodes = device.node_numbers();
    }

    /// The numbers of the nodes that it had, once.
    pub(super) fn take_nodes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.nodes)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.number == other.number && self.directory == other.directory
    }

    /// Whether the device has this one still.
    pub(super) fn is_of(&self, device: &Device) -> bool {
        self.directory == device.directory && device.number().is_ok_and(|number| number == self.number)
    }

    /// Whether the same directory is still there. Where nobody can say, it is.
    pub(super) fn lives(&self) -> bool {
        match fs::metadata(&self.directory) {
            Ok(found) => found.ino() == self.number,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

/// A device that could not be opened, although it was tried for long.
struct Failure {
    index: usize,
    seat: Seat,
    error: String,
    again: Instant,
}

/// All of them.
#[derive(Default)]
pub(super) struct Failures(Vec<Failure>);

impl Failures {
    /// One that may be tried again after [`RETRY`]: whether that is news.
    pub(super) fn add(&mut self, index: usize, seat: &Seat, error: &GenericError, now: Instant) -> bool {
        let (error, again) = (error.to_string(), now + RETRY);
        if let Some(known) = self.0.iter_mut().find(|known| known.seat.is(seat)) {
            (known.index, known.again) = (index, again);
            return std::mem::replace(&mut known.error, error.clone()) != error;
        }
        self.0.retain(|known| known.seat.lives());
        self.0.push(Failure { index, seat: seat.clone(), error, again });
        true
    }

    /// When the device there may be tried again, if it could not be opened.
    pub(super) fn again(&self, seat: &Seat) -> Option<Instant> {
        self.0.iter().find(|known| known.seat.is(seat)).map(|known| known.again)
    }

    /// The unit with this number has its device.
    pub(super) fn forget(&mut self, index: usize, seat: &Seat) {
        self.0.retain(|known| known.index != index && !known.seat.is(seat));
    }
}
