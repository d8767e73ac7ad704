//! Whose turn it is to copy: what a thread itself copies between two memories holds up all that is ready meanwhile.
//!
//! A long copy is made at once where there is nothing else to do. Else it waits until a round of the thread has nothing else,
//! for a few rounds at most. So what is short goes to the kernel and back to the guest between two long copies, and not behind all
//! that have come before.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::Io;
use super::executor::Core;
use crate::mem::{SgList, ToGuest};

/// Bytes from which on a copy is long, and of which a longer one copies at a time.
const LONG: u64 = 64 << 10;
const PART: u64 = 128 << 10;
/// Rounds of the thread with something else to do that pass until one copies all the same: one may submit what is short, one give
/// it back.
const PASSED_MAX: u32 = 2;

/// The long copies of a thread that wait, in their order.
#[derive(Default)]
pub(super) struct Copies {
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    /// How many have waited so far.
    count: Cell<u64>,
    /// Rounds that passed them by.
    passed: Cell<u32>,
}

impl Copies {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Whether one is to be made at the end of this round, which had something else to do or not.
    pub(super) fn is_due(&self, busy: bool) -> bool {
        let due = !self.is_empty() && (!busy || self.passed.get() >= PASSED_MAX);
        self.passed.set(if due || self.is_empty() { 0 } else { self.passed.get() + 1 });
        due
    }

    /// The next one may copy: who is to be woken for that.
    pub(super) fn grant(&self) -> Option<Waker> {
        self.waiting.borrow_mut().pop_front().map(|(_, waker)| waker)
    }

    /// Waits behind all others, or before them with the rest of a copy that has begun.
    fn queue(&self, begun: bool, waker: &Waker) -> u64 {
        let number = self.count.replace(self.count.get() + 1);
        let mut waiting = self.waiting.borrow_mut();
        let entry = (number, waker.clone());
        if begun {
            waiting.push_front(entry)
        } else {
            waiting.push_back(entry)
        }
        number
    }

    /// Whether the one with this number still waits.
    fn waits(&self, number: u64, waker: &Waker) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let Some((_, known)) = waiting.iter_mut().find(|(other, _)| *other == number) else { return false };
        known.clone_from(waker);
        true
    }

    fn forget(&self, number: u64) {
        self.waiting.borrow_mut().retain(|(other, _)| *other != number);
    }
}

/// A turn to copy.
struct Turn<'a> {
    core: &'a Core,
    begun: bool,
    number: Option<u64>,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let copies = &self.core.copies;
        let waits = match self.number {
            Some(number) => copies.waits(number, cx.waker()),
            None if self.core.has_time() => false,
            None => {
                self.number = Some(copies.queue(self.begun, cx.waker()));
                true
            }
        };
        if waits {
            return Poll::Pending;
        }
        self.number = None;
        Poll::Ready(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.core.copies.forget(number);
        }
    }
}

impl Io {
    /// Copies all of `from`, which the guest does not see, to `to`, and lets others go first where that takes long.
    pub(crate) async fn copy(&self, from: &SgList, to: &ToGuest) {
        if from.len() < LONG {
            from.copy_to(to);
            return self.moved(from.len());
        }
        let mut done = 0;
        while done < from.len() {
            Turn { core: &self.core, begun: done > 0, number: None }.await;
            let part = from.window(done, PART);
            part.copy_to(&to.window(done, PART));
            self.moved(part.len());
            done += PART;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::mem::FromGuest;
    use crate::testing::{on_io_thread, temp_file};

    const MIB: usize = 1 << 20;

    fn memory(len: usize) -> SgList {
        SgList::host(len, 4096).unwrap()
    }

    /// Starts sixteen copies of a MiB, which say their numbers when they are over.
    fn sixteen(io: &Io, over: &Rc<RefCell<Vec<u32>>>) {
        for number in 0..16 {
            let (thread, over) = (io.clone(), over.clone());
            io.spawn(async move {
                thread.copy(&memory(MIB), &ToGuest::new(memory(MIB))).await;
                over.borrow_mut().push(number);
            });
        }
    }

    #[test]
    fn all_bytes_arrive() {
        let len = 5 * (PART as usize) / 2 + 777;
        let data: Vec<u8> = (0..len).map(|n| (n / 512 % 251) as u8).collect();
        let expected = data.clone();
        let found = on_io_thread(move |io| async move {
            let (from, to) = (ToGuest::new(memory(len)), memory(len));
            from.write_at(0, &data);
            io.copy(&from.into_inner(), &ToGuest::new(to.window(0, len as u64))).await;
            let mut found = vec![0; len];
            FromGuest::new(to).read_at(0, &mut found);
            found
        });
        assert!(found == expected);
    }

    /// Sixteen long copies are ready, and behind them somebody reads a little.
    #[test]
    fn what_is_short_goes_first() {
        let over = on_io_thread(|io| async move {
            let over = Rc::default();
            sixteen(&io, &over);
            let (thread, short) = (io.clone(), over.clone());
            io.spawn(async move {
                let file = Arc::new(temp_file().into_file());
                file.set_len(4096).unwrap();
                let (result, mem) = thread.read(&file, 0, ToGuest::new(memory(4096))).await;
                assert_eq!(result.unwrap(), 4096);
                thread.copy(&mem.into_inner(), &ToGuest::new(memory(4096))).await;
                short.borrow_mut().push(100);
            });
            while over.borrow().len() < 17 {
                io.sleep(Duration::from_millis(1)).await;
            }
            over.take()
        });
        assert_eq!(over, [100].into_iter().chain(0..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_thread_that_is_always_busy_copies_all_the_same() {
        let rounds = on_io_thread(|io| async move {
            let (over, rounds) = (Rc::default(), Rc::new(Cell::new(0)));
            sixteen(&io, &over);
            let count = rounds.clone();
            let _hook = io.at_batch_end(move || count.set(count.get() + 1));
            while over.borrow().len() < 16 {
                io.give_way().await;
            }
            rounds.get()
        });
        let parts = 16 * MIB as u32 / PART as u32;
        assert!(rounds <= (PASSED_MAX + 1) * parts + 8, "{rounds} rounds for {parts} parts");
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        on_io_thread(|io| async move {
            let (from, to) = (memory(MIB), ToGuest::new(memory(MIB)));
            io.spawn(async {});
            let mut copy = Box::pin(io.copy(&from, &to));
            let waits = std::future::poll_fn(|cx| Poll::Ready(copy.as_mut().poll(cx).is_pending())).await;
            assert!(waits && !io.core.copies.is_empty());
            drop(copy);
            assert!(io.core.copies.is_empty());
        });
    }
}
