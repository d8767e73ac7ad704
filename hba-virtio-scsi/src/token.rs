//! A chain in flight, as a value that has to be completed exactly once.

use std::rc::Rc;

use devices::mem::{Dma, DmaError};

use crate::queue::Done;
use crate::spec::Response;
use crate::worker::Worker;

/// The first bytes of a chain's writable part: where the response goes.
///
/// Drivers use one descriptor, at most two where it crosses a page; any other split costs an allocation.
#[derive(Clone, Debug)]
pub(crate) enum ResponseArea {
    Inline([(u64, u32); 2]),
    Split(Box<[(u64, u32)]>),
}

impl ResponseArea {
    /// The first `len` bytes of `parts`, or as many as there are.
    pub(crate) fn of(parts: &[(u64, u32)], len: u64) -> Self {
        if let Some(&(addr, size)) = parts.first()
            && u64::from(size) >= len
            && len > 0
        {
            // As nearly all drivers do it: in one piece.
            return Self::Inline([(addr, len as u32), (0, 0)]);
        }
        let mut window = window(parts, 0, len);
        let inline = [(); 2].map(|()| window.next().unwrap_or((0, 0)));
        if window.next().is_none() {
            return Self::Inline(inline);
        }
        Self::Split(self::window(parts, 0, len).collect())
    }

    fn parts(&self) -> &[(u64, u32)] {
        match self {
            Self::Inline(parts) => parts,
            Self::Split(parts) => parts,
        }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.parts().iter().map(|&(_, len)| u64::from(len)).sum()
    }

    /// Writes `bytes` at the start; returns how many fitted.
    fn write(&self, dma: &Dma, bytes: &[u8]) -> Result<usize, DmaError> {
        let mut rest = bytes;
        for &(addr, len) in self.parts() {
            let (now, later) = rest.split_at_checked(len as usize).unwrap_or((rest, &[]));
            if !now.is_empty() {
                dma.write(addr, now)?;
            }
            rest = later;
        }
        Ok(bytes.len() - rest.len())
    }
}

/// The bytes `from..from+len` of a list of ranges.
pub(crate) fn window(parts: &[(u64, u32)], from: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let (mut skip, mut left) = (from, len);
    parts.iter().filter_map(move |&(addr, size)| {
        let head = skip.min(u64::from(size));
        skip -= head;
        let take = (u64::from(size) - head).min(left);
        left -= take;
        // Both fit: they are parts of a 32-bit length. A wrapped address is not RAM, which resolving it finds out.
        (take > 0).then(|| (addr.wrapping_add(head), take as u32))
    })
}

/// A chain taken from a queue. Exactly one of [`ChainToken::complete`], [`ChainToken::fail`] and
/// [`ChainToken::abandon`] ends it.
///
/// A token that is dropped otherwise is a defect of this crate: it panics in debug builds, and completes with
/// FAILURE in release builds.
pub(crate) struct ChainToken {
    worker: Rc<Worker>,
    head: u16,
    response: ResponseArea,
    /// Offset of the response byte, which ends the fixed part of every response.
    response_at: usize,
    open: bool,
}

impl ChainToken {
    pub(crate) fn new(worker: Rc<Worker>, head: u16, response: ResponseArea, response_at: usize) -> Self {
        Self { worker, head, response, response_at, open: true }
    }

    /// The worker of the chain's queue.
    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// Writes the response and gives the chain back with `len` bytes written, response included. A response area
    /// that is not RAM, or that Bus Master Enable no longer lets us reach, gives it back with nothing written.
    pub(crate) fn complete(mut self, response: &[u8], len: u32) {
        self.finish(response, len);
    }

    /// Completes with everything zero but the response.
    pub(crate) fn answer(mut self, response: Response) {
        self.finish_with(response);
    }

    /// Completes with response FAILURE and everything else zero.
    pub(crate) fn fail(mut self) {
        self.finish_with(Response::Failure);
    }

    /// Ends the chain without giving it back: its queue was reset.
    pub(crate) fn abandon(mut self) {
        self.open = false;
        self.worker.done(Done { head: self.head, len: None });
    }

    fn finish(&mut self, response: &[u8], len: u32) {
        self.open = false;
        let len = match self.response.write(self.worker.dma(), response) {
            Ok(written) if written == response.len() => len,
            Ok(_) => 0,
            Err(error) => {
                devices::log_limited!(warn, "virtio-scsi: response not written: {error}");
                0
            }
        };
        self.worker.done(Done { head: self.head, len: Some(len) });
    }

    fn finish_with(&mut self, response: Response) {
        let mut bytes = [0; 32];
        let end = self.response_at + 1;
        if let Some(byte) = bytes.get_mut(self.response_at) {
            *byte = response as u8;
        }
        let response = bytes.get(..end).unwrap_or_default();
        // An area too short for the response byte gets nothing.
        let fits = self.response.len() >= end as u64;
        self.finish(if fits { response } else { &[] }, if fits { end as u32 } else { 0 });
    }
}

impl Drop for ChainToken {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if self.worker.is_ending() || std::thread::panicking() {
            self.open = false;
            return;
        }
        devices::log_limited!(error, "virtio-scsi: a request was dropped without completion");
        self.finish_with(Response::Failure);
        // Closed by now: this always fails, in debug builds only.
        debug_assert!(self.open, "a request was dropped without completion");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cut_at_any_byte() {
        let parts = [(0x1000, 4), (0x3000, 0), (0x2000, 8), (0x5000, 1)];
        let cut = |from, len| window(&parts, from, len).collect::<Vec<_>>();
        assert_eq!(cut(0, 5), [(0x1000, 4), (0x2000, 1)]);
        assert_eq!(cut(4, 100), [(0x2000, 8), (0x5000, 1)]);
        assert_eq!(cut(6, 3), [(0x2002, 3)]);
        assert_eq!(cut(13, 1), []);
        assert_eq!(cut(0, 0), []);
    }

    #[test]
    fn response_areas_keep_any_split() {
        let parts: Vec<(u64, u32)> = (0..20).map(|i| (i * 16, 1)).collect();
        assert!(matches!(ResponseArea::of(&parts[..2], 9), ResponseArea::Inline(_)));
        assert_eq!(ResponseArea::of(&parts[..2], 9).len(), 2);
        assert_eq!(ResponseArea::of(&parts, 12).len(), 12);
    }
}
