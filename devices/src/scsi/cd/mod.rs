//! A CD drive (MMC-6): the device server of a reader of data discs. It never writes.
//!
//! - `drive`: the tray, the lock and the events that hosts ask for; `commands`: what the drive knows.
//! - `sectors`: what a disc is and how its sectors are read; `raw`: sectors with all that is around their data.
//! - `toc`, `information`, `features`, `mode`, `inquiry`: what the drive tells of the disc and of itself.

mod commands;
mod config;
mod drive;
mod features;
mod information;
mod inquiry;
mod mode;
mod raw;
mod sectors;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
mod toc;

use std::sync::Arc;

pub(super) use commands::passes_attention;
pub use config::{CdConfig, CdError};
pub use drive::{Locked, Tray};

use self::commands::{COMMANDS, Id, STARTS};
use self::drive::Drive;
use self::sectors::Disc;
use super::attention::Attention;
use super::memory::Share;
use super::opcode::{Command, Properties, decode, field};
use super::outcome::{Done, Outcome, granted};
use super::sense::{Failure, INVALID_OPERATION_CODE, NO_ADDITIONAL_SENSE, SenseData, SenseKey};
use super::tasks::NexusId;
use super::unit::{Context, Path};
use super::{Cdb, DataBuffers, absent, supported};
use crate::iothread::Io;
use crate::storage::{BlockBackend, BlockError, Image};

/// A drive, with a disc or without.
pub struct Cd<B> {
    config: CdConfig,
    drive: Drive<B>,
    /// What commands hold of the host's memory.
    pub(super) memory: Share,
}

impl<B: BlockBackend> Cd<B> {
    /// A drive whose tray is closed, with the disc that `image` is of.
    ///
    /// # Errors
    /// The configuration cannot be, or the image has not one sector.
    pub fn new(image: Option<Arc<B>>, config: CdConfig) -> Result<Self, CdError> {
        config.names().check()?;
        let disc = image.map(Disc::new).transpose()?;
        Ok(Self { config, drive: Drive::new(disc), memory: Share::default() })
    }

    /// The image of the disc, also of one in an open tray.
    pub fn image(&self) -> Option<Arc<B>> {
        self.drive.inserted().map(|disc| disc.image().clone())
    }

    /// How the tray is.
    pub fn tray(&self) -> Tray {
        self.drive.tray()
    }

    /// The operator opens the tray and takes the disc out. With `force`, a lock of the guest's does not matter, and ends.
    /// Commands that read the disc go on to their end: they hold its image.
    ///
    /// # Errors
    /// A guest has locked the tray; it is told that somebody wants it open.
    pub(super) fn remove(&self, force: bool) -> Result<Option<Arc<B>>, Locked> {
        let disc = self.drive.remove(force)?;
        Ok(disc.map(|disc| disc.image().clone()))
    }

    /// The operator lays the disc that `image` is of into the tray, which holds none, and closes it. `tell` has the guest hear of
    /// it, and is called before it can be read.
    ///
    /// # Errors
    /// There is a disc in the drive, or the image has not one sector.
    pub(super) fn insert(&self, image: Arc<B>, tell: impl FnOnce()) -> Result<(), CdError> {
        self.drive.insert(Disc::new(image)?, tell).map_err(|_| CdError::Occupied)
    }

    /// The operator lays the disc that `image` is of into the tray in the place of what lies there, which is returned. `tell` as
    /// for [`Self::insert`].
    ///
    /// # Errors
    /// A guest has locked the tray; it is told that somebody wants it open. Or the image has not one sector.
    pub(super) fn change(
        &self,
        image: Arc<B>,
        force: bool,
        tell: impl FnOnce(),
    ) -> Result<Option<Arc<B>>, CdError> {
        let disc = self.drive.change(Disc::new(image)?, force, tell)?;
        Ok(disc.map(|disc| disc.image().clone()))
    }

    pub(super) async fn execute(&self, context: Context<'_>, cdb: &Cdb, data: &mut DataBuffers) -> Outcome {
        let command = decode(COMMANDS, &STARTS, |_| true, cdb)?;
        let bytes = cdb.padded().as_slice();
        self.reserved(context.path, command)?;
        match command.id {
            Id::Read => {
                let disc = self.known_disc(context)?;
                disc.read(context.io, bytes, command.usage.len(), data).await
            }
            Id::ReadCd | Id::ReadCdMsf => {
                let disc = self.known_disc(context)?;
                Box::pin(self.read_cd(context, command.id, disc, bytes, data)).await
            }
            _ => self.inform(context, command, bytes, data),
        }
    }

    /// The disc, if the initiator has heard of it. It may have come since unit attentions were looked for, and the command is
    /// meant for the one before.
    fn known_disc(&self, context: Context<'_>) -> Result<Arc<Disc<B>>, Failure> {
        let disc = self.drive.ready()?;
        match context.path.attentions.first() {
            Some(Attention::MediumChanged) => {
                let attention = context.nexus.take_attention(context.path);
                Err(attention.unwrap_or(Attention::MediumChanged).sense().into())
            }
            _ => Ok(disc),
        }
    }

    /// The commands that need no I/O.
    fn inform(&self, context: Context<'_>, command: &Command<Id>, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let path = context.path;
        match command.id {
            Id::TestUnitReady => self.drive.ready().map(|_| Done::good()),
            Id::RequestSense => Ok(self.request_sense(context, cdb, data)),
            Id::Inquiry => self.inquiry(cdb, data),
            Id::ModeSense => self.mode_sense(cdb, data),
            Id::ModeSelect => self.mode_select(cdb, data),
            Id::StartStopUnit => self.start_stop(context, cdb),
            // Of self-tests there is the default one, which has nothing to test (SPC-5, 6.42).
            Id::SendDiagnostic if field(cdb, 1, 1) >> 5 == 0 => Ok(Done::good()),
            Id::SendDiagnostic => Err(SenseData::cdb_field(1, Some(7)).into()),
            Id::PreventAllow => self.drive.prevent(path.nexus, cdb),
            Id::Reserve => granted(path.unit.reservations.reserve(path.nexus)),
            Id::Release => granted(path.unit.reservations.release(path.nexus)),
            Id::ReadCapacity => self.drive.ready()?.read_capacity(data),
            Id::Seek => self.drive.ready()?.seek(cdb),
            Id::ReadToc => self.drive.ready()?.read_toc(cdb, data),
            Id::GetConfiguration => self.get_configuration(cdb, data),
            Id::EventStatus => self.drive.event_status(path.nexus, cdb, data),
            Id::ReadDiscInformation => self.drive.ready()?.read_disc_information(cdb, data),
            Id::ReadTrackInformation => self.drive.ready()?.read_track_information(cdb, data),
            Id::ReadDiscStructure => self.read_disc_structure(cdb, data),
            Id::MechanismStatus => self.drive.mechanism_status(cdb, data),
            // It is as fast as the host, and nothing is ever written.
            Id::SetCdSpeed | Id::SynchronizeCache => Ok(Done::good()),
            Id::ReportLuns => absent::report_luns(context.nexus, cdb, data),
            Id::SupportedOperationCodes => supported::operation_codes(COMMANDS, |_| true, |_| 0, cdb, data),
            Id::SupportedTaskManagement => supported::task_management(cdb, data),
            // They are executed before; whoever sends one here must not take it for done.
            Id::Read | Id::ReadCd | Id::ReadCdMsf => Err(SenseData::illegal(INVALID_OPERATION_CODE).into()),
        }
    }

    /// RESERVATION CONFLICT if a reservation of others stands against a command.
    fn reserved(&self, path: &Path, command: &Command<Id>) -> Result<(), Failure> {
        let properties = command.properties;
        path.unit.admits(path.nexus, properties.access(), properties.has(Properties::SHARED))
    }

    /// As [`Cd::reserved`], for a CDB that nobody has looked at.
    pub(super) fn check_reservations(&self, path: &Path, cdb: &Cdb) -> Result<(), Failure> {
        decode(COMMANDS, &STARTS, |_| true, cdb).map_or(Ok(()), |command| self.reserved(path, command))
    }

    /// REQUEST SENSE: a pending unit attention, else why there is no disc, else nothing.
    fn request_sense(&self, context: Context<'_>, cdb: &[u8], data: &DataBuffers) -> Done {
        let sense = match (context.nexus.take_attention(context.path), self.drive.ready()) {
            (Some(attention), _) => attention.sense(),
            (None, Err(Failure::Check(sense))) => sense,
            _ => SenseData::new(SenseKey::NoSense, NO_ADDITIONAL_SENSE),
        };
        absent::request_sense(cdb, sense, data)
    }

    /// START STOP UNIT (MMC-6, 6.42): loads and ejects. A stopped disc starts by itself when it is read, so stopping
    /// changes nothing that can be seen.
    fn start_stop(&self, context: Context<'_>, cdb: &[u8]) -> Outcome {
        let bits = field(cdb, 4, 1);
        match bits >> 4 {
            0 => {}
            // Active, idle, standby, sleep: nothing here takes power.
            0x1..=0x3 | 0x5 => return Ok(Done::good()),
            _ => return Err(SenseData::cdb_field(4, Some(7)).into()),
        }
        let (start, load_eject) = (bits & 1 != 0, bits & 2 != 0);
        match (load_eject, start) {
            (true, false) => {
                if self.drive.eject(context.path.nexus)? {
                    tell_tray(context, "opened");
                }
                Ok(Done::good())
            }
            (true, true) => {
                if self.drive.load(|| context.path.unit.raise(Attention::MediumChanged, None)) {
                    tell_tray(context, "closed");
                }
                Ok(Done::good())
            }
            (false, true) => self.drive.ready().map(|_| Done::good()),
            (false, false) => Ok(Done::good()),
        }
    }

    /// Makes the disc whole: nothing more will be asked of it.
    pub(super) async fn close(&self, io: &Io) -> Result<(), BlockError> {
        match self.drive.inserted() {
            Some(disc) => disc.image().close(io).await,
            None => Ok(()),
        }
    }

    pub(super) fn reset(&self, power: bool) {
        self.drive.reset(power);
    }

    pub(super) fn forget(&self, nexus: NexusId) {
        self.drive.forget(nexus);
    }

    pub(super) fn gone(&self, nexus: NexusId) {
        self.drive.gone(nexus);
    }
}

fn tell_tray(context: Context<'_>, what: &str) {
    crate::log_limited!(info, "{}: the guest has {what} the tray", context.path.unit.name());
}

impl Cd<Image> {
    /// The image of the disc, for as long as the host works on it.
    pub(super) fn held(&self) -> Option<Arc<Image>> {
        self.drive.inserted().map(|disc| disc.image().clone())
    }

    /// What the host calls the disc.
    pub(super) fn name(&self) -> String {
        self.drive.inserted().map_or_else(|| "an empty drive".into(), |disc| disc.image().name().to_owned())
    }
}
