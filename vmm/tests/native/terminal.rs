//! A terminal of the test's own, as the standard input of a process.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

/// A pseudoterminal with its usual settings.
pub struct Terminal {
    master: File,
    slave: File,
}

impl Terminal {
    pub fn new() -> Self {
        let open = |path: &str| {
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
        };
        let master = open("/dev/ptmx");
        let (mut number, unlocked): (libc::c_uint, libc::c_int) = (0, 0);
        // SAFETY: TIOCSPTLCK reads an int and TIOCGPTN writes an unsigned int, both live.
        #[allow(unsafe_code, clippy::multiple_unsafe_ops_per_block)]
        let results = unsafe {
            [
                libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked),
                libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number),
            ]
        };
        assert_eq!(results, [0, 0]);
        Self { master, slave: open(&format!("/dev/pts/{number}")) }
    }

    /// The side for a process.
    pub fn slave(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// Presses keys.
    pub fn type_in(&self, keys: &[u8]) {
        (&self.master).write_all(keys).unwrap();
    }

    /// All settings, as stty shows them.
    pub fn settings(&self) -> String {
        let output = Command::new("stty").arg("-a").stdin(self.slave()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().replace('\n', " ")
    }
}
