use std::sync::Arc;

use devices::mem::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// Where the parts of the ring are, and the memory: all of it.
const DRIVER: u64 = 0x8000;
const DEVICE: u64 = 0xa000;
const RAM: usize = 0x1_0000;

fn ring(size: u16, event_idx: bool) -> (Arc<GuestRam>, Dma, Ring) {
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
    let dma = Dma::new(ram.clone());
    dma.set_bus_master(true);
    // Each descriptor a chain of its own, which is as long as its number.
    for index in 0..size {
        let mut bytes = [0; DESCRIPTOR];
        bytes[8..12].copy_from_slice(&u32::from(index).to_le_bytes());
        dma.write(u64::from(index) * DESCRIPTOR as u64, &bytes).unwrap();
    }
    let at = RingAddress { size, desc: 0, driver: DRIVER, device: DEVICE };
    (ram, dma, Ring::new(at, event_idx).unwrap())
}

/// In place of a proof: every value of the index, twice around, for rings of every size.
#[test]
fn the_index_wraps_and_each_chain_is_taken_once() {
    for size in (0..=if cfg!(miri) { 2 } else { 10 }).map(|n| 1_u16 << n) {
        let (ram, dma, mut ring) = ring(size, false);
        let mut chain = Chain::default();
        let turns: u32 = if cfg!(miri) { 40 } else { 2 * 65_536 + 3 };
        if cfg!(miri) {
            // The last before it wraps.
            (ring.next_avail, ring.seen_avail) = (u16::MAX - 9, u16::MAX - 9);
            (ring.next_used, ring.published) = (u16::MAX - 9, u16::MAX - 9);
        }
        let start = ring.next_avail;
        ram.write_obj(start.to_le(), GuestAddress(DRIVER + 2)).unwrap();
        for turn in 0..turns {
            let index = start.wrapping_add(turn as u16);
            assert!(ring.take(&dma, &mut chain).unwrap().is_none(), "{size} {turn}");
            let head = (turn % u32::from(size)) as u16;
            let slot = u64::from(index % size);
            ram.write_obj(head.to_le(), GuestAddress(DRIVER + 4 + 2 * slot)).unwrap();
            ram.write_obj(index.wrapping_add(1).to_le(), GuestAddress(DRIVER + 2)).unwrap();
            assert_eq!(ring.waiting(&dma).unwrap(), 1);
            let taken = ring.take(&dma, &mut chain).unwrap().unwrap();
            assert_eq!(
                (taken.head, taken.shape, chain.bytes()),
                (head, Ok(()), u64::from(head)),
                "{size} {turn}"
            );
            ring.give_back(&dma, head, turn).unwrap();
            ring.publish(&dma).unwrap();
            let used: [u32; 2] =
                [0, 4].map(|at| ram.read_obj(GuestAddress(DEVICE + 4 + 8 * slot + at)).unwrap());
            let published: u16 = ram.read_obj(GuestAddress(DEVICE + 2)).unwrap();
            assert_eq!((used, published), ([head.into(), turn], index.wrapping_add(1)), "{size} {turn}");
        }
    }
}

/// As 2.7.7.2 has it, counted without wrapping: an interrupt is due when the event is among what was published since.
#[test]
fn an_interrupt_is_due_when_the_event_was_passed() {
    let (ram, dma, mut ring) = ring(256, true);
    let step = if cfg!(miri) { 9973 } else { 1 };
    for told in [0, 1, 255, 256, 32_767, 32_768, 65_279, 65_534, 65_535_u16] {
        for count in [0, 1, 2, 255, 256_u16] {
            let published = told.wrapping_add(count);
            for event in (0..=u16::MAX).step_by(step) {
                (ring.told, ring.published) = (told, published);
                ram.write_obj(event.to_le(), GuestAddress(DRIVER + 4 + 2 * 256)).unwrap();
                let due = event.wrapping_sub(told) < count;
                assert_eq!(ring.wants_interrupt(&dma).unwrap(), due, "{told} {count} {event}");
            }
        }
    }
}

/// More than the ring has is no index.
#[test]
fn every_index_of_the_driver_is_taken_or_refused() {
    let sizes: &[u16] = if cfg!(miri) { &[1, 2] } else { &[1, 2, 256, 1024] };
    for &size in sizes {
        for at in [0, 1, 32_767, 65_535_u16] {
            let (ram, dma, mut ring) = ring(size, false);
            let mut chain = Chain::default();
            for index in (0..=u16::MAX).step_by(if cfg!(miri) { 9973 } else { 1 }) {
                (ring.next_avail, ring.seen_avail) = (at, at);
                ram.write_obj(index.to_le(), GuestAddress(DRIVER + 2)).unwrap();
                let waiting = index.wrapping_sub(at);
                match ring.take(&dma, &mut chain) {
                    Ok(None) => assert_eq!(waiting, 0),
                    Ok(Some(_)) => assert!((1..=size).contains(&waiting)),
                    Err(RingError::Available) => assert!(waiting > size),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}
