use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::mem::{Dma, GuestRam};
use crate::storage::{BlockBackend, ByteOffset, Durability, Extent, Geometry, Span, Unmap};
use crate::testing::conformance::{Random, check_neighbours};
use crate::testing::on_io_thread;

/// Memory that refuses what direct I/O would refuse, and lets others run within each operation.
struct Strict {
    bytes: RefCell<Vec<u8>>,
    align: DirectAlign,
    random: RefCell<Random>,
    copies: Cell<u32>,
}

impl Strict {
    fn new(len: usize, align: DirectAlign) -> Self {
        let random = RefCell::new(Random::new(5));
        Self { bytes: RefCell::new(vec![0; len]), align, random, copies: Cell::new(0) }
    }

    fn demand(&self, at: u64, mem: &SgList) {
        assert!(at.is_multiple_of(u64::from(self.align.block)), "offset {at}");
        for part in mem.iovecs() {
            assert!(part.iov_base.addr().is_multiple_of(self.align.memory as usize));
            assert!(part.iov_len.is_multiple_of(self.align.block as usize));
        }
    }

    async fn pause(&self) {
        let mut turns = self.random.borrow_mut().below(4);
        poll_fn(|cx| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl Direct for Strict {
    async fn fetch(&self, _: &Io, at: u64, into: ToGuest, _: &Hold) -> Result<(), BlockError> {
        self.demand(at, &into);
        self.pause().await;
        let end = at + into.len();
        into.write_at(0, &self.bytes.borrow()[at as usize..end as usize]);
        self.pause().await;
        Ok(())
    }

    async fn store(&self, _: &Io, at: u64, from: FromGuest, _: bool, hold: &Hold) -> Result<(), BlockError> {
        self.demand(at, &from);
        let _hold = hold.clone();
        self.pause().await;
        let end = at + from.len();
        from.read_at(0, &mut self.bytes.borrow_mut()[at as usize..end as usize]);
        self.copies.set(self.copies.get() + 1);
        self.pause().await;
        Ok(())
    }
}

/// The wrapper over the strict memory as a backend, for the suites.
struct Aligned(Alignment, Strict);

impl BlockBackend for Aligned {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.1.bytes.borrow().len() as u64,
            physical_block: 4096,
            atomic: 0,
            dma_align: 4096,
            discard_granularity: 0,
            read_only: false,
            volatile_cache: false,
        }
    }
    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        self.0.read(&self.1, io, at.0, into, &Hold::none()).await
    }
    async fn write(&self, io: &Io, at: ByteOffset, from: FromGuest, _: Durability) -> Result<(), BlockError> {
        self.0.write(&self.1, io, at.0, from, false, &Hold::none()).await
    }
    async fn flush(&self, _: &Io) -> Result<(), BlockError> {
        Ok(())
    }
    fn is_unflushed(&self) -> bool {
        false
    }
    async fn zero(&self, _: &Io, _: Span, _: Unmap) -> Result<(), BlockError> {
        Ok(())
    }
    async fn extent(&self, _: &Io, span: Span) -> Result<Extent, BlockError> {
        Ok(Extent { allocated: true, len: span.len })
    }

    async fn refresh(&self, _: &Io) {}

    async fn grow(&self, _: &Io, _: u64) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::Unsupported, "a disk of a fixed length"))
    }
}

#[derive(Clone, Debug)]
struct Transfer {
    write: bool,
    at: usize,
    len: usize,
    offset: usize,
    cut: usize,
}

const LEN: usize = 1 << 20;

fn transfer() -> impl Strategy<Value = Transfer> {
    let unit = prop_oneof![Just(1usize), Just(512), Just(4096)];
    (any::<bool>(), unit, 0..LEN, 0..LEN, 0usize..5000, 0..LEN).prop_map(
        |(write, unit, a, b, offset, cut)| {
            let at = a / unit * unit;
            let len = (b / unit * unit).min(LEN - at);
            Transfer { write, at, len, offset: offset / unit * unit, cut: cut % len.max(1) / unit * unit }
        },
    )
}

/// A list with a gap in it, resolved from guest memory.
fn pieces(ram: &Dma, t: &Transfer) -> SgList {
    let (first, rest) = (t.cut as u32, (t.len - t.cut.min(t.len)) as u32);
    let start = t.offset as u64;
    let gap = start + u64::from(first) + 4096;
    ram.to_guest([(start, first), (gap, rest)]).unwrap().into_inner()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_transfer_has_the_effect_of_a_plain_copy(
        transfers in prop::collection::vec(transfer(), 1..20),
        memory in prop_oneof![Just(4u32), Just(512), Just(4096)],
        block in prop_oneof![Just(512u32), Just(4096)],
    ) {
        on_io_thread(move |io| async move {
            let align = DirectAlign { memory, block };
            let (alignment, disk) = (Alignment::new(align), Strict::new(LEN, align));
            let ram = GuestRam::from_ranges(&[(GuestAddress(0), LEN * 2)]).unwrap();
            let ram = Dma::new(Arc::new(ram));
            ram.set_bus_master(true);
            let mut oracle = vec![0u8; LEN];
            for (i, t) in transfers.iter().enumerate() {
                let list = pieces(&ram, t);
                let watch = FromGuest::new(list.window(0, t.len as u64));
                let range = t.at..t.at + t.len;
                let direct = t.len == 0 || alignment.fits(t.at as u64, &list);
                let before = disk.copies.get();
                if t.write {
                    let data: Vec<u8> = (0..t.len).map(|n| (n ^ (n >> 8) ^ i) as u8).collect();
                    ToGuest::new(list.window(0, t.len as u64)).write_at(0, &data);
                    alignment.write(&disk, &io, t.at as u64, FromGuest::new(list), false, &Hold::none()).await.unwrap();
                    oracle[range].copy_from_slice(&data);
                    if direct {
                        assert!(disk.copies.get() <= before + 1, "aligned transfers go in one");
                    }
                } else {
                    alignment.read(&disk, &io, t.at as u64, ToGuest::new(list), &Hold::none()).await.unwrap();
                    let mut got = vec![0; t.len];
                    watch.read_at(0, &mut got);
                    assert!(got == oracle[range], "{t:?}");
                }
            }
            assert!(*disk.bytes.borrow() == oracle);
        });
    }
}

#[test]
fn writes_to_one_block_at_the_same_time_lose_nothing() {
    for (memory, block) in [(512, 512), (4, 4096), (4096, 4096)] {
        on_io_thread(move |io| async move {
            let align = DirectAlign { memory, block };
            let disk = Aligned(Alignment::new(align), Strict::new(128 * 512, align));
            check_neighbours(&io, Rc::new(disk), 30).await;
        });
    }
}

#[test]
fn aligned_transfers_are_not_copied() {
    on_io_thread(|io| async move {
        struct Same(usize);
        impl Direct for Same {
            async fn fetch(&self, _: &Io, _: u64, into: ToGuest, _: &Hold) -> Result<(), BlockError> {
                assert_eq!(into.iovecs()[0].iov_base.addr(), self.0);
                Ok(())
            }
            async fn store(
                &self,
                _: &Io,
                _: u64,
                from: FromGuest,
                _: bool,
                _: &Hold,
            ) -> Result<(), BlockError> {
                assert_eq!(from.iovecs()[0].iov_base.addr(), self.0);
                Ok(())
            }
        }
        let list = SgList::host(8192, 4096).unwrap();
        let host = Same(list.iovecs()[0].iov_base.addr());
        for align in [DirectAlign { memory: 1, block: 1 }, DirectAlign { memory: 4096, block: 4096 }] {
            let alignment = Alignment::new(align);
            alignment
                .read(&host, &io, 4096, ToGuest::new(list.window(0, 8192)), &Hold::none())
                .await
                .unwrap();
            alignment
                .write(&host, &io, 4096, FromGuest::new(list.window(0, 8192)), false, &Hold::none())
                .await
                .unwrap();
        }
    });
}
