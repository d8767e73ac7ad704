//! Fakes for tests: what the hypervisor and the host would provide.

pub mod irq;
pub mod pci;
