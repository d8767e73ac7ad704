//! Making the ring: what the kernel offers, and what to do when it offers nothing.

use std::io;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

use super::kernel::may_have;

/// Completion entries per submission entry: this many transfers may be in flight before further ones wait, but for a few of
/// each file. The kernel keeps the completions of those where there is no room.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Threads that the kernel may start for a ring, for operations that block there. It would have 4 a CPU, which as many reads
/// of one disk that hangs take from all. They are started when needed only: this is beyond what may be in flight, but for
/// a hundred disks that hang at once.
const WORKERS_MAX: u32 = 4096;

/// How often a new ring is tried out that the kernel has no memory for just now, and how long before the next time: half a second.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// All that entries of a ring may ask for, see [`super::op::Op::entry`]: a ring is a door past the filters of system calls, and who
/// has got hold of the process could open files by it. Anything else is answered EACCES.
const OPERATIONS: [u8; 10] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::Timeout::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Nop::CODE,
];

/// The flags that they may have.
const FLAGS: squeue::Flags = squeue::Flags::IO_LINK.union(squeue::Flags::ASYNC);

/// Tries set-ups from the best to the plainest. The threads that the kernel has for the ring are restricted to the CPUs `workers`,
/// if there are any: they do not take over what the thread that made it may use. Nothing happens before Linux 5.14.
///
/// The ring belongs to the calling thread and is restricted, for good, to what is used.
pub(super) fn make(entries: u32, workers: &[usize]) -> io::Result<IoUring> {
    let mut uring = build(entries).map_err(explain)?;
    restrict_workers(&uring, workers)?;
    restrict(&uring).and_then(|()| try_out(&mut uring)).map_err(explain)?;
    Ok(uring)
}

/// A ring that takes nothing yet.
fn build(entries: u32) -> io::Result<IoUring> {
    type Flags = fn(&mut io_uring::Builder);
    /// Each with the version of Linux that has it.
    const SETUPS: [((u32, u32), Flags); 3] = [
        ((6, 1), |b| {
            b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        }),
        ((5, 19), |b| {
            b.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }),
        ((5, 10), |_| {}),
    ];
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for (_, setup) in SETUPS.into_iter().filter(|(since, _)| may_have(*since)) {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
        builder.setup_r_disabled();
        setup(&mut builder);
        match builder.build(entries) {
            Ok(uring) if uring.params().is_feature_nodrop() => return Ok(uring),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::ENOSYS)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// How many threads the kernel may have for the ring, and on which CPUs. Before [`restrict`], which ends all registering.
fn restrict_workers(ring: &IoUring, cpus: &[usize]) -> io::Result<()> {
    // The bounded ones: those for files and block devices. Linux before 5.15 does not let us.
    if may_have((5, 15)) {
        let _ = ring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, 0]);
    }
    if cpus.is_empty() || !may_have((5, 14)) {
        return Ok(());
    }
    let mask = super::polling::cpu_mask(cpus)?;
    // SAFETY: both are as large, and a set of CPUs is a list of bits in words, any of which may be set (sched_setaffinity(2)).
    #[allow(unsafe_code)]
    let set = unsafe { std::mem::transmute::<super::polling::CpuMask, libc::cpu_set_t>(mask) };
    match ring.submitter().register_iowq_aff(&set) {
        Err(e) if e.raw_os_error() != Some(libc::EINVAL) => Err(e),
        _ => Ok(()),
    }
}

/// Allows what is used and enables the ring. From then on nothing can be registered: no files, no buffers, no personalities.
/// A ring of a single issuer becomes that of the thread that enables it.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let operations = OPERATIONS.into_iter().map(Restriction::sqe_op);
    let mut allowed: Vec<_> = operations.chain([Restriction::sqe_flags_allowed(FLAGS.bits())]).collect();
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()
}

/// Has the ring do nothing, once: a filter of system calls may let it be made and not be entered.
fn try_out(uring: &mut IoUring) -> io::Result<()> {
    let nothing = opcode::Nop::new().build();
    // SAFETY: it points nowhere.
    #[allow(unsafe_code)]
    let pushed = unsafe { uring.submission().push(&nothing) };
    pushed.map_err(io::Error::other)?;
    let mut tries = 1;
    while let Err(e) = uring.submit_and_wait(1) {
        // Not by what passes, unless it does not.
        let passes = matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY));
        if !passes || tries == TRIES {
            return Err(e);
        }
        tries += 1;
        std::thread::sleep(PAUSE);
    }
    uring.completion().for_each(drop);
    Ok(())
}

/// Says what to do about a ring that could not be made.
fn explain(e: io::Error) -> io::Error {
    let remedy = match e.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => {
            "this kernel has no usable io_uring; Linux 5.10 or newer is needed"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here; check the sysctl kernel.io_uring_disabled and seccomp filters"
        }
        Some(libc::EAGAIN | libc::EBUSY) => {
            "the kernel has no memory for requests of the io_uring; try again when the host has more"
        }
        Some(libc::ENOMEM) => "no memory for the io_uring; raise the limit on locked memory (ulimit -l)",
        _ => "the io_uring could not be made",
    };
    io::Error::new(e.kind(), format!("{remedy} ({e})"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use io_uring::squeue::{Entry, Flags};

    use super::*;
    use crate::testing::{answer_system_call, forbid_system_call};

    #[test]
    fn a_ring_that_may_not_be_entered_is_none() {
        let thread = std::thread::spawn(|| {
            forbid_system_call(libc::SYS_io_uring_enter);
            make(256, &[]).map(drop).map_err(|e| (e.kind(), e.to_string()))
        });
        let (kind, said) = thread.join().unwrap().unwrap_err();
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
        assert!(said.starts_with("io_uring is forbidden here; check "), "{said}");
    }

    /// A ring that could not be restricted would be a door past the filters of system calls.
    #[test]
    fn a_ring_that_cannot_be_restricted_is_none() {
        let thread = std::thread::spawn(|| {
            forbid_system_call(libc::SYS_io_uring_register);
            make(256, &[]).map(drop).map_err(|e| e.to_string())
        });
        let said = thread.join().unwrap().unwrap_err();
        assert!(said.starts_with("io_uring is forbidden here; check "), "{said}");
    }

    #[test]
    fn a_kernel_without_memory_is_not_asked_for_ever() {
        for error in [libc::EAGAIN, libc::EBUSY] {
            let (done, result) = mpsc::channel();
            std::thread::spawn(move || {
                answer_system_call(libc::SYS_io_uring_enter, error);
                let _ = done.send(make(256, &[]).map(drop).map_err(|e| e.to_string()));
            });
            let said = result.recv_timeout(Duration::from_secs(20)).unwrap().unwrap_err();
            assert!(said.starts_with("the kernel has no memory for requests of the io_uring; "), "{said}");
        }
    }

    /// An entry with this operation and these flags, all else zero but the descriptor, which is none.
    fn entry(operation: u8, flags: u8) -> Entry {
        let mut bytes = [0; size_of::<Entry>()];
        bytes[..2].copy_from_slice(&[operation, flags]);
        bytes[4..8].fill(0xff);
        // SAFETY: an entry is numbers only.
        #[allow(unsafe_code)]
        unsafe {
            std::mem::transmute::<[u8; size_of::<Entry>()], Entry>(bytes)
        }
    }

    /// What comes of an entry.
    fn answer(ring: &mut IoUring, entry: &Entry) -> i32 {
        // SAFETY: the ring refuses it, or it does nothing.
        #[allow(unsafe_code)]
        unsafe {
            ring.submission().push(entry).unwrap();
        }
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_does_what_is_used_and_nothing_else() {
        let mut ring = make(8, &[]).unwrap();
        // Past the filters these would reach what the process has no business with.
        let worst = [
            opcode::OpenAt::CODE,
            opcode::OpenAt2::CODE,
            opcode::Socket::CODE,
            opcode::Connect::CODE,
            opcode::Send::CODE,
            opcode::Splice::CODE,
            opcode::UnlinkAt::CODE,
            opcode::UringCmd16::CODE,
        ];
        let mut refused = Vec::new();
        for operation in (0..=u8::MAX).filter(|operation| !OPERATIONS.contains(operation)) {
            match answer(&mut ring, &entry(operation, 0)) {
                error if error == -libc::EACCES => refused.push(operation),
                // This kernel has no such operation.
                error => assert_eq!(error, -libc::EINVAL, "operation {operation}"),
            }
        }
        // Linux 5.10 has 34 operations; three of the worst are newer.
        assert!(refused.len() >= 34 - OPERATIONS.len(), "{refused:?}");
        let oldest = refused.iter().filter(|operation| worst.contains(operation)).count();
        assert!(oldest >= 5, "{refused:?}");
        assert_eq!(answer(&mut ring, &entry(opcode::Nop::CODE, 0)), 0);
    }

    #[test]
    fn entries_have_the_flags_that_are_used_and_no_other() {
        let refused = [
            (opcode::Read::CODE, Flags::FIXED_FILE),
            (opcode::Nop::CODE, Flags::IO_HARDLINK),
            (opcode::Read::CODE, Flags::BUFFER_SELECT),
            (opcode::Nop::CODE, Flags::IO_DRAIN),
        ];
        for (operation, flags) in refused {
            let mut ring = make(8, &[]).unwrap();
            assert_eq!(answer(&mut ring, &entry(operation, flags.bits())), -libc::EACCES, "{flags:?}");
        }
        let mut ring = make(8, &[]).unwrap();
        for flags in [Flags::ASYNC, Flags::IO_LINK] {
            assert_eq!(answer(&mut ring, &entry(opcode::Nop::CODE, flags.bits())), 0, "{flags:?}");
        }
    }

    #[test]
    fn nothing_is_registered_any_more() {
        let ring = make(8, &[]).unwrap();
        let submitter = ring.submitter();
        let mut more = [Restriction::sqe_op(opcode::OpenAt::CODE)];
        let tried = [
            submitter.register_restrictions(&mut more),
            submitter.register_enable_rings(),
            submitter.register_files(&[0]),
            submitter.register_eventfd(0),
            submitter.register_personality().map(drop),
        ];
        for (number, result) in tried.into_iter().enumerate() {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES), "number {number}");
        }
    }

    /// More of them than may be in flight: with as many as the kernel has for two CPUs, eight reads that hang stop all.
    #[test]
    fn there_are_workers_for_all_that_may_hang() {
        if !may_have((5, 15)) {
            return;
        }
        let ring = make(256, &[]).unwrap();
        // Its own ring tells nothing any more; the threads are the same for all rings of a thread.
        let (other, mut limits) = (IoUring::new(1).unwrap(), [0, 0]);
        match other.submitter().register_iowq_max_workers(&mut limits) {
            Ok(()) => assert!(limits[0] > 2 * ring.params().cq_entries(), "{limits:?}"),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EINVAL), "a kernel before 5.15"),
        }
    }
}
