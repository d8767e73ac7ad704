//! What a vCPU stopped for, without a borrow of the vCPU, and the report when it cannot go on.

use std::io;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::machine::Buses;

/// Why there may be none.
const RAN_OUT: &str = "huge pages ran out, or what its cgroup may have of them (hugetlb.*.max)";

/// What the run loop does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Run on.
    Continue,
    /// A signal came: look at what the machine wants.
    Kicked,
    /// KVM did not begin, and may do so later: with this error number.
    Refused(i32),
    /// The guest's processor is in shutdown (triple fault).
    Shutdown,
    /// KVM cannot run this guest any further: the reason.
    Fatal(String),
    /// The hypervisor asks for a reset in the guest's name (a Hyper-V reset register).
    SystemReset,
}

/// A port access in the terms of the port map.
struct PortAccess {
    port: u16,
    width: usize,
    len: usize,
}

/// Runs the vCPU until its next exit and answers that exit.
pub fn run_once(vcpu: &mut VcpuFd, buses: &Buses) -> Outcome {
    let access = match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => (PortAccess { port, width: 0, len: data.len() }, true),
        Ok(VcpuExit::IoOut(port, data)) => (PortAccess { port, width: 0, len: data.len() }, false),
        // KVM takes an access to RAM that the host has no memory for to be one to a device.
        Ok(VcpuExit::MmioRead(addr, _) | VcpuExit::MmioWrite(addr, _)) if buses.is_ram(addr) => {
            return Outcome::Fatal(format!(
                "the host has no memory behind guest address {addr:#x}: {RAN_OUT}"
            ));
        }
        Ok(VcpuExit::MmioRead(addr, data)) => {
            buses.memory_read(addr, data);
            return Outcome::Continue;
        }
        Ok(VcpuExit::MmioWrite(addr, data)) => {
            buses.memory_write(addr, data);
            return Outcome::Continue;
        }
        Ok(exit) => return other(exit),
        Err(e) => return failed(&e.into()),
    };
    let (mut access, is_read) = access;
    access.width = port_width(vcpu);
    port_access(vcpu, &access, is_read, buses);
    Outcome::Continue
}

fn failed(e: &io::Error) -> Outcome {
    match e.raw_os_error() {
        Some(libc::EINTR) => Outcome::Kicked,
        Some(code @ (libc::EAGAIN | libc::ENOMEM)) => Outcome::Refused(code),
        Some(libc::EFAULT) => {
            Outcome::Fatal(format!("KVM_RUN failed: {e}: the host has no memory for the guest: {RAN_OUT}"))
        }
        _ => Outcome::Fatal(format!("KVM_RUN failed: {e}")),
    }
}

/// How often KVM has refused to run a vCPU, one time after the other.
///
/// The first run makes threads of KVM's own, for which the host may have no room: EAGAIN, and ENOMEM with some kernels.
#[derive(Debug, Default)]
pub struct Refusals(u32);

/// What follows from a refusal.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Run again at once.
    Again,
    /// Run again after [`Refusals::PAUSE`]; with a line for the log, once.
    Later(Option<&'static str>),
    /// It does not come right.
    Fatal(String),
}

impl Refusals {
    /// How long to wait before the next try.
    pub const PAUSE: Duration = Duration::from_millis(10);
    /// After so many it is worth a line, or the end.
    const MANY: u32 = 100;

    /// KVM ran, or a signal came.
    pub fn none(&mut self) {
        self.0 = 0;
    }

    /// It refused with error `code`; `waits` tells whether the vCPU is an application processor that waits for its start-up
    /// message: such a one has been woken.
    pub fn one(&mut self, code: i32, waits: impl Fn() -> bool) -> Refusal {
        if code == libc::EAGAIN && waits() {
            return Refusal::Again;
        }
        self.0 = self.0.saturating_add(1);
        if code != libc::EAGAIN && self.0 >= Self::MANY {
            return Refusal::Fatal(format!("KVM_RUN failed: {}", io::Error::from_raw_os_error(code)));
        }
        Refusal::Later((self.0 == Self::MANY).then_some(
            "the host starts no thread for KVM, and the machine waits for it: raise pids.max of its cgroup (TasksMax= of its \
             service), or ulimit -u",
        ))
    }
}

fn other(exit: VcpuExit<'_>) -> Outcome {
    let fatal = |what: String| Outcome::Fatal(what);
    match exit {
        VcpuExit::Intr => Outcome::Kicked,
        // With controllers in the kernel, halting is the kernel's business: an exit here only means "look again".
        VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::TprAccess => Outcome::Continue,
        VcpuExit::IoapicEoi(_) | VcpuExit::Debug(_) => Outcome::Continue,
        VcpuExit::Shutdown => Outcome::Shutdown,
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => Outcome::SystemReset,
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_CRASH, _) => {
            devices::log_limited!(error, "the guest reported a crash through the hypervisor interface");
            Outcome::Continue
        }
        VcpuExit::SystemEvent(kind, data) => fatal(format!("system event {kind} {data:x?}")),
        VcpuExit::InternalError => fatal("KVM internal error: an instruction that it cannot emulate".into()),
        VcpuExit::FailEntry(reason, cpu) => {
            fatal(format!("the processor refused to enter the guest: reason {reason:#x} on host CPU {cpu}"))
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            fatal(format!("memory fault at guest address {gpa:#x}, {size} bytes, flags {flags:#x}"))
        }
        VcpuExit::Hypercall(_) => fatal("a hypercall that KVM does not answer".into()),
        VcpuExit::Unknown => fatal("an exit that KVM itself does not know".into()),
        exit => fatal(format!("an exit this machine does not have: {exit:?}")),
    }
}

/// Width in bytes of one element of the port access that the vCPU stopped for: 1, 2 or 4.
fn port_width(vcpu: &mut VcpuFd) -> usize {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason was KVM_EXIT_IO, so the `io` member of the union is the one that KVM filled.
    #[allow(unsafe_code)]
    let io = unsafe { run.__bindgen_anon_1.io };
    usize::from(io.size).clamp(1, 4)
}

/// The bytes of the port access that the vCPU stopped for, behind the run structure.
fn port_data(vcpu: &mut VcpuFd, len: usize) -> &mut [u8] {
    let run = vcpu.get_kvm_run();
    // SAFETY: as in `port_width`.
    #[allow(unsafe_code)]
    let io = unsafe { run.__bindgen_anon_1.io };
    let data = std::ptr::from_mut(run).cast::<u8>().wrapping_add(io.data_offset as usize);
    // SAFETY: KVM put `len` bytes (count times size, as `VcpuFd::run` computed it) at this offset of the mapping
    // that begins with the run structure; the borrow of `vcpu` keeps the mapping and excludes other use.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts_mut(data, len)
    }
}

/// A string instruction (`rep insb` and its kin) brings several elements for one port.
fn port_access(vcpu: &mut VcpuFd, access: &PortAccess, is_read: bool, buses: &Buses) {
    for element in port_data(vcpu, access.len).chunks_mut(access.width.max(1)) {
        if is_read {
            buses.port_read(access.port, element);
        } else {
            buses.port_write(access.port, element);
        }
    }
}

/// Where the guest was when it stopped: instruction pointer and the bytes there, for the operator.
pub fn whereabouts(vcpu: &mut VcpuFd, buses: &Buses) -> String {
    let Ok(regs) = vcpu.get_regs() else { return "its registers cannot be read".into() };
    // The processor's shutdown leaves an AMD guest's state undefined, and KVM resets it.
    if regs.rip == 0xfff0 && vcpu.get_sregs().is_ok_and(|s| s.cs.base == 0xffff_0000) {
        return "where it was is lost, the processor is as after a reset".into();
    }
    let mode = match vcpu.get_sregs() {
        Ok(s) => format!(
            "cs {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            s.cs.base, s.cr0, s.cr3, s.cr4, s.efer
        ),
        Err(_) => String::new(),
    };
    let base = vcpu.get_sregs().map_or(0, |s| s.cs.base);
    let linear = base.wrapping_add(regs.rip);
    let mut bytes = [0u8; 16];
    let code = match vcpu.translate_gva(linear) {
        Ok(t) if t.valid != 0 && buses.peek(t.physical_address, &mut bytes) => format!("{bytes:02x?}"),
        _ => "not readable".into(),
    };
    format!("rip {:#x}, bytes there {code}, rsp {:#x} {mode}", regs.rip, regs.rsp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_threads_is_waited_for_and_said_once() {
        let mut refusals = Refusals::default();
        let lines = (0..1000).filter(|_| match refusals.one(libc::EAGAIN, || false) {
            Refusal::Later(line) => line.is_some(),
            other => panic!("{other:?}"),
        });
        assert_eq!(lines.count(), 1);
        refusals.none();
        // Processors that wait for their start spin no longer than it takes.
        assert!((0..1000).all(|_| refusals.one(libc::EAGAIN, || true) == Refusal::Again));
        let tries = (0..1000).take_while(|_| refusals.one(libc::ENOMEM, || false) == Refusal::Later(None));
        assert_eq!(tries.count(), 99);
        assert_eq!(failed(&io::Error::from_raw_os_error(libc::EAGAIN)), Outcome::Refused(libc::EAGAIN));
        assert_eq!(failed(&io::Error::from_raw_os_error(libc::EINTR)), Outcome::Kicked);
    }
}
