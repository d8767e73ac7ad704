//! The HBA as a guest sees it: through configuration space, BARs, rings and interrupts, on real I/O threads.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod commands;
mod conformance;
mod cves;
mod disks;
mod events;
mod fabric;
mod gate;
mod guest;
mod hostile;
mod hung;
mod legacy;
mod ports;
mod promises;
mod protection;
mod registers;
mod rescan;
mod speed;
mod vports;
