//! A frame in flight, as a value that has to be completed exactly once.

use std::rc::Rc;
use std::time::Instant;

use devices::scsi::Status as ScsiStatus;

use super::port::Done;
use super::worker::Worker;
use crate::spec::{Status, flag};

/// Offsets of what a completion writes into the frame's header.
const SENSE_LEN: u64 = 1;
const CMD_STATUS: u64 = 2;
const SCSI_STATUS: u64 = 3;

/// What identifies a frame to its driver, as it was at submission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) address: u64,
    pub(crate) context: u64,
    pub(crate) flags: u16,
    pub(crate) epoch: u64,
    /// When it was taken from the queue.
    pub(crate) taken: Instant,
}

/// A frame taken from the queue. Exactly one of the methods that take it ends it; one that is dropped otherwise is a
/// defect of this crate: it panics in debug builds, and completes as failed in release builds.
pub(crate) struct FrameToken {
    worker: Rc<Worker>,
    ticket: Ticket,
    open: bool,
}

impl FrameToken {
    pub(crate) fn new(worker: Rc<Worker>, ticket: Ticket) -> Self {
        Self { worker, ticket, open: true }
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Whether the frame is of a time before a reset: then nothing may be written for it.
    pub(crate) fn is_stale(&self) -> bool {
        self.worker.port().epoch() != self.ticket.epoch
    }

    /// Completes with `status`.
    pub(crate) fn complete(mut self, status: Status) {
        self.finish(status, 0, None);
    }

    /// Completes a SCSI command with a status other than GOOD. `sense`: how many bytes of sense data were written.
    pub(crate) fn complete_scsi(mut self, scsi_status: ScsiStatus, sense: u8) {
        // The driver of the firmware does not look at the SCSI status: it would use data that never came.
        let told = scsi_status == ScsiStatus::CheckCondition || self.worker.port().is_initialised();
        let status = if told { Status::ScsiDoneWithError } else { Status::ScsiIoFailed };
        self.finish(status, scsi_status as u8, Some(sense));
    }

    /// Ends the frame without completion and gives back what it takes to complete it later.
    pub(crate) fn park(mut self) -> Ticket {
        self.open = false;
        let Ticket { address, epoch, taken, .. } = self.ticket;
        self.worker.done(address, Done { epoch, context: None, taken });
        self.ticket
    }

    /// Status last: a driver that polls looks at nothing else.
    fn finish(&mut self, status: Status, scsi_status: u8, sense: Option<u8>) {
        self.open = false;
        let Ticket { address, context, flags, epoch, taken } = self.ticket;
        let mut done = Done { epoch, context: None, taken };
        if !self.is_stale() {
            let dma = self.worker.port().dma();
            let put = |offset: u64, value: u8| dma.write(address.wrapping_add(offset), &[value]);
            let written = sense
                .map_or(Ok(()), |len| put(SENSE_LEN, len))
                .and_then(|()| put(SCSI_STATUS, scsi_status))
                .and_then(|()| put(CMD_STATUS, status as u8));
            match written {
                Ok(()) if flags & flag::DONT_POST_IN_REPLY_QUEUE == 0 => done.context = Some(context),
                Ok(()) => {}
                Err(error) => devices::log_limited!(warn, "megasas: status not written: {error}"),
            }
        }
        self.worker.done(address, done);
    }
}

impl Drop for FrameToken {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if self.worker.port().is_closed() || std::thread::panicking() {
            self.open = false;
            return;
        }
        devices::log_limited!(error, "megasas: a frame was dropped without completion");
        self.finish(Status::ScsiIoFailed, 0, None);
        // Closed by now: this always fails, in debug builds only.
        debug_assert!(self.open, "a frame was dropped without completion");
    }
}
