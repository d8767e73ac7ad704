//! The wire of virtio-scsi and of virtio over PCI, named as the standard names it.
//!
//! Sections are those of Virtual I/O Device (VIRTIO) Version 1.3. All fields are little-endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device status bits (2.1).
pub(crate) mod status {
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const DEVICE_NEEDS_RESET: u8 = 0x40;
    /// What a driver may set: ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED.
    pub(crate) const DRIVER_BITS: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | 0x80;
}

/// Feature bits (6, 5.6.3).
pub(crate) mod feature {
    pub(crate) const SCSI_INOUT: u64 = 1;
    pub(crate) const SCSI_HOTPLUG: u64 = 1 << 1;
    pub(crate) const SCSI_CHANGE: u64 = 1 << 2;
    pub(crate) const SCSI_T10_PI: u64 = 1 << 3;
    // Bits 4 to 7: see `fc::wire`.
    /// Legacy drivers only (6.3).
    pub(crate) const ANY_LAYOUT: u64 = 1 << 27;
    pub(crate) const RING_INDIRECT_DESC: u64 = 1 << 28;
    pub(crate) const RING_EVENT_IDX: u64 = 1 << 29;
    pub(crate) const VERSION_1: u64 = 1 << 32;
    pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
    pub(crate) const RING_RESET: u64 = 1 << 40;
}

/// The vector number that means none (4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Types of the capabilities that locate the structures (4.1.4).
pub(crate) mod cap {
    pub(crate) const COMMON_CFG: u8 = 1;
    pub(crate) const NOTIFY_CFG: u8 = 2;
    pub(crate) const ISR_CFG: u8 = 3;
    pub(crate) const DEVICE_CFG: u8 = 4;
    pub(crate) const PCI_CFG: u8 = 5;
}

/// ISR status bits (4.1.4.5).
pub(crate) mod isr {
    pub(crate) const QUEUE: u8 = 1;
    pub(crate) const CONFIG: u8 = 2;
}

/// The common configuration structure (4.1.4.3).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct CommonCfg {
    pub(crate) device_feature_select: U32,
    pub(crate) device_feature: U32,
    pub(crate) driver_feature_select: U32,
    pub(crate) driver_feature: U32,
    pub(crate) config_msix_vector: U16,
    pub(crate) num_queues: U16,
    pub(crate) device_status: u8,
    pub(crate) config_generation: u8,
    pub(crate) queue_select: U16,
    pub(crate) queue_size: U16,
    pub(crate) queue_msix_vector: U16,
    pub(crate) queue_enable: U16,
    pub(crate) queue_notify_off: U16,
    pub(crate) queue_desc: U64,
    pub(crate) queue_driver: U64,
    pub(crate) queue_device: U64,
    pub(crate) queue_notif_config_data: U16,
    pub(crate) queue_reset: U16,
    pub(crate) admin_queue_index: U16,
    pub(crate) admin_queue_num: U16,
}

/// The legacy registers (4.1.4.10); the vectors are there only while MSI-X is enabled.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct LegacyCfg {
    pub(crate) device_features: U32,
    pub(crate) driver_features: U32,
    pub(crate) queue_address: U32,
    pub(crate) queue_size: U16,
    pub(crate) queue_select: U16,
    pub(crate) queue_notify: U16,
    pub(crate) device_status: u8,
    pub(crate) isr_status: u8,
    pub(crate) config_msix_vector: U16,
    pub(crate) queue_msix_vector: U16,
}

/// Offsets of the legacy registers, and lengths of what comes before the device configuration (4.1.4.10).
pub(crate) mod legacy {
    pub(crate) const DRIVER_FEATURES: u64 = 4;
    pub(crate) const QUEUE_ADDRESS: u64 = 8;
    pub(crate) const QUEUE_SELECT: u64 = 14;
    pub(crate) const QUEUE_NOTIFY: u64 = 16;
    pub(crate) const DEVICE_STATUS: u64 = 18;
    pub(crate) const ISR: u64 = 19;
    pub(crate) const CONFIG_VECTOR: u64 = 20;
    pub(crate) const QUEUE_VECTOR: u64 = 22;
    pub(crate) const HEADER: u64 = 20;
    pub(crate) const HEADER_WITH_VECTORS: u64 = 24;
    /// Unit of a queue's address, and alignment of its used ring (4.1.5.1.3.1).
    pub(crate) const PAGE: u64 = 4096;
}

/// Device configuration (5.6.4).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ScsiConfig {
    pub(crate) num_queues: U32,
    pub(crate) seg_max: U32,
    pub(crate) max_sectors: U32,
    pub(crate) cmd_per_lun: U32,
    pub(crate) event_info_size: U32,
    pub(crate) sense_size: U32,
    pub(crate) cdb_size: U32,
    pub(crate) max_channel: U16,
    pub(crate) max_target: U16,
    pub(crate) max_lun: U32,
}

/// Offsets of the fields of [`ScsiConfig`] that a driver may write (5.6.4.1).
pub(crate) mod config_offset {
    pub(crate) const SENSE_SIZE: u64 = 20;
    pub(crate) const CDB_SIZE: u64 = 24;
}

/// `sense_size` after a reset (5.6.4.2).
pub(crate) const DEFAULT_SENSE_SIZE: u32 = 96;
/// `cdb_size` after a reset (5.6.4.2).
pub(crate) const DEFAULT_CDB_SIZE: u32 = 32;

/// Queue numbers (5.6.2); the request queues follow.
pub(crate) mod queue {
    pub(crate) const CONTROL: u16 = 0;
    pub(crate) const EVENT: u16 = 1;
    pub(crate) const FIRST_REQUEST: u16 = 2;
}

/// The fixed head of a command, before the CDB of `cdb_size` bytes (5.6.6.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct CmdRequest {
    pub(crate) lun: [u8; 8],
    pub(crate) id: U64,
    pub(crate) task_attr: u8,
    pub(crate) prio: u8,
    pub(crate) crn: u8,
}

/// What follows [`CmdRequest`] with VIRTIO_SCSI_F_T10_PI, before the CDB: that is where Linux's driver and vhost-scsi have
/// it. The standard's structure has it after the CDB (5.6.6.1), where no driver is known to.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct CmdProtection {
    pub(crate) pi_bytesout: U32,
    pub(crate) pi_bytesin: U32,
}

/// The fixed head of a response, before the sense area of `sense_size` bytes (5.6.6.1).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct CmdResponse {
    pub(crate) sense_len: U32,
    pub(crate) residual: U32,
    pub(crate) status_qualifier: U16,
    pub(crate) status: u8,
    pub(crate) response: u8,
}

/// Response values (5.6.6.1, 5.6.6.2); the discriminants are the wire values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Response {
    /// VIRTIO_SCSI_S_OK, and VIRTIO_SCSI_S_FUNCTION_COMPLETE of task management.
    Ok = 0,
    Overrun = 1,
    Aborted = 2,
    BadTarget = 3,
    Reset = 4,
    Busy = 5,
    TransportFailure = 6,
    TargetFailure = 7,
    NexusFailure = 8,
    Failure = 9,
    FunctionSucceeded = 10,
    FunctionRejected = 11,
    IncorrectLun = 12,
}

/// `type` of a control request (5.6.6.2).
pub(crate) mod control {
    pub(crate) const TMF: u32 = 0;
    pub(crate) const AN_QUERY: u32 = 1;
    pub(crate) const AN_SUBSCRIBE: u32 = 2;
}

/// A task management request after its `type` (5.6.6.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct TmfRequest {
    pub(crate) subtype: U32,
    pub(crate) lun: [u8; 8],
    pub(crate) id: U64,
}

/// An asynchronous notification request after its `type` (5.6.6.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct AnRequest {
    pub(crate) lun: [u8; 8],
    pub(crate) event_requested: U32,
}

/// An event (5.6.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Event {
    pub(crate) event: U32,
    pub(crate) lun: [u8; 8],
    pub(crate) reason: U32,
}

/// `event` and `reason` of an [`Event`] (5.6.6.3).
pub(crate) mod event {
    pub(crate) const EVENTS_MISSED: u32 = 0x8000_0000;
    pub(crate) const NO_EVENT: u32 = 0;
    pub(crate) const TRANSPORT_RESET: u32 = 1;
    pub(crate) const PARAM_CHANGE: u32 = 3;
    pub(crate) const RESET_RESCAN: u32 = 1;
    pub(crate) const RESET_REMOVED: u32 = 2;
}
