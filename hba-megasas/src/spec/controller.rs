//! The controller (`megasas_ctrl_info`, `megasas_ctrl_prop`, `MR_MFC_DEFAULTS`).

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A connector of the board.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Interface {
    pub(crate) kind: u8,
    pub(crate) reserved: [u8; 6],
    pub(crate) port_count: u8,
    pub(crate) port_address: [U64; 8],
}

/// `Interface::kind` of the host side: PCI-X.
pub(crate) const HOST_PCIX: u8 = 1;
/// `Interface::kind` of the host side: PCI Express.
pub(crate) const HOST_PCIE: u8 = 2;
/// `Interface::kind` of the device side: SAS at 3 Gbit/s.
pub(crate) const DEVICE_SAS_3G: u8 = 2;

/// A part of the firmware.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Component {
    pub(crate) name: [u8; 8],
    pub(crate) version: [u8; 32],
    pub(crate) build_date: [u8; 16],
    pub(crate) build_time: [u8; 16],
}

/// Controller properties.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Properties {
    pub(crate) seq: U16,
    pub(crate) predictive_failure_poll: U16,
    pub(crate) intr_throttle_count: U16,
    pub(crate) intr_throttle_timeout: U16,
    /// Rebuild, patrol read, initialisation, consistency check and reconstruction, in per cent; cache flush interval
    /// in seconds; spin-up; switches.
    pub(crate) rates: [u8; 24],
    pub(crate) on_off: U32,
    pub(crate) on_off_2: U16,
    pub(crate) reserved: [u8; 26],
}

/// `Properties::on_off`: drivers must not reset the adapter by themselves.
pub(crate) const DISABLE_OCR: u32 = 1 << 10;
/// `Properties::on_off`: disks are given to the host as they are.
pub(crate) const ENABLE_JBOD: u32 = 1 << 13;

/// CTRL_GET_INFO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ControllerInfo {
    pub(crate) vendor: U16,
    pub(crate) device: U16,
    pub(crate) sub_vendor: U16,
    pub(crate) sub_device: U16,
    pub(crate) reserved: [u8; 24],
    pub(crate) host_interface: Interface,
    pub(crate) device_interface: Interface,
    pub(crate) image_check_word: U32,
    pub(crate) component_count: U32,
    pub(crate) components: [Component; 8],
    pub(crate) pending_count: U32,
    pub(crate) pending: [Component; 8],
    pub(crate) max_arms: u8,
    pub(crate) max_spans: u8,
    pub(crate) max_arrays: u8,
    pub(crate) max_lds: u8,
    pub(crate) product_name: [u8; 80],
    pub(crate) serial: [u8; 32],
    pub(crate) hw_present: U32,
    /// Seconds since 2000-01-01 00:00 UTC.
    pub(crate) fw_time: U32,
    pub(crate) max_cmds: U16,
    pub(crate) max_sge: U16,
    /// In sectors of 512 bytes.
    pub(crate) max_request: U32,
    pub(crate) lds_present: U16,
    pub(crate) lds_degraded: U16,
    pub(crate) lds_offline: U16,
    pub(crate) pds_present: U16,
    pub(crate) disks_present: U16,
    pub(crate) disks_predicted: U16,
    pub(crate) disks_failed: U16,
    pub(crate) nvram_kib: U16,
    pub(crate) memory_mib: U16,
    pub(crate) flash_mib: U16,
    pub(crate) memory_errors: [U16; 2],
    pub(crate) cluster: [u8; 2],
    pub(crate) max_strips_per_io: U16,
    /// Bit for each of RAID 0, 1, 5, 1E, 6.
    pub(crate) raid_levels: U32,
    pub(crate) adapter_operations: U32,
    pub(crate) ld_operations: U32,
    /// Log2 of the strip in sectors.
    pub(crate) stripe_min: u8,
    pub(crate) stripe_max: u8,
    pub(crate) reserved2: [u8; 2],
    pub(crate) pd_operations: U32,
    pub(crate) pd_mix: U32,
    pub(crate) reserved3: [u8; 12],
    pub(crate) properties: Properties,
    pub(crate) package_version: [u8; 96],
    pub(crate) reserved4: [u8; 0x160],
}

/// `hw_present`: NVRAM, a UART, memory and flash, but no battery and no alarm.
pub(crate) const HW_PRESENT: u32 = 0x04 | 0x08 | 0x10 | 0x20;
/// `pd_mix`: SAS and SATA disks, mixed in one logical drive.
pub(crate) const PD_MIX: u32 = 0x01 | 0x02 | 0x08;

/// Factory settings (`MR_MFC_DEFAULTS`; `mfi_defaults` of FreeBSD). Of most, this board has none.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Defaults {
    pub(crate) sas_address: U64,
    pub(crate) phy_polarity: u8,
    /// In per cent.
    pub(crate) background_rate: u8,
    /// Log2 of the strip in sectors.
    pub(crate) stripe_size: u8,
    /// Seconds.
    pub(crate) flush_time: u8,
    pub(crate) write_back: u8,
    pub(crate) read_ahead: u8,
    pub(crate) cache_when_bbu_bad: u8,
    pub(crate) cached_io: u8,
    pub(crate) smart_mode: u8,
    pub(crate) alarm_disable: u8,
    pub(crate) reserved: [u8; 46],
}

const _: () = assert!(size_of::<Properties>() == 64 && offset_of!(Properties, on_off) == 0x20);
const _: () = assert!(size_of::<ControllerInfo>() == 0x800 && size_of::<Defaults>() == 64);
const _: () = assert!(offset_of!(ControllerInfo, host_interface) == 0x20);
const _: () = assert!(offset_of!(ControllerInfo, components) == 0xb8);
const _: () = assert!(offset_of!(ControllerInfo, max_lds) == 0x53f);
const _: () = assert!(offset_of!(ControllerInfo, product_name) == 0x540);
const _: () = assert!(offset_of!(ControllerInfo, hw_present) == 0x5b0);
const _: () = assert!(offset_of!(ControllerInfo, memory_mib) == 0x5d0);
const _: () = assert!(offset_of!(ControllerInfo, max_strips_per_io) == 0x5da);
const _: () = assert!(offset_of!(ControllerInfo, stripe_min) == 0x5e8);
const _: () = assert!(offset_of!(ControllerInfo, properties) == 0x600);

/// Properties of patrol reads (FreeBSD's `mfi_pr_properties`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct PatrolProperties {
    /// 0: by itself, 1: when asked, 2: never.
    pub(crate) mode: u8,
    pub(crate) max_pds: u8,
    pub(crate) reserved: u8,
    pub(crate) excluded_count: u8,
    pub(crate) excluded_lds: [U16; 64],
    pub(crate) current_pds: [u8; 32],
    pub(crate) last_pds: [u8; 32],
    pub(crate) next: U32,
    pub(crate) period: U32,
    pub(crate) clear_period: U32,
}

/// Patrol reads never happen.
pub(crate) const PATROL_DISABLED: u8 = 2;

const _: () = assert!(size_of::<PatrolProperties>() == 208);
