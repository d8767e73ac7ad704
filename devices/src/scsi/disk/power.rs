//! START STOP UNIT (SBC-4, 5.31) and PREVENT ALLOW MEDIUM REMOVAL (SBC-4, 5.15).

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Disk;
use crate::scsi::attention::Attention;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{
    FORMAT_IN_PROGRESS, Failure, INITIALIZING_COMMAND_REQUIRED, MEDIUM_FORMAT_CORRUPTED, MEDIUM_NOT_PRESENT,
    MEDIUM_REMOVAL_PREVENTED, SenseData, SenseKey,
};
use crate::scsi::tasks::NexusId;
use crate::scsi::unit::Context;
use crate::storage::BlockBackend;

const READY: u8 = 0;
const STOPPED: u8 = 1;
const EJECTED: u8 = 2;
const FORMATTING: u8 = 3;
const FORMAT_FAILED: u8 = 4;

/// POWER CONDITION (SBC-4, 5.31): START and LOEJ mean something; the active condition; timers, of which none is enabled.
const START_VALID: u64 = 0x0;
const ACTIVE: u64 = 0x1;
const LU_CONTROL: u64 = 0x7;

/// Whether the medium can be used, and who wants it to stay.
#[derive(Debug)]
pub(super) struct Power {
    state: AtomicU8,
    preventing: Mutex<Vec<NexusId>>,
    /// How often the medium was stopped.
    stops: AtomicU32,
    since: Instant,
    /// How far the work on the whole medium is, in 65536ths.
    progress: AtomicU16,
}

impl Default for Power {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(READY),
            preventing: Mutex::default(),
            stops: AtomicU32::new(0),
            since: Instant::now(),
            progress: AtomicU16::new(0),
        }
    }
}

impl Power {
    /// NOT READY sense while the medium is stopped or ejected.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let not_ready = |code| SenseData::new(SenseKey::NotReady, code);
        let working = |code| not_ready(code).with_progress(self.progress.load(Ordering::Relaxed));
        Err(match self.state.load(Ordering::Acquire) {
            READY => return Ok(()),
            STOPPED => not_ready(INITIALIZING_COMMAND_REQUIRED),
            FORMATTING => working(FORMAT_IN_PROGRESS),
            FORMAT_FAILED => SenseData::new(SenseKey::MediumError, MEDIUM_FORMAT_CORRUPTED),
            _ => not_ready(MEDIUM_NOT_PRESENT),
        }
        .into())
    }

    /// FORMAT UNIT begins: the medium is not ready until [`Power::end`].
    pub(super) fn begin(&self) -> Result<(), Failure> {
        while ![READY, FORMAT_FAILED].into_iter().any(|from| self.goes(from, FORMATTING)) {
            // Something else was faster: the answer is what anyone else gets now.
            self.check()?;
        }
        self.progress.store(0, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn set_progress(&self, progress: u16) {
        self.progress.store(progress, Ordering::Relaxed);
    }

    /// The work is done, or given up.
    pub(super) fn end(&self) {
        self.goes(FORMATTING, READY);
    }

    /// The work failed, and there is half of it (SBC-4, 5.4.1).
    pub(super) fn fail(&self) {
        self.goes(FORMATTING, FORMAT_FAILED);
    }

    /// GOOD, unless FORMAT UNIT is at work or has failed.
    fn unless_working(&self) -> Outcome {
        if self.state.load(Ordering::Acquire) >= FORMATTING {
            self.check()?;
        }
        Ok(Done::good())
    }

    /// Changes the state, if it is `from`.
    fn goes(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Start-stop cycles so far.
    pub(super) fn cycles(&self) -> u32 {
        self.stops.load(Ordering::Relaxed)
    }

    /// How long the unit has existed.
    pub(super) fn on_for(&self) -> Duration {
        self.since.elapsed()
    }

    /// PREVENT ALLOW MEDIUM REMOVAL.
    pub(super) fn prevent(&self, nexus: NexusId, cdb: &[u8]) -> Outcome {
        let mut preventing = self.preventing();
        preventing.retain(|other| *other != nexus);
        match field(cdb, 4, 1) & 3 {
            0 => {}
            1 => preventing.push(nexus),
            // The medium changer's half of the field is obsolete.
            _ => return Err(SenseData::cdb_field(4, Some(1)).into()),
        }
        Ok(Done::good())
    }

    pub(super) fn forget(&self, nexus: NexusId) {
        self.preventing().retain(|other| *other != nexus);
    }

    /// A logical unit reset ends all prevention; power on also starts the medium.
    pub(super) fn reset(&self, power: bool) {
        self.preventing().clear();
        if power {
            // Work in the background goes on, and half a format stays one: neither is undone here.
            self.goes(STOPPED, READY);
            self.goes(EJECTED, READY);
        }
    }

    fn preventing(&self) -> MutexGuard<'_, Vec<NexusId>> {
        self.preventing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: BlockBackend> Disk<B> {
    /// START STOP UNIT. IMMED makes no difference: nothing here takes long but writing the cache back, which must be
    /// done before the medium may be called stopped.
    pub(super) async fn start_stop(&self, context: Context<'_>, cdb: &[u8]) -> Outcome {
        let bits = field(cdb, 4, 1);
        let state = &self.power.state;
        if state.load(Ordering::Acquire) >= FORMATTING {
            // Whatever it asks for, it must wait.
            return self.power.unless_working();
        }
        let (start, load_eject, no_flush) = match bits >> 4 {
            START_VALID => (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0),
            // The rest of the byte is ignored.
            ACTIVE => (true, false, false),
            LU_CONTROL => return Ok(Done::good()),
            // There are no idle or standby conditions (mode page 1Ah).
            _ => return Err(SenseData::cdb_field(4, Some(7)).into()),
        };
        if load_eject && !self.config.removable {
            return Err(SenseData::cdb_field(4, Some(1)).into());
        }
        if load_eject && !start && !self.power.preventing().is_empty() {
            return Err(SenseData::illegal(MEDIUM_REMOVAL_PREVENTED).into());
        }
        if start {
            if !load_eject && state.load(Ordering::Acquire) == EJECTED {
                return Err(SenseData::new(SenseKey::NotReady, MEDIUM_NOT_PRESENT).into());
            }
            if self.power.goes(EJECTED, READY) {
                // What is there now may not be what was there before, as far as the other initiators know.
                context.path.unit.raise(Attention::MediumChanged, Some(context.path.nexus));
            } else {
                self.power.goes(STOPPED, READY);
            }
            return self.power.unless_working();
        }
        if !no_flush && !self.is_read_only() {
            self.flush(context.io).await?;
        }
        if load_eject {
            let _ = self.power.goes(READY, EJECTED) || self.power.goes(STOPPED, EJECTED);
        } else {
            let stopped = self.power.goes(READY, STOPPED);
            self.power.stops.fetch_add(u32::from(stopped), Ordering::Relaxed);
        }
        // FORMAT UNIT may have begun meanwhile.
        self.power.unless_working()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_on_starts_the_medium_but_ends_no_work_on_it() {
        let power = Power::default();
        power.state.store(STOPPED, Ordering::Release);
        power.reset(true);
        assert!(power.check().is_ok());
        power.begin().unwrap();
        power.reset(true);
        assert!(power.check().is_err(), "it still goes on");
        power.end();
        assert!(power.check().is_ok());
        power.begin().unwrap();
        power.fail();
        power.end();
        power.reset(true);
        assert!(power.check().is_err(), "half of it is formatted");
        power.begin().unwrap();
        power.end();
        assert!(power.check().is_ok());
    }
}
