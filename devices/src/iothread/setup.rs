//! Making the ring: what the kernel offers, and what to do when it offers nothing.

use std::io;

use io_uring::{IoUring, opcode};

use super::kernel::may_have;

/// Completion entries per submission entry: this many transfers may be in flight before further ones wait, but for a few of
/// each file. The kernel keeps the completions of those where there is no room.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Threads that the kernel may start for a ring, for operations that block there. It would have 4 a CPU, which as many reads
/// of one disk that hangs take from all. They are started when needed only: this is beyond what may be in flight, but for
/// a hundred disks that hang at once.
const WORKERS_MAX: u32 = 4096;

/// Tries set-ups from the best to the plainest.
pub(super) fn make(entries: u32) -> io::Result<IoUring> {
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
        setup(&mut builder);
        match builder.build(entries) {
            Ok(mut uring) if uring.params().is_feature_nodrop() => {
                try_out(&mut uring).map_err(explain)?;
                // The bounded ones: those for files and block devices. Linux before 5.15 does not let us.
                if may_have((5, 15)) {
                    let _ = uring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, 0]);
                }
                return Ok(uring);
            }
            Ok(_) => return Err(explain(io::Error::from_raw_os_error(libc::ENOSYS))),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => last = e,
            Err(e) => return Err(explain(e)),
        }
    }
    Err(explain(last))
}

/// Has the ring do nothing, once: a filter of system calls may let it be made and not be entered.
fn try_out(uring: &mut IoUring) -> io::Result<()> {
    let nothing = opcode::Nop::new().build();
    // SAFETY: it points nowhere.
    #[allow(unsafe_code)]
    let pushed = unsafe { uring.submission().push(&nothing) };
    pushed.map_err(io::Error::other)?;
    while let Err(e) = uring.submit_and_wait(1) {
        // Not by what passes.
        if !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) {
            return Err(e);
        }
    }
    uring.completion().for_each(drop);
    Ok(())
}

/// Restricts the threads that the kernel has for a ring to these CPUs, if there are any: they do not take over what the thread
/// that made it may use. Nothing happens before Linux 5.14.
pub(super) fn restrict_workers(ring: &IoUring, cpus: &[usize]) -> io::Result<()> {
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

/// Says what to do about a ring that could not be made.
fn explain(e: io::Error) -> io::Error {
    let remedy = match e.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => {
            "this kernel has no usable io_uring; Linux 5.10 or newer is needed"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here; check the sysctl kernel.io_uring_disabled and seccomp filters"
        }
        Some(libc::ENOMEM) => "no memory for the io_uring; raise the limit on locked memory (ulimit -l)",
        _ => "the io_uring could not be made",
    };
    io::Error::new(e.kind(), format!("{remedy} ({e})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::forbid_system_call;

    #[test]
    fn a_ring_that_may_not_be_entered_is_none() {
        let thread = std::thread::spawn(|| {
            forbid_system_call(libc::SYS_io_uring_enter);
            make(256).map(drop).map_err(|e| (e.kind(), e.to_string()))
        });
        let (kind, said) = thread.join().unwrap().unwrap_err();
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
        assert!(said.starts_with("io_uring is forbidden here; check "), "{said}");
    }

    /// More of them than may be in flight: with as many as the kernel has for two CPUs, eight reads that hang stop all.
    #[test]
    fn there_are_workers_for_all_that_may_hang() {
        if !may_have((5, 15)) {
            return;
        }
        let ring = make(256).unwrap();
        let mut limits = [0, 0];
        match ring.submitter().register_iowq_max_workers(&mut limits) {
            Ok(()) => assert!(limits[0] > 2 * ring.params().cq_entries(), "{limits:?}"),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EINVAL), "a kernel before 5.15"),
        }
    }
}
