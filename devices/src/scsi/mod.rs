//! The SCSI target layer that every host bus adapter shares.
//!
//! ```text
//!   HBA ── ScsiRequest ──> Nexus ──> Target ──> LogicalUnit { Disk, Cd, Generic, Missing }
//!     <── ScsiReply ──       |          |             └─> storage (bytes)
//!                       unit attentions, REPORT LUNS, task set
//! ```
//! The CDB stays raw up to the logical unit, so that pass-through is an ordinary unit. Addressing ends at the
//! [`Nexus`]: one initiator port and one target port (SAM-6, 3.1). What a request moved and what it wanted to
//! move is computed here, in one place; an HBA derives its own residual and overrun fields from the reply.

mod request;
mod target;

pub use request::{
    Cdb, DataBuffers, Lun, MAX_CDB, MAX_SENSE, Residual, ScsiReply, ScsiRequest, Sense, Status, Tag,
    TaskAttribute, TransportFault,
};
pub use target::{Nexus, PortEvents, Target, TaskManagement, TaskManagementReply};
