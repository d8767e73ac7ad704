//! Many operations, many threads, and futures dropped anywhere.

use super::*;

#[test]
fn a_thread_with_hanging_operations_ends() {
    let thread = IoThread::start("test").unwrap();
    let (file, _writer) = pipe();
    let event = Arc::new(EventFd::new(0).unwrap());
    let (here, bell) = (file.clone(), event.clone());
    let (tx, rx) = mpsc::channel();
    thread.remote().spawn(move |io| async move {
        for _ in 0..600 {
            let (io, file, bell) = (io.clone(), here.clone(), bell.clone());
            let reader = io.clone();
            io.spawn(async move { drop(reader.read(&file, 0, buffer(16)).await) });
            let waiter = io.clone();
            io.spawn(async move { drop(waiter.wait(&bell).await) });
        }
        io.sleep(Duration::from_millis(20)).await;
        tx.send(()).unwrap();
        std::future::pending().await
    });
    rx.recv().unwrap();
    let remote = thread.remote();
    drop(thread);
    assert_eq!((Arc::strong_count(&file), Arc::strong_count(&event)), (1, 1));
    // Too late: must be dropped, not kept.
    let witness = Arc::new(());
    let held = witness.clone();
    remote.spawn(move |_| async move { drop(held) });
    assert_eq!(Arc::strong_count(&witness), 1);
}

#[test]
fn a_full_ring_makes_operations_wait_in_order() {
    const OPS: usize = 5000;
    on_thread(|io| async move {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(OPS as u64 * 8).unwrap();
        let pool = TaskPool::new(&io, OPS);
        let (done, bad) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let task = |i: usize| {
            let (io, file, done, bad) = (io.clone(), file.clone(), done.clone(), bad.clone());
            async move {
                let (result, _) = io.write(&file, i as u64 * 8, filled(&i.to_le_bytes()), false).await;
                let (again, mem) = io.read(&file, i as u64 * 8, buffer(8)).await;
                if result.ok() != Some(8) || again.ok() != Some(8) || bytes_of(mem) != i.to_le_bytes() {
                    bad.set(bad.get() + 1);
                }
                done.set(done.get() + 1);
            }
        };
        for i in 0..OPS {
            assert!(pool.spawn(task(i)).is_ok());
        }
        assert!(pool.spawn(task(0)).is_err(), "the pool is full");
        pool.drained().await;
        assert_eq!((done.get(), bad.get()), (OPS, 0));
        assert!(pool.spawn(task(1)).is_ok(), "slots are free again");
        pool.drained().await;
    });
}

#[test]
fn doorbells_are_armed_even_when_transfers_fill_the_ring() {
    on_thread(|io| async move {
        let (file, mut writer) = pipe();
        for _ in 0..3000 {
            let (io2, file) = (io.clone(), file.clone());
            io.spawn(async move { drop(io2.read(&file, 0, buffer(1)).await) });
        }
        yield_now().await;
        io.sleep(Duration::from_millis(10)).await;
        let event = Arc::new(EventFd::new(0).unwrap());
        let bell = event.clone();
        let ringer = std::thread::spawn(move || bell.write(1).unwrap());
        assert_eq!(io.wait(&event).await.unwrap(), 1);
        ringer.join().unwrap();
        writer.write_all(&[7; 3000]).unwrap();
        while Arc::strong_count(&file) > 1 {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}

/// A counter that other threads raise, waking whoever waits.
#[derive(Default)]
struct Signal {
    count: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Signal {
    fn raise(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
    fn poll(&self, seen: u64, cx: &mut Context<'_>) -> Poll<u64> {
        *self.waker.lock().unwrap() = Some(cx.waker().clone());
        match self.count.load(Ordering::SeqCst) {
            now if now > seen => Poll::Ready(now),
            _ => Poll::Pending,
        }
    }
}

#[test]
fn wakes_from_other_threads_are_never_lost() {
    const ROUNDS: u64 = 100_000;
    let thread = IoThread::start("test").unwrap();
    let (ping, pong) = (Arc::new(Signal::default()), Arc::new(AtomicU64::new(0)));
    let (heard, echo) = (ping.clone(), pong.clone());
    thread.remote().spawn(move |io| async move {
        let (mut seen, mut state) = (0, 77);
        while seen < ROUNDS {
            seen = poll_fn(|cx| heard.poll(seen, cx)).await;
            // Sometimes other work comes first, so that the wake meets a busy, a polling or a sleeping thread.
            match random(&mut state) % 16 {
                0 => yield_now().await,
                1 => io.sleep(Duration::ZERO).await,
                _ => {}
            }
            echo.store(seen, Ordering::SeqCst);
        }
    });
    let mut state = 99;
    for round in 1..=ROUNDS {
        ping.raise();
        let start = Instant::now();
        while pong.load(Ordering::SeqCst) < round {
            if random(&mut state).is_multiple_of(4) {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "wake {round} was lost");
        }
        for _ in 0..random(&mut state) % 64 {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn many_threads_wake_many_tasks() {
    let thread = IoThread::start("test").unwrap();
    let signals: Vec<_> = (0..8).map(|_| Arc::new(Signal::default())).collect();
    let (tx, rx) = mpsc::channel();
    let listeners = signals.clone();
    thread.remote().spawn(move |io| async move {
        for signal in listeners {
            let tx = tx.clone();
            io.spawn(async move {
                let mut seen = 0;
                while seen < 40_000 {
                    seen = poll_fn(|cx| signal.poll(seen, cx)).await;
                }
                tx.send(seen).unwrap();
            });
        }
    });
    std::thread::scope(|scope| {
        for seed in 1..=4u64 {
            let signals = &signals;
            scope.spawn(move || {
                let mut state = seed * 7919;
                for i in 0..80_000 {
                    signals[i % 8].raise();
                    if random(&mut state).is_multiple_of(256) {
                        std::thread::sleep(Duration::from_micros(random(&mut state) % 50));
                    }
                }
            });
        }
    });
    for _ in 0..8 {
        assert_eq!(rx.recv_timeout(Duration::from_secs(20)).unwrap(), 40_000);
    }
}

#[test]
fn futures_may_be_dropped_at_any_point() {
    on_thread(|io| async move {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (hang, _writer) = pipe();
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut state = 4242;
        let pattern = vec![0xa5; 4096];
        for round in 0..20_000u32 {
            let (file, io2, hang, event) = (file.clone(), io.clone(), hang.clone(), event.clone());
            let data = filled(&pattern);
            let kind = random(&mut state) % 5;
            let mut command = Box::pin(async move {
                drop(io2.write(&file, u64::from(round % 64) * 4096, data, false).await);
                match kind {
                    0 => drop(io2.read(&hang, 0, buffer(64)).await),
                    1 => drop(io2.wait(&event).await),
                    2 => io2.sleep(Duration::from_secs(1000)).await,
                    3 => drop(io2.sync(&file).await),
                    _ => drop(io2.read(&file, 0, buffer(4096)).await),
                }
                std::future::pending::<()>().await;
            });
            for _ in 0..random(&mut state) % 4 {
                assert!(poll_once(command.as_mut()).await.is_pending());
                if random(&mut state).is_multiple_of(2) {
                    yield_now().await;
                }
            }
            drop(command);
            if round % 1000 == 0 {
                io.quiesce().await;
            }
        }
        io.quiesce().await;
        while Arc::strong_count(&event) > 1 {
            io.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((Arc::strong_count(&file), Arc::strong_count(&hang)), (1, 1));
    });
}

#[test]
fn a_task_that_never_rests_starves_nobody() {
    on_thread(|io| async move {
        let stop = Rc::new(Cell::new(false));
        let (busy, stopped) = (io.clone(), stop.clone());
        busy.spawn(async move {
            while !stopped.get() {
                yield_now().await;
            }
        });
        let (file, mut writer) = pipe();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            writer.write_all(b"!").unwrap();
        });
        let (got, _) = io.read(&file, 0, buffer(1)).await;
        assert_eq!(got.unwrap(), 1);
        io.sleep(Duration::from_millis(5)).await;
        late.join().unwrap();
        stop.set(true);
    });
}

/// A host that does not answer for a disk, or for a few, takes no room in the ring from another.
#[test]
fn files_that_hang_leave_room_for_the_others() {
    on_thread(|io| async move {
        let files: Vec<_> = (0..4).map(|_| pipe()).collect();
        for (hung, _) in &files {
            for _ in 0..1500 {
                let (reader, file) = (io.clone(), hung.clone());
                io.spawn(async move { drop(reader.read(&file, 0, buffer(1)).await) });
            }
        }
        io.sleep(Duration::from_millis(5)).await;
        let file = Arc::new(tempfile::tempfile().unwrap());
        let work = async {
            for at in 0..200 {
                io.write(&file, at, filled(&[at as u8]), false).await.0.unwrap();
            }
            io.sync(&file).await.unwrap();
            bytes_of(io.read(&file, 100, buffer(3)).await.1)
        };
        let done = io.at_most(Duration::from_secs(20), work).await;
        assert_eq!(done.as_deref(), Some(&[100, 101, 102][..]));
        // Those of a file go on in their turn when others of it end.
        for (hung, mut writer) in files {
            writer.write_all(&[7; 1500]).unwrap();
            while Arc::strong_count(&hung) > 1 {
                io.sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

/// As [`files_that_hang_leave_room_for_the_others`], where the futures of what hangs are gone.
#[test]
fn abandoned_operations_that_hang_leave_room_for_the_others() {
    on_thread(|io| async move {
        let hung = Arc::new(tempfile::tempfile().unwrap());
        io.plot(|_| Some(mischief::Trick::Hang));
        for _ in 0..3000 {
            let mut read = Box::pin(io.read(&hung, 0, buffer(1)));
            assert!(poll_once(read.as_mut()).await.is_pending());
        }
        io.repent();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let done = io.at_most(Duration::from_secs(20), io.write(&file, 0, filled(&[1]), false)).await;
        assert_eq!(done.map(|(result, _)| result.unwrap()), Some(1));
        io.answer();
    });
}

/// A guest can have all its commands end at once, each with its own wait for the host.
#[test]
fn very_many_abandoned_operations_end_in_no_time() {
    on_thread(|io| async move {
        const MANY: usize = 10_000;
        let file = Arc::new(tempfile::tempfile().unwrap());
        io.plot(|_| Some(mischief::Trick::Hang));
        let left = Rc::new(Cell::new(MANY));
        for _ in 0..MANY {
            let (there, file, left, scope) = (io.clone(), file.clone(), left.clone(), io.scope());
            io.spawn(async move {
                {
                    let mut read = pin!(there.read(&file, 0, buffer(1)));
                    let mut read = pin!(there.within(scope, read.as_mut()));
                    assert!(poll_once(read.as_mut()).await.is_pending());
                }
                there.over(scope).await;
                left.set(left.get() - 1);
            });
        }
        io.sleep(Duration::from_millis(100)).await;
        assert_eq!(left.get(), MANY);
        let begin = Instant::now();
        io.answer();
        while left.get() > 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    });
}

/// What the kernel has not got is forgotten when its future goes, wherever it waits.
#[test]
fn what_waits_for_a_file_that_hangs_can_be_taken_back() {
    on_thread(|io| async move {
        let (file, mut writer) = pipe();
        let mut reads: Vec<_> = (0..2000).map(|_| Box::pin(io.read(&file, 0, buffer(1)))).collect();
        for read in &mut reads {
            assert!(poll_once(read.as_mut()).await.is_pending());
        }
        io.sleep(Duration::from_millis(5)).await;
        let last = reads.pop().unwrap();
        drop(reads.split_off(1000));
        writer.write_all(&[5; 1001]).unwrap();
        for read in reads {
            assert_eq!(bytes_of(read.await.1), [5]);
        }
        assert_eq!(bytes_of(last.await.1), [5], "nobody else took its byte");
    });
}

/// The kernel copies what is in its cache, one after the other where nobody tells it otherwise.
#[test]
fn a_short_read_does_not_wait_for_all_long_copies_before_it() {
    const LONG: usize = 64;
    on_thread(|io| async move {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let (file, done) = (Arc::new(file), Rc::new(Cell::new(0)));
        for _ in 0..LONG {
            let (reader, file, done) = (io.clone(), file.clone(), done.clone());
            io.spawn(async move {
                let into = buffer(1 << 20);
                let (read, _) =
                    reader.read_held(&file, 0, into, PieceLimits::FILE_CACHE, &Hold::none()).await;
                assert_eq!(read.unwrap(), 1 << 20);
                done.set(done.get() + 1);
            });
        }
        // All of them are queued.
        io.give_way().await;
        let (read, _) = io.read_held(&file, 0, buffer(4096), PieceLimits::FILE_CACHE, &Hold::none()).await;
        assert_eq!(read.unwrap(), 4096);
        assert!(done.get() < LONG / 2, "{} long copies before it", done.get());
        while done.get() < LONG {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}

/// Of threads of this process that the kernel made for a ring: the CPUs each may run on.
fn cpus_of_workers() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let status =
        threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).ok());
    let workers = status.filter(|status| status.starts_with("Name:\tiou-wrk-"));
    let cpus = |status: String| {
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:"))?.to_owned();
        line.split_whitespace().last().map(String::from)
    };
    workers.filter_map(cpus).collect()
}

/// What is copied in place of an I/O thread is on the CPUs that are meant for it.
#[test]
fn copies_stay_on_the_cpus_of_the_thread() {
    // Before Linux 5.14 they may not.
    if !kernel::may_have((5, 14)) {
        return;
    }
    let name = "a_ring_with_cpus";
    // Other tests have such threads, too.
    if std::env::var_os(name).is_none() {
        let me = std::env::current_exe().unwrap();
        let test = "iothread::tests::stress::copies_stay_on_the_cpus_of_the_thread";
        let alone =
            std::process::Command::new(me).args([test, "--exact", "--nocapture"]).env(name, "").output();
        let alone = alone.unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
        return;
    }
    let settings = Settings { workers: vec![0], ..Settings::default() };
    let thread = IoThread::with("test", settings).unwrap();
    let (tx, rx) = mpsc::channel();
    thread.remote().spawn(move |io| async move {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let file = Arc::new(file);
        let (read, _) = io.read_held(&file, 0, buffer(1 << 20), PieceLimits::FILE_CACHE, &Hold::none()).await;
        assert_eq!(read.unwrap(), 1 << 20);
        tx.send(cpus_of_workers()).unwrap();
    });
    let cpus = rx.recv().unwrap();
    assert!(!cpus.is_empty() && cpus.iter().all(|list| list == "0"), "{cpus:?}");
}
