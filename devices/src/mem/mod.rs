//! Guest memory as devices see it: a revocable DMA capability and scatter-gather lists.
//!
//! Guest RAM is shared with running vCPUs. Nothing in this project forms a Rust reference into it: small
//! structures are copied once into private memory and checked there, data moves by the kernel (io_uring)
//! or by volatile copies.

mod dma;
mod host;
mod sg;

pub use dma::{Dma, DmaError};
pub(crate) use host::{Lendable, Lender};
pub use sg::{FromGuest, SgList, ToGuest};

/// Guest RAM as a set of mapped regions, addressed by guest physical address.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
