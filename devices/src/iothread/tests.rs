mod alloc;
mod blocking;
mod stress;

use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use vm_memory::GuestAddress;

use super::*;
use crate::mem::{Dma, GuestRam};

/// Runs `make`'s future on a fresh I/O thread and gives back its result.
fn on_thread<T, F, M>(make: M) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce(Io) -> F + Send + 'static,
{
    on_thread_with(Settings::default(), make)
}

fn on_thread_with<T, F, M>(settings: Settings, make: M) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce(Io) -> F + Send + 'static,
{
    let thread = IoThread::with("test", settings).unwrap();
    let (tx, rx) = mpsc::channel();
    thread.remote().spawn(move |io| {
        let future = make(io);
        async move { tx.send(future.await).unwrap() }
    });
    rx.recv_timeout(Duration::from_secs(60)).expect("the task ended")
}

fn pipe() -> (Arc<File>, File) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors, which nobody else owns.
    #[allow(unsafe_code, clippy::multiple_unsafe_ops_per_block)]
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (Arc::new(File::from(OwnedFd::from_raw_fd(ends[0]))), File::from(OwnedFd::from_raw_fd(ends[1])))
    }
}

fn buffer(len: usize) -> ToGuest {
    ToGuest::new(SgList::host(len, 16).unwrap())
}

fn bytes_of(list: ToGuest) -> Vec<u8> {
    let mut bytes = vec![0; list.len() as usize];
    FromGuest::new(list.into_inner()).read_at(0, &mut bytes);
    bytes
}

fn filled(bytes: &[u8]) -> FromGuest {
    let list = buffer(bytes.len());
    assert_eq!(list.write_at(0, bytes), bytes.len());
    FromGuest::new(list.into_inner())
}

/// Polls `future` once with the caller's waker.
async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn writes_and_reads_a_file() {
    on_thread(|io| async move {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (done, _) = io.write(&file, 10, filled(b"hello"), true).await;
        assert_eq!(done.unwrap(), 5);
        io.sync(&file).await.unwrap();
        io.allocate(&file, libc::FALLOC_FL_KEEP_SIZE, 0, 4096).await.unwrap();
        let (got, mem) = io.read(&file, 8, buffer(20)).await;
        assert_eq!(got.unwrap(), 7, "short at the end of the file");
        assert_eq!(&bytes_of(mem)[..8], b"\0\0hello\0");
        let (got, _) = io.read(&file, 15, buffer(4)).await;
        assert_eq!(got.unwrap(), 0);
        let (got, mem) = io.read(&file, u64::MAX, buffer(4)).await;
        assert_eq!((got.unwrap_err().kind(), mem.len()), (io::ErrorKind::InvalidInput, 4));
        let (got, _) = io.read(&file, 0, ToGuest::empty()).await;
        assert_eq!(got.unwrap(), 0);
    });
}

#[test]
fn errors_come_back_with_the_memory() {
    on_thread(|io| async move {
        let null = Arc::new(File::open("/dev/null").unwrap());
        let (done, mem) = io.write(&null, 0, filled(b"x"), false).await;
        assert_eq!((done.unwrap_err().raw_os_error(), mem.len()), (Some(libc::EBADF), 1));
        assert_eq!(io.allocate(&null, 0, 0, 1).await.unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn lists_longer_than_the_system_takes_are_split() {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let dma = Dma::new(Arc::new(ram));
    dma.set_bus_master(true);
    // Every other 512 bytes, so that nothing merges: 2500 segments.
    let parts = |base: u64| (0..2500).map(move |i| (base + i * 1024, 512));
    let data: Vec<u8> = (0..2500 * 512).map(|i: u32| (i / 512 + i) as u8).collect();
    let out = dma.to_guest(parts(0)).unwrap();
    assert_eq!(out.segments(), 2500);
    assert_eq!(out.write_at(0, &data), data.len());
    let back = on_thread(move |io| async move {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (done, _) = io.write(&file, 0, FromGuest::new(out.into_inner()), false).await;
        assert_eq!(done.unwrap(), 2500 * 512);
        let (done, mem) = io.read(&file, 512, dma.to_guest(parts(8 << 20)).unwrap()).await;
        assert_eq!((done.unwrap(), mem.len()), (2499 * 512, 2500 * 512));
        bytes_of(mem)
    });
    assert!(back[..2499 * 512] == data[512..]);
}

#[test]
fn events_wait_and_keep_their_count() {
    for flags in [0, libc::EFD_NONBLOCK] {
        on_thread(move |io| async move {
            let event = Arc::new(EventFd::new(flags).unwrap());
            event.write(3).unwrap();
            event.write(4).unwrap();
            assert_eq!(io.wait(&event).await.unwrap(), 7);
            let later = event.clone();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                later.write(5).unwrap();
            });
            assert_eq!(io.wait(&event).await.unwrap(), 5);
            ringer.join().unwrap();
            // An abandoned wait takes nothing from the next one.
            {
                let mut wait = pin!(io.wait(&event));
                assert!(poll_once(wait.as_mut()).await.is_pending());
                yield_now().await;
                io.sleep(Duration::from_millis(5)).await;
            }
            io.sleep(Duration::from_millis(20)).await;
            event.write(9).unwrap();
            assert_eq!(io.wait(&event).await.unwrap(), 9);
        });
    }
}

#[test]
fn a_watch_reports_every_signal_to_one_submission() {
    on_thread(|io| async move { report_every_signal(&io, Io::watch).await });
}

/// As before Linux 5.13, with a submission for each.
#[test]
fn a_plain_watch_reports_every_signal() {
    on_thread(|io| async move { report_every_signal(&io, event::Watch::plain).await });
}

async fn report_every_signal(io: &Io, watch: impl Fn(&Io, &Arc<EventFd>) -> Watch) {
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let back = Arc::new(EventFd::new(0).unwrap());
    let (bell, echo) = (event.clone(), back.clone());
    let ringer = std::thread::spawn(move || {
        for _ in 0..2000 {
            bell.write(1).unwrap();
            echo.read().unwrap();
        }
    });
    let mut watch = watch(io, &event);
    for round in 0..2000 {
        // Something else is seen first, and the future is dropped.
        let early = round % 3 > 0 && poll_once(pin!(watch.next())).await.is_ready();
        if !early {
            yield_now().await;
            watch.next().await.unwrap();
        }
        back.write(1).unwrap();
    }
    ringer.join().unwrap();
    // Nothing more came, and a dropped future loses nothing, however far the kernel has got.
    for pause in [0, 5] {
        assert!(poll_once(pin!(watch.next())).await.is_pending());
        {
            let mut next = pin!(watch.next());
            assert!(poll_once(next.as_mut()).await.is_pending());
            io.sleep(Duration::from_millis(pause)).await;
            event.write(1).unwrap();
            io.sleep(Duration::from_millis(pause)).await;
        }
        let next = io.at_most(Duration::from_secs(1), watch.next()).await;
        next.expect("the signal is lost").unwrap();
    }
    drop(watch);
    while Arc::strong_count(&event) > 1 {
        io.sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn timers_keep_their_order() {
    let order = on_thread(|io| async move {
        let order = Rc::new(RefCell::new(Vec::new()));
        let pool = TaskPool::new(&io, 8);
        let start = Instant::now();
        for ms in [30u64, 10, 20, 0] {
            let (io, order) = (io.clone(), order.clone());
            let task = async move {
                io.sleep(Duration::from_millis(ms)).await;
                assert!(start.elapsed() >= Duration::from_millis(ms));
                order.borrow_mut().push(ms);
            };
            assert!(pool.spawn(task).is_ok());
        }
        assert_eq!(pool.running(), 4);
        pool.drained().await;
        assert_eq!(pool.running(), 0);
        order.take()
    });
    assert_eq!(order, [0, 10, 20, 30]);
}

#[test]
fn an_abandoned_read_is_cancelled_and_its_memory_freed() {
    on_thread(|io| async move {
        let (file, mut writer) = pipe();
        for polls in 0..4 {
            let mut read = Box::pin(io.read(&file, 0, buffer(16)));
            for _ in 0..polls {
                assert!(poll_once(read.as_mut()).await.is_pending());
                yield_now().await;
            }
            if polls == 3 {
                // Let the kernel have it for certain.
                io.sleep(Duration::from_millis(5)).await;
            }
            drop(read);
            io.quiesce().await;
            assert_eq!(Arc::strong_count(&file), 1, "after {polls} polls");
        }
        // What comes now belongs to the next reader.
        writer.write_all(b"later").unwrap();
        let (got, mem) = io.read(&file, 0, buffer(16)).await;
        assert_eq!(got.unwrap(), 5);
        assert_eq!(&bytes_of(mem)[..5], b"later");
    });
}

/// How abandoned operations ended.
#[derive(Default)]
struct Ends(Mutex<Vec<i32>>);

impl Claims for Ends {
    fn retain(&self, _: u64) {}
    fn release(&self, _: u64) {}
    fn abandoned(&self, _: u64, result: i32) {
        self.0.lock().unwrap().push(result);
    }
}

#[test]
fn who_holds_something_for_an_abandoned_operation_hears_its_end() {
    on_thread(|io| async move {
        let (file, mut writer) = pipe();
        let ends = Arc::new(Ends::default());
        let other = Arc::new(Ends::default());
        let hold = Hold::new(ends.clone(), 0).with(&Hold::new(other.clone(), 0));
        // One that the kernel has when it is dropped.
        let mut read = Box::pin(io.read_held(&file, 0, buffer(16), PieceLimits::NONE, &hold));
        assert!(poll_once(read.as_mut()).await.is_pending());
        io.sleep(Duration::from_millis(5)).await;
        drop(read);
        io.quiesce().await;
        let cancelled = ends.0.lock().unwrap().clone();
        assert!(matches!(cancelled[..], [end] if end == -libc::ECANCELED || end == -libc::EINTR));
        // One that has ended when it is dropped.
        let mut read = Box::pin(io.read_held(&file, 0, buffer(16), PieceLimits::NONE, &hold));
        assert!(poll_once(read.as_mut()).await.is_pending());
        writer.write_all(b"four").unwrap();
        io.sleep(Duration::from_millis(5)).await;
        drop(read);
        assert_eq!(ends.0.lock().unwrap()[1..], [4]);
        assert_eq!(*other.0.lock().unwrap(), *ends.0.lock().unwrap(), "both claims");
        // One that was waited for: who waited has the result.
        writer.write_all(b"five").unwrap();
        let _ = io.read_held(&file, 0, buffer(16), PieceLimits::NONE, &hold).await;
        assert_eq!(ends.0.lock().unwrap().len(), 2);
    });
}

#[test]
fn an_operation_that_hangs_holds_up_its_own_scope_only() {
    on_thread(|io| async move {
        let file = Arc::new(tempfile::tempfile().unwrap());
        io.plot(|_| Some(mischief::Trick::Hang));
        let (one, other) = (io.scope(), io.scope());
        {
            let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
            let dma = Dma::new(ram);
            dma.set_bus_master(true);
            let mut read = pin!(io.read(&file, 0, dma.to_guest([(0, 512)]).unwrap()));
            let mut read = pin!(io.within(one, read.as_mut()));
            assert!(poll_once(read.as_mut()).await.is_pending());
        }
        let mut released = Box::pin(io.released(one));
        let mut quiet = Box::pin(io.quiesce());
        assert!(poll_once(released.as_mut()).await.is_pending());
        assert!(poll_once(quiet.as_mut()).await.is_pending());
        assert!(poll_once(Box::pin(io.released(other)).as_mut()).await.is_ready(), "another's");
        // What the guest does not see is waited for only where it changes the file.
        for (write, settled) in [(false, true), (true, false)] {
            let scope = io.scope();
            let mut work = Box::pin(async {
                match write {
                    false => drop(io.read(&file, 0, buffer(16)).await),
                    true => drop(io.write(&file, 0, filled(&[1; 16]), false).await),
                }
            });
            assert!(poll_once(Box::pin(io.within(scope, work.as_mut())).as_mut()).await.is_pending());
            drop(work);
            assert!(poll_once(Box::pin(io.released(scope)).as_mut()).await.is_ready());
            assert_eq!(io.is_settled(scope), settled);
        }
        assert_eq!(Arc::strong_count(&file), 4, "the kernel has them still");
        io.answer();
        released.await;
        quiet.await;
        assert_eq!(Arc::strong_count(&file), 1);
    });
}

#[test]
fn spawned_tasks_run_in_the_same_round_and_hooks_after_them() {
    let log = on_thread(|io| async move {
        let log = Rc::new(RefCell::new(Vec::new()));
        let pool = TaskPool::new(&io, 4);
        let said = log.clone();
        let hook = io.at_batch_end(move || said.borrow_mut().push("hook"));
        for _ in 0..2 {
            let log = log.clone();
            assert!(pool.spawn(async move { log.borrow_mut().push("task") }).is_ok());
        }
        log.borrow_mut().push("spawned");
        io.sleep(Duration::from_millis(5)).await;
        drop(hook);
        let so_far = log.borrow().clone();
        yield_now().await;
        io.sleep(Duration::from_millis(5)).await;
        assert_eq!(log.borrow().len(), so_far.len(), "a dropped hook is not called");
        so_far
    });
    assert_eq!(log[..4], ["spawned", "task", "task", "hook"]);
}

#[test]
fn a_dropped_pool_drops_its_tasks() {
    on_thread(|io| async move {
        let witness = Rc::new(());
        let pool = Rc::new(TaskPool::new(&io, 4));
        type Owner = Rc<RefCell<Option<Rc<dyn std::any::Any>>>>;
        let task = |io: Io, held: Rc<()>, pool: Option<Owner>| async move {
            if let Some(pool) = pool {
                // The task that drops its own pool lives to its next await.
                drop(pool.take());
            }
            io.sleep(Duration::from_secs(1000)).await;
            drop(held);
        };
        assert!(pool.spawn(task(io.clone(), witness.clone(), None)).is_ok());
        yield_now().await;
        let cell: Owner = Rc::new(RefCell::new(None));
        assert!(pool.spawn(task(io.clone(), witness.clone(), Some(cell.clone()))).is_ok());
        *cell.borrow_mut() = Some(pool);
        assert_eq!(Rc::strong_count(&witness), 3);
        io.sleep(Duration::from_millis(5)).await;
        assert_eq!(Rc::strong_count(&witness), 1);
    });
}

#[test]
fn a_panic_in_a_task_reaches_the_owner_and_frees_the_rest() {
    let thread = IoThread::start("test").unwrap();
    let (file, _writer) = pipe();
    let (here, ran) = (file.clone(), Arc::new(AtomicBool::new(false)));
    let flag = ran.clone();
    thread.remote().spawn(move |io| async move {
        let (io2, file) = (io.clone(), here);
        io.spawn(async move { drop(io2.read(&file, 0, buffer(16)).await) });
        io.sleep(Duration::from_millis(5)).await;
        flag.store(true, Ordering::SeqCst);
        panic!("on purpose");
    });
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while !ran.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(thread);
    }));
    assert!(ended.is_err());
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn readable_waits_for_input() {
    on_thread(|io| async move {
        let (file, mut writer) = pipe();
        assert!(poll_once(pin!(io.readable(&file))).await.is_pending());
        writer.write_all(b"ab").unwrap();
        io.readable(&file).await.unwrap();
        let mut two = [0; 2];
        (&*file).read_exact(&mut two).unwrap();
        assert_eq!(&two, b"ab");
    });
}

/// Of large transfers each goes to the kernel before the next task runs; small ones go together.
#[test]
fn large_transfers_do_not_wait_for_each_other() {
    for (len, together) in [(4096, true), (128 << 10, false)] {
        let said = on_thread(move |io| async move {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let (file, said) = (Arc::new(file), Rc::new(RefCell::new(String::new())));
            let rounds = said.clone();
            let _hook = io.at_batch_end(move || rounds.borrow_mut().push('-'));
            let ended = Rc::new(Cell::new(0));
            for _ in 0..3 {
                let (io_of, file, said, ended) = (io.clone(), file.clone(), said.clone(), ended.clone());
                io.spawn(async move {
                    said.borrow_mut().push('x');
                    let (count, _) = io_of.read(&file, 0, buffer(len)).await;
                    assert_eq!(count.unwrap(), len as u64);
                    ended.set(ended.get() + 1);
                });
            }
            while ended.get() < 3 {
                io.sleep(Duration::from_millis(1)).await;
            }
            said.take()
        });
        assert_eq!(said.contains("xxx"), together, "{len}: {said}");
        assert_eq!(said.contains("xx"), together, "{len}: {said}");
    }
}

/// What the host has in its cache it copies while it is told of it: a small transfer is done before a large one begins
/// that became ready in the same round.
#[test]
fn a_small_transfer_does_not_wait_for_a_large_one_behind_it() {
    let ends = on_thread(|io| async move {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let (file, round, ends) = (Arc::new(file), Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
        let rounds = round.clone();
        let _hook = io.at_batch_end(move || rounds.set(rounds.get() + 1));
        for len in [4096, 8192, 1 << 20, 512] {
            let (io_of, file, round, ends) = (io.clone(), file.clone(), round.clone(), ends.clone());
            io.spawn(async move {
                let (count, _) = io_of.read(&file, 0, buffer(len)).await;
                assert_eq!(count.unwrap(), len as u64);
                ends.borrow_mut().push((len, round.get()));
            });
        }
        while ends.borrow().len() < 4 {
            io.sleep(Duration::from_millis(1)).await;
        }
        ends.take()
    });
    let round = |wanted| ends.iter().find(|(len, _)| *len == wanted).unwrap().1;
    assert_eq!(round(4096), round(8192), "small ones go together: {ends:?}");
    assert!(round(8192) < round(1 << 20), "{ends:?}");
}

/// A poller that always has work keeps no other from being asked, and each is the first in its turn.
#[test]
fn all_pollers_are_asked_in_turn() {
    struct Counting(&'static str, Rc<RefCell<Vec<&'static str>>>);
    impl Poller for Counting {
        fn poll(&self) -> bool {
            self.1.borrow_mut().push(self.0);
            true
        }
        fn arm(&self) -> bool {
            false
        }
    }
    let settings = Settings { polling: Polling::Fixed(Duration::from_millis(50)), ..Settings::default() };
    let asked = on_thread_with(settings, |io| async move {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let pollers = ["a", "b", "c"].map(|name| Rc::new(Counting(name, asked.clone())) as Rc<dyn Poller>);
        pollers.iter().for_each(|poller| io.add_poller(Rc::downgrade(poller)));
        // Some rounds with nothing else to do, and some with tasks that are ready.
        io.sleep(Duration::from_millis(2)).await;
        for _ in 0..8 {
            yield_now().await;
        }
        asked.take()
    });
    let asked = asked.get(..30).unwrap();
    for round in asked.chunks_exact(3) {
        assert!(["a", "b", "c"].iter().all(|name| round.contains(name)), "{asked:?}");
    }
    let firsts: Vec<_> = asked.chunks_exact(3).map(|round| round[0]).take(6).collect();
    assert!(firsts[0] != firsts[1] && firsts[0] == firsts[3] && firsts[1] == firsts[4], "{firsts:?}");
}

/// Nothing serves the disks behind it any more: whoever has it must hear of it.
#[test]
fn a_ring_that_fails_is_told() {
    let (tell, told) = mpsc::channel();
    let failed = move |e: io::Error| tell.send(e.raw_os_error()).unwrap();
    let thread = IoThread::told("test", Settings::default(), failed).unwrap();
    let (done, dropped) = mpsc::channel::<()>();
    thread.remote().spawn(move |io| {
        crate::testing::forbid_system_call(libc::SYS_io_uring_enter);
        async move {
            let _done = done;
            io.sleep(Duration::from_secs(60)).await;
        }
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Some(libc::EPERM)));
    let end = dropped.recv_timeout(Duration::from_secs(10));
    assert_eq!(end, Err(mpsc::RecvTimeoutError::Disconnected), "its tasks go");
    drop(thread);
}
