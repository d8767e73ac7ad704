//! Making data stable: flushes and forced writes, and what their failures mean. See [`crate::storage::stability`].

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::RawImage;
use super::forcing::Forcing;
use crate::iothread::{Hold, Io, is_untried, is_withheld};
use crate::mem::FromGuest;
use crate::storage::error::Action;
use crate::storage::stability::{Attempt, Stability};
use crate::storage::{BlockError, BlockErrorKind, Durability};

/// What an image knows of its stability.
pub(super) struct Stable {
    pub(super) latch: Arc<Stability>,
    /// The same file with an error cursor of its own; `None` where nothing is synced, and where all that there is was passed
    /// as one descriptor. Nothing is ever written through it: a write, even one that is not forced (Linux, `nfs_file_write`),
    /// may take the error of data that was lost before.
    audit: Option<Arc<File>>,
    /// Data may be in the host's page cache.
    page_cache: AtomicBool,
    forcing: Forcing,
    /// The device writes a single block through its cache: what fails then is that write and no other.
    forces: bool,
}

impl Stable {
    pub(super) fn new(name: &Arc<str>, audit: Option<Arc<File>>, page_cache: bool, forcing: Forcing) -> Self {
        let (latch, page_cache) = (Stability::new(name.clone()), AtomicBool::new(page_cache));
        Self { latch, audit, page_cache, forcing, forces: false }
    }

    /// On a device that does FUA itself, or has no cache, if `forces`.
    pub(super) fn on(self, forces: bool) -> Self {
        Self { forces, ..self }
    }

    /// For a forced write that is no attempt.
    pub(super) fn hold_alone(&self) -> Hold {
        if self.forces { Hold::none() } else { self.latch.hold_alone() }
    }

    fn has_page_cache(&self) -> bool {
        self.page_cache.load(Ordering::Acquire)
    }

    /// Whether forced writes and flushes take more than one operation of the host.
    pub(super) fn takes_more(&self) -> bool {
        self.forcing == Forcing::Sync
    }

    /// From now on there may be data in the page cache, although the image is opened for direct I/O.
    pub(super) fn pass_page_cache(&self) {
        self.page_cache.store(true, Ordering::Release);
    }

    /// A forced write begins. Without the page cache no other takes its error: see [`RawImage::judge`].
    pub(super) fn attempt_write(&self) -> Result<Option<Attempt>, BlockError> {
        self.latch.check(Action::Write)?;
        Ok(self.has_page_cache().then(|| self.latch.attempt()))
    }
}

impl RawImage {
    /// Whether the image cannot be made stable any more.
    pub(in crate::storage) fn has_failed(&self) -> bool {
        self.stable.latch.has_failed()
    }

    /// From now on nothing more is asked of the image than to be made whole.
    pub(in crate::storage) fn begin_closing(&self) {
        self.stable.latch.begin_closing();
    }

    /// Fails where the image cannot be made stable any more: then nothing may be published either.
    pub(in crate::storage) fn check_stability(&self, action: Action) -> Result<(), BlockError> {
        self.stable.latch.check(action)
    }

    /// What syncs go through.
    pub(super) fn audit(&self) -> &Arc<File> {
        self.stable.audit.as_ref().unwrap_or(&self.host.file)
    }

    /// Makes everything stable that was written.
    pub(super) async fn sync(&self, io: &Io, action: Action) -> Result<(), BlockError> {
        self.stable.latch.check(action)?;
        let attempt = self.stable.latch.attempt();
        self.try_sync(io, attempt, action).await
    }

    /// Syncs for `attempt`. A sync that the kernel never began says nothing of the data: it fails, and the next one counts.
    async fn try_sync(&self, io: &Io, attempt: Attempt, action: Action) -> Result<(), BlockError> {
        let since = self.stable.latch.now();
        let result = self.sync_descriptors(io, &attempt).await;
        match result {
            Ok(()) => {
                self.stable.latch.settle(since);
                attempt.succeeded(action).await
            }
            Err(error) if is_untried(&error) || is_withheld(&error) => {
                Err(BlockError::host(action, format_args!("\"{}\"", self.host.name), error))
            }
            Err(error) => Err(attempt.failed(action, error)),
        }
    }

    /// Where a sync is of the descriptor, those that write come first. The audit says more than they do only of what is in
    /// the page cache.
    async fn sync_descriptors(&self, io: &Io, attempt: &Attempt) -> io::Result<()> {
        if self.stable.takes_more() {
            sync(io, &self.host.file, attempt).await?;
            if let Some(edge) = &self.edge {
                sync(io, &edge.file, attempt).await?;
            }
            if !self.stable.has_page_cache() || self.stable.audit.is_none() {
                return Ok(());
            }
        }
        sync(io, self.audit(), attempt).await
    }

    /// A forced write whose range was checked.
    pub(super) async fn put_stable(
        &self,
        io: &Io,
        at: u64,
        from: FromGuest,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        if self.is_at_edge(at, from.len()) {
            self.stable.pass_page_cache();
        }
        if self.stable.takes_more() {
            return Box::pin(self.put_and_sync(io, at, from, hold)).await;
        }
        let Some(attempt) = self.stable.attempt_write()? else {
            let alone = self.stable.hold_alone().with(hold);
            let result = self.place(io, at, from, true, &alone).await;
            if let Err(BlockError { source: Some(error), kind, .. }) = &result
                && *kind != BlockErrorKind::ReadFailed
            {
                self.judge(Durability::Stable, error)?;
            }
            return result;
        };
        let short = || self.host.short.load(Ordering::Acquire);
        let before = short();
        let both = attempt.hold().with(hold);
        let result = self.place(io, at, from, true, &both).await;
        // Others under way wait for it, as this one does for them.
        drop(both);
        match result {
            Ok(()) if short() == before => attempt.succeeded(Action::Write).await,
            Ok(()) => Box::pin(self.suspect(io, attempt, None)).await,
            // Where blocks are shared with others, they are read before.
            Err(error) if error.kind == BlockErrorKind::ReadFailed => Err(error),
            Err(error) => {
                Box::pin(self.suspect(io, attempt, error.source.as_ref())).await?;
                Err(error)
            }
        }
    }

    /// A forced write as a plain one and a sync: one attempt.
    async fn put_and_sync(&self, io: &Io, at: u64, from: FromGuest, hold: &Hold) -> Result<(), BlockError> {
        self.stable.latch.check(Action::Write)?;
        let attempt = self.stable.latch.attempt();
        let change = self.stable.latch.unflushed.change();
        if !self.stable.has_page_cache() {
            // The error of the write is its own.
            self.place(io, at, from, false, hold).await?;
            drop(change);
            return self.try_sync(io, attempt, Action::Write).await;
        }
        let both = attempt.hold().with(hold);
        let result = self.place(io, at, from, false, &both).await;
        drop((both, change));
        match result {
            Ok(()) => self.try_sync(io, attempt, Action::Write).await,
            Err(error) if error.kind == BlockErrorKind::ReadFailed => Err(error),
            Err(error) => {
                self.suspect(io, attempt, error.source.as_ref()).await?;
                Err(error)
            }
        }
    }

    /// A forced write past the page cache failed with `error`. A device that cannot force single writes is flushed for it
    /// (Linux, block/blk-flush.c), and so is that of a file system which has to write more than the data. A flush that
    /// fails is about all that was written before, and the device may say so only this once.
    pub(in crate::storage) fn judge(
        &self,
        durability: Durability,
        error: &io::Error,
    ) -> Result<(), BlockError> {
        let forced = self.must_be_stable(durability) && !self.stable.forces;
        if !forced || may_be_refusal(error) || !self.stable.latch.unflushed.any() {
            return Ok(());
        }
        Err(self.stable.latch.fail(Action::Write, same(error)))
    }

    /// A forced write did not end well, with `error` or short of its end. Succeeds when all that failed is that write.
    ///
    /// A full host can refuse a write, whose data the guest still has, or lose what it had taken: the error is the
    /// same. The cursor of the descriptor for syncs tells one from the other; until it was asked, the error stays there for
    /// the next flush.
    pub(in crate::storage) async fn suspect(
        &self,
        io: &Io,
        attempt: Attempt,
        error: Option<&io::Error>,
    ) -> Result<(), BlockError> {
        if let Some(error) = error.filter(|error| !may_be_refusal(error)) {
            return Err(attempt.failed(Action::Write, same(error)));
        }
        // What was not begun has taken no error.
        if !error.is_some_and(|error| is_untried(error) || is_withheld(error)) {
            attempt.doubt();
        }
        self.try_sync(io, attempt, Action::Write).await
    }
}

#[cfg(test)]
impl RawImage {
    pub(in crate::storage) fn has_audit(&self) -> bool {
        self.stable.audit.is_some() && !self.stable.takes_more()
    }

    pub(in crate::storage) fn latch(&self) -> &Arc<Stability> {
        &self.stable.latch
    }

    /// Another file in the place of the image's; returns that.
    pub(in crate::storage) fn exchange_file(&mut self, file: Arc<File>) -> Arc<File> {
        std::mem::replace(&mut self.host.file, file)
    }

    /// As on a file system that is not known to honour RWF_DSYNC, or as on one that is.
    pub(in crate::storage) fn force_by(&mut self, forcing: Forcing) {
        self.stable.forcing = forcing;
    }

    /// As [`RawImage::exchange_file`], of the one that is synced.
    pub(in crate::storage) fn exchange_audit(&mut self, file: Arc<File>) -> Option<Arc<File>> {
        self.stable.audit.replace(file)
    }
}

/// The attempt is held by the operation alone: what succeeded is over before it waits for others.
async fn sync(io: &Io, file: &Arc<File>, attempt: &Attempt) -> io::Result<()> {
    let hold = attempt.hold();
    io.sync_held(file, &hold).await
}

/// Whether a write may fail so before the host has taken anything.
fn may_be_refusal(error: &io::Error) -> bool {
    let refusals = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EINTR, libc::EAGAIN, libc::ENOMEM];
    is_untried(error)
        || is_withheld(error)
        || error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

fn same(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
