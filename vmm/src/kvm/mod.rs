//! The hypervisor: KVM through kvm-ioctls. The only place, with `vcpu`, that knows it.

mod chips;
mod clock;
mod doorbell;
mod irq;
mod pages;
mod ram;
mod rom;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use boot::layout;
use kvm_bindings::{KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

pub use chips::InitialChips;
pub use clock::{forget_ticks, kvmclock, set_kvmclock};
pub use doorbell::KvmDoorbells;
pub use irq::{InterruptRouter, MAX_VECTORS, Vectors};
pub use pages::KvmPages;
pub use ram::{Backing, allocate as allocate_ram};
pub use rom::{Rom, map_rom};

/// Why the hypervisor cannot be used: each message is one clear line with the remedy.
#[derive(Debug, Error)]
pub enum KvmError {
    #[error(
        "{path}: does not exist; load the kvm_intel or kvm_amd module, enable virtualization in the firmware, or pass the device \
         into the container (PrivateDevices= of a service hides it)"
    )]
    Missing { path: String },
    #[error("{path}: permission denied; add this user to the group that owns the device (usually `kvm`)")]
    Permission { path: String },
    #[error(
        "{path}: not permitted by the control group of this process; allow the device (DeviceAllow=/dev/kvm rw of a service, \
         --device /dev/kvm of a container)"
    )]
    NotPermitted { path: String },
    #[error(
        "{path}: there is no KVM behind it; load the kvm_intel or kvm_amd module, which fails where the firmware has \
         virtualization turned off (dmesg says so)"
    )]
    NotLoaded { path: String },
    #[error(
        "KVM: creating the virtual machine: another hypervisor has the processors' virtualization (VirtualBox, VMware): end its \
         machines, or unload its modules"
    )]
    Taken,
    #[error("{path}: cannot open: {source}")]
    Open { path: String, source: io::Error },
    #[error("{path}: not KVM, or of an unknown version ({version}; {KVM_API_VERSION} is needed)")]
    Version { path: String, version: i32 },
    #[error(
        "this host's KVM lacks {0}; a newer host kernel is needed, or one built with it (CONFIG_KVM_IOAPIC)"
    )]
    Capability(&'static str),
    #[error(
        "this host has /dev/kvm but neither svm nor vmx: its KVM runs real-mode and simple 32-bit code only, and a \
         64-bit guest would hang. Run on hardware with virtualization, enable nested virtualization for this \
         machine, or boot firmware or a 32-bit PVH kernel"
    )]
    No64Bit,
    #[error("KVM: {what}: {source}")]
    Call { what: &'static str, source: io::Error },
}

/// Turns an errno of an ioctl into an error that names what was being done.
pub fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Call { what, source: e.into() }
}

/// An open, checked /dev/kvm.
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Opens and checks the device at `path`, usually /dev/kvm.
    pub fn open(path: &Path) -> Result<Self, KvmError> {
        let name = || path.display().to_string();
        let device = File::options().read(true).write(true).open(path);
        let device = device.map_err(|error| cannot_open(name(), error))?;
        let kvm = kvm_from_file(device);
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(KvmError::Version { path: name(), version });
        }
        for (cap, what) in [
            (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
            (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
            (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
            (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
            (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
            (Cap::ExtCpuid, "KVM_GET_SUPPORTED_CPUID"),
            (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Capability(what));
            }
        }
        Ok(Self { kvm })
    }

    /// The underlying handle, for the calls of vCPU set-up.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Refuses to go on when this KVM cannot run a 64-bit guest.
    pub fn require_64bit(&self) -> Result<(), KvmError> {
        if cpu_has_virtualization() { Ok(()) } else { Err(KvmError::No64Bit) }
    }

    /// A virtual machine without memory and, until [`add_chips`], without interrupt controllers.
    pub fn create_vm(&self) -> Result<Arc<VmFd>, KvmError> {
        let vm = loop {
            match self.kvm.create_vm() {
                // The kernel gives EINTR when a signal comes in while it allocates.
                Err(e) if e.errno() == libc::EINTR => {}
                other => break other.map_err(cannot_create)?,
            }
        };
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(call("placing the identity map"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(call("placing the task state segment"))?;
        Ok(Arc::new(vm))
    }
}

fn cannot_open(path: String, source: io::Error) -> KvmError {
    match source.raw_os_error() {
        Some(libc::ENOENT) => KvmError::Missing { path },
        Some(libc::EACCES) => KvmError::Permission { path },
        Some(libc::EPERM) => KvmError::NotPermitted { path },
        // The file may be there without its module (a static node).
        Some(libc::ENODEV | libc::ENXIO) => KvmError::NotLoaded { path },
        _ => KvmError::Open { path, source },
    }
}

fn cannot_create(error: kvm_ioctls::Error) -> KvmError {
    // The first machine turns virtualization on, on each processor.
    if error.errno() == libc::EBUSY { KvmError::Taken } else { call("creating the virtual machine")(error) }
}

/// Creates the interrupt controllers and the interval timer in the kernel, before any vCPU.
///
/// After the memory: where the chips are there first, the kernel still has clean-up of their registration under way
/// when the first memory slot comes, and that waits for it, for 5 ms and more (seen with Linux 6.18).
pub fn add_chips(vm: &VmFd) -> Result<(), KvmError> {
    vm.create_irq_chip().map_err(call("creating the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(call("creating the interval timer"))
}

fn kvm_from_file(device: File) -> Kvm {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor is open, owned by us and handed over whole.
    #[allow(unsafe_code)]
    unsafe {
        Kvm::from_raw_fd(device.into_raw_fd())
    }
}

/// Whether the processor has SVM or VMX and the kernel kept it: the first processor's flags tell.
fn cpu_has_virtualization() -> bool {
    let mut head = [0u8; 4096];
    let Ok(n) = File::open("/proc/cpuinfo").and_then(|mut f| f.read(&mut head)) else { return true };
    let text = String::from_utf8_lossy(head.get(..n).unwrap_or_default()).into_owned();
    let Some(flags) = text.lines().find(|l| l.starts_with("flags")) else { return true };
    flags.split_ascii_whitespace().any(|f| f == "svm" || f == "vmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_remedy() {
        for (number, said) in [
            (libc::ENOENT, "does not exist; load the kvm_intel or kvm_amd module"),
            (
                libc::EACCES,
                "permission denied; add this user to the group that owns the device (usually `kvm`)",
            ),
            (libc::EPERM, "allow the device (DeviceAllow=/dev/kvm rw of a service"),
            (libc::ENODEV, "there is no KVM behind it; load the kvm_intel or kvm_amd module"),
            (libc::ENXIO, "there is no KVM behind it; load the kvm_intel or kvm_amd module"),
            (libc::EMFILE, "cannot open: Too many open files"),
        ] {
            let line = cannot_open("/dev/kvm".into(), io::Error::from_raw_os_error(number)).to_string();
            assert!(line.starts_with("/dev/kvm: ") && line.contains(said), "{number}: {line}");
        }
        let busy = cannot_create(kvm_ioctls::Error::new(libc::EBUSY)).to_string();
        assert!(busy.contains("another hypervisor") && busy.contains("end its machines"), "{busy}");
        let other = cannot_create(kvm_ioctls::Error::new(libc::ENOMEM)).to_string();
        assert!(other.starts_with("KVM: creating the virtual machine: "), "{other}");
    }
}
