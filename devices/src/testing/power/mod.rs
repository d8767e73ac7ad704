//! A model of power losses.
//!
//! A recording ([`Recorder`]) says what was done to a file and in which order, a [`Ledger`] what a client asked for and was
//! told. A [`Replay`] goes through the recording; at any moment [`Replay::crash`] makes a state that a loss of power may
//! leave: what was synced is there, and of what was not, any subset, each change torn between sectors, or not, and the
//! length of the file before or after it was changed. Whether the state keeps every promise is for the ledger to say, and
//! for [`qcow2`] whether it is an image at all.
//!
//! [`Recorder`]: crate::iothread::record::Recorder

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ledger;
pub mod qcow2;
mod replay;

pub use ledger::{Ledger, Operation, Ticket, stamped};
pub use replay::{Replay, Without};

use std::collections::HashMap;
use std::rc::Rc;

/// The sector of the host's device, in bytes: none is ever torn.
pub const SECTOR: usize = 512;

/// Contents of sectors by number; number 0 has zeros.
pub struct Contents {
    bytes: Vec<[u8; SECTOR]>,
    known: HashMap<[u8; SECTOR], u32>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { bytes: vec![[0; SECTOR]], known: HashMap::new() }
    }
}

impl Contents {
    fn number(&mut self, bytes: &[u8; SECTOR]) -> u32 {
        if *bytes == [0; SECTOR] {
            return 0;
        }
        if let Some(known) = self.known.get(bytes) {
            return *known;
        }
        let number = self.bytes.len() as u32;
        self.bytes.push(*bytes);
        self.known.insert(*bytes, number);
        number
    }
}

/// A state of a file: numbers of the contents of its sectors.
#[derive(Clone)]
pub struct State {
    contents: Rc<std::cell::RefCell<Contents>>,
    sectors: Vec<u32>,
    len: u64,
}

impl State {
    /// The state of a file that holds `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut contents = Contents::default();
        let sectors = bytes.chunks(SECTOR).map(|chunk| {
            let mut sector = [0; SECTOR];
            sector[..chunk.len()].copy_from_slice(chunk);
            contents.number(&sector)
        });
        let sectors = sectors.collect();
        Self { contents: Rc::new(contents.into()), sectors, len: bytes.len() as u64 }
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of the contents of a sector: 0 for zeros, also beyond the end.
    pub fn number(&self, sector: u64) -> u32 {
        self.sectors.get(sector as usize).copied().unwrap_or(0)
    }

    /// The bytes of a sector.
    pub fn sector(&self, sector: u64) -> [u8; SECTOR] {
        self.contents.borrow().bytes[self.number(sector) as usize]
    }

    /// Sectors from `from` to `to` that are not zeros.
    pub fn used(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, [u8; SECTOR])> + '_ {
        let end = (to as usize).min(self.sectors.len());
        let range = self.sectors.get(from as usize..end).unwrap_or_default();
        let used = range.iter().zip(from..).filter(|(number, _)| **number != 0);
        used.map(|(number, sector)| (sector, self.contents.borrow().bytes[*number as usize]))
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        let contents = self.contents.borrow();
        let mut bytes: Vec<u8> =
            self.sectors.iter().flat_map(|number| contents.bytes[*number as usize]).collect();
        bytes.resize(self.len as usize, 0);
        bytes
    }

    fn set(&mut self, sector: usize, number: u32) {
        if sector >= self.sectors.len() {
            self.sectors.resize(sector + 1, 0);
        }
        self.sectors[sector] = number;
    }

    /// Cuts off what is beyond a length, or makes it zeros.
    fn resize(&mut self, len: u64) {
        self.len = len;
        self.sectors.resize((len as usize).div_ceil(SECTOR), 0);
    }
}
