//! The reply ring in guest memory: contexts of completed frames (`megasas_init_queue_info`).

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use devices::mem::{Dma, DmaError};
use zerocopy::little_endian::U32;

use crate::spec::{QUEUE_CONTEXT64, QueueInfo, Status};

/// A ring that a driver has set up.
#[derive(Debug)]
pub(crate) struct ReplyRing {
    entries: u32,
    wide: bool,
    base: u64,
    producer_at: u64,
    consumer_at: u64,
    producer: u32,
    /// Contexts that the ring had no room for.
    held: VecDeque<u64>,
    max_held: usize,
}

/// A ring that cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    /// The memory of the ring is gone.
    #[error("reply ring")]
    Memory(#[from] DmaError),
    /// The driver sends commands and takes no completion.
    #[error("the driver does not empty the reply ring")]
    Stuck,
}

impl ReplyRing {
    /// The ring that `info` describes, for at most `max_commands` commands in flight.
    pub(crate) fn open(dma: &Dma, info: &QueueInfo, max_commands: u16) -> Result<Self, Status> {
        let entries = info.reply_queue_entries.get();
        if !(1..=u32::from(max_commands) + 1).contains(&entries) {
            return Err(Status::InvalidParameter);
        }
        let wide = info.flags.get() & QUEUE_CONTEXT64 != 0;
        let len = entries * if wide { 8 } else { 4 };
        let (base, producer_at) = (info.reply_queue.get(), info.producer_index.get());
        let consumer_at = info.consumer_index.get();
        let memory = [(base, len), (producer_at, 4), (consumer_at, 4)];
        dma.to_guest(memory).map_err(|_| Status::InvalidParameter)?;
        let producer: U32 = dma.read_obj(producer_at).map_err(|_| Status::InvalidParameter)?;
        if producer.get() >= entries {
            return Err(Status::InvalidParameter);
        }
        Ok(Self {
            entries,
            wide,
            base,
            producer_at,
            consumer_at,
            producer: producer.get(),
            held: VecDeque::with_capacity(usize::from(max_commands)),
            max_held: usize::from(max_commands),
        })
    }

    /// Appends `contexts`, after those that wait for room; returns whether any was appended.
    ///
    /// Entries are visible before the producer index that covers them.
    pub(crate) fn post(&mut self, dma: &Dma, contexts: impl Iterator<Item = u64>) -> Result<bool, RingError> {
        self.held.extend(contexts);
        if self.held.is_empty() {
            return Ok(false);
        }
        let mut room = self.room(dma)?;
        let before = self.producer;
        while room > 0
            && let Some(context) = self.held.pop_front()
        {
            room -= 1;
            if self.wide {
                dma.write(self.base + 8 * u64::from(self.producer), &context.to_le_bytes())?;
            } else {
                dma.write(self.base + 4 * u64::from(self.producer), &(context as u32).to_le_bytes())?;
            }
            self.producer = (self.producer + 1) % self.entries;
        }
        if self.held.len() > self.max_held {
            return Err(RingError::Stuck);
        }
        if self.producer == before {
            return Ok(false);
        }
        fence(Ordering::Release);
        dma.write(self.producer_at, &self.producer.to_le_bytes())?;
        Ok(true)
    }

    /// Whether completions wait for room.
    pub(crate) fn holds_back(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether there are entries that the driver has not taken yet. What is no index says nothing.
    pub(crate) fn has_unread(&self, dma: &Dma) -> bool {
        dma.read_obj::<U32>(self.consumer_at).map_or(true, |consumer| consumer.get() != self.producer)
    }

    /// Entries that may be written. One stays empty, to tell full from empty.
    fn room(&self, dma: &Dma) -> Result<u32, DmaError> {
        let consumer: U32 = dma.read_obj(self.consumer_at)?;
        let consumer = consumer.get();
        // What is no index says nothing: a driver under reset marks it so.
        if consumer >= self.entries {
            return Ok(self.entries - 1);
        }
        Ok((consumer + self.entries - self.producer - 1) % self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::mem::GuestRam;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    fn memory() -> (Arc<GuestRam>, Dma) {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        (ram, dma)
    }

    fn info(entries: u32, flags: u32) -> QueueInfo {
        QueueInfo {
            flags: flags.into(),
            reply_queue_entries: entries.into(),
            reply_queue: 0x1000.into(),
            producer_index: 0x2000.into(),
            consumer_index: 0x2004.into(),
        }
    }

    fn word(ram: &GuestRam, at: u64) -> u32 {
        ram.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn rule_2_wraps_at_the_entries_of_the_guest() {
        let (ram, dma) = memory();
        // 129 entries, as FreeBSD.
        let mut ring = ReplyRing::open(&dma, &info(129, 0), 1008).unwrap();
        ram.write_obj(0x5555_5555_u32, GuestAddress(0x1000 + 4 * 129)).unwrap();
        for round in 0..300_u32 {
            assert!(ring.post(&dma, std::iter::once(u64::from(round))).unwrap());
            assert_eq!(word(&ram, 0x1000 + 4 * u64::from(round % 129)), round);
            assert_eq!(word(&ram, 0x2000), (round + 1) % 129);
            ram.write_obj((round + 1) % 129, GuestAddress(0x2004)).unwrap();
        }
        assert_eq!(word(&ram, 0x1000 + 4 * 129), 0x5555_5555);
    }

    #[test]
    fn what_the_driver_has_taken_is_not_unread() {
        let (ram, dma) = memory();
        let mut ring = ReplyRing::open(&dma, &info(4, 0), 8).unwrap();
        assert!(!ring.has_unread(&dma));
        ring.post(&dma, 1..=2).unwrap();
        for (consumer, unread) in [(0_u32, true), (1, true), (2, false), (0xdead_dead, true)] {
            ram.write_obj(consumer, GuestAddress(0x2004)).unwrap();
            assert_eq!(ring.has_unread(&dma), unread);
        }
    }

    #[test]
    fn contexts_of_64_bits() {
        let (ram, dma) = memory();
        let mut ring = ReplyRing::open(&dma, &info(4, 2), 1008).unwrap();
        ring.post(&dma, [0x1122_3344_5566_7788, 2].into_iter()).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x1008)).unwrap(), 2);
    }

    #[test]
    fn a_full_ring_holds_back_and_never_overwrites() {
        let (ram, dma) = memory();
        let mut ring = ReplyRing::open(&dma, &info(4, 0), 8).unwrap();
        assert!(ring.post(&dma, 1..=5).unwrap());
        assert_eq!((word(&ram, 0x2000), ring.holds_back()), (3, true));
        assert!(!ring.post(&dma, std::iter::empty()).unwrap());
        ram.write_obj(2_u32, GuestAddress(0x2004)).unwrap();
        assert!(ring.post(&dma, std::iter::empty()).unwrap());
        assert_eq!([0x1000, 0x1004, 0x1008, 0x100c].map(|at| word(&ram, at)), [5, 2, 3, 4]);
        assert!(!ring.holds_back());
        assert!(matches!(ring.post(&dma, 0..20), Err(RingError::Stuck)));
    }

    #[test]
    fn cve_2016_5107_and_2020_13362_indices_are_checked() {
        let (ram, dma) = memory();
        for producer in [4_u32, 5, 0x7fff_ffff, u32::MAX] {
            ram.write_obj(producer, GuestAddress(0x2000)).unwrap();
            assert_eq!(ReplyRing::open(&dma, &info(4, 0), 8).unwrap_err(), Status::InvalidParameter);
        }
        ram.write_obj(3_u32, GuestAddress(0x2000)).unwrap();
        let mut ring = ReplyRing::open(&dma, &info(4, 0), 8).unwrap();
        for consumer in [0xdead_dead_u32, u32::MAX, 4] {
            ram.write_obj(consumer, GuestAddress(0x2004)).unwrap();
            assert!(ring.post(&dma, std::iter::once(9)).unwrap(), "not an index: no reason to wait");
        }
    }

    #[test]
    fn rings_that_cannot_be() {
        let (_, dma) = memory();
        let outside = |change: fn(&mut QueueInfo)| {
            let mut info = info(4, 0);
            change(&mut info);
            ReplyRing::open(&dma, &info, 8).unwrap_err()
        };
        assert_eq!(outside(|info| info.reply_queue_entries = 0.into()), Status::InvalidParameter);
        assert_eq!(outside(|info| info.reply_queue_entries = 10.into()), Status::InvalidParameter);
        assert_eq!(outside(|info| info.reply_queue = 0xfffc.into()), Status::InvalidParameter);
        assert_eq!(outside(|info| info.reply_queue = (u64::MAX - 3).into()), Status::InvalidParameter);
        assert_eq!(outside(|info| info.producer_index = 0xfe00_0000.into()), Status::InvalidParameter);
        assert_eq!(outside(|info| info.consumer_index = 0xfe00_0000.into()), Status::InvalidParameter);
        assert!(ReplyRing::open(&dma, &info(9, 0), 8).is_ok(), "as many as the status word says, and one");
    }
}
