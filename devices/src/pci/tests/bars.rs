use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::{Bus, Doorbell, Space};

fn byte(bus: &Bus, addr: u64) -> u8 {
    let mut b = [0];
    bus.read(addr, &mut b);
    b[0]
}

#[test]
fn sizing_gives_the_masks() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    for offset in (0x10..0x28).step_by(4) {
        set_config_dword(&f, offset, 0xffff_ffff);
    }
    let read: Vec<u32> = (0x10..0x28).step_by(4).map(|o| config_dword(&f, o)).collect();
    assert_eq!(read, [0xffff_ff01, 0xffff_c004, 0xffff_ffff, 0xfffc_0000, 0, 0]);
    set_config_dword(&f, 0x30, 0xffff_ffff);
    assert_eq!(config_dword(&f, 0x30), 0, "no expansion ROM");
}

#[test]
fn prefetchable_and_rom() {
    let seat = TestSeat::new(0x1000);
    let mut b = PciDeviceBuilder::new("x", &header(), &InterruptSpec::default(), seat.seat.clone()).unwrap();
    b.bar(2, Bar::new(BarKind::Memory64, 0x1000, Window::new(2)).prefetchable());
    b.bar(ROM_BAR, Bar::new(BarKind::Rom, 0x1_0000, Window::new(6)));
    let f = b.build().unwrap();
    assert_eq!(config_dword(&f, 0x18), 0xc);
    set_config_dword(&f, 0x30, 0xffff_fffe);
    assert_eq!(config_dword(&f, 0x30), 0xffff_0000);
    set_config_dword(&f, 0x30, 0xc000_0000);
    set_config_word(&f, 4, 2);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 0xff, "ROM not enabled");
    set_config_dword(&f, 0x30, 0xc000_0001);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 6);
    set_config_word(&f, 4, 0);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 0xff);
}

#[test]
fn decoding_follows_command_and_address() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    set_config_dword(&f, 0x10, 0xc000);
    set_config_dword(&f, 0x14, 0xd000_0000);
    set_config_dword(&f, 0x18, 0);
    assert_eq!(byte(&seat.memory, 0xd000_0000), 0xff);
    set_config_word(&f, 4, 2);
    assert_eq!(byte(&seat.memory, 0xd000_0000), 0x11);
    assert_eq!(byte(&seat.memory, 0xd000_3fff), 0x11);
    assert_eq!(byte(&seat.memory, 0xd000_4000), 0xff);
    assert_eq!(byte(&seat.ports, 0xc000), 0xff, "I/O decoding is off");
    set_config_word(&f, 4, 3);
    assert_eq!(byte(&seat.ports, 0xc0ff), 0x10);

    // Live: above 4 GiB in two steps, the first of which lands where the machine has no window.
    set_config_dword(&f, 0x18, 0x80);
    assert_eq!(byte(&seat.memory, 0xd000_0000), 0xff);
    assert_eq!(byte(&seat.memory, 0x80_d000_0000), 0x11);
    set_config_dword(&f, 0x14, 0);
    assert_eq!(byte(&seat.memory, 0x80_0000_0000), 0x11);

    f.reset();
    assert_eq!(byte(&seat.memory, 0x80_0000_0000), 0xff);
    assert_eq!(byte(&seat.ports, 0xc000), 0xff);
    assert_eq!((config_dword(&f, 4) & 0xffff, config_dword(&f, 0x14), config_dword(&f, 0x18)), (0, 4, 0));
}

#[test]
fn sizing_while_decoding_maps_nothing_odd() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    set_config_dword(&f, 0x1c, 0xc000_0000);
    set_config_word(&f, 4, 3);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 0x13);
    for bar in [0x10, 0x14, 0x1c] {
        set_config_dword(&f, bar, 0xffff_ffff);
    }
    for addr in [0xc000_0000, 0xfffc_0000, 0xffff_c000, 0xffff_ffff, 0, 0x1000] {
        assert_eq!(byte(&seat.memory, addr), 0xff, "{addr:#x}");
    }
    assert_eq!(byte(&seat.ports, 0xff00), 0xff);
    set_config_dword(&f, 0x1c, 0xc000_0000);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 0x13);
}

#[test]
fn no_bar_over_ram_or_fixed_devices() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    set_config_word(&f, 4, 3);
    for addr in [0x10_0000, 0xbfff_0000, 0xfec0_0000_u32, 0xfee0_0000] {
        set_config_dword(&f, 0x1c, addr);
        assert_eq!(byte(&seat.memory, addr.into()), 0xff, "{addr:#x}");
    }
    set_config_dword(&f, 0x10, 0x400);
    assert_eq!(byte(&seat.ports, 0x400), 0xff);
}

#[test]
fn unassigned_addresses_decode_nothing_anywhere() {
    let mut seat = TestSeat::new(0x1000);
    let all = 0..u64::MAX;
    let windows = BusWindows::new(seat.memory.clone(), seat.ports.clone(), vec![all.clone()], vec![all]);
    seat.seat.bars = Arc::new(windows);
    let f = hba(&seat);
    set_config_word(&f, 4, 3);
    for (low, high) in [(0, 0), (0xffff_ffff, 0xffff_ffff)] {
        for (offset, value) in [(0x10, low), (0x14, low), (0x18, high), (0x1c, low)] {
            set_config_dword(&f, offset, value);
        }
        for addr in [0, 0xff00, 0xffff_c000, 0xfffc_0000, 0xffff_ff00, u64::MAX - 0x3fff, u64::MAX] {
            assert_eq!((byte(&seat.memory, addr), byte(&seat.ports, addr)), (0xff, 0xff), "{addr:#x}");
        }
    }
    set_config_dword(&f, 0x10, 0xff00);
    assert_eq!(byte(&seat.ports, 0xffff), 0x10, "the last ports are no sizing pattern");
}

#[test]
fn overlaps_are_refused_until_the_way_is_free() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    set_config_dword(&f, 0x14, 0xc000_0000);
    set_config_dword(&f, 0x1c, 0xc000_0000);
    set_config_word(&f, 4, 2);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 0x11, "first come");
    set_config_dword(&f, 0x14, 0xc010_0000);
    assert_eq!(byte(&seat.memory, 0xc000_0000), 0x13);
    assert_eq!(byte(&seat.memory, 0xc010_0000), 0x11);
    // The loser being switched off must not take the winner with it.
    set_config_dword(&f, 0x1c, 0xc010_0000);
    assert_eq!(byte(&seat.memory, 0xc010_0000), 0x11);
    set_config_dword(&f, 0x1c, 0xc020_0000);
    assert_eq!(byte(&seat.memory, 0xc010_0000), 0x11);
}

#[test]
fn doorbells_move_with_their_bar() {
    let seat = TestSeat::new(0x1000);
    let window = Window::new(1);
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let bell = BarDoorbell { offset: 0x3004, width: 2, value: None, event: event.clone() };
    let mut b = PciDeviceBuilder::new("x", &header(), &InterruptSpec::default(), seat.seat.clone()).unwrap();
    b.bar(0, Bar::new(BarKind::Memory32, 0x4000, window).doorbell(bell));
    let f = b.build().unwrap();
    let at = |addr| Doorbell { addr, space: Space::Memory, width: 2, value: None };
    assert_eq!(seat.doorbells.attached(), []);
    set_config_dword(&f, 0x10, 0xc000_0000);
    set_config_word(&f, 4, 2);
    assert_eq!(seat.doorbells.attached(), [at(0xc000_3004)]);
    set_config_dword(&f, 0x10, 0xc001_0000);
    assert_eq!(seat.doorbells.attached(), [at(0xc001_3004)]);
    assert!(seat.doorbells.ring(Doorbell { value: Some(7), ..at(0xc001_3004) }));
    assert_eq!(event.read().unwrap(), 1);
    assert!(!seat.doorbells.ring(at(0xc000_3004)));
    set_config_word(&f, 4, 0);
    assert_eq!(seat.doorbells.attached(), []);
}

#[test]
fn bus_master_opens_and_closes_dma() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    let dma = &seat.seat.dma;
    assert!(dma.ram().is_err());
    assert_eq!(f.write(4, &4_u16.to_le_bytes()).bus_master, Some(true));
    assert!(dma.ram().is_ok());
    assert_eq!(f.write(4, &6_u16.to_le_bytes()).bus_master, None);
    assert_eq!(f.write(4, &2_u16.to_le_bytes()).bus_master, Some(false));
    assert!(dma.ram().is_err());
    set_config_word(&f, 4, 4);
    f.reset();
    assert!(dma.ram().is_err());
}

#[test]
fn express_capability() {
    let seat = TestSeat::new(0x1000);
    let f = hba(&seat);
    assert_eq!(find_capability(&f, 0x10), Some(0xa0));
    // Version 2, root complex integrated endpoint; role-based errors and Function Level Reset.
    assert_eq!(config_dword(&f, 0xa0) >> 16, 0x0092);
    assert_eq!(config_dword(&f, 0xa4), 0x1000_8000);
    set_config_word(&f, 4, 4);
    assert!(!f.write(0xa8, &0x2810_u16.to_le_bytes()).function_reset);
    for (offset, data) in [(0xa8, &[0x10, 0xa8][..]), (0xa9, &[0x80]), (0xa8, &[0, 0x80, 0, 0])] {
        assert!(f.write(offset, data).function_reset, "{offset:#x}");
        assert_eq!(config_dword(&f, 0xa8) & 0x8000, 0);
    }
    f.config_write(0xa9, &[0x80]);
    assert_eq!(config_dword(&f, 4) & 0xffff, 0, "reset by itself");
}

#[test]
fn mistakes_of_the_description() {
    let seat = TestSeat::new(0x1000);
    let start = |spec: &InterruptSpec| PciDeviceBuilder::new("x", &header(), spec, seat.seat.clone());
    let bad = |index, kind, size| {
        let mut b = start(&InterruptSpec::default()).unwrap();
        b.bar(index, Bar::empty(kind, size));
        b.build().is_err()
    };
    assert!(bad(0, BarKind::Memory32, 0x1800) && bad(0, BarKind::Port, 512) && bad(0, BarKind::Memory32, 8));
    assert!(bad(5, BarKind::Memory64, 0x1000) && bad(6, BarKind::Port, 16) && bad(7, BarKind::Rom, 0x1000));
    assert!(bad(0, BarKind::Rom, 0x1000) && bad(200, BarKind::Port, 16));
    let mut b = start(&InterruptSpec::default()).unwrap();
    b.bar(1, Bar::empty(BarKind::Memory64, 0x1000)).bar(2, Bar::empty(BarKind::Port, 16));
    assert!(b.build().is_err(), "BAR 2 is the upper half of BAR 1");
    let msix = |vectors, table, pba| InterruptSpec {
        msix: Some(MsixSpec { vectors, table: (0, table), pba: (0, pba), offset: None }),
        msi: None,
    };
    for spec in [msix(0, 0, 0x800), msix(2049, 0, 0x8000), msix(1, 4, 0x800)] {
        assert!(start(&spec).is_err());
    }
    for (spec, good) in [(msix(4, 0, 0x38), false), (msix(4, 0, 0x40), true), (msix(4, 0, 0x1000), false)] {
        let mut b = start(&spec).unwrap();
        b.bar(0, Bar::empty(BarKind::Memory32, 0x1000));
        assert_eq!(b.build().is_ok(), good);
    }
}

proptest! {
    #[test]
    fn random_config_writes_change_no_identity(
        writes in prop::collection::vec((0_u16..0x120, prop::collection::vec(any::<u8>(), 1..9)), 0..200)
    ) {
        let seat = TestSeat::new(0x1000);
        let f = hba(&seat);
        for (offset, data) in writes {
            f.config_write(offset, &data);
        }
        prop_assert_eq!(config_dword(&f, 0), 0x1048_1af4);
        prop_assert_eq!(find_capability(&f, 0x11), Some(0x68));
        // Nothing of it ever reaches below the windows of the machine.
        for addr in [0, 0xa_0000, 0x10_0000, 0xfec0_0000, 0xfee0_0000, 0xffff_fff0] {
            prop_assert!(seat.memory.find(addr).is_none());
        }
        f.reset();
        prop_assert_eq!(config_dword(&f, 4), 0x0010_0000);
        prop_assert!(seat.doorbells.attached().is_empty());
        for base in [0xc000_0000_u64, 0xd000_0000] {
            prop_assert!(seat.memory.find(base).is_none());
        }
    }
}

/// All numbers at which an address of `bits` bits may turn over.
fn edges(bits: u32, size: u64) -> Vec<u64> {
    let max = u64::MAX >> (64 - bits);
    let powers =
        (0..bits).flat_map(|n| [1 << n, (1 << n) - 1, (1 << n) + 1, max - (1 << n), max - (1 << n) + 1]);
    let own = [0, max, size, max - size, max - size + 1, max.wrapping_sub(2 * size).wrapping_add(1)];
    let mut all: Vec<u64> = powers.chain(own).filter(|value| *value <= max).collect();
    all.sort_unstable();
    all.dedup();
    if cfg!(miri) { all.into_iter().step_by(37).collect() } else { all }
}

/// In place of a proof: every size of every kind, at every address that is an edge of anything.
#[test]
fn every_size_is_sized_and_moved_at_every_edge() {
    let kinds = [(BarKind::Port, 2..=8), (BarKind::Memory32, 4..=31), (BarKind::Memory64, 4..=62)];
    for (kind, power) in kinds.into_iter().flat_map(|(kind, powers)| powers.map(move |n| (kind, n))) {
        if cfg!(miri) && power % 9 != 4 {
            continue;
        }
        let (bits, flags) = match kind {
            BarKind::Port => (32, 1),
            BarKind::Memory32 => (32, 0),
            _ => (64, 4),
        };
        let size: u64 = 1 << power;
        let mut seat = TestSeat::new(0x1000);
        let all = 0..u64::MAX;
        let windows = BusWindows::new(seat.memory.clone(), seat.ports.clone(), vec![all.clone()], vec![all]);
        seat.seat.bars = Arc::new(windows);
        let spec = InterruptSpec::default();
        let mut b = PciDeviceBuilder::new("x", &header(), &spec, seat.seat.clone()).unwrap();
        b.bar(0, Bar::new(kind, size, Window::new(1)));
        let f = b.build().unwrap();
        set_config_word(&f, 4, 3);
        let bus = if kind == BarKind::Port { &seat.ports } else { &seat.memory };
        for value in edges(bits, size) {
            set_config_dword(&f, 0x10, value as u32);
            if bits == 64 {
                set_config_dword(&f, 0x14, (value >> 32) as u32);
            }
            let high = if bits == 64 { u64::from(config_dword(&f, 0x14)) << 32 } else { 0 };
            let read = high | u64::from(config_dword(&f, 0x10));
            let base = value & !(size - 1);
            assert_eq!(read, base | flags, "{kind:?} {size:#x} at {value:#x}");
            // All of it or nothing, and nothing around it.
            let (last, there) = (base + (size - 1), byte(bus, base) == 1);
            assert_eq!(byte(bus, last) == 1, there, "{kind:?} {size:#x} at {value:#x}");
            for outside in [base.checked_sub(1), last.checked_add(1)].into_iter().flatten() {
                assert_ne!(byte(bus, outside), 1, "{kind:?} {size:#x} at {value:#x}: {outside:#x}");
            }
            let top = if kind == BarKind::Port { 0x1_0000 } else { u64::MAX >> (64 - bits) };
            assert_eq!(there, base != 0 && last < top, "{kind:?} {size:#x} at {value:#x}");
        }
    }
}

/// Pages by the address where they are shown.
#[derive(Default)]
struct Pages(Mutex<BTreeMap<u64, Arc<RegisterPage>>>);

impl PageWindow for Pages {
    fn show(&self, base: u64, page: &Arc<RegisterPage>) -> std::io::Result<()> {
        if base == 0xc00f_0000 {
            return Err(std::io::Error::other("not there"));
        }
        assert!(self.0.lock().unwrap().insert(base, page.clone()).is_none(), "shown twice");
        Ok(())
    }

    fn hide(&self, base: u64) {
        assert!(self.0.lock().unwrap().remove(&base).is_some(), "nothing to hide at {base:#x}");
    }
}

#[test]
fn pages_of_registers_move_with_their_bar() {
    let mut seat = TestSeat::new(0x1000);
    let pages = Arc::new(Pages::default());
    let window = 0xc000_0000..0xd000_0000;
    let windows = BusWindows::new(seat.memory.clone(), seat.ports.clone(), vec![window], vec![]);
    seat.seat.bars = Arc::new(windows.with_pages(pages.clone()));
    let page = Arc::new(RegisterPage::new().unwrap());
    page.set(0xffc, 0x1122_3344);
    page.set(0x1000, 7);
    page.set(2, 7);
    assert_eq!((page.get(0xffc), page.get(0x1000), page.get(0)), (0x1122_3344, 0, 0));
    let mut b = PciDeviceBuilder::new("x", &header(), &InterruptSpec::default(), seat.seat.clone()).unwrap();
    b.bar(0, Bar::new(BarKind::Memory32, 0x4000, Window::new(1)).page(page));
    b.bar(1, Bar::new(BarKind::Memory32, 0x1000, Window::new(2)));
    let f = b.build().unwrap();
    let shown = || pages.0.lock().unwrap().keys().copied().collect::<Vec<_>>();
    set_config_dword(&f, 0x10, 0xc000_0000);
    assert_eq!(shown(), [0_u64; 0], "not decoded");
    set_config_word(&f, 4, 2);
    assert_eq!(shown(), [0xc000_0000]);
    set_config_dword(&f, 0x10, 0xffff_ffff);
    assert_eq!(shown(), [0_u64; 0], "sizing");
    set_config_dword(&f, 0x10, 0xe000_0000);
    assert_eq!(shown(), [0_u64; 0], "no window there");
    set_config_dword(&f, 0x14, 0xc001_0000);
    set_config_dword(&f, 0x10, 0xc001_0000);
    assert_eq!(shown(), [0_u64; 0], "another BAR is there");
    set_config_dword(&f, 0x10, 0xc00f_0000);
    assert_eq!((shown(), byte(&seat.memory, 0xc00f_0000)), (vec![], 1), "the window serves without a page");
    set_config_dword(&f, 0x10, 0xc002_0000);
    assert_eq!(shown(), [0xc002_0000]);
    set_config_word(&f, 4, 0);
    assert_eq!(shown(), [0_u64; 0]);
}

#[test]
fn a_page_of_registers_needs_its_room() {
    let seat = TestSeat::new(0x1000);
    let page = || Arc::new(RegisterPage::new().unwrap());
    for (kind, size) in [(BarKind::Memory32, 0x800), (BarKind::Port, 0x100)] {
        let mut b =
            PciDeviceBuilder::new("x", &header(), &InterruptSpec::default(), seat.seat.clone()).unwrap();
        b.bar(0, Bar::new(kind, size, Window::new(1)).page(page()));
        assert!(b.build().is_err());
    }
    for (table, works) in [(0xff0, false), (0x1000, true)] {
        let msix = MsixSpec { vectors: 4, table: (0, table), pba: (0, 0x2000), offset: None };
        let interrupts = InterruptSpec { msi: None, msix: Some(msix) };
        let mut b = PciDeviceBuilder::new("x", &header(), &interrupts, seat.seat.clone()).unwrap();
        b.bar(0, Bar::new(BarKind::Memory32, 0x4000, Window::new(1)).page(page()));
        assert_eq!(b.build().is_ok(), works, "a table at {table:#x}");
    }
}
