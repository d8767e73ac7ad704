//! The MegaRAID SAS host bus adapter: the MegaRAID firmware interface (MFI) on PCI.
//!
//! ```text
//!   hba ── function (PCI identity, BARs, capabilities), model (the boards)
//!    |── transport: how frames come and go
//!    |     port (registers, inbound queue, reply ring, interrupts) ── worker (one task on an I/O thread)
//!    |        └── frame (what a frame says), token (a frame to complete exactly once), execute (SCSI frames)
//!    └── firmware: what the controller knows, without a word of the transport
//!          dcmd (dispatch) ── info, lists, configuration, log (events), clock
//!          drives (logical and physical drives over the SCSI layer)
//! ```
//! vCPU threads latch registers and queue frame addresses; everything else happens on one I/O thread. A front of
//! another generation shares `firmware` and brings a transport of its own.

#[expect(dead_code, reason = "the layers that use it come next")]
mod function;
#[expect(dead_code, reason = "the layers that use it come next")]
mod model;
#[expect(dead_code, reason = "the layers that use it come next")]
mod spec;
#[expect(dead_code, reason = "the layers that use it come next")]
mod transport;

pub use model::Model;
