//! Whether a state is a qcow2 image, by the format's definition alone (QEMU, docs/interop/qcow2.rst).
//!
//! Nothing here is shared with what writes images. What `qemu-img check` calls a leak is no fault.

use std::collections::HashMap;

use super::{SECTOR, State};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Where a cluster of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Zeros,
    At(u64),
    Packed,
}

/// What a sector of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The write with this stamp.
    Stamp(u64),
    /// What is below has it: zeros where there is nothing.
    Below,
    /// A packed cluster has it.
    Packed,
}

/// An image that was looked at.
pub struct Image<'a> {
    state: &'a State,
    bits: u32,
    /// Length of the disk in bytes.
    len: u64,
    places: HashMap<u64, Place>,
}

struct Header {
    version: u32,
    bits: u32,
    len: u64,
    l1: (u64, u64),
    reftable: (u64, u64),
    order: u32,
    snapshots: (u64, u64),
}

fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Entries of a table of 64-bit numbers that are not 0, with their places.
fn entries(state: &State, at: u64, count: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let first = at / SECTOR as u64;
    let used = state.used(first, first + (count * 8).div_ceil(SECTOR as u64));
    let all = used.flat_map(move |(sector, bytes)| {
        (0..64).map(move |n| ((sector - first) * 64 + n, be(&bytes, n as usize * 8, 8)))
    });
    all.filter(move |(n, entry)| *entry != 0 && *n < count)
}

/// Counts references to clusters, and says what each is.
struct Counter {
    bits: u32,
    end: u64,
    references: HashMap<u64, (u64, &'static str)>,
}

/// What snapshots share with the disk.
const SHARED: [&str; 3] = ["an L2 table", "data", "packed data"];

impl Counter {
    /// `count` clusters at `at` are referenced.
    fn add(&mut self, what: &'static str, at: u64, count: u64) -> Result<(), String> {
        if !at.is_multiple_of(1 << self.bits) {
            return Err(format!("{what} at {at:#x} is not at a cluster"));
        }
        self.add_bytes(what, at, count << self.bits)
    }

    fn add_bytes(&mut self, what: &'static str, at: u64, len: u64) -> Result<(), String> {
        // The last cluster may be cut off where nothing but zeros would be.
        if at >= self.end {
            return Err(format!("{what} at {at:#x} is beyond the end of the file, {:#x}", self.end));
        }
        for cluster in at >> self.bits..(at + len).div_ceil(1 << self.bits) {
            let (count, before) = self.references.entry(cluster).or_insert((0, what));
            if *before != what || *count > 0 && !SHARED.contains(&what) {
                return Err(format!("cluster {cluster:#x} is {before} and {what}"));
            }
            *count += 1;
        }
        Ok(())
    }
}

impl<'a> Image<'a> {
    /// Checks everything; the error says what is worse than a leak.
    pub fn check(state: &'a State) -> Result<Self, String> {
        let start: Vec<u8> = (0..2).flat_map(|sector| state.sector(sector)).collect();
        if be(&start, 0, 4) != 0x5146_49fb {
            return Err("it has no header".into());
        }
        let version = be(&start, 4, 4) as u32;
        let header = Header {
            version,
            bits: be(&start, 20, 4) as u32,
            len: be(&start, 24, 8),
            l1: (be(&start, 40, 8), be(&start, 36, 4)),
            reftable: (be(&start, 48, 8), be(&start, 56, 4)),
            order: if version == 3 { be(&start, 96, 4) as u32 } else { 4 },
            snapshots: (be(&start, 64, 8), be(&start, 60, 4)),
        };
        let mut counter = Counter {
            bits: header.bits,
            end: state.len(),
            references: HashMap::from([(0, (1, "the header"))]),
        };
        let reftable_entries = header.reftable.1 << (header.bits - 3);
        counter.add("the refcount table", header.reftable.0, header.reftable.1)?;
        let blocks: HashMap<u64, u64> = entries(state, header.reftable.0, reftable_entries).collect();
        for at in blocks.values() {
            counter.add("a refcount block", *at, 1)?;
        }
        let mut image = Self { state, bits: header.bits, len: header.len, places: HashMap::new() };
        let mut owned = Vec::new();
        let (l1_at, l1_count) = header.l1;
        if l1_count << (header.bits - 3 + header.bits) < header.len {
            return Err("the L1 table is too small for the disk".into());
        }
        image.walk(&header, l1_at, l1_count, &mut counter, Some(&mut owned))?;
        image.walk_snapshots(&header, &mut counter)?;
        let refcount = |cluster: u64| {
            let bits = header.bits + 3 - header.order;
            let block = blocks.get(&(cluster >> bits)).copied().unwrap_or(0);
            let (index, width) = (cluster & ((1 << bits) - 1), 1u64 << header.order);
            let bit = block * 8 + index * width;
            let sector = if block == 0 { [0; SECTOR] } else { state.sector(bit / 8 / SECTOR as u64) };
            let byte = (bit / 8) as usize % SECTOR;
            match width {
                1..8 => u64::from(sector[byte]) >> (bit % 8) & ((1 << width) - 1),
                _ => be(&sector, byte, width as usize / 8),
            }
        };
        for (cluster, (count, _)) in &counter.references {
            let counted = refcount(*cluster);
            if counted < *count {
                return Err(format!(
                    "cluster {cluster:#x} has {count} references and a refcount of {counted}"
                ));
            }
        }
        for (at, copied) in owned {
            let counted = refcount(at >> header.bits);
            if copied != (counted == 1) {
                return Err(format!(
                    "the entry for {at:#x} says COPIED: {copied}, and its refcount is {counted}"
                ));
            }
        }
        Ok(image)
    }

    /// Counts what an L1 table refers to; of the active one also notes where everything is, and what says that it is owned.
    fn walk(
        &mut self,
        header: &Header,
        at: u64,
        count: u64,
        counter: &mut Counter,
        mut owned: Option<&mut Vec<(u64, bool)>>,
    ) -> Result<(), String> {
        let l2_bits = header.bits - 3;
        counter.add("an L1 table", at, (count * 8).div_ceil(1 << header.bits))?;
        for (index, l1) in entries(self.state, at, count) {
            counter.add("an L2 table", l1 & OFFSET, 1)?;
            if let Some(owned) = &mut owned {
                owned.push((l1 & OFFSET, l1 & COPIED != 0));
            }
            for (slot, l2) in entries(self.state, l1 & OFFSET, 1 << l2_bits) {
                let place = if l2 & COMPRESSED != 0 {
                    let shift = 62 - (header.bits - 8);
                    let (from, sectors) = (l2 & ((1 << shift) - 1), (l2 & (COMPRESSED - 1)) >> shift);
                    counter.add_bytes("packed data", from & !511, (sectors + 1) * 512)?;
                    Place::Packed
                } else {
                    if l2 & OFFSET != 0 {
                        counter.add("data", l2 & OFFSET, 1)?;
                        if let Some(owned) = &mut owned {
                            owned.push((l2 & OFFSET, l2 & COPIED != 0));
                        }
                    }
                    match l2 & OFFSET {
                        _ if header.version == 3 && l2 & 1 != 0 => Place::Zeros,
                        0 => return Err(format!("an L2 entry is {l2:#x}")),
                        at => Place::At(at),
                    }
                };
                if owned.is_some() {
                    self.places.insert(index << l2_bits | slot, place);
                }
            }
        }
        Ok(())
    }

    fn walk_snapshots(&mut self, header: &Header, counter: &mut Counter) -> Result<(), String> {
        let (at, count) = header.snapshots;
        if count == 0 {
            return Ok(());
        }
        let bytes = |at: u64, len: u64| -> Vec<u8> {
            (at..at + len).map(|at| self.state.sector(at / 512)[(at % 512) as usize]).collect()
        };
        let (mut place, mut tables) = (at, Vec::new());
        for _ in 0..count {
            let entry = bytes(place, 40);
            tables.push((be(&entry, 0, 8), be(&entry, 8, 4)));
            let names = be(&entry, 12, 2) + be(&entry, 14, 2) + be(&entry, 36, 4);
            place = (place + 40 + names).next_multiple_of(8);
        }
        counter.add("the snapshot table", at, (place - at).div_ceil(1 << header.bits))?;
        tables.into_iter().try_for_each(|(at, count)| self.walk(header, at, count, counter, None))
    }

    /// Length of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        self.len / SECTOR as u64
    }

    /// What a sector of the disk holds.
    pub fn stamp(&self, sector: u64) -> Result<Found, String> {
        let per_cluster = self.bits - 9;
        match self.places.get(&(sector >> per_cluster)) {
            None => Ok(Found::Below),
            Some(Place::Packed) => Ok(Found::Packed),
            Some(Place::Zeros) => Ok(Found::Stamp(0)),
            Some(Place::At(at)) => {
                let place = at / SECTOR as u64 + (sector & ((1 << per_cluster) - 1));
                super::ledger::stamp_of(sector, &self.state.sector(place)).map(Found::Stamp)
            }
        }
    }
}

/// Whether the header says that the dirty bitmaps agree with the disk.
pub fn has_valid_bitmaps(state: &State) -> bool {
    let start = state.sector(0);
    be(&start, 4, 4) == 3 && be(&start, 88, 8) & 1 != 0
}

/// The stamp of a sector of a raw image.
pub fn raw_stamp(state: &State, sector: u64) -> Result<u64, String> {
    super::ledger::stamp_of(sector, &state.sector(sector))
}
