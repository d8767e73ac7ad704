//! What is known of a device without asking it: who it is, and what it said to somebody else than the guest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BUSY, Generic, kind, orphans};
use crate::scsi::nexus::is_harmless;
use crate::scsi::outcome::{Done, Outcome, Writer};
use crate::scsi::passed::Passed;
use crate::scsi::sense::{Failure, SenseKey};
use crate::scsi::unit::{Context, Path, Unit};
use crate::scsi::{Cdb, DataBuffers, Nexus, Sense, Status, absent};

/// Unit attention conditions that a device may report before it carries out a command.
const ATTENTIONS: usize = 8;

/// A device of the host behind a logical unit, as the host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Peripheral device type (SPC-5, 6.7.2).
    pub device_type: u8,
    /// It is a disk that the guest may write, so that there may be something in its cache.
    pub is_written: bool,
    /// It is a disk, of any of the types that have blocks to read and write.
    pub is_disk: bool,
    /// Bytes of a logical block of a disk; 0 where nobody has asked.
    pub block_size: u32,
    /// Length of a disk in bytes when it came; 0 where the host does not know.
    pub size: u64,
}

/// Unit attention conditions of the device that none of the initiator's commands has heard of: it reports each once.
#[derive(Debug, Default)]
pub(super) struct Unheard {
    kept: Mutex<VecDeque<Box<Sense>>>,
    /// How many there are: nearly always none, and each command looks.
    count: AtomicUsize,
}

impl Unheard {
    fn keep(&self, sense: Box<Sense>) {
        let mut kept = self.lock();
        if kept.len() < ATTENTIONS {
            kept.push_back(sense);
        }
        self.count.store(kept.len(), Ordering::Release);
    }

    fn take(&self) -> Option<Box<Sense>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut kept = self.lock();
        let first = kept.pop_front();
        self.count.store(kept.len(), Ordering::Release);
        first
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Box<Sense>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generic {
    /// See [`Nexus::host_device`].
    pub(in crate::scsi) fn known(&self) -> HostDevice {
        let is_disk = self.kind == kind::Kind::Disk;
        let (block_size, size) = self.plug.peek(|link| (link.block().unwrap_or(0), link.size().unwrap_or(0)));
        HostDevice {
            device_type: self.device_type(),
            is_written: is_disk && self.may_write(),
            is_disk,
            block_size: if is_disk { block_size } else { 0 },
            size: if is_disk { size } else { 0 },
        }
    }

    /// What is answered ahead of all commands that wait or are at the device: REPORT LUNS, and, while that may take its time, INQUIRY by
    /// which hosts know a device, out of what it said when it came.
    pub(in crate::scsi) fn ahead(
        &self,
        nexus: &Nexus,
        path: &Path,
        cdb: &Cdb,
        data: &DataBuffers,
    ) -> Option<Outcome> {
        const INQUIRY: u8 = 0x12;
        const REPORT_LUNS: u8 = 0xa0;
        match cdb.opcode() {
            REPORT_LUNS => Some(absent::report_luns(nexus, kind::trim(cdb).padded(), data)),
            INQUIRY if self.is_at_work(&path.unit) => self.inquiry(path, &kind::trim(cdb), data).map(Ok),
            _ => None,
        }
    }

    /// Whether the initiator keeps the unit while its device is not there: behind a port of a fabric, if it has used the unit. Linux asks all
    /// its disks who they are when it has missed events, and removes those that say that nothing is there. Who looks for units has to
    /// hear just that.
    pub(super) fn keeps(&self, path: &Path) -> bool {
        self.behind_port && path.is_used()
    }

    /// Whether a command may have to wait for others.
    fn is_at_work(&self, unit: &Unit) -> bool {
        self.has_orphans()
            || unit.background.has_left_behind()
            || self.is_sequential() && unit.tasks.holds(|_, _| true)
    }

    /// Waits a little for what the device works on although nobody wants it any more, and gives up where that leaves no room: what only
    /// asks would wait as long as that takes. An initiator in a hurry must not wait for anything that it is not sure of.
    pub(super) async fn wait_for_orphans(&self, context: &Context<'_>, cdb: &Cdb) -> Result<(), Failure> {
        const STEP: Duration = Duration::from_millis(10);
        let hurried = context.nexus.is_hurried();
        if !hurried && !is_harmless(cdb) {
            return Ok(());
        }
        let begin = context.io.now();
        // By whichever way the device has hung.
        let hold_up = || match self.hold_up(if hurried { 1 } else { self.depth }) {
            None if hurried && context.path.unit.background.has_left_behind() => {
                Some(orphans::PATIENCE.saturating_sub(context.io.now() - begin))
            }
            held => held,
        };
        while let Some(left) = hold_up() {
            if left.is_zero() {
                crate::log_limited!(
                    warn,
                    "\"{}\": the device has not answered commands that were ended; the guest hears BUSY until it does",
                    self.name
                );
                return Err(BUSY);
            }
            context.io.sleep(left.min(STEP)).await;
        }
        Ok(())
    }

    /// INQUIRY data as they are kept. For all that is not quite that command the device has to be asked.
    fn inquiry(&self, path: &Path, cdb: &Cdb, data: &DataBuffers) -> Option<Done> {
        // CONTROL is zero, and without EVPD the page code. The LUN of SCSI-2 may be in byte 1.
        let [_, byte, page, high, low, 0, ..] = cdb.padded() else { return None };
        let vital = match (byte & 0x1f, page) {
            (0, 0) => false,
            (1, _) => true,
            _ => return None,
        };
        let room = u64::from(u16::from_be_bytes([*high, *low])).min(data.data_in.len());
        self.plug.peek(|link| {
            let mut writer = Writer::new(&data.data_in, room);
            match vital {
                true => writer.put(link.page_kept(*page)?),
                false if link.is_empty() && self.keeps(path) => return None,
                false if link.is_empty() => writer.put(absent::away().as_bytes()),
                false => writer.put(link.kept()?),
            }
            Some(writer.finish())
        })
    }

    /// Carries out a command that the initiator has not sent: what the device has to tell stays for one that it has.
    pub(in crate::scsi) async fn execute_unheard(
        &self,
        context: Context<'_>,
        cdb: &Cdb,
        data: &mut DataBuffers,
    ) -> Outcome {
        // Data is gone after the first time.
        let tries = if data.data_in.is_empty() && data.data_out.is_empty() { ATTENTIONS } else { 0 };
        for _ in 0..tries {
            let outcome = self.execute_by(self.plug.link(), context, cdb, data, false).await;
            let Err(Failure::Passed(number)) = outcome else { return outcome };
            match self.words.take(number) {
                Some(Passed::Reply { status: Status::CheckCondition, sense: Some(sense), .. })
                    if is_attention(&sense) =>
                {
                    self.unheard.keep(sense);
                }
                Some(said) => return Err(Failure::Passed(self.words.leave(said))),
                None => return outcome,
            }
        }
        self.execute_by(self.plug.link(), context, cdb, data, false).await
    }

    /// What the device said to a command that the initiator has not sent.
    pub(in crate::scsi) fn take_unheard(&self) -> Option<Failure> {
        let sense = Some(self.unheard.take()?);
        let said = Passed::Reply { status: Status::CheckCondition, sense, data_out: 0, data_in: 0 };
        Some(Failure::Passed(self.words.leave(said)))
    }
}

/// Whether sense data reports a unit attention condition, in either format (SPC-5, 4.4.2 and 4.4.3).
fn is_attention(sense: &Sense) -> bool {
    let key = match sense.as_bytes() {
        [0x70 | 0xf0, _, key, ..] | [0x72, key, ..] => key & 0x0f,
        _ => 0,
    };
    key == SenseKey::UnitAttention as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_attentions_are_told_from_other_sense_data() {
        let of = |bytes: &[u8]| is_attention(&Sense::from_bytes(bytes));
        assert!(of(&[0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x28, 0]) && of(&[0xf0, 0, 0x46]));
        assert!(of(&[0x72, 6, 0x28, 0, 0, 0, 0, 0]));
        assert!(!of(&[0x70, 6, 5]) && !of(&[0x72, 5, 6]) && !of(&[0x71, 0, 6]) && !of(&[0x70]) && !of(&[]));
    }

    #[test]
    fn no_more_is_kept_than_a_device_has() {
        let unheard = Unheard::default();
        for code in 0..20 {
            unheard.keep(Box::new(Sense::from_bytes(&[0x72, 6, code])));
        }
        let kept: Vec<_> = unheard.lock().iter().map(|sense| sense.as_bytes()[2]).collect();
        assert_eq!(kept, (0..8).collect::<Vec<_>>());
    }
}
