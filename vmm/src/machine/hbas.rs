//! The HBAs of a configuration with their I/O threads, targets and logical units.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devices::iothread::IoThread;
use devices::pci::Bdf;
use devices::scsi::{Disk, DiskConfig, LogicalUnit, Lun, Nexus, Target};
use devices::storage::{CacheMode, Image, Limits, Qcow2Image, Qcow2Options, RawImage, RawOptions, Sharing};
use hba_megasas::{Drive, Megasas, Model};
use hba_virtio_scsi::{Options, VirtioScsi};

use super::chipset::Chipset;
use super::space::Space;
use crate::config::{
    self, Cache, Config, Controller, Device, Format, MegasasMode, MegasasModel, NoSpace, Throttle,
};

/// The HBAs with what is behind them and the threads that serve them.
#[derive(Default)]
pub struct Hbas {
    virtio: Vec<Arc<VirtioScsi>>,
    megasas: Vec<Arc<Megasas>>,
    addresses: Vec<Bdf>,
    targets: Vec<Arc<Target>>,
    /// Dropped last: their Drop waits for everything that is in flight.
    threads: Vec<IoThread>,
}

impl Hbas {
    /// Builds every HBA and plugs it in, in the order of the file.
    pub fn plug(config: &Config, chipset: &Chipset, space: &Space) -> Result<Self> {
        let mut hbas = Self::default();
        for hba in &config.hbas {
            let thread = IoThread::start(&format!("io-{}", hba.id))
                .with_context(|| format!("hba {}: starting its I/O thread", hba.id))?;
            let (bdf, seat) = chipset.seat()?;
            match &hba.controller {
                Controller::VirtioScsi { queues } => {
                    let targets = targets(hba, space)?;
                    hbas.targets.extend(targets.values().cloned());
                    let options = Options { request_queues: u16::from(*queues), ..Options::default() };
                    let device = VirtioScsi::new(seat, nexuses(targets), vec![thread.remote()], options)
                        .with_context(|| format!("hba {}", hba.id))?;
                    hbas.virtio.push(device.clone());
                    chipset.plug(bdf, device)?;
                }
                Controller::Megasas { model, mode } => {
                    let drives = hbas.drives(hba, *mode, space)?;
                    let options = megasas_options(&hba.id, *model);
                    let device = Megasas::new(seat, drives, thread.remote(), options)
                        .with_context(|| format!("hba {}", hba.id))?;
                    hbas.megasas.push(device.clone());
                    chipset.plug(bdf, device)?;
                }
            }
            tracing::debug!("hba {} is at PCI {bdf}", hba.id);
            hbas.addresses.push(bdf);
            hbas.threads.push(thread);
        }
        Ok(hbas)
    }

    /// Where each HBA is, in the order of the file.
    pub fn addresses(&self) -> &[Bdf] {
        &self.addresses
    }

    /// System reset: logical units as after power-on. The HBAs were reset before, so nothing is in flight.
    pub fn power_on(&self) {
        let Some(thread) = self.threads.first() else { return };
        let (done, finished) = mpsc::sync_channel(1);
        let targets = self.targets.clone();
        thread.remote().spawn(move |_| async move {
            for target in &targets {
                target.power_on().await;
            }
            let _ = done.send(());
        });
        // Fails only when the thread has ended, and then nothing runs any more.
        let _ = finished.recv();
    }

    /// Takes the HBAs out of service at the end of the machine, before their threads end.
    pub fn shut_down(&self) {
        self.virtio.iter().for_each(|hba| hba.shut_down());
        self.megasas.iter().for_each(|hba| hba.shut_down());
    }

    /// The drives of a MegaRAID SAS board. In RAID mode each image is there twice: as a volume, and as the disk behind
    /// it, which tools may look at.
    fn drives(&mut self, hba: &config::Hba, mode: MegasasMode, space: &Space) -> Result<BTreeMap<u8, Drive>> {
        let mut drives = BTreeMap::new();
        for lun in &hba.luns {
            let (image, config) = disk(&hba.id, lun, space)?;
            let logical = match mode {
                MegasasMode::Raid => Some(self.nexus(&image, volume(hba, lun, &config))?),
                MegasasMode::Jbod => None,
            };
            let physical = self.nexus(&image, config)?;
            drives.insert(lun.target, Drive { logical, physical });
        }
        Ok(drives)
    }

    /// A target of its own for a disk.
    fn nexus(&mut self, image: &Arc<Image>, config: DiskConfig) -> Result<Arc<Nexus>> {
        let target = Target::new();
        target.attach(Lun::default(), LogicalUnit::Disk(Disk::new(image.clone(), config)?))?;
        self.targets.push(target.clone());
        Ok(Nexus::new(target, None))
    }
}

/// The targets behind an HBA, each with its logical units.
fn targets(hba: &config::Hba, space: &Space) -> Result<BTreeMap<u8, Arc<Target>>> {
    let mut targets: BTreeMap<u8, Arc<Target>> = BTreeMap::new();
    for lun in &hba.luns {
        let unit = unit(&hba.id, lun, space)?;
        let target = targets.entry(lun.target).or_default();
        target
            .attach(Lun::from_number(u32::from(lun.lun)), unit)
            .with_context(|| format!("hba {}, target {}, lun {}", hba.id, lun.target, lun.lun))?;
    }
    Ok(targets)
}

/// One initiator, the HBA, and each target.
fn nexuses(targets: BTreeMap<u8, Arc<Target>>) -> BTreeMap<u8, Arc<Nexus>> {
    targets.into_iter().map(|(id, target)| (id, Nexus::new(target, None))).collect()
}

fn unit(hba: &str, lun: &config::Lun, space: &Space) -> Result<LogicalUnit> {
    let (image, config) = disk(hba, lun, space)?;
    let disk = Disk::new(image, config).with_context(|| format!("hba {hba}, target {}", lun.target))?;
    Ok(LogicalUnit::Disk(disk))
}

/// Opens the image of a disk, and says how it shall appear.
fn disk(hba: &str, lun: &config::Lun, space: &Space) -> Result<(Arc<Image>, DiskConfig)> {
    let Device::Disk(disk) = &lun.device else {
        bail!("hba {hba}, target {}: only type \"disk\" is supported yet", lun.target);
    };
    Ok((Arc::new(image(disk, space)?), disk_config(hba, lun, disk)))
}

/// Opens the image of a disk.
fn image(disk: &config::Disk, space: &Space) -> Result<Image> {
    let (path, read_only, cache) = (disk.image.clone(), disk.read_only, cache_mode(disk.cache));
    let sharing = Sharing::default();
    let image = match disk.format {
        Format::Raw => Image::Raw(RawImage::open(&RawOptions { path, read_only, cache, sharing })?),
        Format::Qcow2 => {
            let options = Qcow2Options { path, read_only, cache, sharing, discard: disk.discard };
            Image::Qcow2(Qcow2Image::open(&options)?)
        }
    };
    let image = match disk.on_no_space {
        NoSpace::Report => image,
        NoSpace::Pause => {
            let (parking, watch) = space.waits();
            image.pausing(&parking, &watch)
        }
    };
    Ok(match &disk.throttle {
        Some(throttle) => image.throttled(&limits(throttle)),
        None => image,
    })
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

/// A volume shows the board and a name of its own. Its writes are stable when they complete, so it has no cache.
fn volume(hba: &config::Hba, lun: &config::Lun, disk: &DiskConfig) -> DiskConfig {
    let product = match hba.controller {
        Controller::Megasas { model: MegasasModel::Sas1078, .. } => "MegaRAID 8708EM2",
        _ => "MR9260-8i",
    };
    DiskConfig {
        vendor: "LSI".into(),
        product: product.into(),
        revision: "2.13".into(),
        serial: String::new(),
        wwn: Some(naa(&format!("{}-volume-{}", hba.id, lun.target))),
        write_cache: false,
        ..disk.clone()
    }
}

fn megasas_options(id: &str, model: MegasasModel) -> hba_megasas::Options {
    let model = match model {
        MegasasModel::Gen2 => Model::Gen2,
        MegasasModel::Sas1078 => Model::Sas1078,
    };
    let sas_address = naa(id) & !0xff;
    let serial = format!("SV{:08X}", (sas_address >> 4) as u32);
    hba_megasas::Options { model, serial, sas_address, write_back: false }
}

/// A name of the board vendor's (NAA 5h, company 00605Bh) for something called `what`: the same at every start.
fn naa(what: &str) -> u64 {
    let hash = what.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    0x5006_05b0_0000_0000 | hash >> 28
}

fn cache_mode(cache: Cache) -> CacheMode {
    match cache {
        Cache::None => CacheMode::None,
        Cache::Writeback => CacheMode::Writeback,
        Cache::Writethrough => CacheMode::Writethrough,
        Cache::Directsync => CacheMode::Directsync,
        Cache::Unsafe => CacheMode::Unsafe,
    }
}

/// What the configuration leaves open is the SCSI layer's own, but for the serial number: without one, the place of
/// the disk in the machine identifies it, so that two disks never look like one.
fn disk_config(hba: &str, lun: &config::Lun, disk: &config::Disk) -> DiskConfig {
    let default = DiskConfig::default();
    let identity = &disk.identity;
    let place = || format!("{hba}-{}-{}", lun.target, lun.lun);
    DiskConfig {
        block_size: disk.block_size,
        physical_block_size: disk.physical_block_size,
        vendor: identity.vendor.clone().unwrap_or(default.vendor),
        product: identity.product.clone().unwrap_or(default.product),
        revision: identity.revision.clone().unwrap_or(default.revision),
        serial: identity.serial.clone().unwrap_or_else(place),
        wwn: identity.wwn,
        rotation_rate: disk.rotation_rate,
        removable: false,
        read_only: disk.read_only,
        discard: disk.discard,
        write_cache: !matches!(disk.cache, Cache::Writethrough | Cache::Directsync),
    }
}
