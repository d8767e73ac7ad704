//! The MegaRAID SAS host bus adapter: the MegaRAID firmware interface (MFI) on PCI.
//!
//! ```text
//!   hba ── function (PCI identity, BARs, capabilities), model (the boards), limits (what they say of long commands), differences (switches for unknown drivers)
//!    |── transport: how frames come and go
//!    |     port (registers, inbound queue, ring, interrupts) ── worker (one task on an I/O thread)
//!    |        └── frame (what a frame says), token (a frame to complete exactly once), execute (what frames do)
//!    └── firmware: what the controller knows, without a word of the transport
//!          dcmd (dispatch) ── info, lists, configuration, log (events), clock
//!          drives (logical and physical drives over the SCSI layer), handover (places that change hands), policy (what reaches them, what is flushed)
//! ```
//! vCPU threads latch registers and queue frame addresses; everything else happens on one I/O thread. A front of
//! another generation shares `firmware` and brings a transport of its own.

mod differences;
mod firmware;
mod function;
mod hba;
mod limits;
mod model;
mod spec;
mod transport;

pub use differences::{Difference, Differences};
pub use firmware::{Drive, EVENT_RECORDS, EventMarks, EventRecord, EventStore, KeptEvents};
pub use hba::{Arrival, Error, Megasas, Options};
pub use model::Model;
