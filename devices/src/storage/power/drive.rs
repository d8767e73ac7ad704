//! A client that writes, zeroes, flushes and grows, and remembers what it was told.

use std::cell::RefCell;
use std::rc::Rc;

use super::bench::Scenario;
use crate::iothread::record::{Event, Recorder};
use crate::iothread::{Io, TaskPool};
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::storage::{BlockBackend, ByteOffset, Durability, Image, Span, Unmap};
use crate::testing::conformance::Random;
use crate::testing::on_io_thread;
use crate::testing::power::{Ledger, Operation, SECTOR, stamped};

/// Operations of each task.
const STEPS: u32 = 40;

/// A recording, and what the client was told meanwhile.
pub(super) struct Driven {
    pub(super) events: Vec<Event>,
    pub(super) ledger: Ledger,
    /// Length of the disk at the start, in sectors.
    pub(super) sectors: u64,
}

/// Uses an image.
pub(super) fn drive(image: Image, scenario: Scenario, recorder: Recorder, seed: u64, sectors: u64) -> Driven {
    on_io_thread(move |io| async move {
        io.record(&recorder);
        let mut ledger = Ledger::new(recorder.clone());
        ledger.starts_with(sectors);
        let client =
            Rc::new(Client { io: io.clone(), image, ledger: RefCell::new(ledger), scenario, sectors });
        let pool = TaskPool::new(&io, 8);
        let mut random = Random::new(seed);
        let growing = [Task::Grow, Task::AtEnd].into_iter().filter(|_| scenario.grows);
        for task in scenario.spots.iter().map(|spot| Task::About(*spot)).chain(growing) {
            let (client, random) = (client.clone(), Random::new(random.below(u64::MAX)));
            let run = async move {
                match task {
                    Task::About(spot) => client.write_about(spot, random).await,
                    Task::Grow => client.grow(random).await,
                    Task::AtEnd => client.write_at_end(random).await,
                }
            };
            assert!(pool.spawn(run).is_ok());
        }
        pool.drained().await;
        let ticket = client.ledger.borrow_mut().begin(Operation::Flush);
        if random.below(2) == 0 {
            client.image.close(&io).await.unwrap();
            client.ledger.borrow_mut().end(ticket, true);
        }
        let events = recorder.take();
        let Ok(client) = Rc::try_unwrap(client) else { panic!("a task still runs") };
        // Writes tables back, which nothing here looks at any more.
        drop(client.image);
        Driven { events, ledger: client.ledger.into_inner(), sectors }
    })
}

/// Reads sectors of an image that was opened anew.
pub(super) fn read(image: Image, stamps: Vec<(u64, u64)>) -> Result<(), String> {
    on_io_thread(move |io| async move {
        let len = image.geometry().len / SECTOR as u64;
        let mem = SgList::host(SECTOR, 4096).unwrap();
        for (sector, stamp) in stamps.into_iter().filter(|(sector, _)| *sector < len) {
            let into = ToGuest::new(mem.window(0, SECTOR as u64));
            let read = image.read(&io, ByteOffset(sector * SECTOR as u64), into).await;
            read.map_err(|e| format!("{e}: {:?}", e.source))?;
            let mut bytes = [0; SECTOR];
            FromGuest::new(mem.window(0, SECTOR as u64)).read_at(0, &mut bytes);
            let expected = if stamp == 0 { [0; SECTOR] } else { stamped(sector, stamp) };
            if bytes != expected {
                return Err(format!("sector {sector} is read as {:02x?}, not as {stamp}", &bytes[..16]));
            }
        }
        Ok(())
    })
}

#[derive(Clone, Copy)]
enum Task {
    About(u64),
    Grow,
    AtEnd,
}

struct Client {
    io: Io,
    image: Image,
    ledger: RefCell<Ledger>,
    scenario: Scenario,
    sectors: u64,
}

impl Client {
    async fn write_about(&self, spot: u64, mut random: Random) {
        let end = (spot + self.scenario.spot).min(self.sectors);
        if self.scenario.fills {
            self.write(spot, end - spot, false).await;
        }
        for _ in 0..STEPS {
            let first = spot + random.below(end - spot);
            let most = [4, 16, 64, end - first][random.below(4) as usize];
            let count = 1 + random.below(most.min(end - first));
            match random.below(16) {
                0..8 => self.write(first, count, false).await,
                8 => self.write(first, count, true).await,
                9..11 => self.zero(first, count, Unmap::Allowed).await,
                11 => self.zero(spot, end - spot, Unmap::Allowed).await,
                12 => self.zero(first, count, Unmap::Keep).await,
                _ => self.flush().await,
            }
        }
    }

    async fn write(&self, first: u64, count: u64, force: bool) {
        let stamp = self.ledger.borrow_mut().stamp();
        let ticket = self.ledger.borrow_mut().begin(Operation::Write { first, count, stamp });
        let bytes: Vec<u8> = (first..first + count).flat_map(|sector| stamped(sector, stamp)).collect();
        let mem = ToGuest::new(SgList::host(bytes.len(), 4096).unwrap());
        mem.write_at(0, &bytes);
        let durability = if force { Durability::Stable } else { Durability::Cached };
        let from = FromGuest::new(mem.into_inner());
        self.image.write(&self.io, ByteOffset(first * SECTOR as u64), from, durability).await.unwrap();
        self.ledger.borrow_mut().end(ticket, force || self.scenario.cache.is_stable());
    }

    async fn zero(&self, first: u64, count: u64, unmap: Unmap) {
        let ticket = self.ledger.borrow_mut().begin(Operation::Write { first, count, stamp: 0 });
        let span = Span { at: ByteOffset(first * SECTOR as u64), len: count * SECTOR as u64 };
        self.image.zero(&self.io, span, unmap).await.unwrap();
        self.ledger.borrow_mut().end(ticket, self.scenario.cache.is_stable());
    }

    async fn flush(&self) {
        let ticket = self.ledger.borrow_mut().begin(Operation::Flush);
        self.image.flush(&self.io).await.unwrap();
        self.ledger.borrow_mut().end(ticket, true);
    }

    async fn grow(&self, mut random: Random) {
        for _ in 0..2 {
            self.io.sleep(std::time::Duration::from_micros(random.below(3000))).await;
            let now = self.image.geometry().len / SECTOR as u64;
            let more = 1 + random.below(1500);
            let zeros = Operation::Write { first: now, count: more, stamp: 0 };
            let ticket = self.ledger.borrow_mut().begin(zeros);
            self.ledger.borrow_mut().ask_length(now + more);
            self.image.grow(&self.io, (now + more) * SECTOR as u64).await.unwrap();
            // A raw file says so when it is synced.
            if self.scenario.shape.is_none() {
                self.flush().await;
            }
            self.ledger.borrow_mut().end(ticket, true);
            self.ledger.borrow_mut().told_length();
        }
    }

    /// Uses what is new as soon as the disk says that it has it.
    async fn write_at_end(&self, mut random: Random) {
        for _ in 0..STEPS / 2 {
            let end = self.image.geometry().len / SECTOR as u64;
            if end > self.sectors {
                let count = 1 + random.below(4.min(end - self.sectors));
                self.write(end - count, count, random.below(3) == 0).await;
            }
            match random.below(3) {
                0 => self.flush().await,
                _ => self.io.sleep(std::time::Duration::from_micros(random.below(500))).await,
            }
        }
    }
}
