//! Everything below the host bus adapters: guest memory, buses, interrupts, PCI, I/O threads, storage
//! and the shared SCSI layer.
//!
//! ```text
//!   pci ── platform                      scsi        (CDBs; knows neither PCI nor files)
//!     \      |                             |
//!   bus, irq, machine                    storage      (bytes and images; knows no SCSI)
//!         \                                |
//!          \                           iothread      (one io_uring and executor a thread)
//!           \______________ mem _________/           (guest RAM, DMA, scatter-gather lists)
//! ```
//!
//! Dependencies run downwards only; `tests/layers.rs` of the vmm crate checks every `use crate::` edge.
//! Nothing here knows KVM: what the hypervisor provides comes in through the traits of [`irq`] and [`bus`].

pub mod bus;
pub mod iothread;
pub mod irq;
pub mod log;
pub mod machine;
pub mod mem;
pub mod moderation;
pub mod pci;
pub mod platform;
pub mod sandbox;
pub mod scsi;
pub mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod threads;
