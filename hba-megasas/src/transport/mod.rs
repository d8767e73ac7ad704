//! The MFI transport: registers, frames in guest memory, and the reply ring.

mod registers;
