//! Which number a guest knows a target port by: always the same, for disks of the guest are mounted by it.

use std::collections::BTreeSet;

use fc::Wwn;
use fc::targets::Numbers as Stored;

/// Numbers of the targets of one HBA.
#[derive(Default)]
pub(super) struct Numbers {
    all: Stored,
    /// Those that this machine has seen: nobody else has their numbers while it lives.
    seen: BTreeSet<u8>,
}

impl Numbers {
    pub(super) fn new(stored: Stored) -> Self {
        Self { all: stored, ..Self::default() }
    }

    /// The number of a port that is there, and whether it is a new one; `None` if there is none left.
    pub(super) fn of(&mut self, wwpn: Wwn) -> Option<(u8, bool)> {
        if let Some(number) = self.all.get(&wwpn) {
            self.seen.insert(*number);
            return Some((*number, false));
        }
        let taken: BTreeSet<u8> = self.all.values().copied().collect();
        let free = (0..=u8::MAX).find(|number| !taken.contains(number));
        // Of a port of another time.
        let number = free.or_else(|| (0..=u8::MAX).find(|number| !self.seen.contains(number)))?;
        self.all.retain(|_, other| *other != number);
        self.all.insert(wwpn, number);
        self.seen.insert(number);
        Some((number, true))
    }

    /// That of a port that has one.
    pub(super) fn get(&self, wwpn: Wwn) -> Option<u8> {
        self.all.get(&wwpn).copied().filter(|number| self.seen.contains(number))
    }

    /// All, to be stored.
    pub(super) fn all(&self) -> &Stored {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_keeps_its_number() {
        let port = |number: u64| Wwn::new(0x5000_0000_0000_0000 | number);
        let mut numbers = Numbers::new([(port(7), 1)].into());
        assert_eq!(numbers.get(port(7)), None, "it is not there yet");
        assert_eq!(numbers.of(port(8)), Some((0, true)));
        assert_eq!(numbers.of(port(9)), Some((2, true)), "that of another time is kept for it");
        assert_eq!(numbers.of(port(7)), Some((1, false)));
        assert_eq!(numbers.get(port(7)), Some(1));
        let mut again = Numbers::new(numbers.all().clone());
        for (wwpn, number) in [(9, 2), (8, 0), (7, 1)] {
            assert_eq!(again.of(port(wwpn)), Some((number, false)));
        }
    }

    #[test]
    fn there_are_256() {
        let port = |number: u64| Wwn::new(0x5000_0000_0000_0000 | number);
        let mut numbers = Numbers::new([(port(1000), 3)].into());
        for number in 0..255 {
            assert!(numbers.of(port(number)).is_some_and(|(number, new)| new && number != 3));
        }
        assert_eq!(numbers.of(port(255)), Some((3, true)), "nobody has seen that one");
        assert_eq!(numbers.of(port(256)), None);
        assert_eq!(numbers.of(port(0)), Some((0, false)));
        assert_eq!(numbers.of(port(1000)), None);
    }
}
