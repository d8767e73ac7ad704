//! What is asked of the kernel, and time; another one in tests.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The kernel that creates and deletes ports, and the clock.
pub trait Kernel {
    /// Writes a line to a file of sysfs, in one system call: what a driver says of it would be taken for "again" otherwise.
    ///
    /// # Errors
    /// [`WriteError`].
    fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError>;

    /// Waits for a moment.
    fn pause(&mut self, time: Duration) -> Pause;

    /// Time that has passed since some moment.
    fn now(&mut self) -> Duration;
}

/// Whether to wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The time has passed.
    Over,
    /// The user wants an end.
    Interrupted,
}

/// What became of a write.
#[derive(Debug)]
pub enum WriteError {
    /// The file cannot be opened.
    Open(io::Error),
    /// The kernel, or the driver, says no.
    Write(io::Error),
    /// It took a part: drivers mean a failure by it.
    Short,
}

/// The kernel of this host.
pub struct Live<F> {
    begin: Instant,
    wait: F,
}

impl<F: FnMut(Duration) -> Pause> Live<F> {
    /// `wait` waits for as long as it is told, or until the user wants an end.
    pub fn new(wait: F) -> Self {
        Self { begin: Instant::now(), wait }
    }
}

impl<F: FnMut(Duration) -> Pause> Kernel for Live<F> {
    fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
        let mut file = OpenOptions::new().write(true).open(path).map_err(WriteError::Open)?;
        // Not write_all: it goes on after EINTR, by which lpfc means that it has no room.
        match file.write(text.as_bytes()) {
            Ok(len) if len == text.len() => Ok(()),
            Ok(_) => Err(WriteError::Short),
            Err(error) => Err(WriteError::Write(error)),
        }
    }

    fn pause(&mut self, time: Duration) -> Pause {
        (self.wait)(time)
    }

    fn now(&mut self) -> Duration {
        self.begin.elapsed()
    }
}
