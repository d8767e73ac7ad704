//! System calls by what they are for.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_debugregs, kvm_device_attr, kvm_fpu, kvm_ioeventfd, kvm_irq_level,
    kvm_irq_routing, kvm_irqchip, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_pit_state2,
    kvm_regs, kvm_sregs, kvm_translation, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use super::list::{Argument, List};

/// What every thread does: bytes of descriptors that it has, memory, itself and its fellows. Beside our own calls those of
/// the standard library and of the C libraries, old and new.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpgid,
    libc::SYS_getpgrp,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_time,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// futex_wake(2), futex_wait(2) and futex_requeue(2) of Linux 6.7.
const NEW_FUTEXES: &[libc::c_long] = &[454, 455, 456];

/// uretprobe(2) and uprobe(2): what the kernel has a program call that an operator watches with probes, and nobody else.
const PROBES: &[libc::c_long] = &[335, 336];

/// The access mode of an open(2) (asm-generic/fcntl.h). musl's O_ACCMODE has O_PATH in it.
pub(super) const ACCESS_MODE: libc::c_int = 3;
/// Flags of an open(2) that could change a file.
const WRITES: u32 = (ACCESS_MODE | libc::O_CREAT | libc::O_TRUNC).cast_unsigned();

/// Flags that a C library gives the memory of a thread or of the heap, and takes.
const ADVICES: &[libc::c_int] = &[
    libc::MADV_NORMAL,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    libc::MADV_DODUMP,
    // MADV_GUARD_INSTALL and MADV_GUARD_REMOVE (linux/mman.h).
    102,
    103,
];

/// PR_SET_VMA (linux/prctl.h): names of memory.
const PR_SET_VMA: libc::c_int = 0x5356_4d41;

/// What descriptors can be asked and told.
const DESCRIPTORS: &[libc::c_int] =
    &[libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD, libc::F_DUPFD_CLOEXEC];

/// Of terminals: whoever logs asks whether it is one. And of sockets (std's `set_nonblocking`).
const TERMINALS: &[u32] = &[
    libc::TCGETS as u32,
    libc::TCGETS2 as u32,
    libc::TIOCGPGRP as u32,
    libc::TIOCGWINSZ as u32,
    libc::FIONBIO as u32,
];

/// What changes a terminal.
const TERMINAL_CHANGES: &[u32] = &[libc::TCSETS as u32, libc::TCSETS2 as u32];

/// Looks at paths.
pub(super) const LOOKS: [libc::c_long; 7] = [
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
];

const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | KVMIO << 8 | number
}

const fn io(number: u32) -> u32 {
    ioctl(0, number, 0)
}

const fn iow<T>(number: u32) -> u32 {
    ioctl(1, number, size_of::<T>())
}

const fn ior<T>(number: u32) -> u32 {
    ioctl(2, number, size_of::<T>())
}

const fn iowr<T>(number: u32) -> u32 {
    ioctl(3, number, size_of::<T>())
}

/// KVM_RUN (linux/kvm.h, as the ones below).
const RUN: u32 = io(0x80);

/// KVM_IRQ_LINE, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD.
const DEVICE: &[u32] = &[
    iow::<kvm_irq_level>(0x61),
    iow::<kvm_irq_routing>(0x6a),
    iow::<kvm_irqfd>(0x76),
    iow::<kvm_ioeventfd>(0x79),
];

/// KVM_SET_USER_MEMORY_REGION.
const MEMORY_REGION: u32 = iow::<kvm_userspace_memory_region>(0x46);

/// KVM_GET_MSRS and KVM_SET_MSRS, KVM_KVMCLOCK_CTRL, KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and KVM_HAS_DEVICE_ATTR.
const VCPU_CLOCK: &[u32] = &[
    iowr::<kvm_msrs>(0x88),
    iow::<kvm_msrs>(0x89),
    io(0xad),
    iow::<kvm_device_attr>(0xe1),
    iow::<kvm_device_attr>(0xe2),
    iow::<kvm_device_attr>(0xe3),
];

/// The registers of a vCPU: KVM_GET_x and KVM_SET_x; KVM_TRANSLATE, KVM_GET_STATS_FD.
const VCPU: &[u32] = &[
    ior::<kvm_regs>(0x81),
    iow::<kvm_regs>(0x82),
    ior::<kvm_sregs>(0x83),
    iow::<kvm_sregs>(0x84),
    iowr::<kvm_translation>(0x85),
    ior::<kvm_fpu>(0x8c),
    iow::<kvm_fpu>(0x8d),
    ior::<kvm_lapic_state>(0x8e),
    iow::<kvm_lapic_state>(0x8f),
    ior::<kvm_mp_state>(0x98),
    iow::<kvm_mp_state>(0x99),
    ior::<kvm_vcpu_events>(0x9f),
    iow::<kvm_vcpu_events>(0xa0),
    ior::<kvm_debugregs>(0xa1),
    iow::<kvm_debugregs>(0xa2),
    ior::<kvm_xsave>(0xa4),
    iow::<kvm_xsave>(0xa5),
    ior::<kvm_xcrs>(0xa6),
    iow::<kvm_xcrs>(0xa7),
    io(0xce),
];

/// The machine's clocks and controllers: KVM_GET_x and KVM_SET_x of IRQCHIP, CLOCK, PIT2.
const MACHINE: &[u32] = &[
    iowr::<kvm_irqchip>(0x62),
    ior::<kvm_irqchip>(0x63),
    iow::<kvm_clock_data>(0x7b),
    ior::<kvm_clock_data>(0x7c),
    ior::<kvm_pit_state2>(0x9f),
    iow::<kvm_pit_state2>(0xa0),
];

/// Of block devices (linux/fs.h): BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKROGET, BLKDISCARD, BLKZEROOUT, BLKROTATIONAL. And of
/// loop devices (linux/loop.h): LOOP_GET_STATUS64.
const BLOCK_DEVICES: &[u32] = &[0x8008_1272, 0x1268, 0x127b, 0x125e, 0x1277, 0x127f, 0x127e, 0x4c05];

/// Of devices that take SCSI commands (scsi/sg.h): SG_IO, SG_SCSI_RESET, SG_GET_REQUEST_TABLE.
const COMMANDS: &[u32] = &[0x2285, 0x2284, 0x2286];
/// Of the same: BLKSECTGET, SG_GET_SG_TABLESIZE, SG_GET_VERSION_NUM.
const HOST_DEVICES: &[u32] = &[0x1267, 0x227f, 0x2282];

impl List {
    /// What every thread does.
    pub(super) fn common() -> Self {
        Self::default().and_common()
    }

    /// The same, with what is in the list already before it.
    pub(super) fn and_common(mut self) -> Self {
        let list = &mut self;
        list.any(COMMON);
        list.any(NEW_FUTEXES);
        list.any(PROBES);
        // Memory never becomes code.
        let data = Argument::Has { number: 2, mask: libc::PROT_EXEC as u32, value: 0 };
        list.with(libc::SYS_mmap, data);
        list.with(libc::SYS_mprotect, data);
        list.with_each(
            libc::SYS_madvise,
            2,
            &ADVICES.iter().map(|one| one.cast_unsigned()).collect::<Vec<_>>(),
        );
        for option in [libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA] {
            list.with(libc::SYS_prctl, Argument::Is(0, option.cast_unsigned()));
        }
        for command in DESCRIPTORS {
            list.with(libc::SYS_fcntl, Argument::Is(1, command.cast_unsigned()));
        }
        // A terminal that has O_ASYNC signals the programs in its foreground, which may be others than this one.
        let (set_flags, no_signals) = (libc::F_SETFL.cast_unsigned(), libc::O_ASYNC.cast_unsigned());
        list.with(libc::SYS_fcntl, Argument::Both([(1, u32::MAX, set_flags), (2, no_signals, 0)]));
        // Locks of what is open: whoever lets go of an image last gives them back, also a virtual CPU that has just told of it.
        for command in [libc::F_OFD_GETLK, libc::F_OFD_SETLK, libc::F_OFD_SETLKW] {
            list.with(libc::SYS_fcntl, Argument::Is(1, command.cast_unsigned()));
        }
        list.with_each(libc::SYS_ioctl, 1, TERMINALS);
        // Signals to this process alone.
        list.with(libc::SYS_tgkill, Argument::Is(0, std::process::id()));
        // Refused calls end the process, whatever their thread would have made of the signal.
        list.with(libc::SYS_rt_sigaction, Argument::Not(0, libc::SIGSYS.cast_unsigned()));
        // There it is the call by which a thread signals itself.
        #[cfg(target_env = "musl")]
        list.any(&[libc::SYS_tkill]);
        // Limits are read, and those of this process.
        list.with(libc::SYS_prlimit64, Argument::Null(2));
        // What a descriptor is of. A path with the same flag gets through as well: where it is no filter sees.
        let descriptor = |number| Argument::Has { number, mask: AT_EMPTY_PATH, value: AT_EMPTY_PATH };
        list.with(libc::SYS_statx, descriptor(2));
        list.with(libc::SYS_newfstatat, descriptor(3));
        self
    }

    /// Gives back the terminal that the console has: whoever ends the process, or stops it, does so. In the background it would
    /// stop all processes of its group, so that nobody else may.
    pub(super) fn terminal(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, TERMINAL_CHANGES);
        self
    }

    /// Images that are open: their locks, length, space, and what the host says of them.
    pub(super) fn files(mut self) -> Self {
        self.any(&[
            libc::SYS_fadvise64,
            libc::SYS_fallocate,
            libc::SYS_fdatasync,
            libc::SYS_flock,
            libc::SYS_fstatfs,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
        ]);
        self.with_each(libc::SYS_ioctl, 1, BLOCK_DEVICES);
        self
    }

    /// Sends commands to devices of the host that are open. Whoever has this has them; the kernel looks at what is sent by a block
    /// device, and this process at the rest.
    pub(super) fn commands(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, COMMANDS);
        self
    }

    /// Has a target of the host's kernel serve an adapter, or end that.
    pub(super) fn vhost(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, crate::vhost::COMMANDS);
        self
    }

    /// Asks devices of the host what they are.
    pub(super) fn host_devices(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, HOST_DEVICES);
        self
    }

    /// Paths: finds what is there, and reads it.
    pub(super) fn reads(mut self) -> Self {
        self.any(&LOOKS);
        self.any(&[libc::SYS_getdents64, libc::SYS_newfstatat, libc::SYS_statfs, libc::SYS_statx]);
        let reading = |number| Argument::Has { number, mask: WRITES, value: 0 };
        self.with(libc::SYS_open, reading(1));
        self.with(libc::SYS_openat, reading(2));
        self
    }

    /// Paths: also opens what is there to write it, and makes files.
    pub(super) fn paths(self) -> Self {
        let mut all = self.reads();
        // Nobody empties a file, nor makes one that others would run with the rights of its owner. Nor opens one to do neither
        // (access mode 3): Landlock has nothing to say of it, and drivers take it for one more that has their device open.
        let (flags_of, special) = ((libc::O_TRUNC | ACCESS_MODE).cast_unsigned(), 0o7000);
        for (call, flags) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
            for mode in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
                all.with(
                    call,
                    Argument::Both([(flags, flags_of, mode.cast_unsigned()), (flags + 1, special, 0)]),
                );
            }
        }
        all
    }

    /// Names that the machine made, and takes away at its end.
    pub(super) fn names(mut self) -> Self {
        self.any(&[libc::SYS_unlink, libc::SYS_unlinkat]);
        self
    }

    /// Devices of the machine: their interrupts, doorbells and timers.
    pub(super) fn devices(mut self) -> Self {
        self.any(&[libc::SYS_eventfd2, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime]);
        self.with_each(libc::SYS_ioctl, 1, DEVICE);
        self
    }

    /// Base registers of PCI functions, which lead to memory of ours.
    pub(super) fn windows(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, &[MEMORY_REGION]);
        self
    }

    /// Runs a vCPU, and sets its registers.
    pub(super) fn vcpu(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, &[RUN]);
        self.with_each(libc::SYS_ioctl, 1, VCPU_CLOCK);
        self.with_each(libc::SYS_ioctl, 1, VCPU);
        self
    }

    /// Sets the machine as a whole: its clocks, those of parked vCPUs, its controllers.
    pub(super) fn machine(mut self) -> Self {
        self.with_each(libc::SYS_ioctl, 1, VCPU_CLOCK);
        self.with_each(libc::SYS_ioctl, 1, MACHINE);
        self
    }

    /// Waits for events.
    pub(super) fn events(mut self) -> Self {
        self.any(&[libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_epoll_wait]);
        self
    }

    /// Uses a ring that is there.
    pub(super) fn ring(mut self) -> Self {
        self.any(&[libc::SYS_io_uring_enter]);
        self
    }

    /// Starts threads, which confine themselves further.
    pub(super) fn starts(mut self) -> Self {
        let thread =
            libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        let apart = libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWUTS
            | libc::CLONE_PTRACE;
        let (mask, value) = ((thread | apart).cast_unsigned(), thread.cast_unsigned());
        self.with(libc::SYS_clone, Argument::Has { number: 0, mask, value });
        // One flag and no other: a listener would answer the calls of those that it starts.
        let (filter, others) = (libc::SECCOMP_SET_MODE_FILTER, !libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32);
        self.with(libc::SYS_seccomp, Argument::Both([(0, u32::MAX, filter), (1, others, 0)]));
        self.with(libc::SYS_prctl, Argument::Is(0, libc::PR_SET_SECCOMP.cast_unsigned()));
        self
    }

    /// Takes what somebody passes on.
    pub(super) fn receives(mut self) -> Self {
        // Urgent data is a room of its own in the kernel, which nobody needs.
        let usual = Argument::Has { number: 2, mask: libc::MSG_OOB.cast_unsigned(), value: 0 };
        self.with(libc::SYS_recvmsg, usual);
        self
    }

    /// Speaks with whoever is connected.
    pub(super) fn connections(mut self) -> Self {
        self.any(&[libc::SYS_getpeername, libc::SYS_getsockname, libc::SYS_getsockopt, libc::SYS_shutdown]);
        // Urgent data is a room of its own in the kernel, which nobody needs.
        let usual = |number| Argument::Has { number, mask: libc::MSG_OOB.cast_unsigned(), value: 0 };
        self.with(libc::SYS_recvfrom, usual(3));
        self = self.receives();
        // To the peer, not to an address. Urgent data is refused before.
        self.with(libc::SYS_sendto, Argument::Null(4));
        self
    }

    /// Takes who connects.
    pub(super) fn accepts(mut self) -> Self {
        self.any(&[libc::SYS_accept, libc::SYS_accept4]);
        self
    }
}

const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
