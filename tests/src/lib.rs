//! The test bed: boots stock guests with the vmm binary, on machines with and without virtualization.
//!
//! ```text
//! packages, tools, kernel, firmware, fio ── what is fetched  cpio, images, grub, guest_module, san_tools ── what is built from it
//!            └──────── cache: each built once ────────┘
//! level1 ── a machine with KVM, where there is none     agent, wire, host ── running commands in it
//! bed ── all of the above, ready       guest, config, qemu ── describe and start a guest
//!                                      vm ── talk to it
//! runner, ci, demo, bench, fuzz ── the commands; the boot tests themselves are in ../boot
//! ```

pub mod agent;
pub mod bed;
pub mod bench;
pub mod bench_chart;
pub mod bench_conditions;
pub mod bench_mixed;
pub mod bench_passed;
pub mod bench_plan;
pub mod bench_storage;
pub mod cache;
pub mod ci;
pub mod cloud;
pub mod config;
pub mod cpio;
pub mod demo;
pub mod extras;
pub mod fio;
pub mod firmware;
pub mod fuzz;
pub mod fuzz_corpus;
pub mod fuzz_coverage;
pub mod grub;
pub mod guest;
pub mod guest_module;
pub mod host;
pub mod images;
pub mod kernel;
pub mod level1;
pub mod packages;
pub mod paths;
pub mod proofs;
pub mod qemu;
pub mod report;
pub mod runner;
pub mod san_tools;
pub mod tools;
pub mod vm;
pub mod wire;
