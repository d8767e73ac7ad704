//! The kernel's side of a node: SG_IO of sg and of block devices (scsi/sg.h, version 3), that of bsg (linux/bsg.h, version 4),
//! and what belongs to them.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

use super::guard::{self, Guard, TABLE};
use super::host::{Answer, Command, Direction};
use crate::scsi::MAX_SENSE;

// scsi/sg.h of Linux.
const SG_IO: libc::Ioctl = 0x2285;
const SG_SCSI_RESET: libc::Ioctl = 0x2284;
const SG_GET_SG_TABLESIZE: libc::Ioctl = 0x227f;
const SG_GET_VERSION_NUM: libc::Ioctl = 0x2282;
/// Device, and no more than that where its driver has no such reset.
const SG_SCSI_RESET_DEVICE: libc::c_int = 1;
const SG_SCSI_RESET_NO_ESCALATE: libc::c_int = 0x100;
const SG_GET_REQUEST_TABLE: libc::Ioctl = 0x2286;
/// Behind what came before. It is the same for bsg.
const SG_FLAG_Q_AT_TAIL: u32 = 0x10;
/// linux/fs.h: of nodes of sg it is in bytes.
const BLKSECTGET: libc::Ioctl = 0x1267;

/// `struct sg_io_hdr`.
#[repr(C)]
struct Version3 {
    /// Zero for none that the kernel takes.
    interface_id: AtomicI32,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *const libc::c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *const libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

/// `struct sg_io_v4`.
#[repr(C)]
#[derive(Default)]
struct Version4 {
    guard: i32,
    protocol: u32,
    subprotocol: u32,
    request_len: u32,
    request: u64,
    request_tag: u64,
    request_attr: u32,
    request_priority: u32,
    request_extra: u32,
    max_response_len: u32,
    response: u64,
    dout_iovec_count: u32,
    dout_xfer_len: u32,
    din_iovec_count: u32,
    din_xfer_len: u32,
    dout_xferp: u64,
    din_xferp: u64,
    timeout: u32,
    flags: u32,
    usr_ptr: u64,
    spare_in: u32,
    driver_status: u32,
    transport_status: u32,
    device_status: u32,
    retry_delay: u32,
    info: u32,
    duration: u32,
    response_len: u32,
    din_resid: i32,
    dout_resid: i32,
    generated_tag: u64,
    spare_out: u32,
    padding: u32,
}

/// `struct sg_req_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    /// State, orphan, owned by SG_IO, problem.
    flags: [u8; 4],
    pack_id: i32,
    usr_ptr: u64,
    duration: u32,
    unused: i32,
}

impl Info {
    /// Whose it is; zero if it has ended and only those count that are `at_work`.
    fn number(&self, at_work: bool) -> i32 {
        const DONE: u8 = 2;
        let [state, ..] = self.flags;
        if at_work && state == DONE { 0 } else { self.pack_id }
    }
}

const _: () = assert!(size_of::<Info>() == 24);
const _: () = assert!(size_of::<Version3>() == 88 && size_of::<Version4>() == 160);

fn too_long() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// How soon it is looked whether a command has ended that the kernel has let go of; twice as long each time, up to a second.
const PAUSE: Duration = Duration::from_millis(10);

/// Milliseconds, of which the kernel takes 31 bits.
fn timeout(command: &Command) -> u32 {
    u32::try_from(command.timeout.as_millis()).unwrap_or(u32::MAX).clamp(1, i32::MAX as u32)
}

/// Sends a command by a node of sg, and waits for its end.
///
/// # Errors
/// EINTR: the process was stopped meanwhile, and the command was carried out or not; it is over. All others: it was not sent.
pub(super) fn send_sg(file: &File, command: &Command, guard: Option<&Guard>) -> io::Result<Answer> {
    let _undisturbed = Undisturbed::begin();
    send(file, command, guard)
}

/// Sends a command by a block device, and waits for its end, whatever signals come.
///
/// # Errors
/// It was not sent.
pub(super) fn send_block(file: &File, command: &Command) -> io::Result<Answer> {
    send(file, command, None)
}

fn send(file: &File, command: &Command, guard: Option<&Guard>) -> io::Result<Answer> {
    let (cdb, parts) = (command.cdb.as_bytes(), command.data.iovecs());
    let (mut sense, len) = ([0; MAX_SENSE], u32::try_from(command.data.len()).map_err(|_| too_long())?);
    let (memory, count) = match parts {
        [] => (ptr::null(), 0),
        [one] => (one.iov_base.cast_const(), 0),
        list => (list.as_ptr().cast(), u16::try_from(list.len()).map_err(|_| too_long())?),
    };
    let number = guard.map_or(0, Guard::number);
    let mut header = Version3 {
        interface_id: AtomicI32::new(libc::c_int::from(b'S')),
        // SG_DXFER_NONE, SG_DXFER_FROM_DEV, SG_DXFER_TO_DEV
        dxfer_direction: match command.direction {
            Direction::In if len > 0 => -3,
            Direction::Out if len > 0 => -2,
            _ => -1,
        },
        cmd_len: u8::try_from(cdb.len()).map_err(|_| too_long())?,
        mx_sb_len: MAX_SENSE as u8,
        iovec_count: count,
        dxfer_len: len,
        dxferp: memory,
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: timeout(command),
        // Through a copy by sg: it does not reach the guest's memory for a command that it has let go of.
        flags: SG_FLAG_Q_AT_TAIL,
        pack_id: number,
        usr_ptr: ptr::null(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    let place = &raw mut header;
    // SAFETY: `interface_id` is the first field. The header is there when this function ends, before which the guard lets go of it.
    #[allow(unsafe_code)]
    let watched = guard.map(|guard| unsafe { guard.watch(number, place.cast()) });
    // SAFETY: the header is as the kernel knows it. It points to the CDB, to as much room for sense data as it says, and to
    // memory that `command.data` keeps; all of that outlives the call, at the end of which the kernel has let go of it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), SG_IO, place) };
    let error = io::Error::last_os_error();
    drop(watched);
    if result < 0 {
        let unusable = header.interface_id.into_inner() == 0;
        if unusable {
            guard::let_end(number, || commands_of_sg(file, true), PAUSE);
        }
        return Err(told(error, unusable));
    }
    Ok(Answer {
        status: header.status,
        host: header.host_status,
        driver: header.driver_status,
        residual: header.resid,
        sense,
        sense_len: header.sb_len_wr,
    })
}

/// What an error means: of a header that became unusable after the kernel had begun with it, that the kernel has begun anew, or has no
/// end of it to tell. What there is no memory for was not sent; of a device that is gone or offline nobody can say more than that.
fn told(error: io::Error, unusable: bool) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::ENODEV | libc::ENXIO) => error,
        _ if unusable => io::Error::from_raw_os_error(libc::EINTR),
        _ => error,
    }
}

/// The numbers (`pack_id`) of the commands that a node of sg has, or of those that have not ended; zeros where there are less. Of a
/// device that was deleted older kernels go on listing what nobody fetches any more.
pub(super) fn commands_of_sg(file: &File, at_work: bool) -> io::Result<[i32; TABLE]> {
    let mut table = [Info::default(); TABLE];
    // SAFETY: the kernel writes as many as sg has commands of one file at most, which is TABLE.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), SG_GET_REQUEST_TABLE, table.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(table.map(|info| info.number(at_work))) }
}

/// Sends a command by a node of bsg, which takes one segment, and waits for its end, whatever signals come.
pub(super) fn send_bsg(file: &File, command: &Command) -> io::Result<Answer> {
    let cdb = command.cdb.as_bytes();
    let (mut sense, len) = ([0; MAX_SENSE], u32::try_from(command.data.len()).map_err(|_| too_long())?);
    let memory = match command.data.iovecs() {
        [] => 0,
        [one] => one.iov_base.addr() as u64,
        _ => return Err(too_long()),
    };
    let way = |direction, value| if command.direction == direction { value } else { 0 };
    let mut header = Version4 {
        guard: i32::from(b'Q'),
        request_len: cdb.len() as u32,
        request: cdb.as_ptr().addr() as u64,
        max_response_len: MAX_SENSE as u32,
        response: sense.as_mut_ptr().addr() as u64,
        dout_xfer_len: way(Direction::Out, len),
        din_xfer_len: way(Direction::In, len),
        dout_xferp: if command.direction == Direction::Out { memory } else { 0 },
        din_xferp: if command.direction == Direction::In { memory } else { 0 },
        timeout: timeout(command),
        flags: SG_FLAG_Q_AT_TAIL,
        ..Version4::default()
    };
    // SAFETY: as in `send`; its pointers are numbers here.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), SG_IO, &raw mut header) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let residual = if command.direction == Direction::Out { header.dout_resid } else { header.din_resid };
    Ok(Answer {
        // A value that is none becomes one that is none as well.
        status: u8::try_from(header.device_status).unwrap_or(u8::MAX),
        host: u16::try_from(header.transport_status).unwrap_or(u16::MAX),
        driver: u16::try_from(header.driver_status).unwrap_or(0),
        residual,
        sense,
        sense_len: u8::try_from(header.response_len).unwrap_or(u8::MAX),
    })
}

/// Resets the device behind a node, and nothing else.
pub(super) fn reset(file: &File) -> io::Result<()> {
    let mut what = SG_SCSI_RESET_DEVICE | SG_SCSI_RESET_NO_ESCALATE;
    // SAFETY: the kernel reads one int.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), SG_SCSI_RESET, &raw mut what) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a node of sg says of its queue: bytes and segments of one command.
pub(super) fn queue_of_sg(file: &File) -> io::Result<(u64, u64)> {
    Ok((number(file, BLKSECTGET)?, number(file, SG_GET_SG_TABLESIZE)?))
}

/// Whether a node takes version 3 of SG_IO.
pub(super) fn speaks_sg(file: &File) -> bool {
    number(file, SG_GET_VERSION_NUM).is_ok_and(|version| version >= 30_000)
}

/// Whether a file is open for writing.
pub(super) fn is_writable(file: &File) -> bool {
    // SAFETY: a call without pointers.
    #[allow(unsafe_code)]
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_ACCMODE == libc::O_RDWR
}

fn number(file: &File, what: libc::Ioctl) -> io::Result<u64> {
    let mut value: libc::c_int = 0;
    // SAFETY: each of these writes one int.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), what, &raw mut value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(value.unsigned_abs())) }
}

/// No signal reaches this thread. One that interrupts SG_IO of a node of sg leaves the command at work, and the kernel may begin the
/// call anew: the command would be sent twice.
struct Undisturbed(Option<libc::sigset_t>);

impl Undisturbed {
    fn begin() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: it fills in the set.
        #[allow(unsafe_code)]
        let filled = unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: the first set is filled in, the second is as large as what is written to it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: a set of zeros is one, and so is what was written to it.
        #[allow(unsafe_code)]
        let before = unsafe { before.assume_init() };
        Self((filled == 0 && result == 0).then_some(before))
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // SAFETY: the set is what this thread had.
            #[allow(unsafe_code)]
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::SgList;
    use crate::scsi::Cdb;
    use crate::testing::{answer_system_call, temp_file};

    fn inquiry() -> Command {
        Command {
            cdb: Cdb::new(&[0x12, 0, 0, 0, 36, 0]),
            direction: Direction::In,
            data: SgList::host(36, 4096).unwrap(),
            timeout: Duration::from_secs(1),
        }
    }

    /// What the kernel has not sent is an error, and never an answer.
    #[test]
    fn errors_of_the_kernel_are_errors() {
        let file = temp_file();
        let guard = Guard::start(|| Some(Ok([0; TABLE]))).unwrap();
        for sent in [
            send_block(file.as_file(), &inquiry()),
            send_sg(file.as_file(), &inquiry(), Some(&guard)),
            send_bsg(file.as_file(), &inquiry()),
        ] {
            assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
        assert!(commands_of_sg(file.as_file(), false).is_err());
        let ended = Info { flags: [2, 0, 1, 0], pack_id: 7, ..Info::default() };
        assert_eq!((ended.number(false), ended.number(true)), (7, 0), "it has ended");
        let at_work = Info { flags: [1, 1, 1, 0], ..ended };
        assert_eq!((at_work.number(false), at_work.number(true)), (7, 7));
        assert_eq!(reset(file.as_file()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert!(!speaks_sg(file.as_file()) && queue_of_sg(file.as_file()).is_err());
        let thread = std::thread::spawn(move || {
            answer_system_call(libc::SYS_ioctl, libc::ENODEV);
            send_sg(file.as_file(), &inquiry(), None).unwrap_err().raw_os_error()
        });
        assert_eq!(thread.join().unwrap(), Some(libc::ENODEV));
    }

    #[test]
    fn a_call_that_begins_anew_is_no_command_that_was_not_sent() {
        let of = |error, unusable| told(io::Error::from_raw_os_error(error), unusable).raw_os_error();
        assert_eq!(of(libc::ENOSYS, true), Some(libc::EINTR));
        assert_eq!(of(libc::ENOSYS, false), Some(libc::ENOSYS), "no node of sg");
        // Places that commands have which nobody waits for any more; the end of one that could not be said.
        for error in [libc::EDOM, libc::EFAULT, libc::EINVAL] {
            assert_eq!(of(error, true), Some(libc::EINTR));
            assert_eq!(of(error, false), Some(error));
        }
        for error in [libc::ENODEV, libc::ENXIO, libc::ENOMEM] {
            assert_eq!(of(error, true), Some(error));
        }
    }

    #[test]
    fn what_the_kernel_does_not_take_does_not_get_there() {
        let file = temp_file();
        let mut two = inquiry();
        let all = SgList::host(8192, 4096).unwrap();
        two.data = all.window(0, 512);
        two.data.append(&all.window(4096, 512));
        assert_eq!(send_bsg(file.as_file(), &two).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        two.timeout = Duration::MAX;
        assert_eq!(timeout(&two), i32::MAX as u32, "the kernel would take more for none, or for no time");
        two.timeout = Duration::ZERO;
        assert_eq!(timeout(&two), 1);
    }

    #[test]
    fn signals_wait_for_the_end_of_a_command() {
        let blocked = || {
            let mut now = MaybeUninit::<libc::sigset_t>::zeroed();
            // SAFETY: it writes the set that the thread has.
            #[allow(unsafe_code)]
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), now.as_mut_ptr());
            }
            // SAFETY: the set is filled in.
            #[allow(unsafe_code)]
            unsafe {
                libc::sigismember(now.as_ptr(), libc::SIGUSR1)
            }
        };
        let before = blocked();
        let guard = Undisturbed::begin();
        assert_eq!(blocked(), 1);
        drop(guard);
        assert_eq!(blocked(), before);
    }
}
