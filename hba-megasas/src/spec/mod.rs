//! The wire of the MegaRAID firmware interface (MFI): registers, frames, statuses. All fields are little-endian.
//!
//! No document of it is public. Names and layouts are those that the drivers agree on: `megaraid_sas.h` of Linux,
//! `mfireg.h` of FreeBSD, `megasas.c` of SeaBIOS; comments name the structures of these headers.

pub(crate) mod config;
pub(crate) mod controller;
pub(crate) mod drive;
pub(crate) mod event;
pub(crate) mod opcode;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offsets of registers (`megasas_register_set`); the same in the memory BAR and in the port BAR.
pub(crate) mod register {
    /// Status word as older boards have it.
    pub(crate) const OUTBOUND_MESSAGE_0: u64 = 0x18;
    pub(crate) const INBOUND_DOORBELL: u64 = 0x20;
    pub(crate) const OUTBOUND_INTR_STATUS: u64 = 0x30;
    pub(crate) const OUTBOUND_INTR_MASK: u64 = 0x34;
    pub(crate) const INBOUND_QUEUE_PORT: u64 = 0x40;
    pub(crate) const OUTBOUND_DOORBELL_CLEAR: u64 = 0xa0;
    /// Firmware status word.
    pub(crate) const OUTBOUND_SCRATCH_PAD_0: u64 = 0xb0;
    pub(crate) const OUTBOUND_SCRATCH_PAD_1: u64 = 0xb4;
    pub(crate) const INBOUND_LOW_QUEUE_PORT: u64 = 0xc0;
    pub(crate) const INBOUND_HIGH_QUEUE_PORT: u64 = 0xc4;
    pub(crate) const HOST_DIAG: u64 = 0xf8;
    pub(crate) const SEQ_OFFSET: u64 = 0xfc;
}

/// Bits of the inbound doorbell (`MFI_INIT_*`, `MFI_ADP_RESET`).
pub(crate) mod doorbell {
    /// Abort everything pending.
    pub(crate) const ABORT: u32 = 0x01;
    /// Go to READY and forget the queues.
    pub(crate) const READY: u32 = 0x02;
    /// Stop: FAULT until the adapter is reset.
    pub(crate) const STOP: u32 = 0x20;
    /// Reset the adapter.
    pub(crate) const ADAPTER_RESET: u32 = 0x40;
}

/// Bits of the host diagnostic register (`DIAG_*`).
pub(crate) mod diag {
    pub(crate) const WRITE_ENABLE: u32 = 0x80;
    pub(crate) const RESET_ADAPTER: u32 = 0x04;
}

/// What has to be written to the write sequence register, in this order, to enable the diagnostic register.
pub(crate) const WRITE_SEQUENCE: [u32; 6] = [0x00, 0x04, 0x0b, 0x02, 0x07, 0x0d];

/// Bits of the outbound interrupt status that do not differ between boards.
pub(crate) mod interrupt {
    /// The firmware changed its state by itself (`MFI_G2_OUTBOUND_DOORBELL_CHANGE_INTERRUPT`).
    pub(crate) const STATE_CHANGE: u32 = 0x4;
}

/// State of the firmware, bits 31:28 of the status word (`MFI_STATE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// Still busy with what was before.
    FwInit = 0x4,
    /// Takes frames; completions are only written to the frame.
    Ready = 0xb,
    /// Has a reply queue.
    Operational = 0xc,
    /// Dead until the adapter is reset.
    Fault = 0xf,
}

/// The status word says so when message-signalled interrupts of the extended kind and IEEE lists are on offer.
pub(crate) const STATUS_MSIX_AND_IEEE: u32 = 1 << 26;

/// Frame commands (`MFI_CMD_*`).
pub(crate) mod command {
    pub(crate) const INIT: u8 = 0x00;
    pub(crate) const LD_READ: u8 = 0x01;
    pub(crate) const LD_WRITE: u8 = 0x02;
    pub(crate) const LD_SCSI: u8 = 0x03;
    pub(crate) const PD_SCSI: u8 = 0x04;
    pub(crate) const DCMD: u8 = 0x05;
    pub(crate) const ABORT: u8 = 0x06;
    pub(crate) const SMP: u8 = 0x07;
    pub(crate) const STP: u8 = 0x08;
}

/// Frame flags (`MFI_FRAME_*`).
pub(crate) mod flag {
    pub(crate) const DONT_POST_IN_REPLY_QUEUE: u16 = 0x0001;
    pub(crate) const SGL64: u16 = 0x0002;
    pub(crate) const SENSE64: u16 = 0x0004;
    /// Data goes to the drive, or comes from it.
    pub(crate) const DIR_WRITE: u16 = 0x0008;
    pub(crate) const DIR_READ: u16 = 0x0010;
    pub(crate) const IEEE: u16 = 0x0020;
}

/// Completion status of a frame (`MFI_STAT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = 0x00,
    InvalidCommand = 0x01,
    InvalidDcmd = 0x02,
    InvalidParameter = 0x03,
    AbortNotPossible = 0x05,
    DeviceNotFound = 0x0c,
    MemoryNotAvailable = 0x20,
    NoHardwarePresent = 0x22,
    NotFound = 0x23,
    /// The device answered with a SCSI status other than GOOD.
    ScsiDoneWithError = 0x2d,
    ScsiIoFailed = 0x2e,
    WrongState = 0x32,
    InvalidSgl = 0x3c,
    /// Still pending; a held command that was aborted comes back with it.
    Invalid = 0xff,
}

/// What every frame begins with (`megasas_header`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FrameHeader {
    pub(crate) cmd: u8,
    pub(crate) sense_len: u8,
    pub(crate) cmd_status: u8,
    pub(crate) scsi_status: u8,
    pub(crate) target_id: u8,
    pub(crate) lun: u8,
    pub(crate) cdb_len: u8,
    pub(crate) sge_count: u8,
    /// The driver's; the low half is what a reply queue of 32-bit contexts carries.
    pub(crate) context: U64,
    pub(crate) flags: U16,
    /// Seconds; 0 for none.
    pub(crate) timeout: U16,
    /// Bytes, or blocks in LD READ and LD WRITE.
    pub(crate) data_xfer_len: U32,
}

/// `megasas_init_queue_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct QueueInfo {
    pub(crate) flags: U32,
    pub(crate) reply_queue_entries: U32,
    pub(crate) reply_queue: U64,
    pub(crate) producer_index: U64,
    pub(crate) consumer_index: U64,
}

/// Flag of [`QueueInfo`]: contexts in the reply queue have 64 bits (`MFI_QUEUE_FLAG_CONTEXT64`).
pub(crate) const QUEUE_CONTEXT64: u32 = 0x2;

/// Bytes of the first part of a frame, which holds everything but a longer scatter-gather list.
pub(crate) const FRAME_SIZE: usize = 64;
/// Offset of the list in DCMD, LD READ and LD WRITE frames.
pub(crate) const SGL_OFFSET_IO: usize = 0x28;
/// Offset of the list in SCSI frames.
pub(crate) const SGL_OFFSET_SCSI: usize = 0x30;
/// Offset of the body: what comes after [`FrameHeader`].
pub(crate) const BODY_OFFSET: usize = 0x18;

const _: () = assert!(size_of::<FrameHeader>() == BODY_OFFSET && size_of::<QueueInfo>() == 32);
