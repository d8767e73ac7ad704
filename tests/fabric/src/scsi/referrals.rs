//! Referrals (SBC-4 4.28): blocks of one disk that are at home in different target port groups, and how initiators hear of it.

use super::alua::State;
use super::sense::Sense;
use crate::bytes::Fields;

/// The service action of REPORT REFERRALS, of SERVICE ACTION IN(16).
pub(crate) const REPORT_REFERRALS: u8 = 0x13;

/// What a command hears that is for blocks of another group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Referred {
    /// Nothing: it is done.
    Off,
    /// It is done, and its sense data says where it would have been better.
    Completed,
    /// It is not done, and its sense data says where it will be.
    Aborted,
}

/// The names of these.
pub(crate) const REFERRED: [(&str, Referred); 3] =
    [("quiet", Referred::Off), ("completed", Referred::Completed), ("aborted", Referred::Aborted)];

/// A user data segment as an initiator hears of it: the first and the last of its blocks, and its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) group: u16,
}

impl Segment {
    /// The user data segment referral descriptor, with one target port group (SBC-4 5.26.3, table of it).
    pub(crate) fn bytes(&self, state: State) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 1];
        bytes.extend(self.first.to_be_bytes());
        bytes.extend(self.last.to_be_bytes());
        bytes.extend([state as u8, 0]);
        bytes.extend(self.group.to_be_bytes());
        bytes
    }
}

/// How the blocks of a disk are dealt to groups: so many to each, in turn.
#[derive(Clone, Debug)]
pub(crate) struct Referrals {
    pub(crate) blocks: u32,
    pub(crate) groups: Vec<u16>,
    pub(crate) referred: Referred,
}

impl Referrals {
    /// The segment that a block is in.
    fn segment_of(&self, block: u64) -> Option<Segment> {
        let segment = block.checked_div(self.blocks.into())?;
        let count = u64::try_from(self.groups.len()).ok()?;
        let group = *self.groups.get(usize::try_from(segment.checked_rem(count)?).ok()?)?;
        let first = segment * u64::from(self.blocks);
        Some(Segment { first, last: first + u64::from(self.blocks) - 1, group })
    }

    /// What a command hears that comes to a group and is for these blocks. Only the first is looked at.
    pub(crate) fn refers(&self, group: u16, block: u64) -> Option<Sense> {
        let segment = self.segment_of(block).filter(|segment| segment.group != group)?;
        match self.referred {
            Referred::Off => None,
            Referred::Completed => Some(Sense::COMPLETED_INSPECT_REFERRALS.referring(segment)),
            Referred::Aborted => Some(Sense::ABORTED_INSPECT_REFERRALS.referring(segment)),
        }
    }

    /// The Referrals VPD page (SBC-4 6.6.7): each descriptor is of a segment, and of those that follow it at a distance of size times multiplier.
    pub(crate) fn page(&self) -> Vec<u8> {
        let multiplier = u32::try_from(self.groups.len()).unwrap_or_default();
        [&[0; 4][..], &self.blocks.to_be_bytes(), &multiplier.to_be_bytes()].concat()
    }

    /// REPORT REFERRALS: a descriptor for each group, from the segment of the wanted block on. `last` is the disk's last block.
    pub(crate) fn report(&self, cdb: &[u8; 16], last: u64) -> Result<Vec<u8>, Sense> {
        let block = cdb.be64(2).unwrap_or_default();
        if block > last {
            return Err(Sense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
        }
        let count = if cdb[14] & 1 == 1 { 1 } else { self.groups.len() };
        let (mut list, mut next) = (Vec::new(), block);
        for _ in 0..count {
            let Some(segment) = self.segment_of(next).filter(|segment| segment.first <= last) else { break };
            next = segment.last + 1;
            list.extend(Segment { last, ..segment }.bytes(State::Optimized));
        }
        let length = u16::try_from(list.len()).unwrap_or_default().to_be_bytes();
        Ok([&[0, 0][..], &length, &list].concat())
    }
}
