//! Opens nodes on threads of their own: the kernel may keep who opens one as long as its device, or the adapter that it is at, does not
//! answer. None of the others waits for that.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use super::GenericError;
use super::lookout::{Arrival, Wanted};
use super::sysfs::{Device, Sysfs};
use crate::threads::{self, Kind};

/// Nodes that are being opened at a time, at most. Who comes when all of them hang waits for one.
pub(super) const MOST: usize = 64;

/// Opens a device as it is wanted.
pub(super) type Opener = dyn Fn(&Sysfs, &Wanted, &Device) -> Result<Arrival, GenericError> + Send + Sync;

/// What is to be opened.
pub(super) struct Order {
    /// By which it is known.
    pub(super) number: u64,
    pub(super) wanted: Wanted,
    pub(super) device: Device,
    /// Less than all nodes that it had are enough.
    pub(super) last: bool,
}

/// What has come of it.
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) opened: Result<Arrival, GenericError>,
}

/// Those that are under way.
pub(super) struct Openings {
    sysfs: Sysfs,
    open: Arc<Opener>,
    results: (Sender<Done>, Receiver<Done>),
    /// A byte for each result, behind it.
    bell: (Arc<PipeWriter>, PipeReader),
    count: Arc<AtomicUsize>,
}

/// One of them, until its thread ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Openings {
    pub(super) fn new(sysfs: Sysfs, open: Arc<Opener>) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self {
            sysfs,
            open,
            results: mpsc::channel(),
            bell: (Arc::new(writer), reader),
            count: Arc::default(),
        })
    }

    /// Can be read when something has come of one.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.1.as_fd()
    }

    /// Begins with one; false if there is no place, or no thread, for it now.
    pub(super) fn begin(&self, order: Order) -> bool {
        if self.count.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let place = Place(self.count.clone());
        let (open, sysfs) = (self.open.clone(), self.sysfs.clone());
        let (results, bell) = (self.results.0.clone(), self.bell.0.clone());
        let work = move || {
            let _place = place;
            let Order { number, wanted, device, last } = order;
            let opened = open(&sysfs, &wanted, &device).and_then(|arrival| {
                // What is not kept is closed here.
                if last || arrival.is_whole(&wanted) { Ok(arrival) } else { Err(wanted.lacks(&device)) }
            });
            if results.send(Done { number, opened }).is_ok() {
                let _ = (&*bell).write_all(&[0]);
            }
        };
        threads::spawn(Kind::Returns, "return-open", work).is_ok()
    }

    /// What has come since the last time.
    pub(super) fn take(&self) -> Vec<Done> {
        let mut done = Vec::new();
        while let Ok(one) = self.results.1.try_recv() {
            // It is there, or comes this moment.
            let _ = (&self.bell.1).read_exact(&mut [0]);
            done.push(one);
        }
        done
    }

    /// So many others are under way.
    #[cfg(test)]
    pub(super) fn hang(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Closes what nobody wants any more.
    pub(super) fn let_go(&self, opened: Result<Arrival, GenericError>) {
        if let Ok(arrival) = opened {
            // Without a thread it is closed here: there is no other place.
            let _ = threads::spawn(Kind::Returns, "return-close", move || drop(arrival));
        }
    }
}
