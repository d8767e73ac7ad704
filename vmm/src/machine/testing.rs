//! What the fuzz targets reach of a machine that is not there (feature "testing").

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use boot::RamLayout;
use devices::iothread::Remote;
use devices::pci::{Mch, PciHost};
use devices::platform::fw_cfg::Content;
use devices::scsi::{Disk, DiskConfig, LogicalUnit, ProtectionType, Target, TargetGroup};
use devices::storage::{BlockBackend, CacheMode, Image, Rehearsal, fdset};
use hba_megasas::{Arrival, EventStore};

use super::adapter::{Adapter, HotPlug};
use super::control::{Control, Event};
use super::event_file::EventFile;
use super::firmware::table_files;
use super::protection;
use super::socket::Service;
use super::space::Space;
use super::tables::FirmwareTables;
use crate::config::{self, HbaType};

/// An HBA that has a place for everything.
struct Anything;

impl HotPlug for Anything {
    fn units(&self, _: &config::Lun, image: &Arc<Image>, disk: DiskConfig) -> Result<Vec<LogicalUnit>> {
        Ok(vec![LogicalUnit::Disk(Disk::new(image.clone(), disk)?)])
    }

    fn attach_targets(&self, _: u8, _: &[Arc<Target>]) -> Result<Arrival> {
        Ok(Arrival::There)
    }

    fn detach_targets(&self, _: u8) -> Result<()> {
        Ok(())
    }
}

/// What a control socket works on, with two HBAs, `scsi0` and `raid0`.
pub struct ControlBench(Service);

impl ControlBench {
    /// Paths are relative to `directory`.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new(directory: &Path, remote: &Remote) -> io::Result<Self> {
        let control = Control::new(0)?;
        let (space, group, identities) =
            (Space::new(control.clone()), TargetGroup::default(), Arc::default());
        let adapter = |id, kind| {
            let adapter = Adapter::new(id, kind, remote.clone(), &space, &group).with(&identities);
            adapter.connect(Arc::new(Anything));
            Arc::new(adapter)
        };
        let adapters = vec![adapter("scsi0", HbaType::VirtioScsi), adapter("raid0", HbaType::Megasas)];
        Ok(Self(Service {
            name: "vm".into(),
            directory: directory.into(),
            own: Vec::new(),
            control,
            adapters,
            space,
            power_button: Box::new(|| true),
        }))
    }

    /// Serves a connection to its end.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        self.0.serve(stream)
    }

    /// What the main thread does about requests so far. To be called again and again: some wait for it.
    pub fn turn(&self) {
        while let Some(event) = self.0.control.take_event() {
            if let Event::Pause(pause) = event {
                self.0.control.set_paused(pause);
            }
        }
    }

    /// Takes all disks and descriptors away.
    ///
    /// # Errors
    /// A disk that does not go.
    pub fn clear(&self) -> Result<()> {
        for adapter in &self.0.adapters {
            for unit in adapter.units() {
                let lun = unit.lun.number().and_then(|number| u16::try_from(number).ok()).unwrap_or_default();
                adapter.detach(unit.target, lun)?;
            }
        }
        for (number, _) in fdset::list() {
            fdset::remove(number, None)?;
        }
        self.turn();
        self.0.control.set_paused(false);
        Ok(())
    }
}

/// The event log in the file at `path`, and whether `--check` has nothing to say of it.
///
/// # Errors
/// It is none.
pub fn event_log(path: &Path) -> io::Result<(Box<dyn EventStore>, bool)> {
    let checked = EventFile::check(path).is_ok();
    Ok((Box::new(EventFile::open(path)?), checked))
}

/// A disk whose protection information is in the file at `path`, and whether `--check` has nothing to say of that.
///
/// # Errors
/// It is another disk's, or none.
pub fn protected_disk(
    image: &Arc<Image>,
    path: &Path,
    type_3: bool,
    config: DiskConfig,
) -> Result<(LogicalUnit, bool)> {
    let protection = config::Protection { type_3, image: path.into() };
    let (cache, len) = (CacheMode::Writeback, image.geometry().len);
    let checked = protection::rehearse(&protection, cache, len, &config, &mut Rehearsal::default()).is_ok();
    let (store, first) = protection::store(&protection, cache, image, &config)?;
    let kind = if type_3 { ProtectionType::Type3 } else { ProtectionType::Type1 };
    let disk = Disk::with_protection_at(image.clone(), config, kind, store, first)?;
    Ok((LogicalUnit::Disk(disk), checked))
}

/// The ACPI tables as fw_cfg offers them: what the guest has programmed into these bridges is in them.
pub fn acpi_files(
    host: &Arc<PciHost>,
    mch: &Arc<Mch>,
    layout: RamLayout,
    physical_bits: u8,
    cpus: u32,
) -> [(&'static str, Content); 3] {
    table_files(&Arc::new(FirmwareTables::of(host, mch, layout, physical_bits, cpus)))
}
