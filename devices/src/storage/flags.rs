//! Status flags of descriptors that the operator gave: they may have any.

use std::fs::File;
use std::io;
use std::ops::Deref;

use super::sys;

/// Status flags as transfers need them: appending would ignore offsets, and what may not wait fails where it would.
pub(super) fn set_flags(file: &File, direct: bool) -> io::Result<()> {
    let now = sys::status_flags(file)?;
    let plain = now & !(libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT);
    let wanted = if direct { plain | libc::O_DIRECT } else { plain };
    if wanted == now { Ok(()) } else { sys::set_status_flags(file, wanted) }
}

/// The same file through the page cache as long as this lives, for who looks at a few bytes before it is used.
pub(super) struct Buffered<'a> {
    file: &'a File,
    direct: bool,
}

impl<'a> Buffered<'a> {
    pub(super) fn new(file: &'a File, direct: bool) -> io::Result<Self> {
        if direct {
            set_flags(file, false)?;
        }
        Ok(Self { file, direct })
    }

    /// Ends it; an error is one of direct I/O.
    pub(super) fn end(mut self) -> io::Result<()> {
        if std::mem::take(&mut self.direct) { set_flags(self.file, true) } else { Ok(()) }
    }
}

impl Deref for Buffered<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        self.file
    }
}

impl Drop for Buffered<'_> {
    fn drop(&mut self) {
        if self.direct {
            // Who did not end it does not use the file.
            let _ = set_flags(self.file, true);
        }
    }
}
