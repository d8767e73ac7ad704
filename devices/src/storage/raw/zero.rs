//! Zeroing: by the host where it can, by writing where it cannot.

use std::sync::atomic::Ordering;

use super::{RawImage, note};
use crate::iothread::{Hold, Io};
use crate::storage::barrier::Barrier;
use crate::storage::error::Action;
use crate::storage::zeros::{ZEROS, zeros};
use crate::storage::{BlockError, Unmap};

/// The host is asked for this many bytes at once, so that an abort does not wait for terabytes.
const STEP: u64 = 1 << 30;
/// No file system has larger blocks, in bytes.
const FS_BLOCK: u64 = 64 << 10;

impl RawImage {
    /// Zeroes a range that was checked.
    pub(super) async fn make_zero(
        &self,
        io: &Io,
        at: u64,
        len: u64,
        unmap: Unmap,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        if self.cache.is_stable() {
            self.check_stability(Action::Zero)?;
        }
        let end = at + len;
        // A device zeroes whole blocks; with direct I/O, neighbours in a block must not be disturbed.
        let unit = self.host.block.max(u64::from(self.logical_block));
        let first = at.next_multiple_of(unit).min(end);
        let last = (end - end % unit).max(first);
        self.write_zeros(io, at, first - at, hold).await?;
        let mut done = first;
        while done < last {
            let step = STEP.min(last - done);
            if !self.host_zero(io, done, step, unmap, hold).await? {
                self.write_zeros(io, done, step, hold).await?;
            }
            done += step;
        }
        self.write_zeros(io, last, end - last, hold).await?;
        if self.cache.is_stable() && last > first {
            note(io, Barrier::Zeroed);
            self.sync(io, Action::Zero).await?;
        }
        Ok(())
    }

    /// Lets the host zero; false when it cannot.
    ///
    /// On block devices the kernel turns the same calls into WRITE ZEROES or WRITE SAME, with or without unmapping.
    async fn host_zero(
        &self,
        io: &Io,
        at: u64,
        len: u64,
        unmap: Unmap,
        outer: &Hold,
    ) -> Result<bool, BlockError> {
        let punch = (libc::FALLOC_FL_PUNCH_HOLE, &self.cannot_punch);
        let zero = (libc::FALLOC_FL_ZERO_RANGE, &self.cannot_zero);
        let ways = if unmap == Unmap::Allowed { [Some(punch), Some(zero)] } else { [Some(zero), None] };
        for (mode, impossible) in ways.into_iter().flatten() {
            if impossible.load(Ordering::Relaxed) {
                continue;
            }
            let hold = self.alignment.replace(at, len).await.with(outer);
            if self.logical_block == 1 && !(at | len).is_multiple_of(FS_BLOCK) {
                // A file system zeroes parts of its blocks in the page cache.
                self.stable.pass_page_cache();
            }
            let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
            let _change = self.stable.latch.unflushed.change();
            match io.allocate_held(&self.host.file, mode, at, len, &hold).await {
                Ok(()) => return Ok(true),
                Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    impossible.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err(self.host.error(Action::Zero, at, len, e)),
            }
        }
        Ok(false)
    }

    async fn write_zeros(&self, io: &Io, at: u64, len: u64, hold: &Hold) -> Result<(), BlockError> {
        let mut done = 0;
        while done < len {
            let step = ZEROS.min(len - done);
            self.put(io, at + done, zeros(step)?, self.cache.is_stable(), hold).await?;
            done += step;
        }
        Ok(())
    }
}
