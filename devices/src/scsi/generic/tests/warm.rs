//! Warm commands allocate nothing, neither on the I/O thread nor on the helper threads.

use std::cell::Cell;

use vm_memory::GuestAddress;

use super::*;
use crate::mem::{Dma, GuestRam};
use crate::scsi::{Cdb, DataBuffers, ScsiRequest, Status, Tag, TaskAttribute};
use crate::testing::{allocations, on_io_thread};

/// SEEK(10), which takes its time.
const SLOW: u8 = 0x2b;

/// Answers without any, and counts those of the thread from one command to the next.
#[derive(Default)]
struct Counting {
    between: AtomicUsize,
}

thread_local! {
    static BEFORE: Cell<Option<u64>> = const { Cell::new(None) };
}

impl Host for Counting {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        if command.cdb.opcode() == 0x12 {
            return give(command, &[0, 0, 6, 2, 31, 0, 0, 0]);
        }
        if let Some(before) = BEFORE.get() {
            self.between.fetch_add((allocations() - before) as usize, Ordering::Relaxed);
        }
        if command.cdb.opcode() == SLOW {
            std::thread::sleep(Duration::from_millis(50));
        }
        BEFORE.set(Some(allocations()));
        Ok(Answer::good())
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn warm_commands_allocate_nothing() {
    on_io_thread(|io| async move {
        let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()));
        dma.set_bus_master(true);
        // Aligned, and in two places.
        let (whole, two) = (&[(0x1000, 4096)][..], &[(0x1000, 512), (0x3000, 3584)][..]);
        for (name, bounce, parts) in [
            ("direct", false, whole),
            ("two places", false, two),
            ("copied", true, whole),
            ("both", true, two),
        ] {
            let host = Arc::new(Counting::default());
            let unit = Generic::new(host.clone(), GenericConfig { bounce, depth: 2, ..config() }).unwrap();
            let target = Target::new();
            target.attach(Lun::default(), LogicalUnit::Generic(unit)).unwrap();
            let nexus = Nexus::new(target, None);
            let _ = send(&io, &nexus, &[0; 6], &[], 0).await;
            // All threads that there may be are there, and have told of what they did.
            for _ in 0..3 {
                let seek = || Box::pin(send(&io, &nexus, &[SLOW, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0));
                let mut first = seek();
                assert!(io.at_most(Duration::from_millis(1), first.as_mut()).await.is_none());
                let _ = (seek().await, first.await);
            }
            for cdb in [
                &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0][..],
                &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0],
                &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
                &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
                &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[0x00, 0, 0, 0, 0, 0],
            ] {
                let (mut count, mut there) = (0, 0);
                for round in 0..250 {
                    let data = match cdb[0] {
                        0x28 | 0x88 => {
                            DataBuffers::to_initiator(dma.to_guest(parts.iter().copied()).unwrap())
                        }
                        0x2a | 0x8a => {
                            DataBuffers::from_initiator(dma.from_guest(parts.iter().copied()).unwrap())
                        }
                        _ => DataBuffers::none(),
                    };
                    let request = ScsiRequest {
                        tag: Tag(1),
                        lun: Lun::default(),
                        cdb: Cdb::new(cdb),
                        attribute: TaskAttribute::Simple,
                        priority: 0,
                        data,
                    };
                    if round == 50 {
                        there = host.between.load(Ordering::Relaxed);
                    }
                    let before = allocations();
                    let reply = nexus.execute(&io, request).await;
                    if round >= 50 {
                        count += allocations() - before;
                    }
                    assert_eq!(reply.unwrap().status, Status::Good, "{cdb:02x?}");
                }
                let there = host.between.load(Ordering::Relaxed) - there;
                assert_eq!((count, there), (0, 0), "{name}: {cdb:02x?}");
            }
        }
    });
}
