//! Warm commands allocate nothing.

use super::*;
use crate::testing::allocations;

#[test]
fn warm_commands_allocate_nothing() {
    on_thread(|io| async move {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let dma = Dma::new(Arc::new(ram));
        dma.set_bus_master(true);
        let bell = Arc::new(EventFd::new(0).unwrap());
        let mut watch = io.watch(&bell);
        let pool = TaskPool::new(&io, 64);
        let _hook = io.at_batch_end(|| ());
        let done = Rc::new(Cell::new(0));
        let mut before = 0;
        for round in 0..20 {
            if round == 10 {
                before = allocations();
            }
            bell.write(1).unwrap();
            watch.next().await.unwrap();
            for tag in 0..64u64 {
                let (io, file, dma, done) = (io.clone(), file.clone(), dma.clone(), done.clone());
                let task = async move {
                    let out = dma.from_guest([(tag * 4096, 512), (tag * 4096 + 1024, 512)]).unwrap();
                    assert_eq!(io.write(&file, tag * 1024, out, false).await.0.unwrap(), 1024);
                    let back = dma.to_guest([(tag * 4096, 1024)]).unwrap();
                    assert_eq!(io.read(&file, tag * 1024, back).await.0.unwrap(), 1024);
                    done.set(done.get() + 1);
                };
                assert!(pool.spawn(task).is_ok());
            }
            pool.drained().await;
        }
        assert_eq!(done.get(), 20 * 64);
        assert_eq!(allocations() - before, 0, "allocations of 640 warm commands");
    });
}
