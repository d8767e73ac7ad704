//! What can go wrong when a console is set up: one line each, with the place, the reason and a way out.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::output_file::OutputError;

/// Why there is no console.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The output file cannot be had.
    #[error("[serial] path {}: {source}", path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        source: OutputError,
    },
    /// What an earlier run left in the output file cannot be taken away.
    #[error("[serial]: cannot empty the file: {}; choose another path", reason(.0))]
    Empty(io::Error),
    /// There is a live server at the socket's path.
    #[error("[serial] path {}: another process listens there; end it or choose another path", path.display())]
    SocketInUse {
        /// As configured.
        path: PathBuf,
    },
    /// Something else is at the socket's or link's path, and is not ours to delete.
    #[error("[serial] path {}: exists and is no {expected}; remove it or choose another path", path.display())]
    Occupied {
        /// As configured.
        path: PathBuf,
        /// What may be replaced.
        expected: &'static str,
    },
    /// The socket cannot be created.
    #[error("[serial] path {}: cannot listen: {}; choose a path of at most 107 bytes in a directory that you may write", path.display(), reason(source))]
    Socket {
        /// As configured.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// No pseudoterminal is to be had.
    #[error("[serial] mode \"pty\": cannot create a pseudoterminal: {}; check that /dev/pts is mounted", reason(.0))]
    Pty(io::Error),
    /// The link to the pseudoterminal cannot be created.
    #[error("[serial] path {}: cannot link to the pseudoterminal: {}; choose a path in a directory that you may write", path.display(), reason(source))]
    Link {
        /// As configured.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// The process's limits.
    #[error("[serial]: cannot start the console: {}; raise the limits of open files and processes", reason(.0))]
    Resources(io::Error),
}

/// The system's words without the number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_lowercase(),
        None => text,
    }
}
