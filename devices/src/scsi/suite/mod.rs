//! Conformance tests of a disk: CDB bytes in; status, sense, data and residual out. Written from the standards, so
//! that the same tests run on the SCSI layer alone and through each host bus adapter.
//!
//! Each test is a function over an [`Initiator`] whose LUN 0 is a fresh disk made of [`image`] and [`config`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[cfg(test)]
mod allocation;
mod blocks;
#[cfg(test)]
mod caching;
mod copies;
#[cfg(test)]
mod cves;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod halves;
#[cfg(test)]
mod hung;
#[cfg(test)]
mod hung_copies;
#[cfg(test)]
mod hung_private;
mod identity;
#[cfg(test)]
mod local;
#[cfg(test)]
pub(super) use local::block_on;
#[cfg(test)]
mod management;
#[cfg(test)]
mod memory;
mod modes;
#[cfg(test)]
mod nexuses;
#[cfg(test)]
mod persistent;
pub mod promises;
mod provisioning;
#[cfg(test)]
mod races;
#[cfg(test)]
mod removal;
mod request;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod stability;
#[cfg(test)]
mod third_party;
#[cfg(test)]
mod trusting;
#[cfg(test)]
mod workload;

pub use self::request::{Request, check_reply};
pub use crate::testing::{Operation, RecordingDisk};

use super::{DiskConfig, Residual};

/// What an initiator gets back.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// SCSI status byte.
    pub status: u8,
    /// Sense data; empty when there is none.
    pub sense: Vec<u8>,
    /// The whole data-in buffer; what was not transferred is [`FILL`].
    pub data_in: Vec<u8>,
    /// Residual of the direction that had a buffer, where the transport tells.
    pub residual: Option<Residual>,
}

/// What a data-in buffer holds before the command.
pub const FILL: u8 = 0xee;

/// Something that sends commands to LUN 0 of a target.
pub trait Initiator {
    /// Sends one command and waits for its end.
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome;

    /// Bytes of the longest CDB that the transport carries; tests leave out those that are longer.
    fn longest_cdb(&self) -> usize {
        32
    }
}

/// Logical block length of the disk under test.
pub const BLOCK: usize = 512;
/// Its number of blocks.
pub const BLOCKS: u64 = 16384;

/// The image under test.
pub fn image() -> RecordingDisk {
    RecordingDisk::new(BLOCK * BLOCKS as usize)
}

/// The configuration under test.
pub fn config() -> DiskConfig {
    DiskConfig {
        vendor: "ACME".into(),
        product: "CONFORMANCE".into(),
        revision: "2.71".into(),
        serial: "SN-0042".into(),
        wwn: Some(0x5000_c500_1234_5678),
        rotation_rate: 7200,
        ..DiskConfig::default()
    }
}

/// A test.
pub type Test = fn(&mut dyn Initiator);

/// All tests by name; each needs a fresh disk.
pub fn tests() -> impl Iterator<Item = (&'static str, Test)> {
    [identity::TESTS, blocks::TESTS, modes::TESTS, provisioning::TESTS, copies::TESTS]
        .into_iter()
        .flatten()
        .copied()
}

/// Fetches unit attentions until there are none.
pub fn settle(initiator: &mut dyn Initiator) {
    for _ in 0..8 {
        if initiator.command(&[0; 6], &[], 0).status == 0 {
            return;
        }
    }
    panic!("TEST UNIT READY does not become GOOD");
}

/// The command must end with GOOD; returns its data-in.
fn good(initiator: &mut dyn Initiator, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Vec<u8> {
    let outcome = initiator.command(cdb, data_out, data_in_len);
    assert_eq!((outcome.status, &outcome.sense[..]), (0, &[][..]), "CDB {cdb:02x?}");
    outcome.data_in
}

/// The command must end with GOOD and use its buffer exactly.
fn exact(initiator: &mut dyn Initiator, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Vec<u8> {
    let outcome = initiator.command(cdb, data_out, data_in_len);
    assert_eq!((outcome.status, &outcome.sense[..]), (0, &[][..]), "CDB {cdb:02x?}");
    assert!(
        matches!(outcome.residual, None | Some(Residual::Exact)),
        "CDB {cdb:02x?}: {:?}",
        outcome.residual
    );
    outcome.data_in
}

/// The command must end with CHECK CONDITION and this sense key, ASC and ASCQ in fixed format; returns the sense data.
fn check(
    initiator: &mut dyn Initiator,
    cdb: &[u8],
    data_out: &[u8],
    data_in_len: usize,
    sense: (u8, u8, u8),
) -> Vec<u8> {
    let outcome = initiator.command(cdb, data_out, data_in_len);
    assert_eq!(outcome.status, 0x02, "CDB {cdb:02x?}: {outcome:02x?}");
    let bytes = &outcome.sense;
    assert!(bytes.len() >= 18 && bytes[0] & 0x7f == 0x70, "CDB {cdb:02x?}: {bytes:02x?}");
    assert_eq!((bytes[2] & 0x0f, bytes[12], bytes[13]), sense, "CDB {cdb:02x?}");
    assert!(outcome.data_in.iter().all(|byte| *byte == FILL), "CDB {cdb:02x?} left data");
    outcome.sense
}

/// INVALID FIELD IN CDB with a field pointer at `byte` and, where given, `bit`.
fn bad_field(
    initiator: &mut dyn Initiator,
    cdb: &[u8],
    data_out: &[u8],
    len: usize,
    byte: u8,
    bit: Option<u8>,
) {
    let sense = check(initiator, cdb, data_out, len, (0x5, 0x24, 0x00));
    let first = 0xc0 | bit.map_or(0, |bit| 0x08 | bit);
    assert_eq!(sense[15..18], [first, 0, byte], "CDB {cdb:02x?}");
}

/// Bytes that tell blocks apart.
fn blocks_of(seed: u8, count: usize) -> Vec<u8> {
    (0..count * BLOCK).map(|i| (i / BLOCK) as u8 ^ (i as u8).wrapping_mul(7) ^ seed).collect()
}
