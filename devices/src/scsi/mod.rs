//! The SCSI target layer that every host bus adapter shares.
//!
//! ```text
//!   HBA ── ScsiRequest ──> Nexus ──> Target ──> LogicalUnit { Disk, Cd, ... }
//!     <── ScsiReply ──       |          |             └─> storage (bytes)
//!                       unit attentions, REPORT LUNS, task set
//! ```
//! The CDB stays raw up to the logical unit, so that pass-through is an ordinary unit. Addressing ends at the
//! [`Nexus`]: one initiator port and one target port (SAM-6, 3.1). What a request moved and what it wanted to
//! move is computed here, in one place; an HBA derives its own residual and overrun fields from the reply.
//!
//! - `nexus`, `target`, `unit`: who can reach what; `tasks`: what may run and how it is ended; `attention`.
//! - `opcode`: one table a unit decodes CDBs, refuses reserved bits and reports supported commands.
//! - `memory`: how much of the host's commands may hold. `background`: work that outlasts its command.
//! - `reservation`: persistent and older reservations.
//! - `sense`, `outcome`, `passed`: how commands end. `absent`: what answers where there is no unit.
//! - `disk`: the direct access block device. `cd`: the drive for CDs and DVDs. `generic`: a device of the host, passed through;
//!   `block`: such a disk, whose blocks go by a ring.
//! - `transfer_limits`: the longest commands that an adapter asks drivers for.

mod absent;
mod attention;
mod background;
mod block;
mod cd;
mod disk;
pub mod generic;
mod links;
mod lun;
mod memory;
mod nexus;
mod opcode;
mod outcome;
mod passed;
mod request;
mod reservation;
mod sense;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
mod supported;
mod target;
mod tasks;
mod transfer_limits;
mod unit;

pub use block::Block;
pub use cd::{Cd, CdConfig, CdError, Locked, Tray};
pub use disk::{Disk, DiskConfig, DiskError, Image, ProtectionType};
pub use generic::{Allow, Generic, GenericError, GenericOptions, HostDevice, HostLimits, Place};
pub use nexus::Nexus;
pub use request::{
    Cdb, DataBuffers, Lun, MAX_CDB, MAX_SENSE, ProtectionBuffers, Residual, ScsiReply, ScsiRequest, Sense,
    Status, Tag, TaskAttribute, TransportFault,
};
pub use target::{
    AttachError, Detached, Leaving, PortEvents, Target, TargetGroup, TaskManagement, TaskManagementReply,
};
pub use transfer_limits::TransferLimits;
pub use unit::LogicalUnit;
