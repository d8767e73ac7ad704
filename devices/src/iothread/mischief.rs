//! A host that misbehaves, for tests: operations of one I/O thread fail, come short or take long, as a plan says.
//!
//! What comes short really moves that much, so what is in the file is what the kernel would have left there.

use std::cell::{Cell, RefCell};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::op::{Op, segments};
use super::ring::Outcome;
use super::{Io, Running};
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::testing::conformance::Random;

/// What is done to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    /// It fails with this error number and does nothing.
    Fail(i32),
    /// It takes so long, and then fails with this error number and has done nothing.
    FailLate(Duration, i32),
    /// It is done, and yet fails with this error number.
    Doubt(i32),
    /// It moves this many bytes at most. Nothing happens to what is no transfer.
    Short(u64),
    /// It takes longer.
    Delay(Duration),
    /// The host does not answer, and the operation cannot be cancelled, until [`Io::answer`].
    Hang,
}

/// An operation as a plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A read.
    Read {
        /// Where in the file, in bytes.
        at: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// A write.
    Write {
        /// Where in the file, in bytes.
        at: u64,
        /// How much, in bytes.
        len: u64,
        /// To be on stable storage when it ends.
        stable: bool,
    },
    /// fdatasync(2)
    Sync,
    /// fallocate(2)
    Allocate,
}

/// How bad a host is, see [`host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Nothing happens.
    Good,
    /// Transfers take long and come short, by multiples of so many bytes.
    Slow(u64),
    /// Also, operations fail, but for those that make data stable: the first such failure is for good.
    Bad(u64),
}

/// A plan by chance, the same for the same seed.
pub fn host(host: Host, seed: u64) -> impl FnMut(Victim) -> Option<Trick> {
    let mut random = Random::new(seed);
    let (unit, fails) = match host {
        Host::Good => (u64::MAX, false),
        Host::Slow(unit) => (unit, false),
        Host::Bad(unit) => (unit, true),
    };
    move |victim| {
        let fail = |error| fails.then_some(Trick::Fail(error));
        match (victim, random.below(100)) {
            (Victim::Read { len, .. } | Victim::Write { len, .. }, 0..12) if len > unit => {
                Some(Trick::Short((1 + random.below(len / unit - 1)) * unit))
            }
            (Victim::Sync | Victim::Write { stable: true, .. }, 12..=13) => None,
            (_, 12..=13) => fail(libc::EIO),
            (Victim::Write { .. } | Victim::Allocate, 14) => fail(libc::ENOSPC),
            (Victim::Read { .. } | Victim::Write { .. }, 15) => Some(Trick::Fail(libc::EINTR)),
            (Victim::Read { .. } | Victim::Write { .. }, 16) => Some(Trick::Fail(libc::EAGAIN)),
            (_, 17..20) => Some(Trick::Delay(Duration::from_micros(random.below(3000)))),
            _ => None,
        }
    }
}

type Plan = dyn FnMut(Victim) -> Option<Trick>;

/// Data that the host has lost: each descriptor hears of it once.
struct Loss {
    error: i32,
    /// Writes that are not forced hear of it as well.
    any_write: bool,
    heard: Vec<i32>,
}

/// The plan of a thread.
#[derive(Default)]
pub(super) struct Mischief(RefCell<Option<Box<Plan>>>, RefCell<Option<Loss>>, Cell<Option<u64>>);

impl Mischief {
    /// Whether the host does not answer this one, see [`Io::hang_from`].
    pub(super) fn hangs(&self, op: &Op) -> bool {
        let (Op::Read { at, mem, .. } | Op::Write { at, mem, .. }) = op else { return false };
        self.2.get().is_some_and(|from| *at + mem.len() > from)
    }

    pub(super) fn is_planned(&self) -> bool {
        self.0.borrow().is_some() || self.1.borrow().is_some()
    }
}

impl Io {
    /// From now on `plan` decides about every operation of this thread on files.
    pub fn plot(&self, plan: impl FnMut(Victim) -> Option<Trick> + 'static) {
        *self.core.mischief.0.borrow_mut() = Some(Box::new(plan));
    }

    /// Everything works again.
    pub fn repent(&self) {
        *self.core.mischief.0.borrow_mut() = None;
        *self.core.mischief.1.borrow_mut() = None;
        self.core.mischief.2.set(None);
    }

    /// The host has lost what it had taken: the next fdatasync(2) or forced write on each descriptor fails with this
    /// error, once. On network file systems the next write of any kind does (Linux, `nfs_file_write`).
    pub fn lose(&self, error: i32, any_write: bool) {
        *self.core.mischief.1.borrow_mut() = Some(Loss { error, any_write, heard: Vec::new() });
    }

    /// Whether `op` is told of a loss.
    fn tells(&self, op: &Op) -> Option<i32> {
        let mut loss = self.core.mischief.1.borrow_mut();
        let loss = loss.as_mut()?;
        let file = match op {
            Op::Sync { file, .. } => file,
            Op::Write { file, stable, .. } if *stable || loss.any_write => file,
            _ => return None,
        };
        let file = file.as_raw_fd();
        if loss.heard.contains(&file) {
            return None;
        }
        loss.heard.push(file);
        Some(loss.error)
    }

    /// From now on the host answers no transfer that reaches beyond this offset of a file. A plan is not needed for that: what
    /// is one operation stays one.
    pub fn hang_from(&self, at: u64) {
        self.core.mischief.2.set(Some(at));
    }

    pub(super) fn hang(&self, op: Op) -> Running<'_> {
        let key = self.core.ring.borrow_mut().start_stuck(op, self.core.scope.get());
        Running { core: &self.core, key: Some(key) }
    }

    /// Operations that hang.
    pub fn hanging(&self) -> usize {
        self.core.ring.borrow().hanging()
    }

    /// The host does all operations that hang, late as it is.
    pub fn land(&self) {
        let mut reaped = super::ring::Reaped::default();
        self.core.ring.borrow_mut().end_stuck(carry_out, &mut reaped);
        reaped.settle();
    }

    /// The host answers all operations that hang: they fail.
    pub fn answer(&self) {
        let mut reaped = super::ring::Reaped::default();
        self.core.ring.borrow_mut().unstick(&mut reaped);
        reaped.settle();
    }

    /// Runs `op` as the plan says; gives it back when nothing is to happen to it.
    pub(super) async fn meddle(&self, op: Op) -> Result<Outcome, Op> {
        let op = match self.follow(op).await {
            Ok(outcome) => return Ok(outcome),
            Err(op) => op,
        };
        match self.tells(&op) {
            Some(error) => Ok(Outcome { result: -error, count: 0, op }),
            None => Err(op),
        }
    }

    async fn follow(&self, op: Op) -> Result<Outcome, Op> {
        let victim = match &op {
            Op::Read { at, mem, first, .. } => Victim::Read { at: *at, len: length(mem, *first) },
            Op::Write { at, mem, first, stable, .. } => {
                Victim::Write { at: *at, len: length(mem, *first), stable: *stable }
            }
            Op::Sync { .. } => Victim::Sync,
            Op::Allocate { .. } => Victim::Allocate,
            _ => return Err(op),
        };
        let trick = self.core.mischief.0.borrow_mut().as_mut().and_then(|plan| plan(victim));
        match trick {
            None => Err(op),
            Some(Trick::Fail(error)) => Ok(Outcome { result: -error, count: 0, op }),
            Some(Trick::FailLate(time, error)) => {
                self.perform(Op::Sleep(time)).await;
                Ok(Outcome { result: -error, count: 0, op })
            }
            Some(Trick::Doubt(error)) => {
                let outcome = self.perform(op).await;
                Ok(Outcome { result: -error, ..outcome })
            }
            Some(Trick::Delay(time)) => {
                self.perform(Op::Sleep(time)).await;
                Err(op)
            }
            Some(Trick::Hang) => Ok(self.hang(op).await),
            Some(Trick::Short(len)) => self.shorten(op, len).await,
        }
    }

    async fn shorten(&self, mut op: Op, len: u64) -> Result<Outcome, Op> {
        let (Op::Read { mem, first, .. } | Op::Write { mem, first, .. }) = &mut op else { return Err(op) };
        let (whole, start) = (std::mem::replace(mem, SgList::empty()), *first);
        let before: u64 = whole.iovecs().iter().take(start).map(|part| part.iov_len as u64).sum();
        (*mem, *first) = (whole.window(before, len.min(length(&whole, start))), 0);
        let mut outcome = self.perform(op).await;
        if let Op::Read { mem, first, .. } | Op::Write { mem, first, .. } = &mut outcome.op {
            (*mem, *first) = (whole, start);
        }
        Ok(outcome)
    }
}

/// What the kernel does with a transfer, and its result.
fn carry_out(op: &Op) -> i32 {
    const PAGE: usize = 4096;
    let (Op::Read { mem, first, .. } | Op::Write { mem, first, .. }) = op else { return 0 };
    let before: u64 = mem.iovecs().iter().take(*first).map(|part| part.iov_len as u64).sum();
    let memory = mem.window(before, length(mem, *first));
    // Aligned as direct I/O may want it: Linux refuses 512 bytes that lie across two pages.
    let mut room = vec![0; memory.len() as usize + PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    let Some(bytes) = room.get_mut(start..).and_then(|room| room.get_mut(..memory.len() as usize)) else {
        return -libc::EIO;
    };
    let moved = match op {
        Op::Read { file, at, .. } => file.read_at(bytes, *at).inspect(|moved| {
            ToGuest::new(memory).write_at(0, bytes.get(..*moved).unwrap_or_default());
        }),
        Op::Write { file, at, .. } => {
            FromGuest::new(memory).read_at(0, bytes);
            file.write_at(bytes, *at)
        }
        _ => Ok(0),
    };
    moved.map_or(-libc::EIO, |moved| moved as i32)
}

fn length(mem: &SgList, first: usize) -> u64 {
    segments(mem, first).iter().map(|part| part.iov_len as u64).sum()
}
