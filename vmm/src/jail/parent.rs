//! The signal that ends the process with its parent, which whoever starts it may have asked for (prctl(2), PR_SET_PDEATHSIG).
//! The kernel forgets it when the process becomes another user.

use std::io;

/// What was asked for.
pub(super) struct Parent {
    /// 0 for nothing.
    signal: libc::c_int,
    process: libc::pid_t,
}

impl Parent {
    /// To be called by the main thread, whose signal it is.
    pub(super) fn of() -> Self {
        let mut signal = 0;
        // SAFETY: the kernel writes an integer of this size. Where that fails, nothing was asked for.
        #[allow(unsafe_code)]
        unsafe {
            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal)
        };
        Self { signal, process: number() }
    }

    /// Asks for it again.
    pub(super) fn keep(self) -> io::Result<()> {
        if self.signal == 0 {
            return Ok(());
        }
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        let asked = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, self.signal) };
        if asked < 0 {
            return Err(io::Error::last_os_error());
        }
        // It has ended meanwhile: then nobody sends it.
        if number() != self.process {
            let own = libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)?;
            // SAFETY: no pointers.
            #[allow(unsafe_code)]
            unsafe {
                libc::kill(own, self.signal)
            };
        }
        Ok(())
    }
}

fn number() -> libc::pid_t {
    // SAFETY: no arguments, cannot fail.
    #[allow(unsafe_code)]
    unsafe {
        libc::getppid()
    }
}
