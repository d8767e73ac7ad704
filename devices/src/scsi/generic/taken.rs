//! One device of the host is one unit of a machine, whichever of its nodes it is named by.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The devices that units of this process have, by their addresses, and how often: what is back may be where it was, while its
/// last commands have not ended there.
static TAKEN: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

fn taken() -> MutexGuard<'static, BTreeMap<String, usize>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that a unit has, for as long as it has it.
#[derive(Debug)]
pub(super) struct Taken(String);

impl Taken {
    pub(super) fn new(address: &str) -> Option<Self> {
        let mut taken = taken();
        if taken.contains_key(address) {
            return None;
        }
        taken.insert(address.to_owned(), 1);
        Some(Self(address.to_owned()))
    }

    /// Of a unit whose device has come there.
    pub(super) fn again(address: &str) -> Self {
        *taken().entry(address.to_owned()).or_default() += 1;
        Self(address.to_owned())
    }
}

#[cfg(test)]
impl Taken {
    pub(super) fn is_taken(address: &str) -> bool {
        taken().contains_key(address)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = taken();
        if let Some(count) = taken.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_is_one_unit() {
        let first = Taken::new("99:0:0:0").unwrap();
        assert!(Taken::new("99:0:0:0").is_none() && Taken::new("99:0:0:1").is_some());
        // It is back while commands have not ended where it was.
        let again = Taken::again("99:0:0:0");
        drop(first);
        assert!(Taken::new("99:0:0:0").is_none());
        drop(again);
        assert!(Taken::new("99:0:0:0").is_some());
    }
}
