//! The closed set of image formats, dispatched statically.

use std::sync::Arc;

use super::private::{PrivateMemory, fetched};
use super::single::{Begun, Kept, ended};
use super::stability::Attempt;
use super::{
    Action, BlockBackend, BlockError, ByteOffset, Durability, Ending, Extent, Geometry, Guarded, Limits,
    Pausing, Qcow2Image, RawImage, Span, Unmap,
};
use crate::iothread::{Io, Permit, is_untried, is_withheld};
use crate::mem::{FromGuest, SgList, ToGuest};
#[cfg(any(test, feature = "testing"))]
use crate::testing::{FaultDisk, RamDisk, RecordingDisk};

/// An image of any format. Shared by the I/O threads of a logical unit in an `Arc`.
pub enum Image {
    /// A raw file or block device.
    Raw(RawImage),
    /// A qcow2 image with its backing files.
    Qcow2(Qcow2Image),
    /// A raw image that is looked after.
    GuardedRaw(Guarded<RawImage>),
    /// A qcow2 image that is looked after.
    GuardedQcow2(Guarded<Qcow2Image>),
    /// Memory, for tests.
    #[cfg(any(test, feature = "testing"))]
    Ram(RamDisk),
    /// Memory with errors on demand, for tests.
    #[cfg(any(test, feature = "testing"))]
    Fault(FaultDisk),
    /// Memory that records what is asked of it, for tests.
    #[cfg(any(test, feature = "testing"))]
    Recording(RecordingDisk),
}

macro_rules! each {
    ($image:expr, $backend:ident => $call:expr) => {
        match $image {
            Image::Raw($backend) => $call,
            Image::Qcow2($backend) => $call,
            Image::GuardedRaw($backend) => $call,
            Image::GuardedQcow2($backend) => $call,
            #[cfg(any(test, feature = "testing"))]
            Image::Ram($backend) => $call,
            #[cfg(any(test, feature = "testing"))]
            Image::Fault($backend) => $call,
            #[cfg(any(test, feature = "testing"))]
            Image::Recording($backend) => $call,
        }
    };
}

impl Image {
    /// The same image, looked after. Only files are; others stay as they are.
    pub fn guarded(self, limits: Option<&Limits>, pausing: Option<Pausing>) -> Self {
        match self {
            Self::Raw(image) => Self::GuardedRaw(Guarded::new(image, limits, pausing)),
            Self::Qcow2(image) => Self::GuardedQcow2(Guarded::new(image, limits, pausing)),
            other => other,
        }
    }

    /// The same image, looked after, whose transfers go through memory that the guest does not see: they can be abandoned while
    /// the host does not answer. Only those of files do.
    pub fn private(self) -> Self {
        match self.guarded_at_all() {
            Self::GuardedRaw(guarded) => Self::GuardedRaw(guarded.private()),
            Self::GuardedQcow2(guarded) => Self::GuardedQcow2(guarded.private()),
            other => other,
        }
    }

    /// The same image, of whose errors only who uses it tells the log.
    pub fn quiet(self) -> Self {
        match self {
            Self::GuardedRaw(guarded) => Self::GuardedRaw(guarded.quiet()),
            Self::GuardedQcow2(guarded) => Self::GuardedQcow2(guarded.quiet()),
            other => other,
        }
    }

    fn guarded_at_all(self) -> Self {
        match self {
            Self::Raw(_) | Self::Qcow2(_) => self.guarded(None, None),
            other => other,
        }
    }

    /// From now on transfers are handed to the host only if `permit` lets them, which is asked when their turn comes, however long they
    /// have waited in this process; others end with [`BlockErrorKind::Withheld`]. Of raw images.
    ///
    /// [`BlockErrorKind::Withheld`]: super::BlockErrorKind::Withheld
    pub(crate) fn ask_before(&self, permit: Arc<dyn Permit>) {
        match self {
            Self::Raw(image) => image.ask_before(permit),
            Self::GuardedRaw(guarded) => guarded.backend().ask_before(permit),
            _ => {}
        }
    }

    /// What becomes of writes that find no space, for what belongs to this image.
    pub fn pausing(&self) -> Option<Pausing> {
        match self {
            Self::GuardedRaw(guarded) => guarded.pausing().cloned(),
            Self::GuardedQcow2(guarded) => guarded.pausing().cloned(),
            _ => None,
        }
    }

    /// Nothing waits for space any more, because the disk goes: what finds none fails.
    pub fn stop_waiting(&self) {
        match self {
            Self::GuardedRaw(guarded) => guarded.stop_waiting(),
            Self::GuardedQcow2(guarded) => guarded.stop_waiting(),
            _ => {}
        }
    }

    /// The name of its file or device, for messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Raw(image) => image.name(),
            Self::Qcow2(image) => image.name(),
            Self::GuardedRaw(guarded) => guarded.backend().name(),
            Self::GuardedQcow2(guarded) => guarded.backend().name(),
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(_) | Self::Fault(_) | Self::Recording(_) => "memory",
        }
    }

    /// Where it ends.
    pub fn ending(&self) -> Ending {
        match self {
            Self::Raw(image) => image.ending(),
            Self::GuardedRaw(guarded) => guarded.backend().ending(),
            other => Ending::of_file(other.geometry().len),
        }
    }

    /// The raw image behind it, where transfers may go there at once.
    fn raw(&self) -> Option<&RawImage> {
        match self {
            Self::Raw(image) => Some(image),
            Self::GuardedRaw(guarded) => guarded.short_way(),
            _ => None,
        }
    }

    /// What a transfer of this memory has to go through on the short way.
    fn detour(&self, memory: &SgList) -> Option<&Arc<PrivateMemory>> {
        match self {
            Self::GuardedRaw(guarded) => guarded.detour(memory),
            _ => None,
        }
    }

    /// What a forced write that did not end well means for others.
    async fn suspect(
        &self,
        io: &Io,
        attempt: Attempt,
        error: Option<&std::io::Error>,
    ) -> Result<(), BlockError> {
        match self.raw() {
            Some(raw) => raw.suspect(io, attempt, error).await,
            None => Ok(()),
        }
    }

    /// What a forced write that is no attempt, and failed, means for others.
    fn judge(&self, durability: Durability, error: &std::io::Error) -> Result<(), BlockError> {
        self.raw().map_or(Ok(()), |raw| raw.judge(durability, error))
    }

    /// Begins a read; with what is to be filled at its end, where it fills private memory first.
    fn begin_read<'a, 'b>(
        &'b self,
        io: &'a Io,
        at: ByteOffset,
        into: ToGuest,
    ) -> (Begun<'a, 'b, ToGuest>, Option<ToGuest>) {
        let begun = match (self, self.raw()) {
            #[cfg(any(test, feature = "testing"))]
            (Self::Ram(disk), _) => Begun::Done(disk.get(at, &into)),
            (_, Some(raw)) => match self.detour(&into) {
                None => raw.begin_read(io, at, into),
                Some(private) => match private.try_lend(into.len()) {
                    Some(buffer) => {
                        private.age(io);
                        return raw.begin_read(io, at, ToGuest::new(buffer)).instead_of(into);
                    }
                    None => Begun::Long(into),
                },
            },
            (_, None) => Begun::Long(into),
        };
        (begun, None)
    }

    /// Begins a write; with what is to be written where it takes the long way after all, if private memory was written.
    fn begin_write<'a, 'b>(
        &'b self,
        io: &'a Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> (Begun<'a, 'b, FromGuest>, Option<FromGuest>) {
        let begun = match (self, self.raw()) {
            #[cfg(any(test, feature = "testing"))]
            (Self::Ram(disk), _) => Begun::Done(disk.put(at, &from)),
            (_, Some(raw)) => match self.detour(&from) {
                None => raw.begin_write(io, at, from, durability),
                Some(private) => match private.try_lend(from.len()) {
                    Some(buffer) => {
                        private.age(io);
                        let part = fetched(io, &from, buffer);
                        return raw.begin_write(io, at, part, durability).instead_of(from);
                    }
                    None => Begun::Long(from),
                },
            },
            (_, None) => Begun::Long(from),
        };
        (begun, None)
    }

    fn begin_flush<'a, 'b>(&'b self, io: &'a Io) -> Begun<'a, 'b, ()> {
        match (self, self.raw()) {
            #[cfg(any(test, feature = "testing"))]
            (Self::Ram(_), _) => Begun::Done(Ok(())),
            (_, Some(raw)) => raw.begin_flush(io),
            (_, None) => Begun::Long(()),
        }
    }

    /// Whether it could not be made stable: then it cannot be again before it is opened anew.
    pub fn has_failed(&self) -> bool {
        match self {
            Self::Raw(image) => image.has_failed(),
            Self::Qcow2(image) => image.has_failed(),
            Self::GuardedRaw(guarded) => guarded.backend().has_failed(),
            Self::GuardedQcow2(guarded) => guarded.backend().has_failed(),
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(_) | Self::Fault(_) | Self::Recording(_) => false,
        }
    }

    /// How a transfer that was begun ended; `None` when it takes the long way after all.
    fn end(
        &self,
        action: Action,
        at: ByteOffset,
        len: u64,
        result: Option<std::io::Result<()>>,
    ) -> Option<Result<(), BlockError>> {
        let error = match result? {
            Ok(()) => return Some(Ok(())),
            Err(error) => error,
        };
        match self {
            Self::Raw(image) => Some(Err(image.failed(action, at.0, len, error))),
            Self::GuardedRaw(guarded) => {
                let image = guarded.short_way()?;
                guarded.heard(image.failed(action, at.0, len, error)).map(Err)
            }
            _ => None,
        }
    }
}

impl BlockBackend for Image {
    fn geometry(&self) -> Geometry {
        each!(self, backend => backend.geometry())
    }

    /// Begins at once: then there is little left to wait for.
    fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> impl Future<Output = Result<(), BlockError>> {
        let len = into.len();
        let (begun, guest) = self.begin_read(io, at, into);
        async move {
            let into = match begun {
                Begun::Done(result) => return result,
                Begun::Long(into) => into,
                Begun::Running(single, _) => {
                    let (result, mem) = single.await;
                    let result = ended(result, len);
                    if let (Some(Ok(())), Some(guest)) = (&result, &guest) {
                        io.copy(&mem, guest).await;
                    }
                    match self.end(Action::Read, at, len, result) {
                        Some(result) => return result,
                        None => guest.unwrap_or(ToGuest::new(mem)),
                    }
                }
            };
            // Apart: large, and seldom.
            Box::pin(async move { each!(self, backend => backend.read(io, at, into).await) }).await
        }
    }

    fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> impl Future<Output = Result<(), BlockError>> {
        let len = from.len();
        let (mut begun, guest) = self.begin_write(io, at, from, durability);
        async move {
            let from = match begun {
                Begun::Done(result) => return result,
                Begun::Long(from) => from,
                // Where they are: moved, they would take room twice.
                Begun::Running(ref mut single, ref mut kept) => {
                    let (result, mem) = single.await;
                    let result = ended(result, len);
                    match (std::mem::replace(kept, Kept::Nothing), &result) {
                        (Kept::Nothing, Some(Err(error))) => self.judge(durability, error)?,
                        (Kept::Nothing | Kept::Change { .. }, _) => {}
                        (Kept::Attempt(attempt), Some(Ok(()))) => {
                            return attempt.succeeded(Action::Write).await;
                        }
                        (Kept::Attempt(attempt), result) => {
                            let error = result.as_ref().and_then(|result| result.as_ref().err());
                            Box::pin(self.suspect(io, attempt, error)).await?;
                        }
                    }
                    match self.end(Action::Write, at, len, result) {
                        Some(result) => return result,
                        // What may wait for space holds no private memory meanwhile: it is copied from the guest anew.
                        None => guest.unwrap_or(FromGuest::new(mem)),
                    }
                }
            };
            Box::pin(async move { each!(self, backend => backend.write(io, at, from, durability).await) })
                .await
        }
    }

    fn flush(&self, io: &Io) -> impl Future<Output = Result<(), BlockError>> {
        let begun = self.begin_flush(io);
        async move {
            match begun {
                Begun::Done(result) => return result,
                Begun::Long(()) => {}
                Begun::Running(single, kept) => {
                    let (result, _) = single.await;
                    // Never repeated, whatever the host says, once it was begun: a second one would succeed.
                    match (kept, result) {
                        (_, Err(error)) if is_untried(&error) || is_withheld(&error) => {}
                        (Kept::Attempt(attempt), Ok(_)) => return attempt.synced(Action::Flush).await,
                        (Kept::Attempt(attempt), Err(error)) => {
                            return Err(attempt.failed(Action::Flush, error));
                        }
                        (_, result) => {
                            return result
                                .map(drop)
                                .map_err(|error| BlockError::host(Action::Flush, "an image", error));
                        }
                    }
                }
            }
            Box::pin(async move { each!(self, backend => backend.flush(io).await) }).await
        }
    }

    fn is_unflushed(&self) -> bool {
        each!(self, backend => backend.is_unflushed())
    }

    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        each!(self, backend => backend.zero(io, span, unmap).await)
    }

    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError> {
        each!(self, backend => backend.extent(io, span).await)
    }

    async fn refresh(&self, io: &Io) {
        each!(self, backend => backend.refresh(io).await)
    }

    async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        each!(self, backend => backend.grow(io, len).await)
    }

    async fn close(&self, io: &Io) -> Result<(), BlockError> {
        each!(self, backend => backend.close(io).await)
    }
}

/// Several I/O threads use one image.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Image>();
};
