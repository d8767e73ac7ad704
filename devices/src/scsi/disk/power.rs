//! START STOP UNIT (SBC-4, 5.31) and PREVENT ALLOW MEDIUM REMOVAL (SBC-4, 5.15).

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Disk;
use crate::iothread::Io;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{
    Failure, INITIALIZING_COMMAND_REQUIRED, MEDIUM_NOT_PRESENT, MEDIUM_REMOVAL_PREVENTED, SenseData, SenseKey,
};
use crate::scsi::tasks::NexusId;
use crate::storage::BlockBackend;

const READY: u8 = 0;
const STOPPED: u8 = 1;
const EJECTED: u8 = 2;

/// Whether the medium can be used, and who wants it to stay.
#[derive(Debug, Default)]
pub(super) struct Power {
    state: AtomicU8,
    preventing: Mutex<Vec<NexusId>>,
}

impl Power {
    /// NOT READY sense while the medium is stopped or ejected.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let code = match self.state.load(Ordering::Acquire) {
            READY => return Ok(()),
            STOPPED => INITIALIZING_COMMAND_REQUIRED,
            _ => MEDIUM_NOT_PRESENT,
        };
        Err(SenseData::new(SenseKey::NotReady, code).into())
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
    pub(super) async fn start_stop(&self, io: &Io, cdb: &[u8]) -> Outcome {
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
        if start {
            if !load_eject && state.load(Ordering::Acquire) == EJECTED {
                return Err(SenseData::new(SenseKey::NotReady, MEDIUM_NOT_PRESENT).into());
            }
            state.store(READY, Ordering::Release);
            return Ok(Done::good());
        }
        if !no_flush && !self.is_read_only() {
            self.image.flush(io).await?;
        }
        if load_eject {
            state.store(EJECTED, Ordering::Release);
        } else {
            let _ = state.compare_exchange(READY, STOPPED, Ordering::AcqRel, Ordering::Acquire);
        }
        Ok(Done::good())
    }
}
