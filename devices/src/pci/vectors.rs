//! What MSI and MSI-X have in common: vectors with a message, a mask and a pending bit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::log_limited;

use crate::irq::{MsiAllocator, MsiMessage, MsiVector};

/// The vectors of one capability. A vector costs a route of the hypervisor only once the guest unmasks it.
///
/// `trigger` takes no lock. The order that makes it safe against a vCPU that unmasks at the same time: a
/// trigger sets the pending bit and then looks at the mask again, an unmask clears the mask and then looks
/// at the pending bit. Sequentially consistent, so at least one of the two sees the other and delivers.
pub(super) struct Vectors {
    slots: Box<[Slot]>,
    programs: Mutex<Box<[Program]>>,
    /// Enabled, and not masked as a whole.
    open: AtomicBool,
    allocator: Arc<dyn MsiAllocator>,
}

struct Slot {
    masked: AtomicBool,
    pending: AtomicBool,
    vector: OnceLock<Arc<dyn MsiVector>>,
}

/// What the guest wrote for one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) message: MsiMessage,
    pub(super) masked: bool,
    /// What the hypervisor was told last.
    routed: Option<MsiMessage>,
}

impl Vectors {
    /// `count` vectors with no message; `masked` is the mask of each at power-on.
    pub(super) fn new(count: u16, masked: bool, allocator: Arc<dyn MsiAllocator>) -> Self {
        let slot = |_| Slot {
            masked: AtomicBool::new(masked),
            pending: AtomicBool::new(false),
            vector: OnceLock::new(),
        };
        let program = Program { message: MsiMessage::default(), masked, routed: None };
        Self {
            slots: (0..count).map(slot).collect(),
            programs: Mutex::new(vec![program; usize::from(count)].into()),
            open: AtomicBool::new(false),
            allocator,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Delivers vector `n`, or makes it pending while it is masked. From any thread.
    pub(super) fn trigger(&self, n: usize) {
        let Some(slot) = self.slots.get(n) else { return };
        if !self.delivers(slot) {
            self.defer(slot);
        } else if !slot.fire() {
            self.recover(n, slot);
        }
    }

    /// There was nothing to deliver vector `n` with when it was unmasked. There may be now: the guest waits for it.
    fn recover(&self, n: usize, slot: &Slot) {
        if let Some(program) = self.lock().get_mut(n) {
            self.route(slot, program);
        }
        slot.fire();
    }

    /// The vector was seen masked. It may no longer be.
    fn defer(&self, slot: &Slot) {
        slot.pending.store(true, Ordering::SeqCst);
        self.flush(slot);
    }

    /// What delivers vector `n` at the moment: `None` while it is masked, or was never routed.
    pub(super) fn direct(&self, n: usize) -> Option<Arc<dyn MsiVector>> {
        let slot = self.slots.get(n).filter(|slot| self.delivers(slot))?;
        slot.vector.get().cloned()
    }

    pub(super) fn is_pending(&self, n: usize) -> bool {
        self.slots.get(n).is_some_and(|slot| slot.pending.load(Ordering::SeqCst))
    }

    /// What the guest wrote for vector `n`.
    pub(super) fn program(&self, n: usize) -> Option<Program> {
        self.lock().get(n).copied()
    }

    /// Takes from the hypervisor what vector `n` needs, now and not when it is unmasked; false when there is none, or no more.
    pub(super) fn reserve(&self, n: usize) -> bool {
        // So that two threads do not take one each.
        let _programs = self.lock();
        self.slots.get(n).is_some_and(|slot| self.vector_of(slot).is_some())
    }

    /// The guest writes message and mask of vector `n`. Routes and delivers before it returns.
    pub(super) fn set_program(&self, n: usize, message: MsiMessage, masked: bool) {
        let mut programs = self.lock();
        let (Some(program), Some(slot)) = (programs.get_mut(n), self.slots.get(n)) else { return };
        (program.message, program.masked) = (message, masked);
        if masked {
            slot.masked.store(true, Ordering::SeqCst);
            return;
        }
        if self.open.load(Ordering::SeqCst) {
            self.route(slot, program);
        }
        slot.masked.store(false, Ordering::SeqCst);
        self.flush(slot);
    }

    /// Enable and function mask changed. `open`: vectors that are not masked themselves deliver.
    pub(super) fn set_open(&self, open: bool) {
        let mut programs = self.lock();
        if open == self.open.load(Ordering::SeqCst) {
            return;
        }
        if !open {
            self.open.store(false, Ordering::SeqCst);
            return;
        }
        for (program, slot) in programs.iter_mut().zip(&self.slots) {
            if !program.masked {
                self.route(slot, program);
            }
        }
        self.open.store(true, Ordering::SeqCst);
        self.slots.iter().for_each(|slot| self.flush(slot));
    }

    /// Nothing waits any more: the capability was disabled.
    pub(super) fn forget_pending(&self) {
        for slot in &self.slots {
            slot.pending.store(false, Ordering::SeqCst);
        }
    }

    /// Back to power-on. Routes that exist stay for the next use.
    pub(super) fn reset(&self, masked: bool) {
        self.set_open(false);
        let mut programs = self.lock();
        for (program, slot) in programs.iter_mut().zip(&self.slots) {
            (program.message, program.masked) = (MsiMessage::default(), masked);
            slot.masked.store(masked, Ordering::SeqCst);
            slot.pending.store(false, Ordering::SeqCst);
        }
    }

    fn delivers(&self, slot: &Slot) -> bool {
        self.open.load(Ordering::SeqCst) && !slot.masked.load(Ordering::SeqCst)
    }

    fn flush(&self, slot: &Slot) {
        if self.delivers(slot) && slot.pending.swap(false, Ordering::SeqCst) {
            slot.fire();
        }
    }

    /// Makes the hypervisor know the message. A failure costs the interrupts of this vector, not the device.
    fn route(&self, slot: &Slot, program: &mut Program) {
        if program.routed == Some(program.message) {
            return;
        }
        let Some(vector) = self.vector_of(slot) else { return };
        match vector.route(program.message) {
            Ok(()) => program.routed = Some(program.message),
            Err(error) => log_limited!(warn, "interrupt message {:?} not routed: {error}", program.message),
        }
    }

    /// The hypervisor's part of a vector, taken when there is none yet.
    fn vector_of<'a>(&self, slot: &'a Slot) -> Option<&'a Arc<dyn MsiVector>> {
        if let Some(vector) = slot.vector.get() {
            return Some(vector);
        }
        match self.allocator.allocate() {
            Ok(vector) => Some(slot.vector.get_or_init(|| vector)),
            Err(error) => {
                log_limited!(warn, "no message-signalled interrupt for a vector of the guest: {error}");
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<[Program]>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Delivers; false when there is nothing to deliver it with.
    fn fire(&self) -> bool {
        self.vector.get().inspect(|vector| vector.trigger()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::irq::RecordingMsi;
    use std::io;
    use std::sync::Weak;
    use vmm_sys_util::eventfd::EventFd;

    const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x31 };

    #[test]
    fn a_trigger_that_loses_the_race_against_unmask_still_delivers() {
        let msi = RecordingMsi::new();
        let vectors = Vectors::new(1, true, msi.clone());
        vectors.set_open(true);
        vectors.set_program(0, MESSAGE, false);
        // The trigger looked before the unmask and goes on after it.
        vectors.defer(&vectors.slots[0]);
        assert_eq!(msi.take(), [MESSAGE]);
        assert!(!vectors.is_pending(0));
    }

    #[test]
    fn a_vector_is_reserved_once_and_refused_when_there_are_no_more() {
        let msi = RecordingMsi::with_limit(1);
        let vectors = Vectors::new(3, true, msi.clone());
        assert!(vectors.reserve(0) && vectors.reserve(0));
        assert!(!vectors.reserve(1));
        assert!(!vectors.reserve(3), "there is no such vector");
        assert_eq!(msi.allocated(), 1);
        vectors.set_open(true);
        vectors.set_program(0, MESSAGE, false);
        vectors.trigger(0);
        assert_eq!((msi.take(), msi.allocated()), (vec![MESSAGE], 1));
    }

    /// An allocator that fails at first.
    struct Short(AtomicBool, Arc<RecordingMsi>);
    impl MsiAllocator for Short {
        fn allocate(&self) -> io::Result<Arc<dyn MsiVector>> {
            match self.0.swap(false, Ordering::SeqCst) {
                true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                false => self.1.allocate(),
            }
        }
    }

    #[test]
    fn a_vector_that_could_not_be_had_is_tried_again() {
        let msi = RecordingMsi::new();
        let vectors = Vectors::new(1, true, Arc::new(Short(AtomicBool::new(true), msi.clone())));
        vectors.set_open(true);
        vectors.set_program(0, MESSAGE, false);
        assert_eq!(msi.allocated(), 0);
        vectors.trigger(0);
        vectors.trigger(0);
        assert_eq!((msi.take(), msi.allocated()), (vec![MESSAGE; 2], 1));
    }

    /// A vector that is triggered in the midst of its own routing.
    #[derive(Default)]
    struct Racing {
        vectors: OnceLock<Weak<Vectors>>,
        delivered: Mutex<usize>,
    }
    struct RacingVector(Arc<Racing>);
    impl MsiAllocator for Arc<Racing> {
        fn allocate(&self) -> io::Result<Arc<dyn MsiVector>> {
            Ok(Arc::new(RacingVector(self.clone())))
        }
    }
    impl MsiVector for RacingVector {
        fn route(&self, _: MsiMessage) -> io::Result<()> {
            self.0.vectors.get().and_then(Weak::upgrade).unwrap().trigger(0);
            Ok(())
        }
        fn trigger(&self) {
            *self.0.delivered.lock().unwrap() += 1;
        }
        fn eventfd(&self) -> Option<&EventFd> {
            None
        }
    }

    #[test]
    fn a_trigger_amid_unmask_delivers_once() {
        for open_first in [true, false] {
            let racing = Arc::new(Racing::default());
            let vectors = Arc::new(Vectors::new(1, true, Arc::new(racing.clone())));
            racing.vectors.set(Arc::downgrade(&vectors)).unwrap();
            vectors.set_open(open_first);
            vectors.set_program(0, MESSAGE, false);
            vectors.set_open(true);
            assert_eq!((*racing.delivered.lock().unwrap(), vectors.is_pending(0)), (1, false));
        }
    }
}
