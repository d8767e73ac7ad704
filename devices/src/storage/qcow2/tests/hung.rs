//! A host that does not answer for an image whose transfers go through private memory.

use std::pin::{Pin, pin};
use std::task::Poll;

use vm_memory::GuestAddress;

use super::*;
use crate::iothread::Scope;
use crate::mem::{Dma, GuestRam};
use crate::storage::Image;

const CLUSTER: u64 = 64 << 10;
const LEN: u32 = 4096;

fn guest() -> Dma {
    let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()));
    dma.set_bus_master(true);
    dma
}

fn fill(dma: &Dma, byte: u8) {
    dma.write(0x1000, &[byte; LEN as usize]).unwrap();
}

fn seen(dma: &Dma) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    dma.read(0x1000, &mut bytes).unwrap();
    bytes
}

/// Begins `work` in a scope of its own, and gives it up when it has not ended by itself.
async fn give_up<T>(io: &Io, mut work: Pin<&mut impl Future<Output = T>>) -> Scope {
    let scope = io.scope();
    for _ in 0..20 {
        let mut within = io.within(scope, work.as_mut());
        let over = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut within).poll(cx).is_ready())).await;
        assert!(!over, "the host does not answer");
        io.sleep(Duration::from_millis(1)).await;
    }
    scope
}

#[test]
fn what_lands_late_reaches_nothing_of_the_guest_and_leaves_the_image_whole() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "hung.qcow2", "16M"]);
    let image = Image::Qcow2(open(&bench.path("hung.qcow2"))).private();
    on_io_thread(move |io| async move {
        let dma = guest();
        let at = |n: u64| ByteOffset(n * CLUSTER);
        let read = |n| image.read(&io, at(n), dma.to_guest([(0x1000, LEN)]).unwrap());
        let write = |n| image.write(&io, at(n), dma.from_guest([(0x1000, LEN)]).unwrap(), Durability::Cached);
        fill(&dma, 0x11);
        write(1).await.unwrap();
        image.flush(&io).await.unwrap();
        // A read, a write in place, and one into a new cluster.
        fill(&dma, 0xdd);
        io.hang_from(0);
        let scope = {
            let mut hung = Box::pin(read(1));
            give_up(&io, hung.as_mut()).await
        };
        assert!(is_released(&io, scope).await && io.is_settled(scope));
        io.land();
        assert_eq!(seen(&dma), [0xdd; LEN as usize]);
        for n in [1, 2] {
            fill(&dma, 0x22);
            let scope = {
                let mut hung = Box::pin(write(n));
                give_up(&io, hung.as_mut()).await
            };
            assert!(is_released(&io, scope).await && !io.is_settled(scope), "write {n}");
            // The memory is the guest's again.
            fill(&dma, 0xdd);
            io.land();
            assert!(io.is_settled(scope), "write {n}");
        }
        io.repent();
        read(1).await.unwrap();
        assert_eq!(seen(&dma), [0x22; LEN as usize], "as it was when it was written");
        read(2).await.unwrap();
        assert_eq!(seen(&dma), [0; LEN as usize], "a cluster that nobody has linked");
        image.close(&io).await.unwrap();
    });
    let (code, text) = bench.run_unlocked("qemu-img", &["check", "-f", "qcow2", "hung.qcow2"]);
    // 3: clusters that are counted and not used.
    assert!(code == 0 || code == 3, "{text}");
}

/// Whether nothing of it reaches the guest's memory.
async fn is_released(io: &Io, scope: Scope) -> bool {
    let mut released = pin!(io.released(scope));
    std::future::poll_fn(|cx| Poll::Ready(released.as_mut().poll(cx).is_ready())).await
}
