//! Makes units of what another process has opened.

use std::sync::Arc;

use anyhow::Result;
use devices::scsi::generic::{Arrival, Returning, Wanted};
use devices::scsi::{Block, Generic};

use crate::machine::host_unit::HostUnit;

/// What has been made.
pub(super) struct Made {
    /// The unit.
    pub(super) unit: HostUnit,
    /// Its way back.
    pub(super) returns: Arc<dyn Returns>,
}

/// Who makes units. That may take as long as their devices take to answer.
pub(super) trait Opens: Send + Sync {
    /// Makes one of a device that has come.
    fn open(&self, wanted: Wanted, arrival: Arrival) -> Result<Made>;
    /// The guest may not write.
    fn read_only(&self) -> bool;
    /// Data goes through memory of the process.
    fn bounces(&self) -> bool;
}

/// A unit whose device goes and comes back.
pub(super) trait Returns: Send + Sync {
    /// It may be another one: nothing is sent to it.
    fn doubted(&self);
    /// It is not.
    fn trusted(&self);
    /// It has gone.
    fn lost(&self);
    /// It is back, and [`Returns::back`] follows.
    fn coming(&self);
    /// It is back; that may take as long as it takes to answer.
    fn back(&self, arrival: Arrival) -> Result<()>;
}

impl Returns for Returning {
    fn doubted(&self) {
        Returning::doubted(self);
    }

    fn trusted(&self) {
        Returning::trusted(self);
    }

    fn lost(&self) {
        Returning::lost(self);
    }

    fn coming(&self) {
        Returning::coming(self);
    }

    fn back(&self, arrival: Arrival) -> Result<()> {
        Ok(Returning::back(self, arrival)?)
    }
}

/// Devices of the host.
pub(super) struct Opener {
    /// The guest may not write.
    pub(super) read_only: bool,
    /// Data goes through memory of the process.
    pub(super) bounce: bool,
}

impl Opens for Opener {
    fn open(&self, wanted: Wanted, arrival: Arrival) -> Result<Made> {
        let name = arrival.path().to_owned();
        Ok(if wanted.is_block() {
            let (unit, returns) = Block::from_arrival(&name, arrival, wanted, self.bounce)?;
            Made { unit: HostUnit::Block(unit), returns: Arc::new(returns) }
        } else {
            let (unit, returns) = Generic::from_arrival(&name, arrival, wanted, self.bounce)?;
            Made { unit: HostUnit::Generic(unit), returns: Arc::new(returns) }
        })
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn bounces(&self) -> bool {
        self.bounce
    }
}
