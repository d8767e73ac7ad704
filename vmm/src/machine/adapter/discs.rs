//! Discs that come to CD drives and go.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use devices::scsi::{CdError, Target};
use devices::storage::{BlockBackend, Image, let_go};

use super::{Adapter, Attached, Behind, Inventory, explain, number};
use crate::config::{self, Device};
use crate::machine::closing::{Asked, close_with_deadline};
use crate::machine::hbas;

/// How soon to look whether a disc that was taken out is read any more; twice as long each time, to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

impl Adapter {
    /// Whether there is a CD drive at this place.
    pub fn has_drive(&self, target: u8, lun: u16) -> bool {
        self.lock().units.get(&(target, number(lun))).is_some_and(|unit| unit.drive.is_some())
    }

    /// Whether the disc in the drive at this place is read by way of memory of the process, or the last that was in it.
    pub fn drive_bounces(&self, target: u8, lun: u16) -> bool {
        self.lock().units.get(&(target, number(lun))).is_some_and(|unit| unit.drive.is_some() && unit.bounce)
    }

    /// Opens the tray and takes the disc out, if there is one. When this returns its image is closed, or an error says why
    /// not; it has left the drive in any case, but for a lock of the guest's without `force`.
    pub fn eject(&self, target: u8, lun: u16, force: bool) -> Result<()> {
        let mut inventory = self.lock();
        let drive = find(&inventory, target, lun)?;
        let disc = drive.eject(number(lun), force).map_err(|error| self.refusal(target, lun, error))?;
        let shown = replace(&mut inventory, target, lun, None);
        self.part(inventory, (target, lun), shown, disc)
    }

    /// Puts a disc into the drive, which has none.
    pub fn insert_disc(&self, lun: &config::Lun) -> Result<()> {
        self.check_empty(lun.target, lun.lun)?;
        let (disc, image) = self.open_disc(lun)?;
        let mut inventory = self.lock();
        // It may have gone, or got a disc from somebody else.
        let drive = find(&inventory, lun.target, lun.lun)?;
        drive
            .insert(number(lun.lun), image.clone())
            .map_err(|error| self.refusal(lun.target, lun.lun, error))?;
        replace(&mut inventory, lun.target, lun.lun, Some(Attached::disk(disc, image)));
        Ok(())
    }

    /// Puts a disc into the drive in the place of what is in it, if the guest has not locked that or with `force`. What was
    /// there stays when the new image cannot be opened.
    pub fn change_disc(&self, lun: &config::Lun, force: bool) -> Result<()> {
        find(&self.lock(), lun.target, lun.lun)?;
        let (disc, image) = self.open_disc(lun)?;
        let mut inventory = self.lock();
        let drive = find(&inventory, lun.target, lun.lun)?;
        let before = drive
            .change(number(lun.lun), image.clone(), force)
            .map_err(|error| self.refusal(lun.target, lun.lun, error))?;
        let shown = replace(&mut inventory, lun.target, lun.lun, Some(Attached::disk(disc, image)));
        self.part(inventory, (lun.target, lun.lun), shown, before)
    }

    fn open_disc<'a>(&self, lun: &'a config::Lun) -> Result<(&'a config::Disk, Arc<Image>)> {
        let Device::Cd(config::Cd { disc: Some(disc), .. }) = &lun.device else { bail!("no \"image\"") };
        let image = hbas::image(disc, &self.space)?;
        Ok((disc, Arc::new(image)))
    }

    fn check_empty(&self, target: u8, lun: u16) -> Result<()> {
        let inventory = self.lock();
        find(&inventory, target, lun)?;
        let there =
            inventory.units.get(&(target, number(lun))).filter(|unit| matches!(unit.image, Behind::Image(_)));
        match there {
            Some(unit) => bail!(
                "the drive at target {target} lun {lun} has {} in it: eject that first, or change it",
                unit.shown
            ),
            None => Ok(()),
        }
    }

    fn refusal(&self, target: u8, lun: u16, error: CdError) -> anyhow::Error {
        match error {
            CdError::Locked(_) => anyhow!(
                "the guest has locked the drive at target {target} lun {lun}, and is told that somebody wants the disc: ask \
                 again when it has ejected it or let go of it, or set \"force\", with which it loses the disc under way"
            ),
            CdError::Occupied => anyhow!("the drive at target {target} lun {lun} has a disc in it"),
            other => anyhow!("target {target} lun {lun}: {other}"),
        }
    }

    /// Closes the image of a disc that has left its drive. Commands that read it go on to their end, so that may take as long
    /// as the host does.
    fn part(
        &self,
        mut inventory: MutexGuard<'_, Inventory>,
        (target, lun): (u8, u16),
        shown: String,
        disc: Option<Arc<Image>>,
    ) -> Result<()> {
        let Some(disc) = disc else { return Ok(()) };
        let asked = Asked::new(self.name(target, number(lun), &shown));
        inventory.closing.retain(|answer| !answer.is_over());
        inventory.closing.push(asked.answer());
        drop(inventory);
        let closed = close_with_deadline(&self.remote, asked, self.patience, move |io| async move {
            let (mut pause, longest) = LOOK;
            while Arc::strong_count(&disc) > 1 {
                io.sleep(pause).await;
                pause = longest.min(pause * 2);
            }
            let end = disc.close(&io).await.map_err(|error| explain(&error));
            let_go(&io, disc).await;
            end
        });
        closed.with_context(|| format!("target {target} lun {lun} has another disc or none, but {shown}"))
    }
}

/// The target of the drive at this place, if there is one.
fn find(inventory: &Inventory, target: u8, lun: u16) -> Result<Arc<Target>> {
    let unit = inventory.units.get(&(target, number(lun)));
    let unit = unit.with_context(|| format!("nothing at target {target} lun {lun}"))?;
    ensure!(
        unit.host.is_none(),
        "target {target} lun {lun} is a device of the host: if it has a tray, open that in the guest; or detach it, and open it on the host"
    );
    ensure!(
        unit.drive.is_some(),
        "target {target} lun {lun} is a disk, which has no tray: detach it, or change it for another one"
    );
    ensure!(!unit.is_leaving(), "target {target} lun {lun} is being detached");
    let targets = inventory.targets.get(&target).and_then(|targets| targets.first());
    targets.cloned().context("no such target")
}

/// Notes what is in the drive now; returns what the disc before was called.
fn replace(inventory: &mut Inventory, target: u8, lun: u16, disc: Option<Attached>) -> String {
    let Some(unit) = inventory.units.get_mut(&(target, number(lun))) else { return String::new() };
    // What keeps the machine from waiting for a server stays said while the drive is empty.
    let empty = || Attached { bounce: unit.bounce, ..Attached::empty() };
    let new = Attached { drive: unit.drive.clone(), ..disc.unwrap_or_else(empty) };
    std::mem::replace(unit, new).shown
}
