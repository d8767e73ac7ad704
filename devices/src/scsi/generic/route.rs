//! By which node of a device a command goes.
//!
//! Block devices and bsg wait for the end of a command whatever happens to the process, and block devices take lists of memory without a
//! copy; but to a process without CAP_SYS_RAWIO the kernel gives only commands that read and write. A node of sg that is open for
//! writing gives it all of them. So each command goes the first way, and those that the kernel has refused there go by sg.
//!
//! By bsg the kernel may send a command again by itself: it leaves the number of tries (`scsi_cmnd.allowed`) as the last one who had the
//! request has set it. So where commands depend on each other all go by sg, and by bsg only if there is nothing else.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::guard::{Guard, TABLE};
use super::host::{Answer, Command, Host};
use super::places::Places;
use super::sys;
use super::sysfs::Driver;

/// What a file of a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its block device, for commands.
    Block,
    /// Its node of bsg.
    Bsg,
    /// Its node of sg.
    Sg,
    /// Its block device, for nothing but that nobody else mounts it.
    Claim,
    /// Its block device once more, for direct I/O by a ring.
    Ring,
}

/// The nodes of one device.
#[derive(Debug)]
pub(super) struct Routes {
    /// Its block device or its node of bsg.
    steady: Option<(File, Driver)>,
    sg: Option<Arc<File>>,
    /// What keeps commands by sg from being sent again; `None` where the host starts no thread.
    guard: Option<Guard>,
    /// What sg has room for.
    places: Places,
    filtered: Filtered,
}

/// Operation codes that the kernel has refused by the first way: each is asked once, for asking is noted by some hosts (audit).
#[derive(Debug, Default)]
struct Filtered([AtomicU64; 4]);

impl Filtered {
    fn place(&self, opcode: u8) -> Option<(&AtomicU64, u64)> {
        Some((self.0.get(usize::from(opcode >> 6))?, 1 << (opcode & 63)))
    }

    fn has(&self, opcode: u8) -> bool {
        self.place(opcode).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn add(&self, opcode: u8) {
        if let Some((word, bit)) = self.place(opcode) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

impl Routes {
    /// One of them at least is there.
    pub(super) fn new(steady: Option<(File, Driver)>, sg: Option<File>) -> Self {
        let (places, filtered) = (Places::new(TABLE), Filtered::default());
        Self { steady, sg: sg.map(Arc::new), guard: None, places, filtered }
    }

    /// To be called by the process that sends commands.
    pub(super) fn guard(&mut self) {
        // It keeps no device open: what there is nothing of any more has no commands.
        self.guard = self.sg.as_ref().map(Arc::downgrade).and_then(|node| {
            Guard::start(move || Some(sys::commands_of_sg(&*node.upgrade()?, false)))
                .inspect_err(|e| {
                    tracing::warn!("commands by sg are not guarded against a stop of the process: {e}")
                })
                .ok()
        });
    }

    /// What is open.
    pub(super) fn into_files(self) -> impl Iterator<Item = (Part, File)> {
        let steady = self.steady.map(|(file, driver)| (driver.part(), file));
        // Without a guard nobody else has it.
        let sg = self.sg.and_then(Arc::into_inner).map(|file| (Part::Sg, file));
        steady.into_iter().chain(sg)
    }

    /// What was open elsewhere: `None` if that is nothing.
    pub(super) fn from_files(files: Vec<(Part, File)>) -> Option<Self> {
        let (mut steady, mut sg) = (None, None);
        for (part, file) in files {
            match part {
                Part::Block => steady = Some((file, Driver::Block)),
                Part::Bsg => steady = Some((file, Driver::Bsg)),
                Part::Sg => sg = Some(file),
                Part::Claim | Part::Ring => {}
            }
        }
        let routes = Self::new(steady, sg);
        routes.first().is_some().then_some(routes)
    }

    /// Which nodes are open.
    pub(super) fn parts(&self) -> Vec<Part> {
        let steady = self.steady.as_ref().map(|(_, driver)| driver.part());
        steady.into_iter().chain(self.sg.as_ref().map(|_| Part::Sg)).collect()
    }

    /// One that is open.
    pub(super) fn first(&self) -> Option<(&File, Driver)> {
        let steady = self.steady.as_ref().map(|(file, driver)| (file, *driver));
        steady.or_else(|| Some((self.sg()?, Driver::Sg)))
    }

    /// What commands that read and write go by.
    pub(super) fn driver(&self) -> Driver {
        self.steady.as_ref().map_or(Driver::Sg, |(_, driver)| *driver)
    }

    /// The block device.
    pub(super) fn block(&self) -> Option<&File> {
        self.steady.as_ref().filter(|(_, driver)| *driver == Driver::Block).map(|(file, _)| file)
    }

    /// The node of sg.
    pub(super) fn sg(&self) -> Option<&File> {
        self.sg.as_deref()
    }
}

impl Driver {
    fn part(self) -> Part {
        match self {
            Self::Sg => Part::Sg,
            Self::Bsg => Part::Bsg,
            Self::Block => Part::Block,
        }
    }
}

impl Host for Routes {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let opcode = command.cdb.opcode();
        if let Some((file, driver)) = &self.steady
            && (self.sg.is_none() || !self.filtered.has(opcode))
        {
            let sent = match driver {
                Driver::Bsg => sys::send_bsg(file, command),
                Driver::Block => sys::send_block(file, command),
                Driver::Sg => sys::send_sg(file, command, None),
            };
            match sent {
                // The kernel has looked at the operation code and not sent it.
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && self.sg.is_some() => {
                    self.filtered.add(opcode);
                }
                sent => return sent,
            }
        }
        match &self.sg {
            Some(sg) => self.places.within(|| sys::send_sg(sg, command, self.guard.as_ref())),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    fn reset(&self) -> io::Result<()> {
        match (&self.sg, &self.steady) {
            (Some(file), _) => sys::reset(file),
            (None, Some((file, _))) => sys::reset(file),
            (None, None) => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;
    use crate::mem::SgList;
    use crate::scsi::Cdb;
    use crate::scsi::generic::Direction;
    use crate::testing::{answer_system_call_with, temp_file};

    fn command(opcode: u8) -> Command {
        Command {
            cdb: Cdb::new(&[opcode, 0, 0, 0, 0, 0]),
            direction: Direction::None,
            data: SgList::empty(),
            timeout: Duration::from_secs(1),
        }
    }

    /// What the kernel says of an ioctl of the first node, and of the one of sg.
    fn said(first: i32, sg: Option<i32>, driver: Driver) -> (i32, bool) {
        let open = || File::open(temp_file().path()).unwrap();
        let routes = Routes::new(Some((open(), driver)), sg.map(|_| open()));
        std::thread::spawn(move || {
            let answer = |file: &File, error| {
                answer_system_call_with(libc::SYS_ioctl, 0, file.as_raw_fd() as u32, error);
            };
            answer(&routes.steady.as_ref().unwrap().0, first);
            if let (Some(file), Some(error)) = (&routes.sg, sg) {
                answer(file, error);
            }
            let error = routes.execute(&command(0x5f)).unwrap_err().raw_os_error().unwrap();
            (error, routes.filtered.has(0x5f))
        })
        .join()
        .unwrap()
    }

    #[test]
    fn what_the_kernel_filters_goes_by_sg() {
        for driver in [Driver::Block, Driver::Bsg] {
            assert_eq!(said(libc::EPERM, Some(libc::EDOM), driver), (libc::EDOM, true));
            assert_eq!(said(libc::EPERM, None, driver), (libc::EPERM, false), "there is no other");
            // All else is this command's end: it may have gone out.
            for error in [libc::EIO, libc::ENODEV, libc::ENOMEM, libc::EACCES, libc::EINVAL] {
                assert_eq!(said(error, Some(libc::EDOM), driver), (error, false));
            }
        }
    }

    #[test]
    fn each_operation_code_is_refused_by_itself() {
        let filtered = Filtered::default();
        for opcode in [0x00, 0x3f, 0x40, 0x5f, 0xff] {
            assert!(!filtered.has(opcode));
            filtered.add(opcode);
            assert!(filtered.has(opcode) && !filtered.has(opcode ^ 0x41), "{opcode:02x}h");
        }
    }
}
