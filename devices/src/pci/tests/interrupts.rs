use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;
use crate::irq::{IrqLine, MsiMessage};
use crate::testing::irq::{RecordingIrq, RecordingMsi};

const BASE: u64 = 0xd000_0000;
const TABLE: u64 = BASE + 0x2000;
const PBA: u64 = BASE + 0x3800;

fn mapped(seat: &TestSeat) -> PciDevice {
    let f = hba(seat);
    set_config_dword(&f, 0x14, BASE as u32);
    set_config_word(&f, 4, 6);
    f
}

fn dword(seat: &TestSeat, addr: u64) -> u32 {
    let mut b = [0; 4];
    seat.memory.read(addr, &mut b);
    u32::from_le_bytes(b)
}

/// Programs `vector` in the order Linux does: address, upper address, data, then the mask.
fn program(seat: &TestSeat, vector: u64, data: u32, control: u32) {
    for (i, value) in [0xfee0_1000, 0, data, control].into_iter().enumerate() {
        seat.memory.write(TABLE + vector * 16 + 4 * i as u64, &u32::to_le_bytes(value));
    }
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_1000, data }
}

#[test]
fn msix_capability_and_table_at_power_on() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    assert_eq!(find_capability(&f, 0x11), Some(0x68));
    assert_eq!((config_dword(&f, 0x68) >> 16, config_dword(&f, 0x6c)), (14, 0x2001));
    assert_eq!(config_dword(&f, 0x70), 0x3801);
    for vector in 0..15 {
        assert_eq!(dword(&seat, TABLE + vector * 16 + 12), 1, "masked");
    }
    assert_eq!(dword(&seat, TABLE + 15 * 16), 0x1111_1111, "the device again");
    assert_eq!(dword(&seat, PBA), 0);
    set_config_dword(&f, 0x68, 0xffff_ffff);
    assert_eq!(config_dword(&f, 0x68) >> 16, 0xc00e);
}

#[test]
fn msix_delivers_masks_and_remembers() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    let irq = f.interrupt().clone();
    set_config_word(&f, 0x6a, 0xc000);
    program(&seat, 2, 0x41, 0);
    program(&seat, 3, 0x42, 1);
    assert_eq!(seat.msi.allocated(), 0, "function mask: nothing needs a route yet");
    assert_eq!(irq.mode(), InterruptMode::Msix);

    irq.notify(2);
    assert_eq!(dword(&seat, PBA), 0b100);
    assert!(seat.msi.take().is_empty());
    set_config_word(&f, 0x6a, 0x8000);
    assert_eq!(seat.msi.take(), [message(0x41)]);
    assert_eq!((dword(&seat, PBA), seat.msi.allocated()), (0, 1));

    irq.notify(2);
    irq.notify(2);
    assert_eq!(seat.msi.take(), [message(0x41), message(0x41)]);
    irq.notify(3);
    irq.notify(3);
    irq.notify(14);
    irq.notify(15);
    irq.notify(0xffff);
    assert_eq!(dword(&seat, PBA), 1 << 3 | 1 << 14);
    program(&seat, 3, 0x52, 0);
    assert_eq!(seat.msi.take(), [message(0x52)], "pending is one message, with the new data");
    assert_eq!(dword(&seat, PBA), 1 << 14);
    assert!(!seat.intx.is_high() && seat.intx.rises() == 0);
}

#[test]
fn msix_routes_only_changes() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    set_config_word(&f, 0x6a, 0x8000);
    program(&seat, 0, 0x41, 0);
    let mask = |on: u32| seat.memory.write(TABLE + 12, &on.to_le_bytes());
    assert_eq!(seat.msi.routes(), 1);
    for _ in 0..5 {
        mask(1);
        mask(0);
    }
    assert_eq!(seat.msi.routes(), 1);
    mask(1);
    program(&seat, 0, 0x43, 1);
    assert_eq!(seat.msi.routes(), 1);
    mask(0);
    assert_eq!((seat.msi.routes(), seat.msi.allocated()), (2, 1));
    f.interrupt().notify(0);
    assert_eq!(seat.msi.take(), [message(0x43)]);
}

#[test]
fn msix_table_takes_quadwords_and_odd_widths() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    set_config_word(&f, 0x6a, 0x8000);
    seat.memory.write(TABLE + 16, &0x0000_0001_fee0_2003_u64.to_le_bytes());
    seat.memory.write(TABLE + 24, &0x0000_0000_0000_0055_u64.to_le_bytes());
    assert_eq!(seat.msi.routes(), 1);
    f.interrupt().notify(1);
    assert_eq!(seat.msi.take(), [MsiMessage { address: 0x1_fee0_2000, data: 0x55 }]);
    let mut q = [0; 8];
    seat.memory.read(TABLE + 16, &mut q);
    assert_eq!(u64::from_le_bytes(q), 0x1_fee0_2000, "the low address bits are zero");
    seat.memory.write(TABLE + 25, &[0x66]);
    assert_eq!(dword(&seat, TABLE + 24), 0x6655);
    // A quadword across two entries, and one across the end of the table.
    seat.memory.write(TABLE + 12, &[0xfe, 0, 0, 0, 0xf0, 0xff, 0, 0]);
    assert_eq!((dword(&seat, TABLE + 12), dword(&seat, TABLE + 16)), (0, 0xfff0));
    seat.memory.write(TABLE + 15 * 16 - 4, &[0; 8]);
    assert_eq!(dword(&seat, TABLE + 15 * 16 - 4), 0);
    seat.memory.write(PBA, &[0xff; 8]);
    assert_eq!(dword(&seat, PBA), 0);
}

#[test]
fn msix_disable_falls_back_and_forgets() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    set_config_word(&f, 0x6a, 0x8000);
    f.interrupt().notify(4);
    set_config_word(&f, 0x6a, 0);
    assert_eq!(dword(&seat, PBA), 0);
    f.interrupt().notify(4);
    assert!(seat.intx.is_high());
    set_config_word(&f, 0x6a, 0x8000);
    assert!(!seat.intx.is_high(), "no INTx# while MSI-X is enabled");
    program(&seat, 4, 1, 0);
    assert!(seat.msi.take().is_empty());

    f.reset();
    assert_eq!(f.interrupt().mode(), InterruptMode::Intx);
    set_config_dword(&f, 0x14, BASE as u32);
    set_config_word(&f, 4, 6);
    assert_eq!((dword(&seat, TABLE + 64), dword(&seat, TABLE + 76)), (0, 1));
}

#[test]
fn a_full_routing_table_costs_interrupts_only() {
    let seat = TestSeat::with_msi(0x1000, RecordingMsi::with_limit(1));
    let f = mapped(&seat);
    set_config_word(&f, 0x6a, 0x8000);
    program(&seat, 0, 0x40, 0);
    program(&seat, 1, 0x41, 0);
    f.interrupt().notify(1);
    f.interrupt().notify(0);
    assert_eq!(seat.msi.take(), [message(0x40)]);
}

#[test]
fn many_vectors_cost_nothing_until_unmasked() {
    let seat = TestSeat::new(0x1000);
    let spec = InterruptSpec {
        msix: Some(MsixSpec { vectors: 2048, table: (0, 0), pba: (0, 0x8000), offset: None }),
        msi: None,
    };
    let mut b = PciDeviceBuilder::new("x", &header(), &spec, seat.seat.clone()).unwrap();
    b.bar(0, Bar::empty(BarKind::Memory32, 0x1_0000));
    let f = b.build().unwrap();
    set_config_dword(&f, 0x10, 0xc000_0000);
    set_config_word(&f, 4, 2);
    let cap = find_capability(&f, 0x11).unwrap();
    assert_eq!(config_dword(&f, cap) >> 16, 0x7ff);
    set_config_word(&f, cap + 2, 0x8000);
    assert_eq!(seat.msi.allocated(), 0);
    f.interrupt().notify(2047);
    assert_eq!(dword(&seat, 0xc000_8000 + 252), 1 << 31);
    seat.memory.write(0xc000_0000 + 2047 * 16, &0xfee0_1000_0000_u64.to_le_bytes());
    seat.memory.write(0xc000_0000 + 2047 * 16 + 8, &9_u64.to_le_bytes());
    assert_eq!((seat.msi.allocated(), seat.msi.take().len()), (1, 1));
    assert_eq!(dword(&seat, 0xc000_9000), 0, "nothing else in the BAR");
}

const ROUNDS: u32 = 1000;

/// Spins, so that both threads go on at almost the same moment, unless that takes long.
fn wait_for(counter: &AtomicU32, value: u32) {
    for spins in 0_u32.. {
        if counter.load(Ordering::SeqCst) >= value {
            return;
        }
        if spins > 1000 {
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

#[test]
fn no_message_is_lost_between_mask_and_trigger() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    set_config_word(&f, 0x6a, 0x8000);
    program(&seat, 0, 1, 0);
    let irq = f.interrupt().clone();
    let mask = |on: u32| seat.memory.write(TABLE + 12, &on.to_le_bytes());
    let (round, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let mut wrong = Vec::new();
    thread::scope(|s| {
        s.spawn(|| {
            for n in 1..=ROUNDS {
                wait_for(&round, n);
                // Another moment of the unmask each time.
                (0..n % 128).for_each(|_| _ = std::hint::black_box(n));
                irq.notify(0);
                done.store(n, Ordering::SeqCst);
            }
        });
        for n in 1..=ROUNDS {
            mask(1);
            round.store(n, Ordering::SeqCst);
            mask(0);
            wait_for(&done, n);
            if seat.msi.take().len() != 1 || dword(&seat, PBA) != 0 {
                wrong.push(n);
            }
        }
    });
    assert!(wrong.is_empty(), "rounds {wrong:?}");
}

#[test]
fn msi_single_message() {
    let seat = TestSeat::new(0x1000);
    let f = mapped(&seat);
    assert_eq!(find_capability(&f, 5), Some(0x50));
    assert_eq!(config_dword(&f, 0x50) >> 16, 0x0080);
    set_config_dword(&f, 0x54, 0xfee0_1003);
    set_config_dword(&f, 0x58, 0);
    set_config_dword(&f, 0x5c, 0xffff_0031);
    assert_eq!((config_dword(&f, 0x54), config_dword(&f, 0x5c)), (0xfee0_1000, 0x31));
    assert_eq!(seat.msi.allocated(), 0);
    set_config_word(&f, 0x52, 1);
    for vector in [0, 1, 7] {
        f.interrupt().notify(vector);
    }
    assert_eq!(seat.msi.take(), [message(0x31); 3]);
    // A grant of more than was asked for changes nothing.
    set_config_word(&f, 0x52, 0x71);
    f.interrupt().notify(3);
    assert_eq!(seat.msi.take(), [message(0x31)]);
    set_config_word(&f, 0x52, 0);
    f.interrupt().notify(0);
    assert!(seat.msi.take().is_empty() && seat.intx.is_high());
}

#[test]
fn msi_messages_and_masks() {
    let seat = TestSeat::new(0x1000);
    let spec =
        InterruptSpec { msi: Some(MsiSpec { messages: 8, per_vector_mask: true, offset: None }), msix: None };
    let f = PciDeviceBuilder::new("x", &header(), &spec, seat.seat.clone()).unwrap().build().unwrap();
    assert_eq!(config_dword(&f, 0x40) >> 16, 0x0186);
    set_config_dword(&f, 0x44, 0xfee0_1000);
    set_config_dword(&f, 0x4c, 0x47);
    set_config_dword(&f, 0x50, 0xffff_ffff);
    assert_eq!(config_dword(&f, 0x50), 0xff);
    set_config_dword(&f, 0x50, 0b0010);
    // Four messages granted: the function owns two bits of the data.
    set_config_word(&f, 0x42, 2 << 4 | 1);
    (0..6).for_each(|v| f.interrupt().notify(v));
    assert_eq!(seat.msi.take(), [0x44, 0x46, 0x47, 0x44].map(message));
    assert_eq!((config_dword(&f, 0x54), seat.msi.allocated()), (0b0010, 3));
    set_config_dword(&f, 0x50, 0);
    assert_eq!((seat.msi.take(), config_dword(&f, 0x54)), (vec![message(0x45)], 0));
}

#[test]
fn intx_disable_bit_and_status_bit() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    let status = || config_dword(&f, 4) >> 16 & 8;
    f.interrupt().notify(0);
    f.interrupt().notify(5);
    assert!(seat.intx.is_high() && status() == 8);
    set_config_word(&f, 4, 1 << 10);
    assert!(!seat.intx.is_high() && status() == 8);
    set_config_word(&f, 4, 0);
    assert!(seat.intx.is_high());
    f.interrupt().deassert_intx();
    assert!(!seat.intx.is_high() && status() == 0);
    f.interrupt().notify(0);
    f.reset();
    assert!(!seat.intx.is_high() && status() == 0);
    assert_eq!(seat.intx.rises(), 3);
}

#[test]
fn no_pin_no_interrupt() {
    let seat = TestSeat::new(0x1000);
    let header = Header { interrupt_pin: 0, ..header() };
    let b = PciDeviceBuilder::new("x", &header, &InterruptSpec::default(), seat.seat.clone()).unwrap();
    let f = b.build().unwrap();
    f.interrupt().notify(0);
    assert!(!seat.intx.is_high());
    assert_eq!(config_dword(&f, 4) >> 16, 0);
}

#[test]
fn wiring_of_slots() {
    // Slot, pin INTA# to INTD#: PIRQ E to H rotate, slots 25 to 29 and 31 use A to D.
    assert_eq!([0, 1, 2, 3].map(|pin| gsi_for(0, pin)), [20, 21, 22, 23]);
    assert_eq!([1, 2, 3, 4, 24, 30].map(|slot| gsi_for(slot, 0)), [21, 22, 23, 20, 20, 22]);
    assert_eq!([25, 26, 27, 28, 29, 31].map(|slot| gsi_for(slot, 0)), [17, 18, 19, 16, 17, 19]);
    assert_eq!(gsi_for(31, 3), 18);
    assert_eq!(gsi_for(30, 3), 21);
}

#[test]
fn shared_wires_or_and_route_to_isa() {
    let gsi: [Arc<RecordingIrq>; 8] = std::array::from_fn(|_| RecordingIrq::new());
    let isa: [Arc<RecordingIrq>; 16] = std::array::from_fn(|_| RecordingIrq::new());
    let router = IntxRouter::new(
        gsi.clone().map(|line| line as Arc<dyn IrqLine>),
        isa.clone().map(|line| Some(line as Arc<dyn IrqLine>)),
    );
    // Slots 1 and 5 share PIRQ F, slot 2 has PIRQ G.
    let (a, b, c) = (router.wire(1, 0), router.wire(5, 0), router.wire(2, 0));
    let high = |lines: &[Arc<RecordingIrq>]| -> Vec<usize> {
        (0..lines.len()).filter(|&i| lines[i].is_high()).collect()
    };
    a.set_level(true);
    a.set_level(true);
    b.set_level(true);
    assert_eq!((high(&gsi), high(&isa)), (vec![5], vec![]));
    a.set_level(false);
    assert_eq!(high(&gsi), [5]);
    router.set_route(5, 10);
    router.set_route(6, 10);
    assert_eq!(high(&isa), [10]);
    c.set_level(true);
    b.set_level(false);
    b.set_level(false);
    assert_eq!((high(&gsi), high(&isa)), (vec![6], vec![10]));
    router.set_route(6, 0x8b);
    assert_eq!((high(&gsi), high(&isa)), (vec![6], vec![]));
    router.set_route(6, 11);
    assert_eq!(high(&isa), [11]);
    c.set_level(false);
    assert_eq!((high(&gsi), high(&isa)), (vec![], vec![]));
    assert_eq!((gsi[5].rises(), isa[10].rises()), (1, 1));
    router.set_route(9, 0);
}
