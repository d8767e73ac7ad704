//! MegaRAID SAS boards: how an image becomes a volume with a disk behind it, at the start and at run time.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use devices::scsi::{Cd, CdConfig, Disk, DiskConfig, LogicalUnit, Nexus, Target, TransferLimits};
use devices::storage::Image;
use hba_megasas::{Arrival, Drive, EventStore, Megasas, Model, Options};

use super::adapter::HotPlug;
use super::event_file::EventFile;
use crate::config::{self, MegasasMode, MegasasModel, WritePolicy};

/// A board of the configuration and the device it became.
pub(super) struct Board {
    id: String,
    board: config::Megasas,
    device: Arc<Megasas>,
}

impl Board {
    pub(super) fn new(id: &str, board: &config::Megasas, device: Arc<Megasas>) -> Self {
        let (own, id) = (id.to_owned(), id.to_owned());
        device.on_arrival(Box::new(move |target| {
            tracing::warn!(
                "hba {id}, target {target}: the guest has noticed the removal; the new disk is there"
            );
        }));
        Self { id: own, board: board.clone(), device }
    }

    fn is_write_back(&self) -> bool {
        self.board.write_policy == WritePolicy::WriteBack
    }

    /// A volume shows the board and a name of its own, made from those of its disk. It has a cache only where its writes need not be stable when
    /// they complete.
    fn volume(&self, wwn: u64, disk: &DiskConfig) -> DiskConfig {
        let product = match self.board.model {
            MegasasModel::Gen2 => "MR9260-8i",
            MegasasModel::Sas1078 => "MegaRAID 8708EM2",
        };
        DiskConfig {
            vendor: "LSI".into(),
            product: product.into(),
            revision: "2.13".into(),
            serial: String::new(),
            wwn: Some(naa(&format!("volume of {} {wwn:016x}", disk.serial))),
            write_cache: self.is_write_back(),
            ..disk.clone()
        }
    }
}

impl HotPlug for Board {
    /// The disk, and in RAID mode the volume on it: tools may look at the one, guests use the other.
    fn units(&self, lun: &config::Lun, image: &Arc<Image>, disk: DiskConfig) -> Result<Vec<LogicalUnit>> {
        let raid = self.makes_volumes();
        let write_back = self.is_write_back();
        let qcow2 = matches!(
            &lun.device,
            config::Device::Disk(disk) if disk.format == config::Format::Qcow2
        );
        ensure!(!(raid && write_back && qcow2), "write_policy = \"write-back\" is not for qcow2 images");
        // The name of a disk of a board is that of its SAS port. Like that of its volume it follows the image.
        let wwn = disk.wwn.unwrap_or_else(|| naa(&format!("disk {}", disk.serial)));
        // Linux answers SYNCHRONIZE CACHE itself for volumes, and older Linux for disks too. So neither has a write cache, and
        // the guest cannot switch one on: a copy that another unit was asked for would leave what it wrote here in it.
        let write_cache = disk.write_cache && write_back;
        let cache_is_fixed = !write_back;
        let disk = DiskConfig { wwn: Some(wwn), write_cache, cache_is_fixed, ..disk };
        let volume = raid.then(|| self.volume(wwn, &disk));
        let unit = |config| Ok(LogicalUnit::Disk(Disk::new(image.clone(), config)?));
        std::iter::once(disk).chain(volume).map(unit).collect()
    }

    /// Always as itself: a volume is made of disks.
    fn drive(&self, disc: Option<Arc<Image>>, drive: CdConfig) -> Result<LogicalUnit> {
        ensure!(
            !self.makes_volumes(),
            "no volume is made of a CD drive: a board takes one with mode = \"jbod\", and a virtio-scsi adapter in any case"
        );
        let wwn = drive.wwn.unwrap_or_else(|| naa(&format!("disk {}", drive.serial)));
        Ok(LogicalUnit::Cd(Cd::new(disc, CdConfig { wwn: Some(wwn), ..drive })?))
    }

    fn host(&self, unit: LogicalUnit) -> Result<LogicalUnit> {
        ensure!(
            !self.makes_volumes(),
            "no volume is made of a device of the host: a board takes one with mode = \"jbod\", and a virtio-scsi adapter in any \
             case"
        );
        Ok(unit)
    }

    fn transfer_limits(&self) -> TransferLimits {
        self.device.transfer_limits()
    }

    fn makes_volumes(&self) -> bool {
        self.board.mode == MegasasMode::Raid
    }

    fn attach_targets(&self, id: u8, targets: &[Arc<Target>]) -> Result<Arrival> {
        let nexus = |target: &Arc<Target>| Nexus::new(target.clone(), None);
        let physical = nexus(targets.first().context("no disk")?);
        let logical = targets.get(1).map(nexus);
        Ok(self.device.attach_drive(id, Drive { logical, physical })?)
    }

    /// The driver is told at once, and gets "device not found" for what it still sends: what the host still works on
    /// may take its time.
    fn close_targets(&self, id: u8) {
        self.device.detach_drive(id);
    }

    fn detach_targets(&self, _: u8) -> Result<()> {
        Ok(())
    }

    fn warning(&self, lun: &config::Lun) -> Option<String> {
        if self.makes_volumes() { config::volume_warning(&self.id, lun) } else { None }
    }

    fn unnoticed(&self) -> Vec<u8> {
        self.device.unnoticed()
    }
}

/// What the device is told of the configuration.
pub(super) fn options(id: &str, board: &config::Megasas) -> Options {
    let model = match board.model {
        MegasasModel::Gen2 => Model::Gen2,
        MegasasModel::Sas1078 => Model::Sas1078,
    };
    let own = naa(id) & !0xff;
    let serial = board.serial.clone().unwrap_or_else(|| format!("SV{:08X}", (own >> 4) as u32));
    Options {
        model,
        serial,
        sas_address: board.sas_address.unwrap_or(own),
        write_back: board.write_policy == WritePolicy::WriteBack,
        differences: board.qemu_answers.iter().copied().collect(),
    }
}

/// Where the board keeps its events, if the configuration says so.
pub(super) fn events(board: &config::Megasas) -> Result<Option<Box<dyn EventStore>>> {
    let Some(path) = &board.event_log else { return Ok(None) };
    let file = EventFile::open(path).with_context(|| format!("event log {}", path.display()))?;
    Ok(Some(Box::new(file)))
}

/// What [`events`] would find wrong. Changes nothing.
pub(super) fn check_events(board: &config::Megasas) -> Result<()> {
    let Some(path) = &board.event_log else { return Ok(()) };
    EventFile::check(path).with_context(|| format!("event log {}", path.display()))
}

/// A name of the board vendor's (NAA 5h, company 00605Bh) for something called `what`: the same at every start.
fn naa(what: &str) -> u64 {
    let hash = what.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    0x5006_05b0_0000_0000 | hash >> 28
}
