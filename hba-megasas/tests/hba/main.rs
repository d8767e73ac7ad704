//! The HBA as a guest sees it: through configuration space, registers, frames and interrupts, on a real I/O thread.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod cves;
mod differences;
mod discs;
mod drivers;
mod endurance;
mod events;
mod firmware;
mod guest;
mod handover;
mod hostile;
mod hung;
mod kept;
mod limits;
mod passed;
mod promises;
mod resets;
mod rules;
mod speed;
mod suites;
mod tools;
