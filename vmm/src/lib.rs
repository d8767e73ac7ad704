//! The virtual machine monitor: everything of the `vmm` command that is not its `main`.

pub mod cli;
pub mod config;
pub mod console;
pub mod exit;
mod kvm;
pub mod logging;
pub mod machine;
mod vcpu;
