//! Which number a guest knows a target port by: always the same, for disks of the guest are mounted by it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fc::Wwn;
use fc::targets::Numbers as Stored;

/// The numbers that the targets of one HBA have, those behind ports that its guest has created among them: a number is one target's.
#[derive(Clone, Debug, Default)]
pub(in crate::fc_port) struct Space(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    /// Behind the HBA's own port.
    own: BTreeSet<u8>,
    /// Of these, those that this machine has seen: nobody else has their numbers while it lives.
    seen: BTreeSet<u8>,
    /// Behind those of the guest.
    vports: BTreeSet<u8>,
}

impl Space {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers of the targets behind one port.
pub(super) struct Numbers {
    all: Stored,
    space: Space,
    /// The guest has created the port: its numbers are others' when it goes.
    is_vport: bool,
    /// Those that this machine has seen: nobody else has their numbers while it lives.
    seen: BTreeSet<u8>,
}

impl Numbers {
    /// Of the HBA's own port.
    pub(super) fn new(stored: Stored, space: Space) -> Self {
        let own = stored.values().copied().collect();
        *space.lock() = Taken { own, ..Taken::default() };
        Self::with(stored, space, false)
    }

    /// Of one that the guest has created.
    pub(super) fn of_vport(space: Space) -> Self {
        Self::with(Stored::new(), space, true)
    }

    fn with(all: Stored, space: Space, is_vport: bool) -> Self {
        Self { all, space, is_vport, seen: BTreeSet::new() }
    }

    /// The number of a port that is there, and whether it is a new one; `None` if there is none left.
    pub(super) fn of(&mut self, wwpn: Wwn) -> Option<(u8, bool)> {
        let mut taken = self.space.lock();
        let stored = self.all.get(&wwpn).copied();
        // One of another time may be a guest's by now.
        let (number, is_new) = match stored.filter(|number| self.is_vport || !taken.vports.contains(number)) {
            Some(number) => (number, false),
            None => (self.take(&mut taken)?, true),
        };
        if is_new {
            self.all.retain(|_, other| *other != number);
            self.all.insert(wwpn, number);
        }
        if !self.is_vport {
            taken.seen.insert(number);
        }
        drop(taken);
        self.seen.insert(number);
        Some((number, is_new))
    }

    fn take(&self, taken: &mut Taken) -> Option<u8> {
        let is_free = |number: &u8| !taken.own.contains(number) && !taken.vports.contains(number);
        // Of a port of another time.
        let of_another = |number: &u8| !taken.seen.contains(number) && !taken.vports.contains(number);
        if self.is_vport {
            // From the other end: those of the HBA's own port stay as they would be without it.
            let mut all = (0..=u8::MAX).rev();
            let number = all.clone().find(is_free).or_else(|| all.find(of_another))?;
            taken.vports.insert(number);
            return Some(number);
        }
        let number = (0..=u8::MAX).find(is_free).or_else(|| (0..=u8::MAX).find(of_another))?;
        taken.own.insert(number);
        Some(number)
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

impl Drop for Numbers {
    fn drop(&mut self) {
        if self.is_vport {
            let mut taken = self.space.lock();
            taken.vports.retain(|number| !self.all.values().any(|own| own == number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_guest_have_numbers_that_nobody_else_has() {
        let port = |number: u64| Wwn::new(0x5000_0000_0000_0000 | number);
        let space = Space::default();
        let mut own = Numbers::new([(port(7), 255)].into(), space.clone());
        let mut first = Numbers::of_vport(space.clone());
        assert_eq!(first.of(port(7)), Some((254, true)), "of the same port another way");
        assert_eq!(first.of(port(7)), Some((254, false)));
        assert_eq!(own.of(port(8)), Some((0, true)));
        let mut second = Numbers::of_vport(space.clone());
        assert_eq!(second.of(port(7)), Some((253, true)));
        for number in 1..253 {
            assert!(own.of(port(100 + number)).is_some_and(|(number, _)| number < 253));
        }
        // That of another time is taken, those of the guest are not.
        assert_eq!(own.of(port(1000)), Some((255, true)));
        assert_eq!((own.of(port(1001)), second.of(port(9))), (None, None));
        drop(first);
        assert_eq!(second.of(port(9)), Some((254, true)));
    }

    /// Whatever was seen at any time is stored, until there are no others.
    #[test]
    fn a_list_that_is_full_leaves_ports_of_the_guest_some() {
        let port = |number: u64| Wwn::new(0x5000_0000_0000_0000 | number);
        let (space, all) = (Space::default(), (0..=255).map(|number| (port(number.into()), number)));
        let mut own = Numbers::new(all.collect(), space.clone());
        assert_eq!(own.of(port(255)), Some((255, false)));
        let mut nested = Numbers::of_vport(space.clone());
        assert_eq!(nested.of(port(7)), Some((254, true)), "nobody has seen it");
        assert_eq!(nested.of(port(7)), Some((254, false)));
        // The one that had it is back, and no two have one number.
        assert_eq!(own.of(port(254)), Some((0, true)));
        assert_eq!((own.of(port(254)), own.get(port(254))), (Some((0, false)), Some(0)));
        drop(nested);
        assert_eq!(own.of(port(1)), Some((1, false)));
        assert_eq!(own.of(port(1000)), Some((2, true)));
    }

    #[test]
    fn a_port_keeps_its_number() {
        let port = |number: u64| Wwn::new(0x5000_0000_0000_0000 | number);
        let mut numbers = Numbers::new([(port(7), 1)].into(), Space::default());
        assert_eq!(numbers.get(port(7)), None, "it is not there yet");
        assert_eq!(numbers.of(port(8)), Some((0, true)));
        assert_eq!(numbers.of(port(9)), Some((2, true)), "that of another time is kept for it");
        assert_eq!(numbers.of(port(7)), Some((1, false)));
        assert_eq!(numbers.get(port(7)), Some(1));
        let mut again = Numbers::new(numbers.all().clone(), Space::default());
        for (wwpn, number) in [(9, 2), (8, 0), (7, 1)] {
            assert_eq!(again.of(port(wwpn)), Some((number, false)));
        }
    }

    #[test]
    fn there_are_256() {
        let port = |number: u64| Wwn::new(0x5000_0000_0000_0000 | number);
        let mut numbers = Numbers::new([(port(1000), 3)].into(), Space::default());
        for number in 0..255 {
            assert!(numbers.of(port(number)).is_some_and(|(number, new)| new && number != 3));
        }
        assert_eq!(numbers.of(port(255)), Some((3, true)), "nobody has seen that one");
        assert_eq!(numbers.of(port(256)), None);
        assert_eq!(numbers.of(port(0)), Some((0, false)));
        assert_eq!(numbers.of(port(1000)), None);
    }
}
