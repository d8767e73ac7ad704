//! Calls to the host that block.

use std::sync::mpsc::Sender;

use super::*;
use crate::iothread::blocking::Job;

const LONG: Duration = Duration::from_secs(20);
/// Enough for a job that nothing holds up to begin.
const SHORT: Duration = Duration::from_millis(50);

/// A job of `owner` that ends when something is sent, or when the sender is dropped. It has begun when this returns.
async fn hang(io: &Io, owner: &Owner) -> Sender<()> {
    let (release, released) = mpsc::channel();
    let begun = Arc::new(AtomicBool::new(false));
    let (thread, owner, flag) = (io.clone(), owner.clone(), begun.clone());
    io.spawn(async move {
        let job = move || {
            flag.store(true, Ordering::Release);
            released.recv().is_ok()
        };
        let _ = thread.blocking_on(&owner, job).await;
    });
    while !begun.load(Ordering::Acquire) {
        io.sleep(Duration::from_millis(1)).await;
    }
    release
}

/// Until a helper has nothing to do.
async fn have_idle(io: &Io) {
    io.blocking_on(&Owner::default(), || ()).await.unwrap();
    while io.core.helpers.idle() == 0 {
        io.sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn blocking_work_runs_elsewhere_and_its_panic_is_an_error() {
    on_thread(|io| async move {
        let (here, owner) = (std::thread::current().id(), Owner::default());
        let there = io.blocking_on(&owner, || std::thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        for _ in 0..6 {
            let panics = || {
                if true {
                    panic!("on purpose")
                }
            };
            assert!(io.blocking_on(&owner, panics).await.is_err());
        }
        assert_eq!(io.blocking_on(&owner, || 5).await.unwrap(), 5);
        drop(Box::pin(io.blocking_on(&owner, || ())));
    });
}

/// As many at once as the owner says, whoever gives it the jobs.
#[test]
fn an_owner_has_as_many_jobs_at_work_as_it_says() {
    for (owner, most) in [(Owner::default(), 1), (Owner::with_helpers(4), 4)] {
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let threads: Vec<_> = (0..2).map(|_| IoThread::start("test").unwrap()).collect();
        let (done, ended) = mpsc::channel();
        for n in 0..32 {
            let (owner, counts, done) = (owner.clone(), counts.clone(), done.clone());
            threads[n % 2].remote().spawn(move |io| async move {
                let job = move || {
                    counts.1.fetch_max(counts.0.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
                    std::thread::sleep(Duration::from_millis(5));
                    counts.0.fetch_sub(1, Ordering::AcqRel);
                    n
                };
                done.send(io.blocking_on(&owner, job).await.unwrap()).unwrap();
            });
        }
        let sum: usize = (0..32).map(|_| ended.recv_timeout(LONG).unwrap()).sum();
        assert_eq!((sum, counts.1.load(Ordering::Acquire)), ((0..32).sum(), most));
    }
}

#[test]
fn a_job_that_hangs_holds_up_nobody_but_its_owner() {
    on_thread(|io| async move {
        let owners: Vec<Owner> = (0..12).map(|_| Owner::default()).collect();
        let mut hung = Vec::new();
        for owner in &owners {
            hung.push(hang(&io, owner).await);
        }
        let mine = io.at_most(LONG, io.blocking_on(&Owner::default(), || 7)).await;
        assert_eq!(mine.expect("held up by others").unwrap(), 7);
        assert!(io.at_most(SHORT, io.blocking_on(&owners[0], || 8)).await.is_none());
        hung.clear();
        assert_eq!(io.blocking_on(&owners[0], || 9).await.unwrap(), 9);
    });
}

#[test]
fn a_job_that_has_not_begun_goes_with_its_future() {
    on_thread(|io| async move {
        let (owner, claim) = (Owner::default(), Arc::new(()));
        let release = hang(&io, &owner).await;
        let held = claim.clone();
        let waits = io.at_most(SHORT, io.blocking_on(&owner, move || drop(held))).await;
        assert!(waits.is_none());
        assert_eq!(Arc::strong_count(&claim), 1, "dropped with the future");
        // One that has begun goes on.
        let held = claim.clone();
        release.send(()).unwrap();
        let (finish, finished) = mpsc::channel::<()>();
        let begun = move || {
            let _ = finished.recv();
            drop(held);
        };
        assert!(io.at_most(SHORT, io.blocking_on(&owner, begun)).await.is_none());
        assert_eq!(Arc::strong_count(&claim), 2);
        finish.send(()).unwrap();
        io.blocking_on(&owner, || ()).await.unwrap();
        assert_eq!(Arc::strong_count(&claim), 1);
    });
}

#[test]
fn an_idle_helper_works_for_any_owner() {
    on_thread(|io| async move {
        let mut seen = Vec::new();
        for _ in 0..8 {
            let owner = Owner::default();
            seen.push(io.blocking_on(&owner, || std::thread::current().id()).await.unwrap());
            // It tells before it is idle.
            io.sleep(Duration::from_millis(5)).await;
        }
        assert!(seen.iter().all(|id| *id == seen[0]), "{seen:?}");
        assert_eq!(io.core.helpers.threads(), 1);
    });
}

#[test]
fn a_host_without_threads_is_asked_again() {
    on_thread(|io| async move {
        let (first, second) = (Owner::default(), Owner::default());
        io.core.helpers.set_no_threads(true);
        let failed = io.blocking_on(&first, || ()).await.unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EAGAIN), "there is none at all");
        io.core.helpers.set_no_threads(false);
        let _hung = hang(&io, &first).await;
        io.core.helpers.set_no_threads(true);
        let mut waits = Box::pin(io.blocking_on(&second, || 3));
        assert!(io.at_most(SHORT, waits.as_mut()).await.is_none());
        // Behind one that waits for a helper, too.
        let mut also = Box::pin(io.blocking_on(&second, || 4));
        assert!(io.at_most(SHORT, also.as_mut()).await.is_none());
        drop(waits);
        io.core.helpers.set_no_threads(false);
        assert_eq!(io.at_most(LONG, also).await.expect("it is not asked again").unwrap(), 4);
    });
}

/// However many wait: only the first of them asks.
#[test]
fn a_host_without_threads_is_not_asked_by_all_who_wait() {
    on_thread(|io| async move {
        let (first, second) = (Owner::default(), Owner::default());
        let _hung = hang(&io, &first).await;
        io.core.helpers.set_no_threads(true);
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(io.blocking_on(&second, || ()))).collect();
        let mut all = std::pin::pin!(poll_fn(|cx| {
            waiting.retain_mut(|one| one.as_mut().poll(cx).is_pending());
            if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(io.at_most(Duration::from_millis(350), all.as_mut()).await.is_none());
        let refused = io.core.helpers.refused();
        assert!((2..=10).contains(&refused), "{refused}");
        io.core.helpers.set_no_threads(false);
        io.at_most(LONG, all).await.expect("all are served");
    });
}

/// Helpers end when they are idle, so that mostly there is none: a moment without threads is no failure.
#[test]
fn a_moment_without_threads_is_passed_by() {
    on_thread(|io| async move {
        let owner = Owner::default();
        io.core.helpers.set_no_threads(true);
        let again = io.clone();
        io.spawn(async move {
            again.sleep(Duration::from_millis(40)).await;
            again.core.helpers.set_no_threads(false);
        });
        assert_eq!(io.blocking_on(&owner, || 1).await.unwrap(), 1);
    });
    // One that lasts is, for all who wait at once.
    on_thread(|io| async move {
        let (owner, begin) = (Owner::default(), std::time::Instant::now());
        io.core.helpers.set_no_threads(true);
        let mut waiting: Vec<_> = (0..50).map(|_| Box::pin(io.blocking_on(&owner, || ()))).collect();
        let mut failed = 0;
        poll_fn(|cx| {
            waiting.retain_mut(|one| match one.as_mut().poll(cx) {
                Poll::Ready(result) => {
                    failed += usize::from(result.is_err());
                    false
                }
                Poll::Pending => true,
            });
            if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(failed, 50);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    });
}

/// Each hangs until all have begun: who has come wakes others, and the I/O thread starts them where there are none.
#[test]
fn jobs_that_hang_hold_up_none_that_came_with_them() {
    on_thread(|io| async move {
        let (owner, all) = (Owner::with_helpers(32), Arc::new(std::sync::Barrier::new(32)));
        for round in 0..20 {
            let job = |_| {
                let all = all.clone();
                Box::pin(io.blocking_on(&owner, move || all.wait().is_leader()))
            };
            let mut jobs: Vec<_> = (0..32).map(job).collect();
            let ended = poll_fn(|cx| {
                jobs.retain_mut(|job| job.as_mut().poll(cx).is_pending());
                if jobs.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            });
            assert!(io.at_most(LONG, ended).await.is_some(), "round {round}");
        }
        assert!(io.core.helpers.threads() <= 32);
    });
}

/// Beside one that hangs it is wanted all the same.
#[test]
fn a_helper_beside_others_that_could_not_start_is_asked_for_again() {
    on_thread(|io| async move {
        let owner = Owner::with_helpers(2);
        let _hung = hang(&io, &owner).await;
        io.set_no_threads(true);
        let mut waits = Box::pin(io.blocking_on(&owner, || 3));
        assert!(io.at_most(Duration::from_millis(350), waits.as_mut()).await.is_none());
        let refused = io.core.helpers.refused();
        assert!(refused <= 10, "{refused}");
        io.set_no_threads(false);
        assert_eq!(io.at_most(LONG, waits).await.expect("it is not asked for again").unwrap(), 3);
    });
}

/// That thread starts no helper, and ends or not: one that is idle elsewhere comes, or another thread starts one.
#[test]
fn a_job_behind_one_of_another_thread_waits_for_nothing_of_that_thread() {
    for ends in [false, true] {
        let (first, second) = (IoThread::start("test").unwrap(), IoThread::start("test").unwrap());
        let owner = Owner::with_helpers(2);
        let (told, tells) = mpsc::channel();
        let expect = |what| assert_eq!(tells.recv_timeout(LONG), Ok(what), "ends: {ends}");
        let ((go, goes), (_release, released)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        let ((begin, begun), (tell, of_first)) = (mpsc::channel(), (told.clone(), owner.clone()));
        first.remote().spawn(move |io| async move {
            have_idle(&io).await;
            // That is chosen, and called when the round is over.
            let hangs = move || begin.send(()).is_ok() && released.recv().is_ok();
            let mut hangs = Box::pin(io.blocking_on(&of_first, hangs));
            let mut waits = Box::pin(io.blocking_on(&of_first, || ()));
            let wait = poll_fn(|cx| {
                Poll::Ready(hangs.as_mut().poll(cx).is_pending() && waits.as_mut().poll(cx).is_pending())
            });
            assert!(wait.await);
            tell.send("given").unwrap();
            goes.recv().unwrap();
            io.set_no_threads(true);
            std::future::pending().await
        });
        expect("given");
        second.remote().spawn(move |io| async move {
            if !ends {
                have_idle(&io).await;
            }
            let mut behind = Box::pin(io.blocking_on(&owner, || ()));
            assert!(io.at_most(SHORT, behind.as_mut()).await.is_none());
            told.send("queued").unwrap();
            behind.await.unwrap();
            told.send("done").unwrap();
        });
        expect("queued");
        go.send(()).unwrap();
        begun.recv_timeout(LONG).unwrap();
        // Or it ends here.
        let first = (!ends).then_some(first);
        expect("done");
        drop(first);
    }
}

/// Who is not the first of a line does not ask the host, but may have one that is idle.
#[test]
fn an_idle_helper_comes_to_whoever_waits() {
    let (owner, other) = (Owner::default(), IoThread::start("test").unwrap());
    let (told, tells) = mpsc::channel();
    let of_other = owner.clone();
    other.remote().spawn(move |io| async move {
        // So it goes on asking.
        let _hung = hang(&io, &Owner::default()).await;
        io.set_no_threads(true);
        let mut first = Box::pin(io.blocking_on(&of_other, || ()));
        assert!(io.at_most(SHORT, first.as_mut()).await.is_none());
        told.send("queued").unwrap();
        first.await.unwrap();
        told.send("done").unwrap();
    });
    assert_eq!(tells.recv_timeout(LONG), Ok("queued"));
    on_thread(move |io| async move {
        let release = hang(&io, &Owner::default()).await;
        io.set_no_threads(true);
        let mut waits = Box::pin(io.blocking_on(&owner, || 5));
        assert!(io.at_most(SHORT, waits.as_mut()).await.is_none());
        drop(release);
        while io.core.helpers.idle() == 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        io.set_no_threads(false);
        assert_eq!(io.at_most(LONG, waits).await.expect("it stays idle").unwrap(), 5);
    });
    assert_eq!(tells.recv_timeout(LONG), Ok("done"));
}

#[derive(Default)]
struct Counts(AtomicU64);

impl Job for Counts {
    fn run(&self, _: &Owner) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Its command is answered as not sent, and is sent again.
#[test]
fn a_job_that_was_given_up_is_not_done() {
    on_thread(|io| async move {
        let (owner, job) = (Owner::default(), Arc::new(Counts::default()));
        io.set_no_threads(true);
        let (number, served) = io.core.give(&owner, job.clone()).unwrap();
        assert!(!served);
        io.core.helpers.look_again(&owner, number, true).unwrap_err();
        io.set_no_threads(false);
        io.blocking_on(&owner, || ()).await.unwrap();
        assert_eq!(job.0.load(Ordering::Acquire), 0, "it is done all the same");
        // One that is done is not given up.
        let (number, served) = io.core.give(&owner, job.clone()).unwrap();
        assert!(served);
        io.blocking_on(&owner, || ()).await.unwrap();
        io.set_no_threads(true);
        assert!(io.core.helpers.look_again(&owner, number, true).is_ok());
        assert_eq!(job.0.load(Ordering::Acquire), 1);
    });
}
