//! The wire of the extension (docs/virtio-scsi-fc.md). Fields are little-endian, names of ports big-endian.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian};

use super::{LocalPort, RemotePort, RemoteState, VportRefusal};

/// Feature bits (section 1).
pub(crate) mod feature {
    pub(crate) const RESCAN: u64 = 1 << 4;
    pub(crate) const NATIVE_LUN: u64 = 1 << 5;
    pub(crate) const FC_HOST: u64 = 1 << 6;
    pub(crate) const RPORT_EVENTS: u64 = 1 << 7;
    pub(crate) const VPORT: u64 = 1 << 8;
    /// All that a device with a fabric offers; VPORT besides, where the fabric has room for ports of the guest's.
    pub(crate) const ALL: u64 = RESCAN | NATIVE_LUN | FC_HOST | RPORT_EVENTS;
}

/// Whether each of the bits has those that it needs (section 1).
pub(crate) fn is_consistent(features: u64) -> bool {
    let has = |feature| features & feature != 0;
    (!has(feature::FC_HOST) || has(feature::RESCAN))
        && (!has(feature::VPORT) || has(feature::FC_HOST))
        && (!has(feature::RPORT_EVENTS) || has(feature::RESCAN) && has(crate::spec::feature::SCSI_HOTPLUG))
}

/// What follows the configuration space of the standard (section 2).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(crate) struct FcConfig {
    pub(crate) revision: U32,
    pub(crate) primary_wwnn: big_endian::U64,
    pub(crate) primary_wwpn: big_endian::U64,
    pub(crate) secondary_wwnn: big_endian::U64,
    pub(crate) secondary_wwpn: big_endian::U64,
    pub(crate) active: u8,
    pub(crate) port_state: u8,
    pub(crate) max_vports: U16,
    pub(crate) port_id: U32,
    pub(crate) fabric_name: big_endian::U64,
    pub(crate) speed_mbps: U32,
    pub(crate) supported_classes: U32,
    pub(crate) max_frame_size: U32,
}

/// `fc_revision` (section 2).
const REVISION: u32 = 1;

impl FcConfig {
    pub(crate) fn of(port: &LocalPort, max_vports: u16) -> Self {
        Self {
            revision: REVISION.into(),
            primary_wwnn: port.primary.wwnn.into(),
            primary_wwpn: port.primary.wwpn.into(),
            secondary_wwnn: port.secondary.wwnn.into(),
            secondary_wwpn: port.secondary.wwpn.into(),
            active: port.active as u8,
            port_state: port.state as u8,
            max_vports: max_vports.into(),
            port_id: port.port_id.into(),
            fabric_name: port.fabric.into(),
            speed_mbps: port.speed.into(),
            supported_classes: port.classes.into(),
            max_frame_size: port.max_frame.into(),
        }
    }
}

/// `type` of the control request (section 3).
pub(crate) const CONTROL_RESCAN: u32 = 3;
/// `next_id` that asks for a look at the fabric and the first target; `id` where there is none any more (section 3).
pub(crate) const NO_ID: u32 = 0xffff_ffff;

/// The control request after its `type` (section 3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RescanRequest {
    pub(crate) next_id: U32,
}

/// The response to it (section 3).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RescanResponse {
    pub(crate) id: U32,
    pub(crate) transport: U32,
    pub(crate) node_wwn: big_endian::U64,
    pub(crate) port_wwn: big_endian::U64,
    pub(crate) port_id: U32,
    pub(crate) state: u8,
    pub(crate) response: u8,
    pub(crate) vport: U16,
}

/// Offset of the response byte in [`RescanResponse`].
pub(crate) const RESCAN_RESPONSE_AT: usize = 29;

impl RescanResponse {
    /// No further target.
    pub(crate) fn none() -> Self {
        Self { id: NO_ID.into(), ..Self::default() }
    }

    pub(crate) fn of(id: u8, port: &RemotePort) -> Self {
        Self {
            id: u32::from(id).into(),
            transport: u32::from(port.transport).into(),
            node_wwn: port.names.wwnn.into(),
            port_wwn: port.names.wwpn.into(),
            port_id: port.port_id.into(),
            state: state(port.state),
            response: crate::spec::Response::Ok as u8,
            vport: port.vport.into(),
        }
    }
}

/// `type` of the control requests about ports that the guest creates (section 7).
pub(crate) const CONTROL_CREATE_VPORT: u32 = 4;
pub(crate) const CONTROL_DELETE_VPORT: u32 = 5;
pub(crate) const CONTROL_SHOW_VPORT: u32 = 6;

/// Create, after its `type`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct CreateVport {
    pub(crate) flags: U32,
    pub(crate) wwnn: big_endian::U64,
    pub(crate) wwpn: big_endian::U64,
}

/// Delete and show, after their `type`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct NamedVport {
    pub(crate) vport: U32,
}

/// The response to create.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct VportCreated {
    pub(crate) vport: U32,
    pub(crate) response: u8,
    pub(crate) reason: u8,
    pub(crate) reserved: [u8; 2],
}

/// The response to delete.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct VportDeleted {
    pub(crate) response: u8,
    pub(crate) reason: u8,
    pub(crate) reserved: [u8; 2],
}

/// The response to show: fields as in [`FcConfig`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(crate) struct VportShown {
    pub(crate) port_id: U32,
    pub(crate) port_state: u8,
    pub(crate) active: u8,
    pub(crate) response: u8,
    pub(crate) reason: u8,
    pub(crate) fabric_name: big_endian::U64,
    pub(crate) speed_mbps: U32,
    pub(crate) supported_classes: U32,
    pub(crate) max_frame_size: U32,
}

/// Offsets of the response bytes in [`VportCreated`], [`VportDeleted`] and [`VportShown`].
pub(crate) const CREATED_RESPONSE_AT: usize = 4;
pub(crate) const DELETED_RESPONSE_AT: usize = 0;
pub(crate) const SHOWN_RESPONSE_AT: usize = 6;

/// `response` and `reason` of what did not come off; no reason: the request is not understood.
fn failure(why: Option<VportRefusal>) -> (u8, u8) {
    (crate::spec::Response::Failure as u8, why.map_or(0, |why| why as u8))
}

impl VportCreated {
    pub(crate) fn of(done: Result<u16, Option<VportRefusal>>) -> Self {
        match done {
            Ok(vport) => Self {
                vport: u32::from(vport).into(),
                response: crate::spec::Response::Ok as u8,
                ..Self::default()
            },
            Err(why) => {
                let (response, reason) = failure(why);
                Self { response, reason, ..Self::default() }
            }
        }
    }
}

impl VportDeleted {
    pub(crate) fn of(done: Result<(), VportRefusal>) -> Self {
        match done {
            Ok(()) => Self { response: crate::spec::Response::Ok as u8, ..Self::default() },
            Err(why) => {
                let (response, reason) = failure(Some(why));
                Self { response, reason, ..Self::default() }
            }
        }
    }
}

impl VportShown {
    pub(crate) fn of(port: Option<&LocalPort>) -> Self {
        match port {
            Some(port) => Self {
                port_id: port.port_id.into(),
                port_state: port.state as u8,
                active: port.active as u8,
                response: crate::spec::Response::Ok as u8,
                reason: 0,
                fabric_name: port.fabric.into(),
                speed_mbps: port.speed.into(),
                supported_classes: port.classes.into(),
                max_frame_size: port.max_frame.into(),
            },
            None => {
                let (response, reason) = failure(Some(VportRefusal::Unknown));
                Self { response, reason, ..Self::default() }
            }
        }
    }
}

/// The state of a remote port by the numbers of Linux' scsi_transport_fc, FC_PORTSTATE (section 3).
fn state(state: RemoteState) -> u8 {
    match state {
        RemoteState::Online => 2,
        RemoteState::Blocked => 4,
        RemoteState::Lost => 1,
    }
}

/// Events of remote ports (section 5).
pub(crate) mod event {
    pub(crate) const RPORT: u32 = 4;
    pub(crate) const RPORT_LOST: u32 = 0;
    pub(crate) const RPORT_BACK: u32 = 1;
    pub(crate) const RPORT_CHANGED: u32 = 2;
}
