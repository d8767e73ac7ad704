//! Limits of the process.

use std::io;

/// Allows as many open files as the administrator lets the process have: a disk takes one, and the usual limit of 1024 is
/// for programs that use select(2).
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills in the structure, which is of the type it expects.
    #[allow(unsafe_code)]
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads the structure, which is of the type it expects.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file that has reached the process's limit (RLIMIT_FSIZE, `ulimit -f`) fails a write, as a full disk does, instead of
/// ending the process. To be called first in `main`, before there is a log file; programs that this one starts would inherit
/// it.
pub fn survive_file_sizes() {
    // SAFETY: no handler, and nothing is read or written.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN)
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_becomes_the_highest_allowed() {
        super::raise_open_files().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3], words[4], "{line}");
    }
}
