//! System calls that std does not wrap.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};

use crate::iothread::kernel::may_have;

/// What direct I/O on a file demands, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectAlign {
    /// Of buffer addresses.
    pub(super) memory: u32,
    /// Of offsets and lengths.
    pub(super) block: u32,
}

/// Asks the file system (statx(2), STATX_DIOALIGN, Linux 6.1). `None`: it does not say. Zeros: no direct I/O.
pub(super) fn direct_align(file: &File) -> Option<DirectAlign> {
    if !may_have((6, 1)) {
        return None;
    }
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string constant and `stat` is as large as the kernel writes.
    #[allow(unsafe_code)]
    let result = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, stat.as_mut_ptr())
    };
    if result != 0 {
        return None;
    }
    // SAFETY: a structure of integers, zeroed and then filled by the kernel.
    #[allow(unsafe_code)]
    let stat = unsafe { stat.assume_init() };
    (stat.stx_mask & libc::STATX_DIOALIGN != 0)
        .then_some(DirectAlign { memory: stat.stx_dio_mem_align, block: stat.stx_dio_offset_align })
}

/// Logical and physical block size of a block device, in bytes.
pub(super) fn block_sizes(file: &File) -> io::Result<(u32, u32)> {
    let (mut logical, mut physical) = (0 as libc::c_int, 0 as libc::c_uint);
    // SAFETY: BLKSSZGET writes one int.
    #[allow(unsafe_code)]
    let first = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut logical) };
    // SAFETY: BLKPBSZGET writes one unsigned int.
    #[allow(unsafe_code)]
    let second = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKPBSZGET, &raw mut physical) };
    if first < 0 || second < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((logical.unsigned_abs(), physical))
}

/// What a loop device is made of.
pub(super) struct LoopStatus {
    /// Device and inode of the file, as stat(2) has them.
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Of a block device: its number.
    pub(super) block: Option<u64>,
    /// Where in the file it begins, in bytes.
    pub(super) offset: u64,
    /// How many bytes of it there are at most; 0 for all.
    pub(super) limit: u64,
}

/// Asks a loop device.
pub(super) fn loop_status(device: &File) -> io::Result<LoopStatus> {
    // Linux, uapi/linux/loop.h: LOOP_GET_STATUS64, and struct loop_info64, which begins with device, inode, rdevice, offset
    // and sizelimit and has 232 bytes.
    const GET_STATUS: libc::Ioctl = 0x4c05;
    let mut info = [0_u64; 29];
    // SAFETY: the structure has integers only and is as large as the kernel writes.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS, info.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let [device, inode, special, offset, limit, ..] = info;
    // Of a file, older kernels say the device of its file system once more.
    let block = (special != 0 && special != device).then_some(special);
    Ok(LoopStatus { device, inode, block, offset, limit })
}

/// The type of the file system that a file is on (statfs(2), `f_type`; numbers of linux/magic.h).
pub(super) fn file_system(file: &File) -> io::Result<u32> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `stat` is as large as the kernel writes.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a structure of integers, zeroed and then filled by the kernel.
    #[allow(unsafe_code)]
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_type as u32)
}

/// Whether the bytes of a file from `at` take space, and where that ends: at `end` at the latest. `at` is below `end`.
pub(super) fn stored(file: &File, at: u64, end: u64) -> io::Result<(bool, u64)> {
    let limit = |offset: u64| offset.clamp(at + 1, end);
    match seek(file, at, libc::SEEK_DATA)? {
        None => Ok((false, end)),
        Some(data) if data > at => Ok((false, limit(data))),
        Some(_) => Ok((true, seek(file, at, libc::SEEK_HOLE)?.map_or(end, limit))),
    }
}

/// The next offset from `at` on that has what `whence` says; `None` behind the last data. All else here gives its
/// offsets with each call, so moving the file's own harms nobody.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let at = libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a call without pointers.
    #[allow(unsafe_code)]
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    match u64::try_from(found) {
        Ok(offset) => Ok(Some(offset)),
        Err(_) => {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
        }
    }
}

/// Has the page cache forget what it has of a file and need not write.
pub(super) fn forget_cached(file: &File) {
    // SAFETY: a call without pointers.
    #[allow(unsafe_code)]
    unsafe {
        // A hint, which may also come to nothing.
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
    }
}

/// The number of a descriptor's block device. Asks no server (statx(2), AT_STATX_DONT_SYNC).
pub(super) fn block_device(descriptor: RawFd) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: the path is an empty string constant and `stat` is as large as the kernel writes. A number that is no
    // descriptor is an error.
    #[allow(unsafe_code)]
    let result = unsafe { libc::statx(descriptor, c"".as_ptr(), flags, libc::STATX_TYPE, stat.as_mut_ptr()) };
    // SAFETY: a structure of integers, zeroed and then perhaps filled by the kernel.
    #[allow(unsafe_code)]
    let stat = unsafe { stat.assume_init() };
    let is_device = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
    (result == 0 && is_device).then(|| libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor))
}

/// How many files the process may have open at once, at most (getrlimit(2)).
pub(super) fn open_files_max() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills in the structure, which is of the type it expects.
    #[allow(unsafe_code)]
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { Ok(limit.rlim_max) } else { Err(io::Error::last_os_error()) }
}

/// The access mode and the status flags of a descriptor (fcntl(2), F_GETFL).
pub(super) fn status_flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: a call without pointers.
    #[allow(unsafe_code)]
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 { Err(io::Error::last_os_error()) } else { Ok(flags) }
}

/// Sets the status flags of an open file description.
pub(super) fn set_status_flags(file: &File, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: a call without pointers.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Releases an open-file-description lock on one byte.
pub(super) fn release_byte(file: &File, byte: i64) -> io::Result<()> {
    lock(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
}

/// Takes a shared open-file-description lock on one byte; never waits.
pub(super) fn share_byte(file: &File, byte: i64) -> io::Result<()> {
    lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
}

/// Whether another open file description holds any lock on the byte.
pub(super) fn is_byte_taken(file: &File, byte: i64) -> io::Result<bool> {
    Ok(lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK)
}

fn lock(file: &File, command: libc::c_int, kind: libc::c_int, byte: i64) -> io::Result<libc::c_int> {
    // `l_pid` must be 0 for these commands.
    let mut range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the kernel reads and writes `range` only.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut range) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(libc::c_int::from(range.l_type)) }
}
