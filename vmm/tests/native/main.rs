//! The machine as a guest meets it: small 32-bit guests, assembled here, run by the real command on the real
//! hypervisor. They use plain integer instructions, ports and memory only, so that they also run where KVM
//! has no virtualization hardware to work with and emulates such code.
//!
//! Every test but those of operator errors is skipped, with a line that says so, where there is no /dev/kvm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

mod asm;
mod check;
mod console;
mod descriptors;
mod errors;
mod guest;
mod interrupts;
mod jail;
mod jobs;
mod limits;
mod memory;
mod namespaces;
mod operation;
mod paths;
mod pause;
mod pci;
mod released;
mod reset;
mod rings;
mod rotation;
mod seize;
mod seized;
mod smp;
mod start;
mod terminal;
mod vm;
