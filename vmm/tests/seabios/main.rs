//! Stock SeaBIOS on this machine's own KVM: a guest with drivers for our chipset and HBAs that boots in a moment.
//!
//! `VMM_TEST_SEABIOS` names the images, separated by colons, as `cargo ci` does; then they must be there. Without it
//! the tests look where the test bed and Debian put them, and say loudly when there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod boot;
mod bring_up;
mod cost;
mod descriptors;
mod disc;
mod machine;
mod megasas;
mod resets;
mod rom;
mod sector;
mod tables;
