//! The MFI transport: registers, frames in guest memory, and the reply ring.

mod addresses;
mod execute;
mod frame;
mod port;
mod registers;
mod ring;
mod token;
mod worker;

pub(crate) use port::{Adapter, Port, Window};
pub(crate) use worker::{Worker, serve};
