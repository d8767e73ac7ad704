//! The virtio-scsi host bus adapter (virtio 1.3, 5.6) on PCI.
//!
//! ```text
//!   hba ── function (PCI identity, BARs, capabilities)
//!    |        └── transport (registers, device status, interrupts) ── queue (one virtqueue, shared)
//!    |                                                                  └── ring (split virtqueue)
//!    └── worker (one task a queue) ── request, control, event  ── token (a chain to complete exactly once)
//!              └── directory (target number -> nexus), lun, config, spec
//!              └── fc (a port on a fabric: what the guest is shown of it, and the gate before targets that are lost)
//! vhost (an HBA without workers: the host's kernel serves its queues)
//! ```
//! vCPU threads latch registers and signal doorbells; everything else happens on I/O threads. A command is a chain
//! taken from its ring, a future that awaits the SCSI layer, and a token that gives the chain back.

mod config;
mod control;
mod directory;
mod event;
pub mod fc;
mod function;
mod hba;
mod lun;
mod queue;
mod request;
mod ring;
mod spec;
mod token;
mod transport;
pub mod vhost;
mod worker;

pub use function::Interface;
pub use hba::{Error, MAX_REQUEST_QUEUES, Options, VirtioScsi};
