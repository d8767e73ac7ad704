//! The host memory of a copy.

use super::{CHUNK, Route};
use crate::scsi::disk::BUSY;
use crate::scsi::memory::{LEAST, Scratch};
use crate::scsi::sense::Failure;

/// What a command copies by way of, from its first piece to its last: a copy that has begun does not end for lack of memory.
#[derive(Default)]
pub(super) struct Buffer {
    scratch: Option<Scratch>,
    missing: bool,
}

impl Buffer {
    /// Whether there was no memory at all, for which the command answers BUSY before anything is copied.
    pub(super) fn is_missing(&self) -> bool {
        self.missing
    }

    /// Room for a piece when `left` bytes are to be copied. What is small because there was no more becomes larger as soon as
    /// there is.
    pub(super) fn for_more(&mut self, route: &Route<'_>, left: u64) -> Result<&Scratch, Failure> {
        // Whole blocks of any disk.
        let want = CHUNK.min(left).next_multiple_of(LEAST);
        let have = self.scratch.as_ref().map_or(0, |scratch| scratch.len());
        if have < want {
            let (from, to) = (&route.from.memory, &route.to.memory);
            let more = to.take(want, |_| 0, Some(from)).filter(|(len, _)| *len > have);
            if let Some(larger) = more.and_then(|(len, claim)| route.to.buffer(len, claim).ok()) {
                self.scratch = Some(larger);
            }
        }
        self.missing = self.scratch.is_none();
        self.scratch.as_ref().ok_or(BUSY)
    }

    /// Room for all of `len` bytes, if there is that much.
    pub(super) fn for_all(&mut self, route: &Route<'_>, len: u64) -> Option<&Scratch> {
        let claim = route.to.memory.take_all(len, Some(&route.from.memory))?;
        self.scratch = route.to.buffer(len, claim).ok();
        self.scratch.as_ref()
    }
}
