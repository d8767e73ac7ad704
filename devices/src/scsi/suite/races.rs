//! Commands, their ends and task management functions at the same time on many threads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::local::{Request, target_of};
use super::{BLOCK, RecordingDisk, config, image};
use crate::iothread::Io;
use crate::scsi::{
    Disk, Image, LogicalUnit, Lun, Nexus, Status, Tag, Target, TaskAttribute, TaskManagement, TransportFault,
};

const THREADS: u64 = 4;
const TASKS: u64 = 8;
/// Commands of one task in the short form.
const ROUNDS: u64 = 150;
/// And in the long one: over a million commands in all.
const MANY_ROUNDS: u64 = 16_000;

/// Ends of commands, by kind.
#[derive(Default)]
struct Ends {
    good: AtomicU64,
    attention: AtomicU64,
    aborted: AtomicU64,
    reset: AtomicU64,
    status: AtomicU64,
}

impl Ends {
    fn all(&self) -> u64 {
        [&self.good, &self.attention, &self.aborted, &self.reset, &self.status]
            .into_iter()
            .map(|count| count.load(Ordering::SeqCst))
            .sum()
    }
}

/// Wakes one task of a thread's executor.
struct TaskWaker {
    thread: Thread,
    ready: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Runs tasks to their end, each polled only when it was woken: a lost wake-up hangs the test.
fn run_all(tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut tasks: Vec<_> = tasks
        .into_iter()
        .map(|task| {
            let waker = TaskWaker { thread: thread::current(), ready: AtomicBool::new(true) };
            (Some(task), Arc::new(waker))
        })
        .collect();
    while tasks.iter().any(|(task, _)| task.is_some()) {
        let mut idle = true;
        for (slot, waker) in &mut tasks {
            if !waker.ready.swap(false, Ordering::SeqCst) {
                continue;
            }
            let Some(task) = slot else { continue };
            idle = false;
            if task.as_mut().poll(&mut Context::from_waker(&Waker::from(waker.clone()))) == Poll::Ready(()) {
                *slot = None;
            }
        }
        if idle {
            thread::park();
        }
    }
}

fn attribute(n: u64) -> TaskAttribute {
    match n % 11 {
        3 => TaskAttribute::Ordered,
        7 => TaskAttribute::HeadOfQueue,
        _ => TaskAttribute::Simple,
    }
}

async fn commands(nexus: &Nexus, io: &Io, task: u64, rounds: u64, ends: &Ends) {
    for round in 0..rounds {
        let mut request = match round % 3 {
            0 => Request::new(&[0x2a, 0, 0, 0, 0, task as u8, 0, 0, 1, 0], &[round as u8; BLOCK], 0),
            1 => Request::new(&[0x28, 0, 0, 0, 0, task as u8, 0, 0, 1, 0], &[], BLOCK),
            _ => Request::new(&[0x2f, 0, 0, 0, 0, 0, 0, 0, 200, 0], &[], 0),
        };
        request.tag = task << 32 | round;
        request.attribute = attribute(task * 31 + round);
        let count = match request.send(nexus, io).await.0 {
            Ok(reply) if reply.status == Status::Good => &ends.good,
            Ok(reply) if reply.status == Status::CheckCondition => &ends.attention,
            Ok(_) => &ends.status,
            Err(TransportFault::Aborted) => &ends.aborted,
            Err(TransportFault::Reset) => &ends.reset,
            Err(fault) => panic!("{fault:?}"),
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

async fn managers(nexus: &Nexus, io: &Io, task: u64, rounds: u64) {
    let lun = Lun::default();
    for round in 0..rounds / 2 {
        let function = match (task + round) % 16 {
            0 => TaskManagement::LogicalUnitReset(lun),
            1 => TaskManagement::NexusReset,
            2 => TaskManagement::ClearTaskSet(lun),
            3 | 4 => TaskManagement::AbortTaskSet(lun),
            n => TaskManagement::AbortTask(lun, Tag(((n % TASKS) << 32) | (round * 2))),
        };
        nexus.manage(io, function).await;
        yield_once().await;
    }
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn worker(target: &Arc<Target>, shared: Option<&Arc<Nexus>>, rounds: u64, ends: &Ends) {
    let io = Io::for_test();
    let nexus = shared.cloned().unwrap_or_else(|| Nexus::new(target.clone(), None));
    let mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
    for task in 0..TASKS {
        tasks.push(Box::pin(commands(&nexus, &io, task, rounds, ends)));
    }
    tasks.push(Box::pin(managers(&nexus, &io, 1, rounds)));
    tasks.push(Box::pin(managers(&nexus, &io, 9, rounds)));
    run_all(tasks);
}

/// Opens and closes the image's gate until all workers are done.
fn gate(image: &RecordingDisk, working: &AtomicUsize) {
    while working.load(Ordering::SeqCst) > 0 {
        image.hold(true);
        thread::yield_now();
        image.hold(false);
        thread::yield_now();
    }
    image.hold(false);
}

/// Takes the unit away and brings another one with the same image, until all workers are done.
fn swap(target: &Target, image: &Arc<Image>, working: &AtomicUsize) {
    while working.load(Ordering::SeqCst) > 0 {
        assert!(super::local::block_on(target.detach(Lun::default())).is_some(), "there was a unit");
        let disk = Disk::new(image.clone(), config()).unwrap();
        target.attach(Lun::default(), LogicalUnit::Disk(disk)).unwrap();
        thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Races until commands ended in every way, which one short race need not bring.
fn race(shared: bool, removal: bool, rounds: u64) {
    let mut missing = vec!["good", "aborted", "reset"];
    for _ in 0..20 {
        let ends = race_once(shared, removal, rounds);
        let seen = [("good", ends.good), ("aborted", ends.aborted), ("reset", ends.reset)];
        missing.retain(|kind| {
            seen.iter().any(|(other, count)| other == kind && count.load(Ordering::SeqCst) == 0)
        });
        if missing.is_empty() {
            return;
        }
    }
    panic!("no command ended as {missing:?}: the race tests nothing");
}

fn race_once(shared: bool, removal: bool, rounds: u64) -> Ends {
    let image = Arc::new(Image::Recording(image()));
    let target = target_of(LogicalUnit::Disk(Disk::new(image.clone(), config()).unwrap()));
    let nexus = shared.then(|| Nexus::new(target.clone(), None));
    let (ends, working) = (Ends::default(), AtomicUsize::new(THREADS as usize));
    let Image::Recording(ram) = &*image else { panic!("another kind of image") };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                worker(&target, nexus.as_ref(), rounds, &ends);
                working.fetch_sub(1, Ordering::SeqCst);
            });
        }
        scope.spawn(|| gate(ram, &working));
        if removal {
            scope.spawn(|| swap(&target, &image, &working));
        }
    });
    assert_eq!(ends.all(), THREADS * TASKS * rounds, "each command ends once");
    // Nothing is left behind in the task set.
    let probe = Nexus::new(target, None);
    super::local::block_on(async {
        let io = Io::for_test();
        let mut ordered = Request::new(&[0; 6], &[], 0);
        ordered.attribute = TaskAttribute::Ordered;
        ordered.send(&probe, &io).await.0.unwrap();
    });
    ends
}

#[test]
fn several_initiators() {
    race(false, false, ROUNDS);
}

#[test]
fn one_initiator_on_several_threads() {
    race(true, false, ROUNDS);
}

#[test]
fn units_come_and_go() {
    race(false, true, ROUNDS);
}

/// `cargo test --release -p devices races -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_million_commands() {
    race(false, true, MANY_ROUNDS);
    race(true, true, MANY_ROUNDS);
}
