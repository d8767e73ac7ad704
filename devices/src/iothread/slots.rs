//! Where operations stay while the kernel works on them: slots, which are reused and never move.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use io_uring::types::Timespec;

use super::lanes::Share;
use super::op::Op;

/// Slots are made this many at a time.
const CHUNK: usize = 32;

/// The lane of what is no transfer.
const NO_LANE: u32 = u32::MAX;

/// Names a slot during one use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Key {
    pub(super) fn user_data(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    Queued,
    InFlight,
    Detached,
    Done,
}

/// One operation. All fields are cells: the kernel may write `count` while others are in use.
pub(super) struct Slot {
    generation: Cell<u32>,
    pub(super) stage: Cell<Stage>,
    /// Whose it is: a number of [`super::Scope`].
    pub(super) scope: Cell<u64>,
    /// Of a transfer: the queue of its file.
    pub(super) lane: Cell<u32>,
    /// Of a long copy under way that somebody waits for.
    pub(super) share: Cell<Share>,
    /// Completions that the kernel still owes.
    pub(super) owed: Cell<u8>,
    pub(super) result: Cell<i32>,
    pub(super) op: RefCell<Option<Op>>,
    pub(super) waker: Cell<Option<Waker>>,
    pub(super) count: AtomicU64,
    pub(super) time: Cell<Timespec>,
}

impl Slot {
    fn new() -> Self {
        Self {
            generation: Cell::new(0),
            stage: Cell::new(Stage::Free),
            scope: Cell::new(0),
            lane: Cell::new(NO_LANE),
            share: Cell::default(),
            owed: Cell::new(0),
            result: Cell::new(0),
            op: RefCell::new(None),
            waker: Cell::new(None),
            count: AtomicU64::new(0),
            time: Cell::new(Timespec::new()),
        }
    }
}

/// All slots of a ring.
#[derive(Default)]
pub(super) struct Slots {
    /// Not boxes: those claim to be the only way to what is in them, and the kernel has pointers into slots.
    chunks: Vec<Rc<[Slot]>>,
    free: Vec<u32>,
}

impl Slots {
    /// Moves an operation of `scope` into a free slot, as one that is queued.
    pub(super) fn occupy(&mut self, op: Op, scope: u64) -> Key {
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        let mut key = Key { index, generation: 0 };
        if let Some(slot) = self.at(index) {
            key.generation = slot.generation.get();
            slot.stage.set(Stage::Queued);
            slot.scope.set(scope);
            slot.lane.set(op.lane().unwrap_or(NO_LANE));
            slot.result.set(0);
            slot.count.store(0, Ordering::Relaxed);
            *slot.op.borrow_mut() = Some(op);
        }
        key
    }

    /// The slot while this use of it lasts.
    pub(super) fn named(&self, key: Key) -> Option<&Slot> {
        self.at(key.index).filter(|slot| slot.generation.get() == key.generation)
    }

    /// Ends this use of the slot; gives its operation back.
    pub(super) fn release(&mut self, key: Key) -> Option<Op> {
        let slot = self.named(key)?;
        slot.generation.set(key.generation.wrapping_add(1));
        slot.stage.set(Stage::Free);
        let op = slot.op.borrow_mut().take();
        self.free.push(key.index);
        op
    }

    /// All that are in use.
    pub(super) fn occupied(&self) -> Vec<Key> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter()).zip(0u32..);
        let used = all.filter(|(slot, _)| slot.stage.get() != Stage::Free);
        used.map(|(slot, index)| Key { index, generation: slot.generation.get() }).collect()
    }

    fn at(&self, index: u32) -> Option<&Slot> {
        let index = index as usize;
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    fn grow(&mut self) -> u32 {
        let first = (self.chunks.len() * CHUNK) as u32;
        self.chunks.push((0..CHUNK).map(|_| Slot::new()).collect());
        self.free.extend((first + 1..first + CHUNK as u32).rev());
        first
    }
}
