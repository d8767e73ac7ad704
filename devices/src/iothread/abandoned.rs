//! Operations whose futures are gone while the kernel still works on them: how many there are, and who waits for their end.
//!
//! There may be as many as the guest has commands, each waited for: what is done for the end of one takes the same time
//! however many the others are.

use std::collections::HashMap;
use std::task::{Poll, Waker};

use super::op::Reach;

/// Those of one scope, or all.
#[derive(Default)]
struct Group {
    /// How many, by what they may do.
    counts: [usize; 3],
    /// Who waits until none can do as much any more.
    waiting: [Vec<Waker>; 3],
}

impl Group {
    fn add(&mut self, reach: Reach) {
        if let Some(count) = self.counts.get_mut(reach as usize) {
            *count += 1;
        }
    }

    fn is_quiet(&self, least: Reach) -> bool {
        self.counts.iter().skip(least as usize).all(|count| *count == 0)
    }

    /// One is over; whom that concerns goes to `wakers`.
    fn remove(&mut self, reach: Reach, wakers: &mut Vec<Waker>) {
        if let Some(count) = self.counts.get_mut(reach as usize) {
            *count = count.saturating_sub(1);
        }
        for least in [Reach::Guest, Reach::File, Reach::Nothing] {
            if !self.is_quiet(least) {
                break;
            }
            if let Some(waiting) = self.waiting.get_mut(least as usize) {
                wakers.append(waiting);
            }
        }
    }

    fn wait(&mut self, least: Reach, waker: &Waker) {
        let Some(waiting) = self.waiting.get_mut(least as usize) else { return };
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }
}

/// Those of a ring.
#[derive(Default)]
pub(super) struct Abandoned {
    all: Group,
    /// Those that have any, by the number of the scope.
    scopes: HashMap<u64, Group>,
}

impl Abandoned {
    /// There is one more.
    pub(super) fn add(&mut self, scope: u64, reach: Reach) {
        self.all.add(reach);
        self.scopes.entry(scope).or_default().add(reach);
    }

    /// One is over; whom that concerns goes to `wakers`.
    pub(super) fn remove(&mut self, scope: u64, reach: Reach, wakers: &mut Vec<Waker>) {
        self.all.remove(reach, wakers);
        let Some(group) = self.scopes.get_mut(&scope) else { return };
        group.remove(reach, wakers);
        if group.is_quiet(Reach::Nothing) {
            self.scopes.remove(&scope);
        }
    }

    /// Whether none of `scope`, of any scope when `None`, can do as much as `least` any more.
    pub(super) fn is_quiet(&self, scope: Option<u64>, least: Reach) -> bool {
        match scope {
            Some(scope) => self.scopes.get(&scope).is_none_or(|group| group.is_quiet(least)),
            None => self.all.is_quiet(least),
        }
    }

    /// The same; if there is one, `waker` is woken when it is over.
    pub(super) fn poll_quiet(&mut self, scope: Option<u64>, least: Reach, waker: &Waker) -> Poll<()> {
        let group = match scope {
            Some(scope) => self.scopes.get_mut(&scope),
            None => Some(&mut self.all),
        };
        match group.filter(|group| !group.is_quiet(least)) {
            Some(group) => {
                group.wait(least, waker);
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::Count;

    #[test]
    fn who_waits_is_woken_when_nothing_can_reach_so_far_any_more() {
        let mut abandoned = Abandoned::default();
        for (scope, reach) in [(1, Reach::Guest), (1, Reach::Nothing), (2, Reach::File)] {
            abandoned.add(scope, reach);
        }
        let waits: Vec<_> =
            [(Some(1), Reach::Guest), (Some(1), Reach::Nothing), (Some(2), Reach::File), (None, Reach::File)]
                .map(|(scope, least)| {
                    let (count, waker) = Count::waker();
                    // Twice, as a task that is woken by something else.
                    assert!(abandoned.poll_quiet(scope, least, &waker).is_pending());
                    assert!(abandoned.poll_quiet(scope, least, &waker).is_pending());
                    count
                })
                .into();
        let woken = || waits.iter().map(|count| count.get()).collect::<Vec<_>>();
        assert!(abandoned.is_quiet(Some(2), Reach::Guest) && abandoned.is_quiet(Some(3), Reach::Nothing));
        let mut wakers = Vec::new();
        let mut remove = |abandoned: &mut Abandoned, scope, reach| {
            abandoned.remove(scope, reach, &mut wakers);
            wakers.drain(..).for_each(Waker::wake);
        };
        remove(&mut abandoned, 1, Reach::Guest);
        assert_eq!(woken(), [1, 0, 0, 0]);
        remove(&mut abandoned, 2, Reach::File);
        assert_eq!(woken(), [1, 0, 1, 1]);
        remove(&mut abandoned, 1, Reach::Nothing);
        assert_eq!(woken(), [1, 1, 1, 1]);
        assert!(abandoned.is_quiet(None, Reach::Nothing) && abandoned.scopes.is_empty());
    }

    /// A guest can have all its commands end at once.
    #[test]
    fn the_end_of_very_many_takes_no_time() {
        const MANY: u64 = 1 << 16;
        let begin = Instant::now();
        let (mut abandoned, mut wakers) = (Abandoned::default(), Vec::new());
        for scope in 0..MANY {
            abandoned.add(scope, Reach::Guest);
            let (_, waker) = Count::waker();
            assert!(abandoned.poll_quiet(Some(scope), Reach::Guest, &waker).is_pending());
        }
        for scope in (0..MANY).rev() {
            abandoned.remove(scope, Reach::Guest, &mut wakers);
        }
        assert_eq!(wakers.len() as u64, MANY);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}
