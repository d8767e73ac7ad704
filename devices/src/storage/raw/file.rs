//! Whole transfers on a host file.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::iothread::{Hold, Io, PieceLimits};
use crate::mem::{FromGuest, ToGuest};
use crate::storage::alignment::Direct;
use crate::storage::error::Action;
use crate::storage::{BlockError, BlockErrorKind};

/// A host file with its name for messages.
pub(super) struct HostFile {
    pub(super) file: Arc<File>,
    pub(super) name: Arc<str>,
    /// What offsets must be multiples of, in bytes.
    pub(super) block: u64,
    /// What the host takes at once.
    pub(super) pieces: PieceLimits,
    /// Forced writes that came short, so that they took more operations.
    pub(super) short: AtomicU64,
}

/// Where in which image something went wrong.
struct Place<'a> {
    name: &'a str,
    at: u64,
    len: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {} of \"{}\"", self.len, self.at, self.name)
    }
}

impl HostFile {
    pub(super) fn new(file: impl Into<Arc<File>>, name: &Arc<str>, block: u64, pieces: PieceLimits) -> Self {
        Self { file: file.into(), name: name.clone(), block, pieces, short: AtomicU64::new(0) }
    }

    /// The error of the host on `action` at a range.
    pub(super) fn error(&self, action: Action, at: u64, len: u64, source: io::Error) -> BlockError {
        BlockError::host(action, Place { name: &self.name, at, len }, source)
    }

    /// How much of a transfer is done for good: what follows must start at a block again.
    fn progress(&self, action: Action, at: u64, wanted: u64, moved: u64) -> Result<u64, BlockError> {
        let whole = if moved == wanted { moved } else { moved - moved % self.block };
        if whole > 0 {
            return Ok(whole);
        }
        let (kind, cause) = match action {
            Action::Read => (BlockErrorKind::ReadFailed, "the file ends before; was it truncated?"),
            _ => (BlockErrorKind::WriteFailed, "the host takes no more bytes"),
        };
        let place = Place { name: &self.name, at, len: wanted };
        Err(BlockError::new(kind, format!("{action} {place} failed: {cause}")))
    }
}

impl Direct for HostFile {
    async fn fetch(&self, io: &Io, mut at: u64, mut into: ToGuest, hold: &Hold) -> Result<(), BlockError> {
        while !into.is_empty() {
            let wanted = into.len();
            let (result, mem) = io.read_held(&self.file, at, into, self.pieces, hold).await;
            let moved = result.map_err(|e| self.error(Action::Read, at, wanted, e))?;
            let moved = self.progress(Action::Read, at, wanted, moved)?;
            into = mem;
            if moved == wanted {
                break;
            }
            into.advance(moved);
            at += moved;
        }
        Ok(())
    }

    async fn store(
        &self,
        io: &Io,
        mut at: u64,
        mut from: FromGuest,
        stable: bool,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        while !from.is_empty() {
            let wanted = from.len();
            let (result, mem) = io.write_held(&self.file, at, from, stable, self.pieces, hold).await;
            let moved = result.map_err(|e| self.error(Action::Write, at, wanted, e))?;
            let moved = self.progress(Action::Write, at, wanted, moved)?;
            from = mem;
            if moved == wanted {
                break;
            }
            if stable {
                self.short.fetch_add(1, Ordering::AcqRel);
            }
            from.advance(moved);
            at += moved;
        }
        Ok(())
    }
}
