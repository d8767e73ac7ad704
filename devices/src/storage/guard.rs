//! What stands between a disk and its image: limits of rate, waiting for space, private memory, and the log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::no_space::{Parking, SpaceWatch};
use super::private::{PIECE, PrivateMemory};
use super::throttle::{Direction, Limits, Throttle};
use super::{
    BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability, Extent, Geometry, Span, Unmap,
};
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};

/// An error like the last one that was logged is not logged again for so long.
const QUIET: Duration = Duration::from_secs(60);

/// Where requests wait for space, and who is told.
#[derive(Clone)]
pub struct Pausing {
    /// Where they wait.
    pub parking: Arc<Parking>,
    /// Who is told.
    pub watch: Arc<dyn SpaceWatch>,
}

/// A backend that is looked after: requests wait for their limits, writes may wait for space, and errors of the host are
/// logged.
pub struct Guarded<B> {
    backend: B,
    throttle: Option<Box<Throttle>>,
    pausing: Option<Pausing>,
    /// The disk goes: nothing waits for space any more.
    goes: AtomicBool,
    private: Option<Arc<PrivateMemory>>,
    complaints: Complaints,
    /// Who uses it says himself what went wrong.
    quiet: bool,
}

impl<B: BlockBackend> Guarded<B> {
    /// Looks after `backend`. With `pausing`, writes that find no space wait instead of failing.
    pub fn new(backend: B, limits: Option<&Limits>, pausing: Option<Pausing>) -> Self {
        let (throttle, goes) = (limits.map(|limits| Box::new(Throttle::new(limits))), AtomicBool::new(false));
        let complaints = Complaints::default();
        Self { backend, throttle, pausing, goes, private: None, complaints, quiet: false }
    }

    /// The same, whose transfers reach no memory of the guest. What waits for a limit holds none of the private memory.
    pub(super) fn private(self) -> Self {
        let private = PrivateMemory::new(self.backend.geometry().dma_align);
        Self { private: Some(private), ..self }
    }

    /// The same, of whose errors only who uses it tells the log: to him they are not the last word.
    pub(super) fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    fn told(&self, result: Result<(), BlockError>) -> Result<(), BlockError> {
        if self.quiet { result } else { self.complaints.heard(result) }
    }

    /// What a transfer of this memory has to go through.
    pub(super) fn detour(&self, memory: &SgList) -> Option<&Arc<PrivateMemory>> {
        self.private.as_ref().filter(|_| !memory.is_private() && !memory.is_empty())
    }

    async fn fetch(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        match self.detour(&into) {
            None => self.backend.read(io, at, into).await,
            Some(private) => private.read(&self.backend, io, at, into).await,
        }
    }

    async fn store(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        match self.detour(&from) {
            None => self.backend.write(io, at, from, durability).await,
            Some(private) => private.write(&self.backend, io, at, from, durability).await,
        }
    }

    /// The image below.
    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    /// What becomes of writes that find no space.
    pub(super) fn pausing(&self) -> Option<&Pausing> {
        self.pausing.as_ref()
    }

    /// Nothing waits for space any more, because the disk goes: what finds none fails.
    pub(super) fn stop_waiting(&self) {
        self.goes.store(true, Ordering::Release);
        if let Some(pausing) = &self.pausing {
            pausing.parking.look_again();
        }
    }

    /// The image below, for transfers that need no looking after while they go well.
    pub(super) fn short_way(&self) -> Option<&B> {
        self.throttle.is_none().then_some(&self.backend)
    }

    /// What becomes of the error of a transfer on the short way; `None` when the long way shall deal with it.
    pub(super) fn heard(&self, error: BlockError) -> Option<BlockError> {
        if error.kind == BlockErrorKind::NoSpace && self.pausing.is_some() {
            return None;
        }
        self.told(Err(error)).err()
    }

    async fn wait(&self, io: &Io, direction: Direction, bytes: u64) {
        if let Some(throttle) = &self.throttle {
            throttle.wait(io, direction, bytes).await;
        }
    }

    /// Does what changes the image: again and again while there is no space, if it is so agreed.
    async fn change<F: Future<Output = Result<(), BlockError>>>(
        &self,
        operation: impl Fn() -> F,
    ) -> Result<(), BlockError> {
        loop {
            let seen = self.pausing.as_ref().map_or(0, |pausing| pausing.parking.resumed());
            let result = operation().await;
            match (&self.pausing, &result) {
                (Some(Pausing { parking, watch }), Err(error)) if error.kind == BlockErrorKind::NoSpace => {
                    if !parking.park(seen, &**watch, error, || self.goes.load(Ordering::Acquire)).await {
                        return self.told(result);
                    }
                }
                _ => return self.told(result),
            }
        }
    }
}

impl<B: BlockBackend> BlockBackend for Guarded<B> {
    fn geometry(&self) -> Geometry {
        let geometry = self.backend.geometry();
        // What goes in pieces is not written as a whole.
        let atomic = match self.private {
            Some(_) if u64::from(geometry.atomic) > PIECE => 0,
            _ => geometry.atomic,
        };
        Geometry { atomic, ..geometry }
    }

    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        self.wait(io, Direction::Read, into.len()).await;
        self.told(self.fetch(io, at, into).await)
    }

    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let len = from.len();
        // A write that is repeated counts once.
        self.wait(io, Direction::Write, len).await;
        self.change(|| self.store(io, at, from.window(0, len), durability)).await
    }

    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        self.change(|| self.backend.flush(io)).await
    }

    fn is_unflushed(&self) -> bool {
        self.backend.is_unflushed()
    }

    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        // An operation, but its bytes do not travel.
        self.wait(io, Direction::Write, 0).await;
        self.change(|| self.backend.zero(io, span, unmap)).await
    }

    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError> {
        self.backend.extent(io, span).await
    }

    async fn refresh(&self, io: &Io) {
        self.backend.refresh(io).await
    }

    async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        self.backend.grow(io, len).await
    }

    /// Nobody waits for space any more.
    async fn close(&self, io: &Io) -> Result<(), BlockError> {
        self.backend.close(io).await
    }
}

/// Kinds of errors of one image that were logged lately.
#[derive(Debug, Default)]
struct Complaints(Mutex<Vec<Complaint>>);

#[derive(Debug)]
struct Complaint {
    kind: BlockErrorKind,
    since: Instant,
    /// How many came since.
    more: u64,
}

impl Complaints {
    /// Logs what went wrong at the host, once for a time and kind. What the guest did wrong is only its own concern.
    fn heard(&self, result: Result<(), BlockError>) -> Result<(), BlockError> {
        if let Err(error) = &result
            && !matches!(error.kind, BlockErrorKind::OutOfRange | BlockErrorKind::ReadOnly)
            // Told once, when it began.
            && error.kind != BlockErrorKind::Unstable
            && let Some(more) = self.admit(error.kind, Instant::now())
        {
            let cause = error.source.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
            let before = if more > 0 { format!(", after {more} like it") } else { String::new() };
            tracing::error!("{error}{cause}; the guest gets an error{before}");
        }
        result
    }

    /// Whether an error is to be logged: with the number of those that were not.
    fn admit(&self, kind: BlockErrorKind, now: Instant) -> Option<u64> {
        let mut complaints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match complaints.iter_mut().find(|complaint| complaint.kind == kind) {
            None => {
                complaints.push(Complaint { kind, since: now, more: 0 });
                Some(0)
            }
            Some(known) if now.saturating_duration_since(known.since) < QUIET => {
                known.more += 1;
                None
            }
            Some(known) => {
                known.since = now;
                Some(std::mem::take(&mut known.more))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_kind_of_error_and_minute() {
        let complaints = Complaints::default();
        let (read, write) = (BlockErrorKind::ReadFailed, BlockErrorKind::WriteFailed);
        let start = Instant::now();
        let told: Vec<_> =
            [(read, 0), (read, 1), (write, 2), (read, 59), (read, 61), (read, 62), (write, 200)]
                .into_iter()
                .map(|(kind, second)| complaints.admit(kind, start + Duration::from_secs(second)))
                .collect();
        assert_eq!(told, [Some(0), None, Some(0), None, Some(2), None, Some(0)]);
    }
}
