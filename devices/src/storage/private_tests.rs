use std::pin::{Pin, pin};

use super::*;
use crate::testing::conformance::{check, memory};
use crate::testing::{RamDisk, on_io_thread};

const KIB: u64 = 1024;

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn lent(memory: &PrivateMemory) -> u64 {
    let state = memory.lock();
    state.short.lent + state.long.lent
}

fn waiting(memory: &PrivateMemory) -> usize {
    let state = memory.lock();
    state.short.waiting.len() + state.long.waiting.len()
}

/// With so much for all, whatever their size.
fn of_size(budget: u64) -> Arc<PrivateMemory> {
    PrivateMemory::with_budgets(1, (budget, budget), &COMMON_MEMORY)
}

#[test]
fn buffers_are_of_the_next_size_and_aligned_as_the_image_demands() {
    for (align, expected) in [(1, 4096), (512, 4096), (4096, 4096), (16384, 16384)] {
        let memory = PrivateMemory::new(align);
        for (len, size) in [(1, 4096), (4096, 4096), (4097, 8192), (20 * KIB, 32 * KIB), (PIECE, PIECE)] {
            let buffer = memory.try_lend(len).unwrap();
            assert_eq!((buffer.len(), lent(&memory)), (len, size));
            assert!(buffer.is_private() && buffer.iovecs()[0].iov_base.addr() % expected == 0);
        }
        assert!(memory.try_lend(PIECE + 1).is_none());
        assert_eq!(lent(&memory), 0);
    }
}

#[test]
fn what_is_returned_is_lent_again_and_no_more_is_kept_than_agreed() {
    let memory = PrivateMemory::new(512);
    let first = memory.try_lend(4096).unwrap();
    let place = first.iovecs()[0].iov_base;
    drop(first);
    assert_eq!(memory.try_lend(100).unwrap().iovecs()[0].iov_base, place);
    let many: Vec<_> = (0..12).map(|_| memory.try_lend(PIECE).unwrap()).collect();
    drop(many);
    assert_eq!(lent(&memory), 0);
    let state = memory.lock();
    assert_eq!(state.kept, (3 << 20) + 4096, "the small one has its place");
    assert_eq!(state.free.iter().map(Vec::len).sum::<usize>(), 4);
}

#[test]
fn a_buffer_is_in_use_until_the_last_list_over_it_is_gone() {
    let memory = of_size(4096);
    let buffer = memory.try_lend(4096).unwrap();
    let kernel = buffer.window(512, 512);
    drop(buffer);
    assert!(memory.try_lend(1).is_none());
    drop(kernel);
    assert!(memory.try_lend(1).is_some());
}

#[test]
fn who_waits_gets_memory_in_order_and_may_give_up() {
    let memory = of_size(16 * KIB);
    let first = poll(pin!(memory.lend(8 * KIB))).unwrap().unwrap();
    let second = poll(pin!(memory.lend(8 * KIB))).unwrap().unwrap();
    let mut large = Box::pin(memory.lend(16 * KIB));
    assert!(poll(large.as_mut()).is_none());
    let (mut small, mut other) = (Box::pin(memory.lend(1)), Box::pin(memory.lend(1)));
    drop(first);
    assert!(poll(small.as_mut()).is_none(), "not before the one that waits longer");
    assert!(memory.try_lend(1).is_none(), "nor without waiting");
    assert!(poll(other.as_mut()).is_none());
    // One that gives up lets the others in.
    drop(large);
    let small = poll(small.as_mut()).unwrap().unwrap();
    // And one that gives up what it was granted.
    let third = memory.lend(4 * KIB);
    drop((second, small));
    assert_eq!(lent(&memory), 4 * KIB, "the other's");
    drop((other, third));
    assert_eq!((lent(&memory), waiting(&memory)), (0, 0));
}

/// Who reads a little does not wait until those who read much have got memory and are done with it, nor the other way round.
#[test]
fn short_and_long_ones_do_not_wait_for_each_other() {
    let cached = PrivateMemory::new(1);
    assert_eq!(std::iter::from_fn(|| cached.try_lend(PIECE)).collect::<Vec<_>>().len(), 3, "less");
    let memory = PrivateMemory::new(512);
    let mut hung: Vec<_> = std::iter::from_fn(|| memory.try_lend(PIECE)).collect();
    let mut long = Box::pin(memory.lend(128 * KIB));
    assert!(poll(long.as_mut()).is_none());
    let mut short: Vec<_> = std::iter::from_fn(|| memory.try_lend(32 * KIB)).collect();
    assert_eq!((hung.len(), short.len()), (14, 64));
    let mut late = Box::pin(memory.lend(4096));
    assert!(poll(late.as_mut()).is_none());
    hung.pop();
    assert!(poll(long.as_mut()).is_some() && poll(late.as_mut()).is_none());
    short.pop();
    assert!(poll(late.as_mut()).is_some());
    // Where others have used up what all have in common, too.
    let poor = PrivateMemory::with_budgets(1, BUDGETS, own_pool(0));
    let hung = [poor.try_lend(PIECE).unwrap()];
    assert!(poor.try_lend(PIECE).is_none());
    drop(poor.try_lend(4096).expect("its own"));
    drop(hung);
}

#[test]
fn several_are_let_in_at_once() {
    let memory = of_size(16 * KIB);
    let all = poll(pin!(memory.lend(16 * KIB))).unwrap().unwrap();
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(memory.lend(4 * KIB))).collect();
    assert!(waiting.iter_mut().all(|one| poll(one.as_mut()).is_none()));
    drop(all);
    let got: Vec<_> = waiting.iter_mut().filter_map(|one| poll(one.as_mut())).collect();
    assert_eq!((got.len(), lent(&memory)), (4, 16 * KIB));
    drop(got);
    assert!(poll(waiting.pop().unwrap().as_mut()).is_some());
}

#[test]
fn transfers_of_any_length_and_refusals() {
    on_io_thread(|io| async move {
        struct Through(Arc<PrivateMemory>, RamDisk);
        impl BlockBackend for Through {
            fn geometry(&self) -> super::super::Geometry {
                self.1.geometry()
            }
            async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
                self.0.read(&self.1, io, at, into).await
            }
            async fn write(
                &self,
                io: &Io,
                at: ByteOffset,
                from: FromGuest,
                durability: Durability,
            ) -> Result<(), BlockError> {
                self.0.write(&self.1, io, at, from, durability).await
            }
            async fn flush(&self, io: &Io) -> Result<(), BlockError> {
                self.1.flush(io).await
            }
            fn is_unflushed(&self) -> bool {
                self.1.is_unflushed()
            }
            async fn zero(
                &self,
                io: &Io,
                span: super::super::Span,
                unmap: super::super::Unmap,
            ) -> Result<(), BlockError> {
                self.1.zero(io, span, unmap).await
            }
            async fn extent(
                &self,
                io: &Io,
                span: super::super::Span,
            ) -> Result<super::super::Extent, BlockError> {
                self.1.extent(io, span).await
            }
            async fn refresh(&self, io: &Io) {
                self.1.refresh(io).await
            }
            async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
                self.1.grow(io, len).await
            }
        }
        let disk = Through(PrivateMemory::new(1), RamDisk::new(4 << 20));
        check(&io, &disk, 7, 100).await;
        // Longer than a piece, and not at a multiple of one.
        let mut random = crate::testing::conformance::Random::new(5);
        let data: Vec<u8> = (0..3 << 20).map(|n: u32| (n >> 9) as u8 ^ n as u8).collect();
        let out = ToGuest::new(memory(&mut random, 3 << 20, 1));
        out.write_at(0, &data);
        let at = ByteOffset(1536);
        disk.write(&io, at, FromGuest::new(out.into_inner()), Durability::Cached).await.unwrap();
        let back = memory(&mut random, 3 << 20, 1);
        disk.read(&io, at, ToGuest::new(back.window(0, 3 << 20))).await.unwrap();
        let mut got = vec![0; 3 << 20];
        FromGuest::new(back).read_at(0, &mut got);
        assert!(got == data);
        assert_eq!(lent(&disk.0), 0);
    });
}

/// Nobody is forgotten, whoever returns what and whoever comes at that moment.
#[test]
fn several_threads_share_the_memory() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let memory = of_size(64 * KIB);
    let (done, end) = std::sync::mpsc::channel();
    for seed in 1..5 {
        let (memory, done) = (memory.clone(), done.clone());
        std::thread::spawn(move || {
            let mut random = crate::testing::conformance::Random::new(seed);
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            for _ in 0..3000 {
                let len = 1 + random.below(64 * KIB);
                let mut lend = Box::pin(memory.lend(len));
                let gives_up = random.below(5) == 0;
                let buffer = loop {
                    match lend.as_mut().poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(buffer) => break Some(buffer.unwrap()),
                        Poll::Pending if gives_up => break None,
                        Poll::Pending => std::thread::park(),
                    }
                };
                if let Some(buffer) = buffer {
                    assert_eq!(buffer.len(), len);
                }
            }
            done.send(()).unwrap();
        });
    }
    for _ in 1..5 {
        end.recv_timeout(std::time::Duration::from_secs(60)).expect("somebody waits for ever");
    }
    assert_eq!((lent(&memory), waiting(&memory)), (0, 0));
    assert!(memory.lock().kept <= KEPT);
}

/// Writes that wait for space hold none of the memory that reads need.
#[test]
fn who_waits_for_space_holds_no_memory() {
    use vm_memory::GuestAddress;

    use super::super::{CacheMode, Image, Parking, Pausing, RawImage, RawOptions, Sharing, SpaceWatch};
    use crate::iothread::mischief::{Trick, Victim};
    use crate::mem::{Dma, GuestRam};

    struct Deaf;
    impl SpaceWatch for Deaf {
        fn no_space(&self, _: &BlockError) {}
    }
    let file = crate::testing::temp_file();
    file.as_file().set_len(BUDGETS.1).unwrap();
    let options = RawOptions {
        path: file.path().into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Unlocked,
    };
    let image = RawImage::open(&options).unwrap();
    on_io_thread(move |io| async move {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let dma = Dma::new(Arc::new(ram));
        dma.set_bus_master(true);
        let parking = Arc::new(Parking::default());
        let pausing = Pausing { parking: parking.clone(), watch: Arc::new(Deaf) };
        let image = Image::Raw(image).guarded(None, Some(pausing)).private();
        io.plot(|victim| matches!(victim, Victim::Write { .. }).then_some(Trick::Fail(libc::ENOSPC)));
        let write = |n: u64| {
            let from = dma.from_guest([(0, PIECE as u32)]).unwrap();
            Box::pin(image.write(&io, ByteOffset(n * PIECE), from, Durability::Cached))
        };
        let mut writes: Vec<_> = (0..BUDGETS.1 / PIECE).map(write).collect();
        let mut all = pin!(poll_fn(|cx| {
            writes.retain_mut(|one| one.as_mut().poll(cx).is_pending());
            if writes.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(io.at_most(std::time::Duration::from_millis(200), all.as_mut()).await.is_none());
        assert!(parking.is_waiting());
        let read = image.read(&io, ByteOffset(0), dma.to_guest([(1 << 20, PIECE as u32)]).unwrap());
        io.at_most(std::time::Duration::from_secs(5), read).await.expect("it waits for memory").unwrap();
        io.repent();
        parking.resume();
        io.at_most(std::time::Duration::from_secs(5), all).await.expect("there is space");
    });
}

const SHORT: Duration = Duration::from_secs(1);

fn own_pool(most: u64) -> &'static Common {
    Box::leak(Box::new(Common::new(most, SHORT)))
}

/// Whatever others have, each image gets its own; who waits does so for itself.
#[test]
fn images_share_what_they_have_beyond_their_own() {
    let common = own_pool(4 * PIECE);
    let [greedy, other, late] = [(); 3].map(|()| PrivateMemory::with_budgets(1, BUDGETS, common));
    let hung: Vec<_> = std::iter::from_fn(|| greedy.try_lend(PIECE)).collect();
    assert_eq!(hung.len(), 5, "its own, and all that there is");
    let small = other.try_lend(64 * KIB).unwrap();
    let most = other.try_lend(PIECE / 2).unwrap();
    assert!(other.try_lend(PIECE).is_none());
    let mut waits = Box::pin(other.lend(PIECE));
    assert!(poll(waits.as_mut()).is_none());
    drop(small);
    assert!(poll(waits.as_mut()).is_none());
    drop(most);
    let mine = poll(waits.as_mut()).expect("all of its own is there").unwrap();
    drop(waits);
    assert!(late.try_lend(PIECE).is_some(), "nobody's is used up");
    // What is given back others may have, also by an image that goes.
    drop(hung);
    let more: Vec<_> = std::iter::from_fn(|| other.try_lend(PIECE)).collect();
    assert_eq!((more.len(), common.taken.load(Ordering::Relaxed)), (4, 4 * PIECE));
    drop(other);
    assert_eq!(common.taken.load(Ordering::Relaxed), 0);
    drop((mine, more));
    assert_eq!(common.taken.load(Ordering::Relaxed), 0);
}

/// A machine with thousands of disks, all of which have just been used.
#[test]
fn what_all_images_keep_has_a_bound() {
    let common = own_pool(u64::MAX / 2);
    let kept = || common.kept.load(Ordering::Relaxed);
    let all: Vec<_> = (0..64).map(|_| PrivateMemory::with_budgets(1, BUDGETS, common)).collect();
    for _ in 0..2 {
        for memory in &all {
            drop([(); 4].map(|()| memory.try_lend(PIECE).unwrap()));
        }
        assert_eq!(kept(), ALL_KEPT);
        assert_eq!(all.iter().map(|memory| memory.lock().kept).sum::<u64>(), ALL_KEPT);
    }
    let (first, last) = (all.first().unwrap(), all.last().unwrap());
    assert_eq!((first.lock().kept, last.lock().kept), (KEPT, 0));
    // What is lent is not kept, and may be kept again by whoever comes first.
    let lent = first.try_lend(PIECE).unwrap();
    assert_eq!(kept(), ALL_KEPT - PIECE);
    drop(last.try_lend(PIECE).unwrap());
    drop(lent);
    assert_eq!((first.lock().kept, last.lock().kept, kept()), (KEPT - PIECE, PIECE, ALL_KEPT));
    let mut seen = first.lock().loans;
    assert!(first.is_forgotten(&mut seen));
    assert_eq!(kept(), ALL_KEPT - 3 * PIECE);
    drop(all);
    assert_eq!(kept(), 0);
}

#[test]
fn what_is_kept_goes_after_a_while() {
    on_io_thread(|io| async move {
        let memory = PrivateMemory::with_budgets(1, BUDGETS, own_pool(PIECE));
        let kept = || memory.lock().kept;
        for _ in 0..2 {
            drop([memory.try_lend(PIECE), memory.try_lend(4096)]);
            memory.age(&io);
            assert_eq!(kept(), PIECE + 4096);
            let mut busy = 0;
            while busy < 5 {
                io.sleep(SHORT / 3).await;
                drop(memory.try_lend(PIECE));
                assert!(kept() >= PIECE, "it is used");
                busy += 1;
            }
            let gone = async {
                while kept() > 0 {
                    io.sleep(Duration::from_millis(10)).await;
                }
            };
            io.at_most(SHORT * 4, gone).await.expect("it is kept");
        }
    });
}

#[test]
fn what_is_kept_is_looked_after_when_a_thread_ends() {
    let memory = PrivateMemory::new(1);
    let same = memory.clone();
    on_io_thread(move |io| async move {
        same.age(&io);
        assert!(same.ageing.load(Ordering::Relaxed));
    });
    assert!(!memory.ageing.load(Ordering::Relaxed), "no other thread would");
}
