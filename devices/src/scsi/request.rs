//! Requests and replies as they cross between an HBA and the SCSI layer.

use crate::mem::{FromGuest, ToGuest};

/// Longest CDB carried, in bytes (SPC-5, 4.2.2.1: variable length CDBs go further; no transport of ours does).
pub const MAX_CDB: usize = 32;
/// Longest sense data, in bytes (SPC-5, 4.4.2.1).
pub const MAX_SENSE: usize = 252;

/// An 8-byte logical unit number (SAM-6, 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lun(pub [u8; 8]);

/// A command descriptor block as the initiator sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; MAX_CDB],
    len: u8,
}

impl Cdb {
    /// Takes the first [`MAX_CDB`] bytes of `bytes`; the rest of the block reads as zeros.
    pub fn new(bytes: &[u8]) -> Self {
        let mut all = [0; MAX_CDB];
        let len = bytes.len().min(MAX_CDB);
        if let (Some(to), Some(from)) = (all.get_mut(..len), bytes.get(..len)) {
            to.copy_from_slice(from);
        }
        Self { bytes: all, len: len as u8 }
    }

    /// The operation code: byte 0.
    pub fn opcode(&self) -> u8 {
        self.bytes[0]
    }

    /// The bytes that the initiator sent.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// The block padded with zeros to [`MAX_CDB`] bytes: indexing by constants cannot fail.
    pub fn padded(&self) -> &[u8; MAX_CDB] {
        &self.bytes
    }
}

/// The task tag that an initiator gave (SAM-6, 4.9.2); unique on its nexus while the task lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// Task attribute (SAM-6, 8.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TaskAttribute {
    /// May be reordered.
    #[default]
    Simple,
    /// After everything before it, before everything after it.
    Ordered,
    /// Before everything not yet started.
    HeadOfQueue,
    /// Only while an auto contingent allegiance is established.
    Aca,
}

/// What the initiator offered to move, in both directions; empty where it offered nothing.
#[derive(Debug)]
pub struct DataBuffers {
    /// Data-out: from the initiator.
    pub data_out: FromGuest,
    /// Data-in: to the initiator.
    pub data_in: ToGuest,
    /// Protection information, where the transport moves it apart from the blocks.
    pub protection: Option<Box<ProtectionBuffers>>,
}

/// Buffers for protection information apart from the data.
#[derive(Debug)]
pub struct ProtectionBuffers {
    /// What goes with data-out.
    pub data_out: FromGuest,
    /// What goes with data-in.
    pub data_in: ToGuest,
}

impl DataBuffers {
    /// No data either way.
    pub fn none() -> Self {
        Self::new(FromGuest::empty(), ToGuest::empty())
    }
    /// Takes all of it.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::none())
    }
    /// Data either way, protection information among it if there is any.
    pub fn new(data_out: FromGuest, data_in: ToGuest) -> Self {
        Self { data_out, data_in, protection: None }
    }
    /// Room for protection information to the initiator, in bytes.
    pub(crate) fn protection_in(&self) -> u64 {
        self.protection.as_ref().map_or(0, |protection| protection.data_in.len())
    }
    /// Protection information from the initiator, in bytes.
    pub(crate) fn protection_out(&self) -> u64 {
        self.protection.as_ref().map_or(0, |protection| protection.data_out.len())
    }
    /// Data to the initiator.
    pub fn to_initiator(data_in: ToGuest) -> Self {
        Self::new(FromGuest::empty(), data_in)
    }
    /// Data from the initiator.
    pub fn from_initiator(data_out: FromGuest) -> Self {
        Self::new(data_out, ToGuest::empty())
    }
}

/// One SCSI command on a nexus.
#[derive(Debug)]
pub struct ScsiRequest {
    /// The initiator's tag.
    pub tag: Tag,
    /// The logical unit within the target.
    pub lun: Lun,
    /// The command.
    pub cdb: Cdb,
    /// Ordering.
    pub attribute: TaskAttribute,
    /// Command priority, 0 (none) to 15 (SAM-6, 8.7).
    pub priority: u8,
    /// The buffers.
    pub data: DataBuffers,
}

/// SCSI status (SAM-6, 5.3.1); the discriminants are the wire values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// GOOD
    Good = 0x00,
    /// CHECK CONDITION
    CheckCondition = 0x02,
    /// CONDITION MET
    ConditionMet = 0x04,
    /// BUSY
    Busy = 0x08,
    /// RESERVATION CONFLICT
    ReservationConflict = 0x18,
    /// TASK SET FULL
    TaskSetFull = 0x28,
    /// ACA ACTIVE
    AcaActive = 0x30,
    /// TASK ABORTED
    TaskAborted = 0x40,
}

/// Sense data as it goes to the initiator (SPC-5, 4.4), at most [`MAX_SENSE`] bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    bytes: [u8; MAX_SENSE],
    len: u8,
}

impl Sense {
    /// Sense data of these bytes, cut at [`MAX_SENSE`].
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut all = [0; MAX_SENSE];
        for (to, from) in all.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { bytes: all, len: bytes.len().min(MAX_SENSE) as u8 }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl std::fmt::Debug for Sense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sense({:02x?})", self.as_bytes())
    }
}

/// How the transfer that the command described compares with the buffer that the initiator offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// As much as offered.
    Exact,
    /// So many bytes of the buffer were not used.
    Under(u64),
    /// The command had so many bytes more than the buffer holds.
    Over(u64),
}

/// The end of a command, as the target reports it.
#[derive(Debug)]
pub struct ScsiReply {
    /// Status byte.
    pub status: Status,
    /// Sense data; there is some with CHECK CONDITION and perhaps with other statuses.
    pub sense: Option<Sense>,
    /// Of the data-out buffer.
    pub residual_out: Residual,
    /// Of the data-in buffer.
    pub residual_in: Residual,
}

/// A command that ended without a status from a logical unit. Not a CHECK CONDITION; never ends a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportFault {
    /// No such target.
    NoTarget,
    /// Ended by a task management function of its own nexus.
    Aborted,
    /// Ended by a reset of the logical unit, target or HBA.
    Reset,
    /// The path to the target is down.
    PathLost,
    /// It failed for now: the same again is likely to work.
    Busy,
    /// The target fails, on whatever path.
    TargetFailure,
    /// This nexus fails; another path may do better.
    NexusFailure,
}
