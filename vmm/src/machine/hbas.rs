//! The HBAs of a configuration with their I/O threads, targets and logical units.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devices::iothread::{IoThread, Polling, Remote, Settings};
use devices::pci::Bdf;
use devices::scsi::{
    Cd, CdConfig, Disk, DiskConfig, HostLimits, LogicalUnit, Lun, Nexus, ProtectionType, Target, TargetGroup,
    TransferLimits,
};
use devices::storage::{CacheMode, Image, Limits, Qcow2Image, Qcow2Options, RawImage, RawOptions, Sharing};
use devices::threads::{self, Kind};
use hba_megasas::Megasas;
use hba_virtio_scsi::vhost::{KernelOptions, VhostScsi};
use hba_virtio_scsi::{Interface, Options, VirtioScsi};

use super::adapter::{Adapter, Attached, Taken, explain};
use super::chipset::Chipset;
use super::control::{Control, Crash};
use super::ending::Over;
use super::fabric::{self, Plugged};
use super::host_unit::HostUnit;
use super::identity::{self, Identities};
use super::protection;
use super::raid;
use super::space::Space;
use super::virtual_port;
use crate::config::{
    self, Cache, Config, Controller, Device, Format, HbaType, NoSpace, Throttle, VirtioInterface,
};
use crate::fc_port::{FcPorts, Process};
use crate::vhost::Vhost;

/// The HBAs with what is behind them and the threads that serve them.
#[derive(Default)]
pub struct Hbas {
    virtio: Vec<Arc<VirtioScsi>>,
    megasas: Vec<Arc<Megasas>>,
    vhost: Vec<Arc<VhostScsi>>,
    addresses: Vec<Bdf>,
    /// What the control socket works on.
    adapters: Vec<Arc<Adapter>>,
    /// All targets of the machine.
    group: TargetGroup,
    /// What their disks are called.
    identities: Arc<Identities>,
    /// Their Drop waits for everything that is in flight: they go by [`Hbas::end_threads`].
    threads: Mutex<Vec<IoThread>>,
    /// Closes the images at the end. It is there from the start, for no ring is made in the sandbox.
    closer: Mutex<Option<IoThread>>,
    /// Who has the virtual ports.
    ports: Mutex<Option<Process>>,
}

/// Images that are being closed.
pub struct Closing {
    /// Their names and places.
    pub names: Vec<String>,
    /// By number, those that are closed, or could not be.
    pub closed: Receiver<(usize, Result<(), String>)>,
}

impl Hbas {
    /// Builds every HBA and plugs it in, in the order of the file. `ports`: who has the virtual ports of a machine that has some.
    pub fn plug(
        config: &Config,
        chipset: &Chipset,
        space: &Arc<Space>,
        ports: Option<FcPorts>,
    ) -> Result<Self> {
        let mut hbas = Self::default();
        let wanted = virtual_port::wanted(config);
        let mut found = Vec::new().into_iter();
        if let Some(ports) = ports.filter(|_| !wanted.is_empty()) {
            let (process, ports) = ports.begin(&wanted)?;
            (hbas.ports, found) = (Mutex::new(Some(process)), ports.into_iter());
        }
        for hba in &config.hbas {
            let threads = threads(hba, space.control())?;
            let remotes: Vec<Remote> = threads.iter().map(IoThread::remote).collect();
            let remote = remotes.first().context("no I/O thread")?.clone();
            let (bdf, seat) = chipset.seat()?;
            match &hba.controller {
                Controller::VirtioScsi(virtio) => {
                    let adapter = Arc::new(hbas.adapter(hba, HbaType::VirtioScsi, remote, space));
                    let opened = open_all(hba, &adapter)?;
                    let mut limits = transfer_limits(&opened);
                    let plugged = fabric::plug(&config.vm.name, hba, &adapter, &mut found)?;
                    if let Some(fabric) = &plugged {
                        limits = limits.and(fabric.limits());
                    }
                    attach_all(hba, opened, &adapter)?;
                    let (options, san) =
                        (virtio_options(*virtio, hba, limits), plugged.as_ref().map(Plugged::san));
                    let device = adapter.connect_with(|targets| {
                        let targets = nexuses(targets);
                        match san {
                            Some(san) => VirtioScsi::with_san(seat, targets, remotes, options, san),
                            None => VirtioScsi::new(seat, targets, remotes, options),
                        }
                        .with_context(|| format!("hba {}", hba.id))
                    })?;
                    plugged.map_or(Ok(()), Plugged::go_on)?;
                    hbas.adapters.push(adapter);
                    hbas.virtio.push(device.clone());
                    chipset.plug(bdf, device)?;
                }
                Controller::Megasas(board) => {
                    let name = || format!("hba {}", hba.id);
                    let (options, events) =
                        (raid::options(&hba.id, board), raid::events(board).with_context(name)?);
                    let adapter = hbas.adapter(hba, HbaType::Megasas, remote.clone(), space);
                    let opened = open_all(hba, &adapter)?;
                    let (drives, limits) = (BTreeMap::new(), transfer_limits(&opened));
                    let device = Megasas::with_limits(seat, drives, remote, options, events, limits)
                        .with_context(name)?;
                    adapter.connect(Arc::new(raid::Board::new(&hba.id, board, device.clone())));
                    for (lun, opened) in hba.luns.iter().zip(opened) {
                        adapter.attach_opened(lun, opened).with_context(|| place(hba, lun))?;
                    }
                    hbas.adapters.push(Arc::new(adapter));
                    hbas.megasas.push(device.clone());
                    chipset.plug(bdf, device)?;
                }
                Controller::VhostScsi(wanted) => {
                    let name = || format!("hba {}", hba.id);
                    let kernel = Vhost::open(&hba.id, wanted, chipset.ram().clone()).with_context(name)?;
                    let config::VhostScsi { queues, queue_size, .. } = *wanted;
                    let options = KernelOptions { request_queues: queues.into(), queue_size };
                    let device =
                        VhostScsi::new(seat, Arc::new(kernel), remote, options).with_context(name)?;
                    hbas.vhost.push(device.clone());
                    chipset.plug(bdf, device)?;
                }
            }
            tracing::debug!("hba {} is at PCI {bdf}", hba.id);
            hbas.addresses.push(bdf);
            hbas.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(threads);
        }
        if !hbas.adapters.is_empty() {
            hbas.closer = Mutex::new(closer());
        }
        Ok(hbas)
    }

    /// These HBAs, without a device for the guest.
    #[cfg(test)]
    pub(super) fn of(adapters: Vec<Arc<Adapter>>, threads: Vec<IoThread>) -> Self {
        Self { adapters, threads: Mutex::new(threads), closer: Mutex::new(closer()), ..Self::default() }
    }

    /// And this board, which goes with them.
    #[cfg(test)]
    pub(super) fn with_board(mut self, board: Arc<Megasas>) -> Self {
        self.megasas.push(board);
        self
    }

    fn adapter(&self, hba: &config::Hba, kind: HbaType, remote: Remote, space: &Arc<Space>) -> Adapter {
        Adapter::new(&hba.id, kind, remote, space, &self.group).with(&self.identities)
    }

    /// Where each HBA is, in the order of the file.
    pub fn addresses(&self) -> &[Bdf] {
        &self.addresses
    }

    /// The HBAs for changes at run time, in the order of the file.
    pub fn adapters(&self) -> &[Arc<Adapter>] {
        &self.adapters
    }

    /// System reset: logical units as after power-on. The HBAs were reset before, so nothing is in flight. `over` goes when
    /// it is done.
    pub fn power_on(&self, over: &Arc<Over>) {
        for adapter in &self.adapters {
            let (targets, over) = (adapter.targets(), over.clone());
            adapter.remote().spawn(|_| async move {
                for target in targets {
                    target.power_on().await;
                }
                drop(over);
            });
        }
    }

    /// Takes the HBAs out of service at the end of the machine, each by itself: it may take as long as the host does. `over`
    /// goes when it is done.
    pub fn stop(&self, over: &Arc<Over>) {
        let virtio = self.virtio.iter().cloned().map(|hba| stop(over, move || hba.shut_down()));
        let megasas = self.megasas.iter().cloned().map(|hba| stop(over, move || hba.shut_down()));
        let vhost = self.vhost.iter().cloned().map(|hba| stop(over, move || hba.shut_down()));
        virtio.chain(megasas).chain(vhost).for_each(drop);
    }

    /// Ends the commands of all units and makes all images whole, each by itself: none waits for another, nor for a
    /// thread that the host keeps in a system call. Whenever one is done, `control` is nudged.
    pub fn close(&self, control: &Arc<Control>) -> Closing {
        let (done, closed) = mpsc::channel();
        let mut names = Vec::new();
        let thread = self.closer.lock().unwrap_or_else(PoisonError::into_inner).take();
        for adapter in &self.adapters {
            let remote = thread.as_ref().map_or_else(|| adapter.remote().clone(), IoThread::remote);
            let Taken { units, closing } = adapter.take_units();
            let mut tell = |name: &str| {
                let (number, done, control) = (names.len(), done.clone(), control.clone());
                names.push(name.to_owned());
                move |end| {
                    let _ = done.send((number, end));
                    control.nudge();
                }
            };
            // Detached, and not closed yet: that goes on where it is.
            for answer in closing.iter().filter(|answer| !answer.is_over()) {
                answer.inherit(tell(answer.name()));
            }
            for (name, units) in units {
                let tell = tell(&name);
                remote.spawn(move |io| async move {
                    let mut end = Ok(());
                    for unit in units {
                        end = end.and(unit.close(&io).await.map_err(|error| explain(&error)));
                    }
                    tell(end);
                });
            }
        }
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(thread);
        Closing { names, closed }
    }

    /// Has the virtual ports deleted, now that nothing is open behind them, and waits for that as long as `goes_on` says.
    pub fn close_ports(&self, goes_on: impl FnMut() -> bool) {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ports) = ports {
            ports.close(goes_on);
        }
    }

    /// Ends the I/O threads; `over` goes when they have.
    pub fn end_threads(&self, over: &Arc<Over>) {
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let over = over.clone();
            let ending = Arc::new(Mutex::new(Some(thread)));
            let kept = ending.clone();
            let end = threads::spawn(Kind::End, "io-end", move || {
                drop(ending.lock().unwrap_or_else(PoisonError::into_inner).take());
                drop(over);
            });
            if let Err(e) = end {
                tracing::warn!("no thread to end an I/O thread, which ends with the process: {e}");
                // Its Drop would wait here.
                std::mem::forget(kept);
            }
        }
    }
}

/// A thread to close images, if there can be one; else the threads that serve them close them.
fn closer() -> Option<IoThread> {
    IoThread::start("io-close").inspect_err(|e| tracing::warn!("no thread to close images: {e}")).ok()
}

/// Takes an HBA out of service on a thread of its own, if there can be one.
fn stop(over: &Arc<Over>, shut_down: impl FnOnce() + Clone + Send + 'static) {
    let (over, here) = (over.clone(), shut_down.clone());
    let there = move || {
        shut_down();
        drop(over);
    };
    if let Err(e) = threads::spawn(Kind::End, "hba-end", there) {
        tracing::warn!("no thread to take an HBA out of service, the main thread does: {e}");
        here();
    }
}

/// The I/O threads of an HBA. With CPUs to run on, each gets one of them, in turn. Without one of them the machine ends:
/// its guest would wait for its disks for ever.
pub(super) fn threads(hba: &config::Hba, control: &Arc<Control>) -> Result<Vec<IoThread>> {
    let wanted = &hba.threads;
    let time = Duration::from_micros(wanted.polling_us.into());
    let polling = match wanted.polling {
        config::Polling::Auto => Polling::Auto,
        config::Polling::Adaptive => Polling::Adaptive(time),
        config::Polling::Fixed => Polling::Fixed(time),
        config::Polling::Off => Polling::Off,
    };
    let mut cpus = wanted.cpus.iter().cycle();
    let start = |number: u8| {
        let name = if number == 0 { format!("io-{}", hba.id) } else { format!("io-{}.{number}", hba.id) };
        let settings = Settings {
            polling,
            cpus: cpus.next().copied().into_iter().collect(),
            workers: wanted.cpus.clone(),
        };
        let (id, control) = (hba.id.clone(), control.clone());
        let failed = move |error: std::io::Error| {
            let why = config::reason(&error);
            control
                .crashed(Crash::Host(format!("hba {id}: its io_uring failed, and its disks with it: {why}")));
        };
        let thread = IoThread::told(&name, settings, failed)
            .with_context(|| format!("hba {}: starting its I/O thread {number}", hba.id))?;
        #[cfg(feature = "mischief")]
        misbehave(&thread, number)?;
        Ok(thread)
    };
    (0..wanted.count).map(start).collect()
}

/// Has the host misbehave on this thread; `VMM_MISCHIEF` is the seed.
#[cfg(feature = "mischief")]
fn misbehave(thread: &IoThread, number: u8) -> Result<()> {
    use devices::iothread::mischief::{Host, host};
    let seed = std::env::var("VMM_MISCHIEF").context("VMM_MISCHIEF, the seed of the mischief")?;
    let seed: u64 = seed.parse().with_context(|| format!("VMM_MISCHIEF: {seed} is no number"))?;
    // Whatever the host's block size, direct I/O can go on at a multiple of this.
    let plan = host(Host::Bad(4096), seed + u64::from(number));
    thread.remote().spawn(move |io| {
        io.plot(plan);
        async {}
    });
    Ok(())
}

/// Where a unit is, for messages.
fn place(hba: &config::Hba, lun: &config::Lun) -> String {
    format!("hba {}, target {}", hba.id, lun.target)
}

/// Opens what the units of an HBA have on the host.
pub(super) fn open_all(hba: &config::Hba, adapter: &Adapter) -> Result<Vec<Opened>> {
    let open = |lun| {
        let opened = open(&hba.id, lun, adapter.space(), adapter.identities());
        if adapter.kind == HbaType::Megasas { opened.with_context(|| place(hba, lun)) } else { opened }
    };
    hba.luns.iter().map(open).collect()
}

/// What the devices of the host among them take with one command, all of them.
fn transfer_limits(opened: &[Opened]) -> TransferLimits {
    let limits = opened.iter().filter_map(|opened| match opened {
        Opened::Host(device) => Some(device.limits()),
        Opened::Disk(..) | Opened::Cd(..) => None,
    });
    limits.reduce(HostLimits::and).map(TransferLimits::from).unwrap_or_default()
}

/// Has the targets of an HBA, each with its logical units, behind it.
pub(super) fn attach_all(hba: &config::Hba, opened: Vec<Opened>, adapter: &Adapter) -> Result<()> {
    for (lun, opened) in hba.luns.iter().zip(opened) {
        let known = Attached::new(lun, &opened);
        let unit = opened.unit(lun).with_context(|| place(hba, lun))?;
        let target = adapter.target(lun.target)?;
        target
            .attach(Lun::from_number(u32::from(lun.lun)), unit)
            .with_context(|| format!("hba {}, target {}, lun {}", hba.id, lun.target, lun.lun))?;
        adapter.add_unit(lun, known);
    }
    Ok(())
}

/// One initiator, the HBA, and each target.
fn nexuses(targets: BTreeMap<u8, Arc<Target>>) -> BTreeMap<u8, Arc<Nexus>> {
    targets.into_iter().map(|(id, target)| (id, Nexus::new(target, None))).collect()
}

/// A unit of the configuration whose image is open, and how it shall appear.
pub(super) enum Opened {
    Disk(Arc<Image>, DiskConfig),
    /// A CD drive, with the disc in it. Its names are taken while the last part lives.
    Cd(Option<Arc<Image>>, CdConfig, Arc<()>),
    /// A device of the host.
    Host(HostUnit),
}

impl Opened {
    /// The logical unit that shows it as it is.
    pub(super) fn unit(self, lun: &config::Lun) -> Result<LogicalUnit> {
        match self {
            Self::Disk(image, config) => logical_unit(lun, &image, config),
            Self::Cd(disc, config, _) => Ok(LogicalUnit::Cd(Cd::new(disc, config)?)),
            Self::Host(host) => Ok(host.unit()),
        }
    }
}

/// Opens what a unit has on the host.
pub(super) fn open(hba: &str, lun: &config::Lun, space: &Space, identities: &Identities) -> Result<Opened> {
    match &lun.device {
        Device::Cd(cd) => {
            let disc = cd.disc.as_ref().map(|disc| image(disc, space)).transpose()?.map(Arc::new);
            let (shown, names) = (cd_config(hba, lun, cd), Arc::new(()));
            let place = || format!("hba {hba}, target {}", lun.target);
            identities.take_drive(hba, lun, &shown, &names).with_context(place)?;
            Ok(Opened::Cd(disc, shown, names))
        }
        Device::Disk(_) => disk(hba, lun, space, identities).map(|(image, shown)| Opened::Disk(image, shown)),
        device @ (Device::Generic(host) | Device::Block(host)) => {
            let opened = HostUnit::open(device, host);
            opened.map(Opened::Host).with_context(|| format!("type = \"{}\"", device.kind().name()))
        }
    }
}

/// The logical unit that shows an image, with its protection information where it has some.
pub(super) fn logical_unit(lun: &config::Lun, image: &Arc<Image>, config: DiskConfig) -> Result<LogicalUnit> {
    let disk = match &lun.device {
        Device::Disk(config::Disk { protection: Some(protection), cache, .. }) => {
            let (store, first) = protection::store(protection, cache_mode(*cache), image, &config)?;
            let kind = if protection.type_3 { ProtectionType::Type3 } else { ProtectionType::Type1 };
            Disk::with_protection_at(image.clone(), config, kind, store, first)?
        }
        _ => Disk::new(image.clone(), config)?,
    };
    Ok(LogicalUnit::Disk(disk))
}

/// Opens the image of a disk, and says how it shall appear.
pub(super) fn disk(
    hba: &str,
    lun: &config::Lun,
    space: &Space,
    identities: &Identities,
) -> Result<(Arc<Image>, DiskConfig)> {
    let Device::Disk(disk) = &lun.device else { bail!("hba {hba}, target {} is no disk", lun.target) };
    let (image, shown) = (Arc::new(image(disk, space)?), disk_config(disk)?);
    identities.take(hba, lun, &disk.image, &shown, &image)?;
    Ok((image, shown))
}

/// Opens the image of a disk, or of a disc.
pub(super) fn image(disk: &config::Disk, space: &Space) -> Result<Image> {
    let image = match disk.format {
        Format::Raw => Image::Raw(RawImage::open(&raw_options(disk))?),
        Format::Qcow2 => Image::Qcow2(Qcow2Image::open(&qcow2_options(disk))?),
    };
    let pausing = match disk.on_no_space {
        NoSpace::Report => None,
        NoSpace::Pause => Some(space.waits()?),
    };
    let image = image.guarded(disk.throttle.as_ref().map(limits).as_ref(), pausing);
    Ok(if disk.bounce { image.private() } else { image })
}

/// How a raw image is opened.
pub(super) fn raw_options(disk: &config::Disk) -> RawOptions {
    let (path, read_only, cache) = (disk.image.clone(), disk.read_only, cache_mode(disk.cache));
    RawOptions { path, read_only, cache, sharing: Sharing::default() }
}

/// How a qcow2 image is opened.
pub(super) fn qcow2_options(disk: &config::Disk) -> Qcow2Options {
    let RawOptions { path, read_only, cache, sharing } = raw_options(disk);
    let (backing, discard) = (disk.backing.clone(), disk.discard);
    Qcow2Options { path, read_only, cache, sharing, backing, discard }
}

fn limits(throttle: &Throttle) -> Limits {
    let default = Limits::default();
    Limits {
        iops: throttle.iops,
        iops_read: throttle.iops_read,
        iops_write: throttle.iops_write,
        bps: throttle.bps,
        bps_read: throttle.bps_read,
        bps_write: throttle.bps_write,
        burst: throttle.burst_seconds.map_or(default.burst, Duration::from_secs),
    }
}

fn virtio_options(virtio: config::VirtioScsi, hba: &config::Hba, transfer: TransferLimits) -> Options {
    let protected =
        |lun: &config::Lun| matches!(&lun.device, Device::Disk(disk) if disk.protection.is_some());
    Options {
        request_queues: virtio.queues.into(),
        queue_size: virtio.queue_size,
        protection: hba.luns.iter().any(protected),
        interface: match virtio.interface {
            VirtioInterface::Modern => Interface::Modern,
            VirtioInterface::Transitional => Interface::Transitional,
            VirtioInterface::Legacy => Interface::Legacy,
        },
        transfer,
        ..Options::default()
    }
}

pub(super) fn cache_mode(cache: Cache) -> CacheMode {
    match cache {
        Cache::None => CacheMode::None,
        Cache::Writeback => CacheMode::Writeback,
        Cache::Writethrough => CacheMode::Writethrough,
        Cache::Directsync => CacheMode::Directsync,
        Cache::Unsafe => CacheMode::Unsafe,
    }
}

/// What the configuration leaves open is the SCSI layer's own, but for the serial number: that follows the image.
pub(super) fn disk_config(disk: &config::Disk) -> Result<DiskConfig> {
    let default = DiskConfig::default();
    let identity = &disk.identity;
    let serial = match &identity.serial {
        Some(serial) => serial.clone(),
        None => identity::default_serial(&disk.image)?,
    };
    Ok(DiskConfig {
        block_size: disk.block_size,
        physical_block_size: disk.physical_block_size,
        vendor: identity.vendor.clone().unwrap_or(default.vendor),
        product: identity.product.clone().unwrap_or(default.product),
        revision: identity.revision.clone().unwrap_or(default.revision),
        serial,
        wwn: identity.wwn,
        rotation_rate: disk.rotation_rate,
        removable: false,
        read_only: disk.read_only,
        discard: disk.discard,
        write_cache: !matches!(disk.cache, Cache::Writethrough | Cache::Directsync),
        cache_is_fixed: false,
    })
}

/// As of a disk. But discs come and go, and a drive keeps its name: it follows the place.
pub(super) fn cd_config(hba: &str, lun: &config::Lun, cd: &config::Cd) -> CdConfig {
    let (default, identity) = (CdConfig::default(), &cd.identity);
    let serial = || identity::place_serial(&format!("{hba} {} {}", lun.target, lun.lun));
    CdConfig {
        vendor: identity.vendor.clone().unwrap_or(default.vendor),
        product: identity.product.clone().unwrap_or(default.product),
        revision: identity.revision.clone().unwrap_or(default.revision),
        serial: identity.serial.clone().unwrap_or_else(serial),
        wwn: identity.wwn,
    }
}

#[cfg(test)]
#[path = "hbas_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
