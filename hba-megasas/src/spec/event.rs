//! Events (`megasas_evt_detail`, `megasas_evt_log_info`).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EVENT_GET_INFO: sequence numbers.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LogInfo {
    pub(crate) newest: U32,
    pub(crate) oldest: U32,
    pub(crate) clear: U32,
    pub(crate) shutdown: U32,
    pub(crate) boot: U32,
}

/// One event.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) seq: U32,
    /// Seconds since 2000-01-01 00:00 UTC.
    pub(crate) time: U32,
    pub(crate) code: U32,
    pub(crate) locale: U16,
    pub(crate) reserved: u8,
    /// A [`class`].
    pub(crate) class: i8,
    pub(crate) arg_type: u8,
    pub(crate) reserved2: [u8; 15],
    pub(crate) args: [u8; 96],
    pub(crate) description: [u8; 128],
}

/// Importance of an event (`MR_EVT_CLASS`).
pub(crate) mod class {
    pub(crate) const INFO: i8 = 0;
}

/// What an event is about, bits (`MR_EVT_LOCALE`).
pub(crate) mod locale {
    pub(crate) const LD: u16 = 0x01;
    pub(crate) const PD: u16 = 0x02;
    pub(crate) const CTRL: u16 = 0x20;
}

/// Event codes (`MR_EVT_*`; the table of events in the MegaRAID SAS Software User Guide).
pub(crate) mod code {
    pub(crate) const FIRMWARE_INIT: u32 = 0x0000;
    pub(crate) const LOG_CLEARED: u32 = 0x001e;
    pub(crate) const SHUTDOWN: u32 = 0x002a;
    pub(crate) const LD_STATE_CHANGED: u32 = 0x0051;
    pub(crate) const PD_INSERTED: u32 = 0x005b;
    pub(crate) const PD_REMOVED: u32 = 0x0070;
    pub(crate) const PD_STATE_CHANGED: u32 = 0x0072;
    pub(crate) const LD_CREATED: u32 = 0x008a;
    pub(crate) const LD_DELETED: u32 = 0x008b;
    pub(crate) const PROPERTIES_CHANGED: u32 = 0x012f;
}

/// Types of arguments (`MR_EVT_ARGS_*`).
pub(crate) mod arg {
    pub(crate) const NONE: u8 = 0x00;
    /// Target, index.
    pub(crate) const LD: u8 = 0x02;
    /// As [`LD`], the state before, the state now.
    pub(crate) const LD_STATE: u8 = 0x08;
    /// Device, enclosure, slot.
    pub(crate) const PD: u8 = 0x0a;
    /// As [`PD`], the state before, the state now.
    pub(crate) const PD_STATE: u8 = 0x0f;
}

const _: () = assert!(size_of::<Record>() == 256 && std::mem::offset_of!(Record, class) == 0x0f);
const _: () = assert!(std::mem::offset_of!(Record, args) == 0x20 && size_of::<LogInfo>() == 20);
