//! vhost-scsi: a target of the host's kernel (LIO) serves the queues of an HBA. This process opens its device and tells it where
//! rings, doorbells and interrupts are; requests and data never come here.
//!
//! One open device is one HBA. It is told of the guest's RAM once, which stays where it is. When the driver has set its queues up
//! they and the target are joined (VHOST_SCSI_SET_ENDPOINT), and parted at a reset; from then until the next driver comes the kernel knows
//! no ring, for it writes to those that it knows.

mod sys;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use devices::mem::GuestRam;
use hba_virtio_scsi::vhost::{Kernel, KernelQueue, Refusal, Refused};
use thiserror::Error;
use vhost::vhost_kern::VhostKernBackend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::config::{VhostScsi, reason};
pub(crate) use sys::COMMANDS;

/// The device.
const DEVICE: &str = "/dev/vhost-scsi";
/// Where the kernel's targets for it are configured.
const TARGETS: &str = "/sys/kernel/config/target/vhost";
/// Queues of a virtio-scsi device besides its request queues (virtio 1.3, 5.6.2).
const OTHER_QUEUES: usize = 2;
/// VIRTIO_F_VERSION_1 (virtio 1.3, 6).
const VERSION_1: u64 = 1 << 32;

/// Why there is no such HBA: each is one line with the remedy.
#[derive(Debug, Error)]
pub(crate) enum VhostError {
    #[error(
        "{DEVICE}: does not exist; load the module vhost_scsi, or pass the device into the container (PrivateDevices= of a \
         service hides it)"
    )]
    Missing,
    #[error(
        "{DEVICE}: permission denied; give the device to the user or a group of this process, or start it as root"
    )]
    Permission,
    #[error(
        "{DEVICE}: not permitted by the control group of this process; allow the device (DeviceAllow=/dev/vhost-scsi rw of a \
         service, --device /dev/vhost-scsi of a container)"
    )]
    NotPermitted,
    #[error("{DEVICE}: cannot open: {}", reason(.0))]
    Open(io::Error),
    #[error("{DEVICE}: an interface of version {0}, and this version knows {known}; another host kernel is needed", known = sys::ABI_VERSION)]
    Version(i32),
    #[error("{DEVICE}: the host's kernel lacks virtio version 1 here; a newer one is needed")]
    Legacy,
    #[error(
        "queues = {0}: the module vhost_scsi has room for fewer; lower `queues`, or load it with max_io_vqs={0}, which older kernels do not \
         know"
    )]
    Queues(u8),
    #[error("wwpn = \"{wwpn}\": {why}")]
    Target { wwpn: String, why: String },
    #[error("{DEVICE}: {what}: {}", reason(.source))]
    Call { what: &'static str, source: io::Error },
}

/// The kernel's side of one HBA.
pub(crate) struct Vhost {
    device: File,
    ram: Arc<GuestRam>,
    /// The HBA.
    id: String,
    wwpn: String,
    queues: usize,
    features: u64,
}

impl Vhost {
    /// Opens the device for a guest with `ram`, and joins it with the target for a moment: whether that is there and free
    /// is said now, and not when a driver comes.
    ///
    /// # Errors
    /// As [`VhostError`] says them.
    pub(crate) fn open(id: &str, config: &VhostScsi, ram: Arc<GuestRam>) -> Result<Self, VhostError> {
        let device = File::options().read(true).write(true).open(DEVICE).map_err(cannot_open)?;
        let queues = usize::from(config.queues) + OTHER_QUEUES;
        let (id, wwpn) = (id.to_owned(), config.wwpn.clone());
        let mut this = Self { device, ram, id, wwpn, queues, features: 0 };
        let call = |what| move |error: vhost::Error| VhostError::Call { what, source: source(error) };
        let version = sys::abi_version(&this.device)
            .map_err(|source| VhostError::Call { what: "asking for its version", source })?;
        if version != sys::ABI_VERSION {
            return Err(VhostError::Version(version));
        }
        this.set_owner().map_err(call("becoming its owner"))?;
        this.features = this.get_features().map_err(call("asking for its features"))?;
        if this.features & VERSION_1 == 0 {
            return Err(VhostError::Legacy);
        }
        let regions: Vec<_> = this.ram.iter().map(region).collect();
        this.set_mem_table(&regions).map_err(call("telling of the guest's memory"))?;
        match this.set_vring_num(queues - 1, config.queue_size).map_err(source) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                return Err(VhostError::Queues(config.queues));
            }
            other => {
                other.map_err(|source| VhostError::Call { what: "setting the size of a queue", source })?
            }
        }
        let joined = sys::set_endpoint(&this.device, &this.wwpn);
        joined.map_err(|error| this.unjoined(&error, || diagnosis(Path::new(TARGETS), &this.wwpn)))?;
        sys::clear_endpoint(&this.device, &this.wwpn)
            .map_err(|source| VhostError::Call { what: "leaving the target", source })?;
        let (had, others) = groups(&Path::new(TARGETS).join(&this.wwpn));
        tracing::info!("{}: portal groups {}", this.name(), had.join(", "));
        if !others.is_empty() {
            tracing::warn!(
                "{}: the guest gets no units of {}, which has no initiator; write a name such as {} to its file nexus, and start the machine \
                 anew",
                this.name(),
                others.join(", "),
                this.wwpn
            );
        }
        Ok(this)
    }

    /// Why it could not be joined with the target.
    fn unjoined(&self, error: &io::Error, diagnosis: impl FnOnce() -> String) -> VhostError {
        let why = match error.raw_os_error() {
            Some(libc::EEXIST | libc::ENOENT | libc::ENODEV) => diagnosis(),
            _ => format!("the host's kernel refuses its target ({TARGETS}/{}): {}", self.wwpn, reason(error)),
        };
        VhostError::Target { wwpn: self.wwpn.clone(), why }
    }

    fn set_up(&self, features: u64, queues: &[Option<KernelQueue<'_>>]) -> Result<(), Refused> {
        self.set_features(features)?;
        for (index, queue) in queues.iter().enumerate() {
            let Some(KernelQueue { size, at: [desc, driver, device], kick, call }) = *queue else {
                continue;
            };
            let ring = VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: desc,
                used_ring_addr: device,
                avail_ring_addr: driver,
                log_addr: None,
            };
            self.set_vring_num(index, size)?;
            self.set_vring_base(index, 0)?;
            self.set_vring_addr(index, &ring).map_err(|error| format!("queue {index}: {error}"))?;
            self.set_vring_call(index, call)?;
            self.set_vring_kick(index, kick)?;
        }
        sys::set_endpoint(&self.device, &self.wwpn).map_err(|error| {
            // In the sandbox nothing of it can be read.
            let later = || {
                format!(
                    "the host's kernel does not give it its target: another machine has it now, or it has gone from {TARGETS}, or its portal \
                     group has no initiator (nexus) any more; see to that"
                )
            };
            let again = matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT | libc::ENODEV));
            Refused { why: self.unjoined(&error, later).into(), again }
        })
    }

    /// Takes all rings away from the kernel.
    fn take_rings(&self) {
        for index in 0..self.queues {
            if let Err(error) = sys::forget_ring(&self.device, index) {
                self.warn("taking a ring away", &error);
            }
        }
    }

    fn warn(&self, what: &str, error: &io::Error) {
        devices::log_limited!(warn, "{}: {what}: {}", self.name(), reason(error));
    }
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl VhostKernBackend for Vhost {
    type AS = Arc<GuestRam>;

    fn mem(&self) -> &Self::AS {
        &self.ram
    }

    /// Each part has to lie in one region of RAM, whole: the kernel looks at addresses of this process only.
    fn is_valid(&self, ring: &VringConfigData) -> bool {
        // Descriptors of 16 bytes; flags, index, entries of 2 and of 8 bytes, and an index for events (virtio 1.3, 2.7).
        let size = usize::from(ring.queue_size);
        let parts = [
            (ring.desc_table_addr, 16 * size),
            (ring.avail_ring_addr, 6 + 2 * size),
            (ring.used_ring_addr, 6 + 8 * size),
        ];
        size.is_power_of_two()
            && parts.iter().all(|(addr, len)| self.ram.get_slice(GuestAddress(*addr), *len).is_ok())
    }
}

impl Kernel for Vhost {
    fn name(&self) -> String {
        format!("hba {} (vhost-scsi {})", self.id, self.wwpn)
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn start(&self, features: u64, queues: &[Option<KernelQueue<'_>>]) -> Result<(), Refused> {
        self.set_up(features, queues).inspect_err(|_| self.take_rings())
    }

    fn call(&self, queue: u16, call: &EventFd) -> Result<(), Refusal> {
        Ok(self.set_vring_call(queue.into(), call)?)
    }

    fn stop(&self) {
        if let Err(error) = sys::clear_endpoint(&self.device, &self.wwpn) {
            self.warn("leaving the target", &error);
        }
        self.take_rings();
    }

    fn forget(&self) {
        if let Err(error) = sys::forget_events(&self.device) {
            self.warn("forgetting events", &error);
        }
    }
}

fn region(region: &vm_memory::GuestRegionMmap<()>) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr().addr() as u64,
        mmap_offset: 0,
        mmap_handle: -1,
    }
}

fn cannot_open(error: io::Error) -> VhostError {
    match error.raw_os_error() {
        // A node without its module is none.
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => VhostError::Missing,
        Some(libc::EACCES) => VhostError::Permission,
        Some(libc::EPERM) => VhostError::NotPermitted,
        _ => VhostError::Open(error),
    }
}

fn source(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// Why the kernel finds no target of this name that is free, as far as its configuration in `targets` tells: it has one
/// answer for all cases.
fn diagnosis(targets: &Path, wwpn: &str) -> String {
    let target = targets.join(wwpn);
    if !target.is_dir() {
        let there = target.display();
        // targetcli knows no other names here.
        let tool = wwpn.starts_with("naa.").then(|| format!(", or with targetcli (/vhost create {wwpn})"));
        return format!(
            "the host's kernel has no such target: {there} does not exist; make it there{}",
            tool.unwrap_or_default()
        );
    }
    let (ready, others) = groups(&target);
    match (ready.first(), others.first()) {
        (None, None) => format!("{} has no portal group; make {0}/tpgt_1", target.display()),
        (None, Some(first)) => {
            format!("{}/{first}/nexus has no initiator; write a name such as {wwpn} to it", target.display())
        }
        (Some(_), _) => {
            format!("another machine has this target ({}); each needs one of its own", target.display())
        }
    }
}

/// The portal groups of a target that have an initiator, and those that have none.
fn groups(target: &Path) -> (Vec<String>, Vec<String>) {
    let entries = fs::read_dir(target).into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut all: Vec<String> = names.filter(|name| name.starts_with("tpgt_")).collect();
    all.sort();
    // Without one it cannot be read (ENODEV).
    let has_nexus = |group: &String| {
        fs::read(target.join(group).join("nexus")).is_ok_and(|name| !name.trim_ascii().is_empty())
    };
    all.into_iter().partition(has_nexus)
}

#[cfg(test)]
#[path = "tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
