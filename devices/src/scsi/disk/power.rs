//! START STOP UNIT (SBC-4, 5.31) and PREVENT ALLOW MEDIUM REMOVAL (SBC-4, 5.15).

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Disk;
use crate::scsi::attention::Attention;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{
    FORMAT_IN_PROGRESS, Failure, INITIALIZING_COMMAND_REQUIRED, MEDIUM_NOT_PRESENT, MEDIUM_REMOVAL_PREVENTED,
    SANITIZE_IN_PROGRESS, SenseData, SenseKey,
};
use crate::scsi::tasks::NexusId;
use crate::scsi::unit::Context;
use crate::storage::BlockBackend;

const READY: u8 = 0;
const STOPPED: u8 = 1;
const EJECTED: u8 = 2;
const FORMATTING: u8 = Work::Format as u8;
const SANITIZING: u8 = Work::Sanitize as u8;

/// Work on the whole medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Work {
    /// FORMAT UNIT
    Format = 3,
    /// SANITIZE
    Sanitize = 4,
}

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
            SANITIZING => working(SANITIZE_IN_PROGRESS),
            _ => not_ready(MEDIUM_NOT_PRESENT),
        }
        .into())
    }

    /// Work on the whole medium begins: it is not ready until [`Power::end`].
    pub(super) fn begin(&self, work: Work) -> Result<(), Failure> {
        while self.state.compare_exchange(READY, work as u8, Ordering::AcqRel, Ordering::Acquire).is_err() {
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
        for work in [FORMATTING, SANITIZING] {
            let _ = self.state.compare_exchange(work, READY, Ordering::AcqRel, Ordering::Acquire);
        }
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
            self.state.store(READY, Ordering::Release);
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
        if bits & 0xf0 != 0 {
            // POWER CONDITION: there are no idle or standby conditions (mode page 1Ah).
            return Err(SenseData::cdb_field(4, Some(7)).into());
        }
        let (start, load_eject, no_flush) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        if load_eject && !self.config.removable {
            return Err(SenseData::cdb_field(4, Some(1)).into());
        }
        if load_eject && !start && !self.power.preventing().is_empty() {
            return Err(SenseData::illegal(MEDIUM_REMOVAL_PREVENTED).into());
        }
        let state = &self.power.state;
        if matches!(state.load(Ordering::Acquire), FORMATTING | SANITIZING) {
            return self.power.check().map(|()| Done::good());
        }
        if start {
            if !load_eject && state.load(Ordering::Acquire) == EJECTED {
                return Err(SenseData::new(SenseKey::NotReady, MEDIUM_NOT_PRESENT).into());
            }
            if state.swap(READY, Ordering::AcqRel) == EJECTED {
                // What is there now may not be what was there before, as far as the other initiators know.
                context.path.unit.raise(Attention::MediumChanged, Some(context.path.nexus));
            }
            return Ok(Done::good());
        }
        if !no_flush && !self.is_read_only() {
            self.image.flush(context.io).await?;
        }
        if load_eject {
            state.store(EJECTED, Ordering::Release);
        } else {
            let stopped = state.compare_exchange(READY, STOPPED, Ordering::AcqRel, Ordering::Acquire);
            self.power.stops.fetch_add(u32::from(stopped.is_ok()), Ordering::Relaxed);
        }
        Ok(Done::good())
    }
}
