//! A file system of one file whose server can cease to answer, where tests may mount one (Linux, uapi/linux/fuse.h).

#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// For so long it hangs at most: others on this computer may wait for it.
const LIMIT: Duration = Duration::from_secs(15);
/// The file's length in bytes.
const LEN: u64 = 1 << 20;
/// Number of the file; that of the directory is 1.
const FILE: u64 = 2;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const INIT: u32 = 26;

/// The file system, mounted. Whoever waits for the server goes on with an error when this is dropped.
pub(crate) struct FileServer {
    place: TempDir,
    hangs: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl FileServer {
    /// One that answers; `None`, with a message, where nothing can be mounted. The kernel keeps the locks.
    pub(crate) fn new() -> Option<Self> {
        Self::with(0)
    }

    /// The same, which is asked for locks (FUSE_POSIX_LOCKS). It has none to give.
    pub(crate) fn of_locks() -> Option<Self> {
        Self::with(1 << 1)
    }

    fn with(flags: u32) -> Option<Self> {
        let place = super::temp_dir();
        let device = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse");
        let Ok(device) = device else {
            crate::testing::skipped("no FUSE here");
            return None;
        };
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        let target = CString::new(place.path().as_os_str().as_bytes()).unwrap();
        let kind = c"fuse";
        // SAFETY: strings that live on.
        #[allow(unsafe_code)]
        let mounted =
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
        if mounted != 0 {
            crate::testing::skipped("nothing can be mounted here");
            return None;
        }
        let (hangs, over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let mounted_at = place.path().to_owned();
        let server = Self { place, hangs: hangs.clone(), over: over.clone() };
        std::thread::spawn(move || {
            serve(device, flags, &hangs, &over);
            unmount(&mounted_at);
        });
        // Closing asks, until the answer is that there is no need: and then a server that hangs keeps no program from its start
        // that another test starts meanwhile, nor who looks for it in /proc.
        drop(File::open(server.file()).unwrap());
        Some(server)
    }

    /// The path of its file.
    pub(crate) fn file(&self) -> PathBuf {
        self.place.path().join("disk.img")
    }

    /// No request is answered from now on.
    pub(crate) fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// The same for those who outlive the server: none is while this is true.
    pub(crate) fn hangs(&self) -> Arc<AtomicBool> {
        self.hangs.clone()
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        unmount(self.place.path());
    }
}

fn unmount(place: &Path) {
    let target = CString::new(place.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that lives on.
    #[allow(unsafe_code)]
    unsafe {
        libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH);
    }
}

/// Whoever waits goes on with an error at the end. Closing the device is not enough: a program that another test has just started has
/// it, too, and may itself wait here, for it closes what it has inherited of the file.
fn serve(mut device: File, flags: u32, hangs: &AtomicBool, over: &AtomicBool) {
    let mut request = vec![0; 1 << 18];
    let mut since = None::<Instant>;
    while !over.load(Ordering::SeqCst) && since.is_none_or(|since| since.elapsed() < LIMIT) {
        if hangs.load(Ordering::SeqCst) {
            since.get_or_insert_with(Instant::now);
        }
        let len = match device.read(&mut request) {
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(_) => return,
        };
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let opcode = word(4);
        if hangs.load(Ordering::SeqCst) || opcode == FORGET || len < 40 {
            continue;
        }
        let (node, size) = (word(16).into(), if len >= 60 { word(56) } else { 0 });
        let (error, data) = match answer(opcode, flags, node, size) {
            Some(data) => (0, data),
            None => (-libc::ENOSYS, Vec::new()),
        };
        let mut reply = (16 + data.len() as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(&request[8..16]);
        reply.extend(data);
        drop(device.write(&reply));
    }
}

fn answer(opcode: u32, flags: u32, node: u64, size: u32) -> Option<Vec<u8>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    Some(match opcode {
        // Version 7.31, 1 MiB ahead, of the rest that writes have 4 KiB.
        INIT => words(&[7, 31, 1 << 20, flags, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        // Number and generation; times are none, so that all is asked again.
        LOOKUP => [words(&[FILE as u32, 0, 0, 0, 0, 0, 0, 0, 0, 0]), attributes(FILE)].concat(),
        GETATTR => [words(&[0; 4]), attributes(node)].concat(),
        OPEN => words(&[0; 4]),
        READ => vec![0; size as usize],
        WRITE => words(&[size, 0]),
        _ => return None,
    })
}

fn attributes(node: u64) -> Vec<u8> {
    let (mode, len) = if node == FILE { (libc::S_IFREG | 0o600, LEN) } else { (libc::S_IFDIR | 0o700, 0) };
    let mut bytes: Vec<u8> = [node, len, len / 512, 0, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    // Nanoseconds; mode, links, owner, group, device, block size, flags.
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
    bytes
}
