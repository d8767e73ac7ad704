//! Another processor of the guest, which changes memory while the device looks at it.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::mem::GuestRam;
use vm_memory::{Bytes as _, GuestAddress};

/// Bits of a byte of guest memory: its address, and which.
pub type Bits = (u64, u8);

/// Does `act` while another thread changes these bits and changes them back. In the end they are as they were.
pub fn race<T>(ram: &GuestRam, bits: &[Bits], act: impl FnOnce() -> T) -> T {
    if bits.is_empty() {
        return act();
    }
    let (over, begun) = (AtomicBool::new(false), Barrier::new(2));
    let flip = |&(at, mask): &Bits| {
        let byte: u8 = ram.read_obj(GuestAddress(at)).expect("guest memory");
        ram.write_obj(byte ^ mask, GuestAddress(at)).expect("guest memory");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begun.wait();
            while !over.load(Ordering::Relaxed) {
                // Where processors are few, the device has its turn in between.
                bits.iter().for_each(flip);
                std::thread::yield_now();
                bits.iter().rev().for_each(flip);
                std::thread::yield_now();
            }
        });
        // Also where `act` does not come to its end.
        let _over = Over(&over);
        begun.wait();
        act()
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
