//! Lists of numbers below some thousands, which come at the end and go from anywhere. Warm, they allocate nothing.

#[cfg(test)]
thread_local! {
    /// How often somebody looked at what is in a list.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

const NONE: u32 = u32::MAX;

/// Who is before and after a number.
#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
}

/// A list in which each number is once at most.
#[derive(Debug)]
pub(super) struct List {
    links: Vec<Link>,
    first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { links: Vec::new(), first: NONE, last: NONE }
    }
}

impl List {
    pub(super) fn first(&self) -> Option<usize> {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        (self.first != NONE).then_some(self.first as usize)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// All from the first on.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        std::iter::successors(self.first(), |number| {
            let after = self.links.get(*number)?.after;
            (after != NONE).then_some(after as usize)
        })
    }

    /// Appends a number that is not in it.
    pub(super) fn push(&mut self, number: usize) {
        if self.links.len() <= number {
            self.links.resize(number + 1, Link { before: NONE, after: NONE });
        }
        let (link, number) = (Link { before: self.last, after: NONE }, number as u32);
        self.set(number, |here| *here = link);
        self.set(self.last, |last| last.after = number);
        self.last = number;
        if self.first == NONE {
            self.first = number;
        }
    }

    /// Takes out a number that is in it.
    pub(super) fn remove(&mut self, number: usize) {
        let Some(&Link { before, after }) = self.links.get(number) else { return };
        self.set(before, |link| link.after = after);
        self.set(after, |link| link.before = before);
        if self.first == number as u32 {
            self.first = after;
        }
        if self.last == number as u32 {
            self.last = before;
        }
    }

    fn set(&mut self, number: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(number as usize) {
            change(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_leave_from_anywhere() {
        let mut list = List::default();
        let all = |list: &List| list.iter().collect::<Vec<_>>();
        for number in [5, 0, 3, 7] {
            list.push(number);
        }
        for (gone, left) in [(3, vec![5, 0, 7]), (7, vec![5, 0]), (5, vec![0]), (0, vec![])] {
            list.remove(gone);
            assert_eq!(all(&list), left);
        }
        assert!(list.is_empty());
        list.push(3);
        list.push(5);
        assert_eq!((all(&list), list.first()), (vec![3, 5], Some(3)));
    }
}
