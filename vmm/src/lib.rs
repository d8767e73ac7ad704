//! The virtual machine monitor: everything of the `vmm` command that is not its `main`.

#![allow(unreachable_pub, reason = "a program: only its tests are outside, and `mod` says what they see")]

pub mod cli;
pub mod config;
pub mod console;
pub mod exit;
pub mod fc_command;
pub mod fc_port;
pub mod jail;
pub mod keeper;
mod kvm;
pub mod limits;
mod lines;
mod listen;
pub mod logging;
pub mod machine;
mod names;
mod output_file;
pub mod passed;
mod vcpu;
mod vhost;
