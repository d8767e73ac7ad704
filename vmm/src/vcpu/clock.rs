//! The clocks of a vCPU: its time stamp counter, set back by the time that a pause took, and the timer that goes by it.

use std::io;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_DEADLINE (Intel SDM volume 4, table 2-2).
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Ticks of some tens of milliseconds, on any processor.
const A_MOMENT: u64 = 100_000_000;

/// How a time stamp counter is set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By its distance to the host's (KVM_VCPU_TSC_OFFSET, since Linux 5.16), which is exact.
    Offset,
    /// By its value, which is late by the time that this takes: microseconds.
    Value,
}

impl Method {
    /// What the host's KVM offers.
    pub fn of(vcpu: &VcpuFd) -> Self {
        if offset(vcpu).is_ok() { Self::Offset } else { Self::Value }
    }
}

/// The time stamp counter as the guest would read it now.
pub fn tsc(vcpu: &VcpuFd) -> io::Result<u64> {
    msr(vcpu, MSR_TSC)?.ok_or_else(|| io::Error::other("KVM gives no time stamp counter"))
}

/// Sets all vCPUs' time stamp counters back by so many ticks. None of them may run.
///
/// They stay in step: KVM compares what it is given with what it was given last. Fails with `Unsupported` where guests have the
/// host's own counter, which KVM for guests without virtualization does not say.
pub fn set_back(vcpus: &[&VcpuFd], ticks: u64, method: Method) -> io::Result<()> {
    let Some(first) = vcpus.first() else { return Ok(()) };
    let before = tsc(first)?;
    for (number, vcpu) in vcpus.iter().enumerate() {
        match method {
            Method::Offset => set_offset(vcpu, offset(vcpu)?.wrapping_sub(ticks))?,
            Method::Value => {
                let value = tsc(vcpu)?.wrapping_sub(ticks);
                // KVM takes a value within a second of the one that it expects for that one, which is what the other vCPUs
                // are to have, but would undo a short pause: a value that is far off comes first.
                if number == 0 {
                    set_msr(vcpu, MSR_TSC, value ^ 1 << 62)?;
                }
                set_msr(vcpu, MSR_TSC, value)?;
            }
        }
    }
    match tsc(first)?.wrapping_sub(before).cast_signed() {
        // What this took itself is less than the pause, or nobody notices.
        0.. if ticks > A_MOMENT => Err(io::ErrorKind::Unsupported.into()),
        _ => Ok(()),
    }
}

/// Has a timer with a deadline of the time stamp counter go by it as it is now: KVM turned the deadline into host time when
/// the guest set it. One that has gone off before its time, and that the guest has not heard of, goes off in time again.
pub fn renew_deadline(vcpu: &VcpuFd) -> io::Result<()> {
    match msr(vcpu, MSR_TSC_DEADLINE)? {
        // None is set, or the local APIC's timer has another mode.
        None | Some(0) => Ok(()),
        Some(deadline) => set_msr(vcpu, MSR_TSC_DEADLINE, deadline),
    }
}

/// Tells the guest that this vCPU was stopped by the host, so that its watchdogs do not take that for a fault.
pub fn was_stopped(vcpu: &VcpuFd) -> io::Result<()> {
    match vcpu.kvmclock_ctrl() {
        // The guest does not use kvmclock.
        Err(e) if e.errno() == libc::EINVAL => Ok(()),
        other => Ok(other?),
    }
}

fn msr(vcpu: &VcpuFd, index: u32) -> io::Result<Option<u64>> {
    let mut msrs = collect(index, 0)?;
    let read = vcpu.get_msrs(&mut msrs)?;
    Ok(msrs.as_slice().iter().take(read).map(|entry| entry.data).next())
}

fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> io::Result<()> {
    match vcpu.set_msrs(&collect(index, data)?)? {
        1 => Ok(()),
        _ => Err(io::Error::other(format!("KVM refuses a value of MSR {index:#x}"))),
    }
}

fn collect(index: u32, data: u64) -> io::Result<Msrs> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry]).map_err(|e| io::Error::other(format!("{e:?}")))
}

/// The guest's time stamp counter minus the host's, modulo 2^64 (KVM, devices/vcpu, 4.1).
fn offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut value = 0u64;
    let attribute = attribute(&raw mut value);
    // SAFETY: KVM writes eight bytes to the address in the structure, that of a live value which nobody else uses meanwhile.
    #[allow(unsafe_code)]
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn set_offset(vcpu: &VcpuFd, mut value: u64) -> io::Result<()> {
    let attribute = attribute(&raw mut value);
    // SAFETY: KVM reads eight bytes from the address in the structure, that of a live value.
    #[allow(unsafe_code)]
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn attribute(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: value.expose_provenance() as u64,
        flags: 0,
    }
}
