//! A Fibre Channel fabric with a storage array, as a process: the far end of the network interfaces that hosts do Fibre Channel
//! over Ethernet on. Hosts log in with as many N_Ports as they like, each has a name of its own, and the array shows each name
//! what it is mapped. Faults are made by command.
//!
//! ```text
//! san ── frames in, frames out, time and commands; no socket
//!  ├── fabric ── FIP and logins      services ── well-known addresses      directory ── the name server, zones
//!  │     └── addresses ── which name gets which
//!  ├── array ── target ports, what each initiator is mapped, faults      attentions ── what initiators have yet to hear
//!  │     └── login ── PLOGI, PRLI ...      tasks ── FCP: commands, data, responses      management ── of tasks
//!  │           └── scsi ── disk, tape, inquiry, reservations, target port groups
//!  ├── control ── the commands      words ── what they are made of
//!  └── outbox ── frames that are to be sent, and those that are lost on purpose
//! frame, fip, els, fcp, names, crc, bytes ── what is on the wire      random ── what looks so
//! socket ── packet sockets, for the binary alone
//! ```
//!
//! All that comes by a frame is checked where it is read: a bad frame costs itself.

mod addresses;
mod array;
mod attentions;
mod bytes;
mod control;
mod crc;
mod directory;
mod els;
mod fabric;
mod fcp;
mod fip;
mod frame;
mod info;
mod inject;
mod login;
mod management;
mod names;
mod outbox;
mod random;
mod san;
mod scsi;
mod services;
pub mod socket;
mod tasks;
#[cfg(test)]
mod tests;
mod words;

pub use control::HELP;
pub use frame::{ETHERTYPE_FCOE, ETHERTYPE_FIP};
pub use names::{Mac, Wwn};
pub use outbox::Outbox;
pub use san::San;
