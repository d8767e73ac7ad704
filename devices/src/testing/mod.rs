//! Fakes for tests: what the hypervisor and the host would provide.

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod block_device;
pub mod conformance;
#[cfg(test)]
mod count;
mod fault_disk;
#[cfg(test)]
mod file_server;
#[cfg(test)]
mod files;
pub mod irq;
pub mod pci;
pub mod power;
mod ram_disk;
mod recording_disk;
mod seccomp;

#[cfg(test)]
pub(crate) use allocations::{allocated_bytes, allocations};
#[cfg(test)]
pub(crate) use block_device::LoopDevice;
#[cfg(test)]
pub(crate) use count::Count;
pub use fault_disk::{Effect, Fault, FaultDisk};
#[cfg(test)]
pub(crate) use file_server::FileServer;
#[cfg(test)]
pub(crate) use files::{temp_dir, temp_file};
pub use ram_disk::RamDisk;
pub use recording_disk::{Operation, RecordingDisk};
pub use seccomp::{
    answer_system_call, answer_system_call_with, end_at_system_call, forbid_filters, forbid_system_call,
};

use std::future::Future;
use std::io::Write;
use std::sync::mpsc;

use crate::iothread::{Io, IoThread};

/// Says that the test of this thread, or a part of it, is skipped: past the test harness, which keeps the output of tests that
/// pass.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// Runs the future that `make` builds on an I/O thread of its own and gives back its result.
///
/// # Panics
/// When the thread cannot be started or the future panics.
#[allow(clippy::panic)]
pub fn on_io_thread<T, F, M>(make: M) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce(Io) -> F + Send + 'static,
{
    let thread = IoThread::start("test").unwrap_or_else(|e| panic!("no I/O thread: {e}"));
    let (tx, rx) = mpsc::channel();
    thread.remote().spawn(move |io| {
        let future = make(io);
        async move { drop(tx.send(future.await)) }
    });
    rx.recv().unwrap_or_else(|_| {
        // Ends with the panic of the task.
        drop(thread);
        panic!("the task ended without a result")
    })
}
