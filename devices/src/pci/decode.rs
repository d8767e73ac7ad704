//! A window of the chipset that follows a base register.

use std::ops::Range;
use std::sync::Arc;

use crate::log_limited;

use crate::bus::{Bus, BusDevice};

/// A device on a bus, at the range that registers say at the moment.
pub(super) struct Decode {
    bus: Arc<Bus>,
    device: Arc<dyn BusDevice>,
    mapped: Option<Range<u64>>,
    refused: Option<Range<u64>>,
}

impl Decode {
    pub(super) fn new(bus: Arc<Bus>, device: Arc<dyn BusDevice>) -> Self {
        Self { bus, device, mapped: None, refused: None }
    }

    /// Where it answers.
    pub(super) fn mapped(&self) -> Option<Range<u64>> {
        self.mapped.clone()
    }

    /// Moves to `wanted`. An overlap with another device is the guest's mistake: logged once, and the window
    /// answers nowhere until a later call finds the way free.
    pub(super) fn follow(&mut self, wanted: Option<Range<u64>>) {
        if self.mapped == wanted {
            return;
        }
        if let Some(old) = self.mapped.take() {
            self.bus.unmap(old.start);
        }
        let Some(range) = wanted else { return };
        let len = range.end.saturating_sub(range.start);
        match self.bus.map(range.start, len, self.device.clone()) {
            Ok(()) => self.mapped = Some(range),
            Err(error) => {
                if self.refused.as_ref() != Some(&range) {
                    log_limited!(debug, "window not mapped: {error}");
                }
                self.refused = Some(range);
            }
        }
    }
}
