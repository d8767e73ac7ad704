//! Targets, and the nexus through which an initiator reaches one.

use std::sync::Arc;

use super::{Lun, ScsiReply, ScsiRequest, Tag, TransportFault};
use crate::iothread::Io;

/// A task management function (SAM-6, 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagement {
    /// ABORT TASK
    AbortTask(Lun, Tag),
    /// ABORT TASK SET
    AbortTaskSet(Lun),
    /// CLEAR ACA
    ClearAca(Lun),
    /// CLEAR TASK SET
    ClearTaskSet(Lun),
    /// I_T NEXUS RESET
    NexusReset,
    /// LOGICAL UNIT RESET
    LogicalUnitReset(Lun),
    /// QUERY TASK
    QueryTask(Lun, Tag),
    /// QUERY TASK SET
    QueryTaskSet(Lun),
}

/// Its service response (SAM-6, 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementReply {
    /// FUNCTION COMPLETE
    Complete,
    /// FUNCTION SUCCEEDED
    Succeeded,
    /// FUNCTION REJECTED
    Rejected,
    /// INCORRECT LOGICAL UNIT NUMBER
    IncorrectLun,
}

/// What an HBA is told about the targets behind it, so that it can raise its own events. Called on any thread.
pub trait PortEvents: Send + Sync {
    /// A logical unit changed in a way that the initiator should notice; `sense` is ASC and ASCQ.
    fn unit_attention(&self, lun: Lun, sense: (u8, u8));
    /// Logical units came or went: look again.
    fn inventory_changed(&self);
}

/// A target device: logical units behind one target port.
pub struct Target {}

impl Target {
    /// A target without logical units.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {})
    }
}

/// The relation of one initiator port and one target port.
pub struct Nexus {
    _target: Arc<Target>,
}

impl Nexus {
    /// A nexus; the initiator finds a POWER ON unit attention on each logical unit.
    pub fn new(target: Arc<Target>, _events: Option<Arc<dyn PortEvents>>) -> Arc<Self> {
        Arc::new(Self { _target: target })
    }

    /// Executes a command to its end: exactly one result for each call.
    pub async fn execute(&self, _io: &Io, _request: ScsiRequest) -> Result<ScsiReply, TransportFault> {
        Err(TransportFault::NoTarget)
    }

    /// Executes a task management function. When it returns, tasks that it ended have returned to their callers
    /// or are about to without touching guest memory any more.
    pub async fn manage(&self, _io: &Io, _function: TaskManagement) -> TaskManagementReply {
        TaskManagementReply::Rejected
    }
}
