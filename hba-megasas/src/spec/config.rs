//! CFG_READ (`MR_CONFIG_DATA`).

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the configuration begins with; arrays, logical drives and spares follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ConfigHeader {
    /// Of everything, in bytes.
    pub(crate) size: U32,
    pub(crate) array_count: U16,
    /// Of one entry.
    pub(crate) array_size: U16,
    pub(crate) ld_count: U16,
    pub(crate) ld_size: U16,
    pub(crate) spare_count: U16,
    pub(crate) spare_size: U16,
    pub(crate) reserved: [u8; 16],
}

/// Bytes of a spare; there are none.
pub(crate) const SPARE_SIZE: u16 = 0x28;

/// A disk of an array.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Member {
    /// [`NO_DEVICE`] where there is none.
    pub(crate) device_id: U16,
    pub(crate) seq: U16,
    pub(crate) fw_state: U16,
    pub(crate) enclosure_index: u8,
    pub(crate) slot: u8,
}

/// `Member::device_id` of an empty place.
pub(crate) const NO_DEVICE: u16 = 0xffff;

/// An array (`MR_ARRAY`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Array {
    /// Of each disk, in units of 512 bytes.
    pub(crate) size: U64,
    pub(crate) drives: u8,
    pub(crate) reserved: u8,
    pub(crate) array_ref: U16,
    pub(crate) reserved2: [u8; 20],
    pub(crate) members: [Member; 32],
}

const _: () = assert!(size_of::<ConfigHeader>() == 32 && size_of::<Array>() == 0x120);
const _: () = assert!(offset_of!(Array, array_ref) == 0x0a && offset_of!(Array, members) == 0x20);
