//! A raw file as the container of an image format: it grows, and its end need not be that of a sector.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CacheMode, RawImage, note};
use crate::iothread::{Hold, Io};
use crate::mem::{FromGuest, ToGuest};
use crate::storage::barrier::Barrier;
use crate::storage::error::Action;
use crate::storage::{BlockError, BlockErrorKind, Unmap};

impl RawImage {
    /// The name for messages.
    pub(in crate::storage) fn name(&self) -> &Arc<str> {
        &self.host.name
    }

    /// Length of the host's file in bytes.
    pub(in crate::storage) fn host_len(&self) -> u64 {
        self.host_len.load(Ordering::Relaxed)
    }

    /// Reads at `at`; bytes beyond the end of the file are zeros. The operations hold `hold`.
    pub(in crate::storage) async fn fill(
        &self,
        io: &Io,
        at: u64,
        mut into: ToGuest,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        let present = self.host_len().saturating_sub(at);
        if into.len() > present {
            fill_zeros(&ToGuest::new(into.split_off(present)));
        }
        if into.is_empty() {
            return Ok(());
        }
        self.get(io, at, into, hold).await
    }

    /// Writes at `at`, within the file's length. The operations hold `hold`.
    pub(in crate::storage) async fn store_at(
        &self,
        io: &Io,
        at: u64,
        from: FromGuest,
        stable: bool,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        self.within(Action::Write, at, from.len())?;
        self.put(io, at, from, stable, hold).await
    }

    /// Zeroes a range within the file's length. The operations hold `hold`.
    pub(in crate::storage) async fn zero_at(
        &self,
        io: &Io,
        at: u64,
        len: u64,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        self.within(Action::Zero, at, len)?;
        self.make_zero(io, at, len, Unmap::Keep, hold).await
    }

    /// Gives the space of a range back to the host, if the host can. The operation holds `hold`.
    pub(in crate::storage) async fn punch(&self, io: &Io, at: u64, len: u64, hold: &Hold) {
        if self.cannot_punch.load(Ordering::Relaxed) || self.within(Action::Zero, at, len).is_err() {
            return;
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let hold = self.alignment.replace(at, len).await.with(hold);
        let _change = self.stable.latch.unflushed.change();
        if let Err(e) = io.allocate_held(&self.host.file, mode, at, len, &hold).await
            && matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
        {
            self.cannot_punch.store(true, Ordering::Relaxed);
        }
    }

    /// Makes completed writes stable, unless the cache mode says not to care.
    pub(in crate::storage) async fn barrier(&self, io: &Io, which: Barrier) -> Result<(), BlockError> {
        if self.cache == CacheMode::Unsafe {
            return Ok(());
        }
        note(io, which);
        self.sync(io, Action::Flush).await
    }

    /// Makes the file reach `need` bytes if it is shorter, and gives it `ample` of them then. What is new reads as zeros.
    /// A block device has the room that it has, which the host may have made more.
    pub(in crate::storage) async fn extend(&self, io: &Io, need: u64, ample: u64) -> Result<(), BlockError> {
        if need <= self.host_len() {
            return Ok(());
        }
        if self.is_device {
            let has = self.look_at_length(io).await;
            if need <= has {
                return Ok(());
            }
            let name = &self.host.name;
            let context = format!("writing \"{name}\" failed: the device has {has} bytes and needs {need}");
            return Err(BlockError::new(BlockErrorKind::NoSpace, context + "; enlarge it"));
        }
        let (mut len, mut result) = (ample, self.reach(io, ample).await);
        // What is more than needed may be more than the host has. Whole pages for direct I/O.
        let enough = need.next_multiple_of(4096).min(ample);
        if result.as_ref().is_err_and(is_full) && enough < ample {
            (len, result) = (enough, self.reach(io, enough).await);
        }
        let place = || format!("\"{}\", which must grow to {len} bytes,", self.host.name);
        result.map_err(|e| BlockError::host(Action::Write, place(), e))?;
        self.host_len.fetch_max(len, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the file `len` bytes long if it is shorter.
    async fn reach(&self, io: &Io, len: u64) -> io::Result<()> {
        let file = self.host.file.clone();
        let _change = self.stable.latch.unflushed.change();
        #[cfg(any(test, feature = "testing"))]
        let noted = io.note_resize(&file, len);
        let result =
            io.blocking_on(&self.calls, move || set_min_len(&file, len)).await.and_then(|result| result);
        #[cfg(any(test, feature = "testing"))]
        noted(result.is_ok());
        result
    }

    fn within(&self, action: Action, at: u64, len: u64) -> Result<(), BlockError> {
        let end = self.host_len();
        if self.read_only {
            return self.check(action, at, 0);
        }
        if at.checked_add(len).is_some_and(|stop| stop <= end) {
            return Ok(());
        }
        let context = format!(
            "{action} {len} bytes at {at} of \"{}\" failed: the file has {end} bytes",
            self.host.name
        );
        Err(BlockError::new(BlockErrorKind::WriteFailed, context))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EFBIG | libc::ENOSPC | libc::EDQUOT))
}

/// Lengthens a file. For one owner, so that a late helper never shortens it.
fn set_min_len(file: &File, len: u64) -> io::Result<()> {
    if file.metadata()?.len() < len { file.set_len(len) } else { Ok(()) }
}

/// Fills memory with zeros.
pub(in crate::storage) fn fill_zeros(into: &ToGuest) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < into.len() {
        let moved = into.write_at(done, &ZEROS);
        if moved == 0 {
            return;
        }
        done += moved as u64;
    }
}
