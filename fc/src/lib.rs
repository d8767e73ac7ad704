//! Fibre Channel ports of the host, and virtual ports (N_Port ID Virtualization) that come and go on them.
//!
//! ```text
//!   vport        creates and deletes virtual ports, and waits for the fabric
//!    |-- choose   on which port, by the rules that users of libvirt know
//!    |-- names    which names are fit for a new port; made once, stored, and never anew
//!    |-- state    what is stored: definitions, and whose a virtual port is (record)
//!    |-- allowed  which names somebody else may choose
//!    |-- process  whether a process is still there
//!    |-- targets  what is stored of a machine: the numbers of its targets
//!   model        hosts, virtual ports, remote ports and logical units, as the kernel shows them
//!    |-- glimpse  what is behind one host, for who looks again and again
//!    |-- users    who has a logical unit
//!    |-- sysfs    files that may go at any moment
//!   watch        what changes, from netlink
//!   wwn, address World Wide Names; hosts, channels, targets and LUNs
//! ```
//! Knows sysfs and netlink, and neither SCSI commands nor PCI. What it reads is hostile: files that are missing or say nonsense are
//! normal, for devices go while one looks.

pub mod address;
pub mod allowed;
pub mod choose;
pub mod glimpse;
pub mod model;
pub mod names;
mod process;
pub mod state;
mod sysfs;
pub mod targets;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod users;
pub mod vport;
pub mod watch;
pub mod wwn;

pub use address::{Address, Lun};
pub use model::San;
pub use sysfs::{Roots, Unreadable};
pub use wwn::Wwn;
