//! VERIFY (SBC-4, 5.38) and WRITE AND VERIFY (SBC-4, 5.47). Both are of what is on the medium.

use super::Disk;
use super::transfer::Extent;
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::scsi::DataBuffers;
use crate::scsi::memory::Scratch;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{Failure, MISCOMPARE_DURING_VERIFY, SenseData, SenseKey};
use crate::storage::{BlockBackend, ByteOffset, Durability, Span};

/// Bytes read back at a time.
pub(super) const CHUNK: u64 = 64 << 10;

/// After how many bytes others have a turn.
const GIVE_WAY: u64 = 1 << 20;

/// INFORMATION is the offset of the first differing byte in the data-out buffer (SBC-4, 4.18.4).
fn miscompare(offset: u64) -> SenseData {
    SenseData::new(SenseKey::Miscompare, MISCOMPARE_DURING_VERIFY).with_information(offset)
}

/// What the medium is compared with.
enum Expected<'a> {
    /// Nothing: it is enough that it can be read.
    Readable,
    /// The data-out buffer, block for block.
    Data(&'a FromGuest),
    /// The one block in the data-out buffer, again and again.
    OneBlock(&'a FromGuest),
}

impl<B: BlockBackend> Disk<B> {
    pub(super) async fn verify(&self, io: &Io, cdb: &[u8], len: usize, data: DataBuffers) -> Outcome {
        let extent = Extent::of(cdb, len);
        let bytchk = extent.bytchk();
        // Without data to move, MAXIMUM TRANSFER LENGTH has nothing to limit.
        let span = if bytchk == 1 { self.transfer_span(extent)? } else { self.span(extent)? };
        let (expected, sent) = match bytchk {
            0 => (Expected::Readable, 0),
            1 => (Expected::Data(&data.data_out), span.len),
            3 => (Expected::OneBlock(&data.data_out), self.block_size().min(span.len)),
            _ => return Err(SenseData::cdb_field(if len == 32 { 10 } else { 1 }, Some(2)).into()),
        };
        let mut compared = span;
        match bytchk {
            1 => compared.len = self.whole_blocks(span.len.min(data.data_out.len())),
            3 if data.data_out.len() < self.block_size() => compared.len = 0,
            _ => {}
        }
        let done = Done::received(sent);
        if compared.len == 0 {
            return Ok(done);
        }
        let scratch = self.scratch(CHUNK.min(compared.len))?;
        if self.is_unflushed() {
            self.flush(io).await?;
        }
        self.compare(io, compared, expected, &scratch, done).await
    }

    pub(super) async fn write_and_verify(
        &self,
        io: &Io,
        cdb: &[u8],
        len: usize,
        data: DataBuffers,
    ) -> Outcome {
        let extent = Extent::of(cdb, len);
        let span = self.transfer_span(extent)?;
        if extent.bytchk() > 1 {
            return Err(SenseData::cdb_field(if len == 32 { 10 } else { 1 }, Some(2)).into());
        }
        let written = Span { len: self.whole_blocks(span.len.min(data.data_out.len())), ..span };
        let done = Done::received(span.len);
        if written.len == 0 {
            return Ok(done);
        }
        // Before anything is written.
        let scratch = self.scratch(CHUNK.min(written.len))?;
        let from = data.data_out.window(0, written.len);
        self.store(io, span.at, from, Durability::Stable).await?;
        let expected = if extent.bytchk() == 1 { Expected::Data(&data.data_out) } else { Expected::Readable };
        self.compare(io, written, expected, &scratch, done).await
    }

    /// Reads `span` back and compares; `done` is what to report when all is as expected.
    async fn compare(
        &self,
        io: &Io,
        span: Span,
        expected: Expected<'_>,
        scratch: &Scratch,
        done: Done,
    ) -> Outcome {
        let mut at = 0;
        while at < span.len {
            let len = scratch.len().min(span.len - at);
            let into = ToGuest::new(scratch.window(0, len));
            self.fetch(io, ByteOffset(span.at.0 + at), into).await?;
            if let Some(miss) = self.first_difference(scratch, at, len, &expected) {
                return Ok(done.but(miscompare(miss)));
            }
            at += len;
            if at.is_multiple_of(GIVE_WAY) {
                // What an image need not ask the host for, such as holes, comes without waiting.
                io.give_way().await;
            }
        }
        Ok(done)
    }

    /// MISCOMPARE sense if the medium differs from the beginning of `expected`.
    pub(super) async fn differs(
        &self,
        io: &Io,
        span: Span,
        expected: &FromGuest,
    ) -> Result<Option<SenseData>, Failure> {
        let scratch = self.scratch(CHUNK.min(span.len))?;
        let done = self.compare(io, span, Expected::Data(expected), &scratch, Done::good()).await?;
        Ok(done.sense)
    }

    /// The offset in the data-out buffer of the first byte that differs from the `len` bytes of `medium`, which lie
    /// `at` bytes into the range.
    fn first_difference(&self, medium: &Scratch, at: u64, len: u64, expected: &Expected<'_>) -> Option<u64> {
        const STEP: u64 = 512;
        let medium = FromGuest::new(medium.window(0, len));
        let (mut ours, mut theirs) = ([0u8; STEP as usize], [0u8; STEP as usize]);
        let mut done = 0;
        while done < len {
            let (data, offset) = match expected {
                Expected::Readable => return None,
                Expected::Data(data) => (data, at + done),
                Expected::OneBlock(data) => (data, (at + done) & (self.block_size() - 1)),
            };
            let step = medium.read_at(done, &mut ours);
            data.read_at(offset, &mut theirs);
            let differs = ours.iter().zip(&theirs).take(step).position(|(a, b)| a != b);
            if let Some(position) = differs {
                return Some(offset + position as u64);
            }
            done += STEP;
        }
        None
    }

    /// Copies the first block of `from` into host memory, as often as fits in `len` bytes or in what there is; `None` when
    /// it is all zeros.
    pub(super) fn pattern(&self, from: &FromGuest, len: u64) -> Result<Option<Scratch>, Failure> {
        const STEP: usize = 512;
        let block = self.block_size();
        let list = self.scratch(len)?;
        let len = list.len();
        let out = ToGuest::new(list.window(0, len));
        let (mut at, mut zero) = (0, true);
        while at < block {
            let mut part = [0; STEP];
            from.read_at(at, &mut part);
            zero &= part == [0; STEP];
            // The private copy is what counts from here on.
            let mut to = at;
            while to < len {
                out.write_at(to, &part);
                to += block;
            }
            at += STEP as u64;
        }
        Ok(if zero { None } else { Some(list) })
    }
}
