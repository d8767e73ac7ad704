//! Physical and logical drives (`MR_PD_LIST`, `MR_PD_INFO`, `MR_LD_LIST`, `MR_LD_TARGETID_LIST`, `MR_LD_INFO`).

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Enclosure ID that says that there is no enclosure.
pub(crate) const NO_ENCLOSURE: u16 = 0xffff;

/// An entry of a PD list (`MR_PD_ADDRESS`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct PdAddress {
    pub(crate) device_id: U16,
    pub(crate) enclosure_id: U16,
    pub(crate) enclosure_index: u8,
    pub(crate) slot: u8,
    /// Peripheral device type.
    pub(crate) scsi_type: u8,
    pub(crate) port_bitmap: u8,
    pub(crate) sas_address: [U64; 2],
}

/// PD_GET_INFO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct PdInfo {
    pub(crate) device_id: U16,
    pub(crate) seq: U16,
    pub(crate) inquiry: [u8; 96],
    pub(crate) vpd_83: [u8; 64],
    pub(crate) not_supported: u8,
    pub(crate) scsi_type: u8,
    pub(crate) connected_ports: u8,
    pub(crate) device_speed: u8,
    pub(crate) media_errors: U32,
    pub(crate) other_errors: U32,
    pub(crate) predictive_failures: U32,
    pub(crate) last_event: U32,
    pub(crate) fw_state: U16,
    pub(crate) disabled_for_removal: u8,
    pub(crate) link_speed: u8,
    pub(crate) ddf_type: U16,
    pub(crate) reserved: [u8; 2],
    pub(crate) path_count: u8,
    pub(crate) path_broken: u8,
    pub(crate) reserved2: [u8; 6],
    pub(crate) sas_address: [U64; 4],
    /// Sizes in units of 512 bytes.
    pub(crate) raw_size: U64,
    pub(crate) non_coerced_size: U64,
    pub(crate) coerced_size: U64,
    pub(crate) enclosure_id: U16,
    pub(crate) enclosure_index: u8,
    pub(crate) slot: u8,
    pub(crate) progress: [u8; 32],
    pub(crate) reserved3: [u8; 2],
    pub(crate) vpd_83_ext: [u8; 64],
    pub(crate) power_state: u8,
    pub(crate) reserved4: [u8; 0x0b],
    pub(crate) media_type: u8,
    pub(crate) reserved5: [u8; 0x1e],
    pub(crate) interface: u8,
    pub(crate) temperature: u8,
    pub(crate) reserved6: u8,
    pub(crate) block_size: U16,
    pub(crate) reserved7: [u8; 0x6a],
}

/// `PdInfo::fw_state`: a member of an array that works.
pub(crate) const PD_ONLINE: u16 = 0x18;
/// `PdInfo::fw_state`: given to the host as it is.
pub(crate) const PD_SYSTEM: u16 = 0x40;
/// `PdInfo::power_state`: it turns.
pub(crate) const PD_ACTIVE: u8 = 0;
/// `PdInfo::device_speed`, `PdInfo::link_speed`: 3 Gbit/s.
pub(crate) const PD_SPEED_3G: u8 = 2;
/// `PdInfo::ddf_type`: belongs to an array.
pub(crate) const DDF_IN_VD: u16 = 1 << 1;
/// `PdInfo::ddf_type`: interface SAS.
pub(crate) const DDF_SAS: u16 = 2 << 12;

/// An entry of LD_GET_LIST.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LdEntry {
    pub(crate) target_id: u8,
    pub(crate) reserved: u8,
    pub(crate) seq: U16,
    pub(crate) state: u8,
    pub(crate) reserved2: [u8; 3],
    /// In units of 512 bytes.
    pub(crate) size: U64,
}

/// `LdEntry::state`, `LdParameters::state`.
pub(crate) const LD_OPTIMAL: u8 = 3;
/// As [`LD_OPTIMAL`]: not there.
pub(crate) const LD_OFFLINE: u8 = 0;

/// LD properties (`MR_LD_PROPERTIES`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LdProperties {
    pub(crate) target_id: u8,
    pub(crate) reserved: u8,
    pub(crate) seq: U16,
    pub(crate) name: [u8; 16],
    pub(crate) default_cache_policy: u8,
    pub(crate) access_policy: u8,
    pub(crate) disk_cache_policy: u8,
    pub(crate) current_cache_policy: u8,
    pub(crate) no_background_init: u8,
    pub(crate) reserved2: [u8; 7],
}

/// `LdProperties::*_cache_policy` (`MR_LD_CACHE_*`): completed writes may be lost until the cache is flushed.
pub(crate) const LD_CACHE_WRITE_BACK: u8 = 0x01;
/// As [`LD_CACHE_WRITE_BACK`]: also without a battery.
pub(crate) const LD_CACHE_BAD_BBU: u8 = 0x10;
/// As [`LD_CACHE_WRITE_BACK`]: there is a cache for writes, which is what FreeBSD and OpenBSD ask.
pub(crate) const LD_CACHE_WRITES: u8 = 0x20;
/// `LdProperties::access_policy` (`MR_LD_ACCESS_RO`, as FreeBSD's mfireg.h has it): no writes.
pub(crate) const LD_READ_ONLY: u8 = 2;
/// `LdProperties::disk_cache_policy`: disabled.
pub(crate) const DISK_CACHE_DISABLED: u8 = 2;
/// `LdProperties::disk_cache_policy`: enabled.
pub(crate) const DISK_CACHE_ENABLED: u8 = 1;

/// LD parameters (`MR_LD_PARAMETERS`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LdParameters {
    pub(crate) primary_raid_level: u8,
    pub(crate) raid_level_qualifier: u8,
    pub(crate) secondary_raid_level: u8,
    /// Log2 of the strip in units of 512 bytes.
    pub(crate) stripe_size: u8,
    pub(crate) drives: u8,
    pub(crate) span_depth: u8,
    pub(crate) state: u8,
    pub(crate) init_state: u8,
    pub(crate) is_consistent: u8,
    pub(crate) reserved: [u8; 23],
}

/// Where an LD lies in an array (`MR_SPAN`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Span {
    pub(crate) start: U64,
    pub(crate) blocks: U64,
    pub(crate) array_ref: U16,
    pub(crate) reserved: [u8; 6],
}

/// What is configured of an LD (`MR_LD_CONFIG`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LdConfig {
    pub(crate) properties: LdProperties,
    pub(crate) parameters: LdParameters,
    pub(crate) spans: [Span; 8],
}

/// LD_GET_INFO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LdInfo {
    pub(crate) config: LdConfig,
    /// In units of 512 bytes.
    pub(crate) size: U64,
    pub(crate) progress: [u8; 40],
    pub(crate) vpd_83: [u8; 64],
    pub(crate) reserved: [u8; 16],
}

const _: () = assert!(size_of::<PdAddress>() == 24 && size_of::<PdInfo>() == 0x200);
const _: () = assert!(offset_of!(PdInfo, fw_state) == 0xb8 && offset_of!(PdInfo, ddf_type) == 0xbc);
const _: () = assert!(offset_of!(PdInfo, sas_address) == 0xc8 && offset_of!(PdInfo, raw_size) == 0xe8);
const _: () = assert!(offset_of!(PdInfo, enclosure_id) == 0x100 && offset_of!(PdInfo, vpd_83_ext) == 0x126);
const _: () = assert!(offset_of!(PdInfo, power_state) == 0x166 && offset_of!(PdInfo, media_type) == 0x172);
const _: () = assert!(offset_of!(PdInfo, interface) == 0x191 && offset_of!(PdInfo, block_size) == 0x194);
const _: () = assert!(size_of::<LdEntry>() == 16 && size_of::<LdInfo>() == 384);
const _: () = assert!(size_of::<LdConfig>() == 0x100 && offset_of!(LdInfo, vpd_83) == 0x130);
