//! How commands end: data that was wanted against data that was offered, and the writer of parameter data.

use super::passed::Passed;
use super::sense::{Failure, INTERNAL_TARGET_FAILURE, SenseData, SenseKey};
use super::{DataBuffers, Residual, ScsiReply, Status, TransportFault};
use crate::mem::ToGuest;

/// How much an initiator offered to move, noted before a unit takes the buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    data_out: u64,
    data_in: u64,
}

impl Offered {
    pub(crate) fn of(data: &DataBuffers) -> Self {
        Self { data_out: data.data_out.len(), data_in: data.data_in.len() }
    }
}

/// A command that a unit carried out: its status and how much data it described in each direction (bytes).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) status: Status,
    pub(crate) sense: Option<SenseData>,
    pub(crate) data_out: u64,
    pub(crate) data_in: u64,
}

impl Done {
    /// GOOD, no data.
    pub(crate) const fn good() -> Self {
        Self { status: Status::Good, sense: None, data_out: 0, data_in: 0 }
    }
    /// GOOD, having read `len` bytes of data-out.
    pub(crate) const fn received(len: u64) -> Self {
        Self { data_out: len, ..Self::good() }
    }
    /// GOOD, having `len` bytes of data-in.
    pub(crate) const fn sent(len: u64) -> Self {
        Self { data_in: len, ..Self::good() }
    }
    /// CHECK CONDITION after the transfer that `self` describes.
    pub(crate) const fn but(self, sense: SenseData) -> Self {
        Self { status: Status::CheckCondition, sense: Some(sense), ..self }
    }
}

/// What a unit says of a command.
pub(crate) type Outcome = Result<Done, Failure>;

/// GOOD, or RESERVATION CONFLICT.
pub(crate) fn granted(yes: bool) -> Outcome {
    if yes { Ok(Done::good()) } else { Err(Failure::Status(Status::ReservationConflict)) }
}

/// Makes the reply: a failure moved nothing.
pub(crate) fn reply(outcome: Outcome, offered: Offered, descriptor_sense: bool) -> ScsiReply {
    let done = match outcome {
        Ok(done) => done,
        Err(Failure::Check(sense)) => Done::good().but(sense),
        Err(Failure::Status(status)) => Done { status, ..Done::good() },
        // Who has its number passes it on, see [`pass`].
        Err(Failure::Passed(_)) => {
            Done::good().but(SenseData::new(SenseKey::HardwareError, INTERNAL_TARGET_FAILURE))
        }
    };
    ScsiReply {
        status: done.status,
        sense: done.sense.map(|sense| sense.encode(descriptor_sense)),
        residual_out: residual(done.data_out, offered.data_out),
        residual_in: residual(done.data_in, offered.data_in),
    }
}

/// Makes the reply out of what a device said.
pub(crate) fn pass(passed: Passed, offered: Offered) -> Result<ScsiReply, TransportFault> {
    match passed {
        Passed::Fault(fault) => Err(fault),
        Passed::Reply { status, sense, data_out, data_in } => Ok(ScsiReply {
            status,
            sense: sense.map(|sense| *sense),
            residual_out: residual(data_out, offered.data_out),
            residual_in: residual(data_in, offered.data_in),
        }),
    }
}

fn residual(wanted: u64, offered: u64) -> Residual {
    match (offered.checked_sub(wanted), wanted.checked_sub(offered)) {
        (Some(0), _) => Residual::Exact,
        (Some(rest), _) => Residual::Under(rest),
        (None, rest) => Residual::Over(rest.unwrap_or(0)),
    }
}

/// Writes parameter data up to an allocation length: what is beyond it is left out and is no error (SPC-5, 4.2.5.6).
pub(crate) struct Writer<'a> {
    to: &'a ToGuest,
    allocation: u64,
    at: u64,
}

impl<'a> Writer<'a> {
    /// A writer into `to` of at most `allocation` bytes.
    pub(crate) fn new(to: &'a ToGuest, allocation: u64) -> Self {
        Self { to, allocation, at: 0 }
    }

    /// Appends `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let room = self.allocation.saturating_sub(self.at).min(bytes.len() as u64);
        if let Some(part) = bytes.get(..room as usize) {
            self.to.write_at(self.at, part);
        }
        self.at += bytes.len() as u64;
    }

    /// Overwrites what was put at `at`: for lengths that are known at the end.
    pub(crate) fn put_at(&self, at: u64, bytes: &[u8]) {
        let room = self.allocation.saturating_sub(at).min(bytes.len() as u64);
        if let Some(part) = bytes.get(..room as usize) {
            self.to.write_at(at, part);
        }
    }

    /// The command is done: the transfer is the data or the allocation length, whichever is less.
    pub(crate) fn finish(self) -> Done {
        Done::sent(self.at.min(self.allocation))
    }
}

/// A page under construction, in big-endian fields. Bytes beyond `N` are dropped, so `N` is the page's real maximum.
#[derive(Clone, Debug)]
pub(crate) struct Page<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Page<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            if let Some(to) = self.bytes.get_mut(self.len) {
                *to = *byte;
                self.len += 1;
            }
        }
        self
    }
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_be_bytes())
    }
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_be_bytes())
    }
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_be_bytes())
    }
    /// Zeros up to a total length of `len`.
    pub(crate) fn pad_to(&mut self, len: usize) -> &mut Self {
        self.len = self.len.max(len.min(N));
        self
    }
    /// `text` in `width` bytes: cut, or filled with spaces on the right. Bytes that are not printable ASCII
    /// become spaces (SPC-5, 4.3.1).
    pub(crate) fn ascii(&mut self, text: &str, width: usize) -> &mut Self {
        let printable = |b: u8| if (0x20..0x7f).contains(&b) { b } else { b' ' };
        for byte in text.bytes().map(printable).chain(std::iter::repeat(b' ')).take(width) {
            self.u8(byte);
        }
        self
    }
    /// Overwrites the bytes at `at`: for length fields.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::SgList;

    #[test]
    fn writer_stops_at_the_allocation_length_and_at_the_buffer() {
        let to = ToGuest::new(SgList::host(8, 16).unwrap());
        let mut writer = Writer::new(&to, 5);
        writer.put(&[1, 2, 3]);
        writer.put(&[4, 5, 6]);
        assert_eq!(writer.finish().data_in, 5);
        let mut got = [9; 8];
        crate::mem::FromGuest::new(to.window(0, 8).into_inner()).read_at(0, &mut got);
        assert_eq!(got, [1, 2, 3, 4, 5, 0, 0, 0]);

        let mut writer = Writer::new(&to, 100);
        writer.put(&[0; 12]);
        assert_eq!(writer.finish().data_in, 12, "what the command had, not what fitted");
    }

    #[test]
    fn residuals_compare_wanted_with_offered() {
        assert_eq!(residual(512, 512), Residual::Exact);
        assert_eq!(residual(36, 96), Residual::Under(60));
        assert_eq!(residual(4096, 512), Residual::Over(3584));
        assert_eq!(residual(0, 0), Residual::Exact);
    }
}
