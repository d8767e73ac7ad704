use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::bus::Bus;
use crate::irq::IrqLine;
use crate::machine::{MachineControl, MachineRequest};
use crate::testing::irq::RecordingIrq;

#[derive(Default)]
struct Requests(Mutex<Vec<MachineRequest>>);
impl MachineControl for Requests {
    fn request(&self, what: MachineRequest) {
        self.0.lock().unwrap().push(what);
    }
}

/// A q35 board with one HBA in slot 3.
struct Board {
    seat: TestSeat,
    host: Arc<PciHost>,
    mch: Arc<Mch>,
    lpc: Arc<Lpc>,
    hba: Arc<PciDevice>,
    requests: Arc<Requests>,
    isa: [Arc<RecordingIrq>; 16],
    router: Arc<IntxRouter>,
    sci: Arc<AtomicU32>,
}

const HBA: Bdf = Bdf::new(0, 3, 0);

fn board() -> Board {
    let seat = TestSeat::new(0x1000);
    let host = PciHost::new();
    let mch = Mch::new(&host, seat.memory.clone());
    let gsi: [Arc<RecordingIrq>; 8] = std::array::from_fn(|_| RecordingIrq::new());
    let isa: [Arc<RecordingIrq>; 16] = std::array::from_fn(|_| RecordingIrq::new());
    let router = IntxRouter::new(
        gsi.clone().map(|line| line as Arc<dyn IrqLine>),
        isa.clone().map(|line| Some(line as Arc<dyn IrqLine>)),
    );
    let sci = Arc::new(AtomicU32::new(0));
    let lpc = Lpc::new(LpcWiring {
        ports: seat.ports.clone(),
        memory: seat.memory.clone(),
        pm: Window::new(0x3c),
        router: router.clone(),
        sci: {
            let sci = sci.clone();
            Arc::new(move |gsi| sci.store(gsi, Ordering::SeqCst))
        },
    });
    let hba = Arc::new(hba(&seat));
    host.add(Mch::BDF, mch.clone()).unwrap();
    host.add(Lpc::BDF, lpc.clone()).unwrap();
    host.add(HBA, hba.clone()).unwrap();
    let requests = Arc::new(Requests::default());
    let ports = ConfigPorts::new(host.clone(), requests.clone());
    seat.ports.map(ConfigPorts::BASE, ConfigPorts::LEN, ports).unwrap();
    Board { seat, host, mch, lpc, hba, requests, isa, router, sci }
}

fn get<const N: usize>(bus: &Bus, addr: u64) -> [u8; N] {
    let mut data = [0x5a; N];
    bus.read(addr, &mut data);
    data
}

fn inl(b: &Board, port: u64) -> u32 {
    u32::from_le_bytes(get(&b.seat.ports, port))
}

fn outl(b: &Board, port: u64, value: u32) {
    b.seat.ports.write(port, &value.to_le_bytes());
}

fn config(b: &Board, address: u32) -> u32 {
    outl(b, 0xcf8, 0x8000_0000 | address);
    inl(b, 0xcfc)
}

fn set_config(b: &Board, address: u32, value: u32) {
    outl(b, 0xcf8, 0x8000_0000 | address);
    outl(b, 0xcfc, value);
}

#[test]
fn identity_of_the_chipset() {
    let b = board();
    assert_eq!(config(&b, 0x00), 0x29c0_8086);
    assert_eq!((config(&b, 0x08), config(&b, 0x0c), config(&b, 0x2c)), (0x0600_0000, 0, 0x1100_1af4));
    assert_eq!((config(&b, 0x9c), config(&b, 0x60), config(&b, 0x64)), (0x0000_0200, 0, 0));
    assert_eq!(config(&b, 0xf800), 0x2918_8086);
    assert_eq!((config(&b, 0xf808), config(&b, 0xf80c)), (0x0601_0002, 0x0080_0000));
    assert_eq!((config(&b, 0xf82c), config(&b, 0xf83c)), (0x1100_1af4, 0));
    assert_eq!((config(&b, 0xf840), config(&b, 0xf844)), (1, 0));
    assert_eq!((config(&b, 0xf860), config(&b, 0xf868), config(&b, 0xf8f0)), (0x8080_8080, 0x8080_8080, 0));
}

#[test]
fn attribute_maps_and_smram_are_storage() {
    let b = board();
    // The values SeaBIOS writes.
    for (pam0, pam4) in [(0x3333_3330, 0x0033_3333), (0x1111_1110, 0x0011_1111)] {
        set_config(&b, 0x90, pam0);
        set_config(&b, 0x94, pam4);
        assert_eq!((config(&b, 0x90), config(&b, 0x94)), (pam0, pam4));
    }
    outl(&b, 0xcf8, 0x8000_009c);
    for value in [0x4a, 0x0a] {
        b.seat.ports.write(0xcfd, &[value]);
        assert_eq!(get(&b.seat.ports, 0xcfd), [value]);
    }
    b.host.reset();
    assert_eq!((config(&b, 0x90), config(&b, 0x9c)), (0, 0x0200));
}

#[test]
fn mechanism_one_widths() {
    let b = board();
    outl(&b, 0xcf8, 0x8000_1800);
    assert_eq!(inl(&b, 0xcf8), 0x8000_1800);
    assert_eq!(inl(&b, 0xcfc), 0x1048_1af4);
    assert_eq!(get(&b.seat.ports, 0xcfc), [0xf4, 0x1a]);
    assert_eq!(get(&b.seat.ports, 0xcfe), [0x48, 0x10]);
    assert_eq!(get(&b.seat.ports, 0xcfd), [0x1a]);
    assert_eq!(get(&b.seat.ports, 0xcfd), [0x1a, 0x48]);
    assert_eq!(get(&b.seat.ports, 0xcfd), [0x1a, 0x48, 0x10]);
    assert_eq!(get(&b.seat.ports, 0xcfe), [0xff; 4], "beyond the data port");
    // Address bits that do not exist are not kept.
    outl(&b, 0xcf8, 0xffff_ffff);
    assert_eq!(inl(&b, 0xcf8), 0x80ff_fffc);
    // Disabled: nothing answers and nothing is written.
    outl(&b, 0xcf8, 0x0000_1804);
    assert_eq!(inl(&b, 0xcfc), 0xffff_ffff);
    outl(&b, 0xcfc, 4);
    assert_eq!(config(&b, 0x1804) & 0xffff, 0);
    b.seat.ports.write(0xcfc, &[4]);
    assert_eq!(b.hba.command(), 4);
    // Only a dword is the address. Linux probes for mechanism #2 with a byte at 0xcfb.
    b.seat.ports.write(0xcfb, &[1]);
    b.seat.ports.write(0xcf8, &[0, 0]);
    assert_eq!(inl(&b, 0xcf8), 0x8000_1804);
    assert_eq!(get(&b.seat.ports, 0xcfb), [0xff]);
}

#[test]
fn reset_register_amid_the_address() {
    let b = board();
    outl(&b, 0xcf8, 0x8000_1800);
    b.seat.ports.write(0xcf9, &[0x02]);
    assert!(b.requests.0.lock().unwrap().is_empty());
    assert_eq!((get(&b.seat.ports, 0xcf9), inl(&b, 0xcf8)), ([0x02], 0x8000_1800));
    // A dword with these bits is an address, not a reset.
    outl(&b, 0xcf8, 0x8000_0e00);
    assert!(b.requests.0.lock().unwrap().is_empty());
    for value in [0x06, 0x06, 0x0f] {
        b.seat.ports.write(0xcf9, &[value]);
    }
    assert_eq!(*b.requests.0.lock().unwrap(), [MachineRequest::Reset("port 0xcf9"); 3]);
}

#[test]
fn absent_functions_read_ones() {
    let b = board();
    for address in [0x1900, 0x2000, 0x01_0000, 0xff_ff00] {
        set_config(&b, address, 0);
        assert_eq!(config(&b, address), 0xffff_ffff, "{address:#x}");
    }
    assert!(b.host.add(HBA, b.hba.clone()).is_err());
    assert!(b.host.remove(HBA).is_some());
    assert_eq!(config(&b, 0x1800), 0xffff_ffff);
}

#[test]
fn ecam_enable_move_disable() {
    let b = board();
    let id = |base: u64| u32::from_le_bytes(get(&b.seat.memory, base + (3 << 15)));
    assert_eq!(id(0xb000_0000), 0xffff_ffff);
    for (register, value) in [(0x60, 0), (0x64, 0), (0x60, 0xb000_0001)] {
        set_config(&b, register, value);
    }
    assert_eq!((id(0xb000_0000), b.mch.ecam()), (0x1048_1af4, Some(0xb000_0000..0xc000_0000)));
    // Other buses are there and empty; the last byte belongs to the window.
    assert_eq!(get(&b.seat.memory, 0xb010_0000), [0xff; 4]);
    assert_eq!(get(&b.seat.memory, 0xbfff_ffff), [0xff]);

    // Moved through itself, as OVMF may.
    b.seat.memory.write(0xb000_0060, &0xe000_0001_u32.to_le_bytes());
    assert_eq!((id(0xb000_0000), id(0xe000_0000)), (0xffff_ffff, 0x1048_1af4));
    // Shorter: 64 buses at a base of 64 MiB.
    set_config(&b, 0x60, 0xe400_0005);
    assert_eq!((id(0xe400_0000), b.mch.ecam()), (0x1048_1af4, Some(0xe400_0000..0xe800_0000)));
    set_config(&b, 0x60, 0xe400_0007);
    assert_eq!(b.mch.ecam(), None, "reserved length");
    set_config(&b, 0x64, 0x1f);
    set_config(&b, 0x60, 0xb000_0001);
    assert_eq!(b.mch.ecam(), Some(0xf_b000_0000..0xf_c000_0000), "36 address bits");
    set_config(&b, 0x60, 0xb000_0000);
    assert_eq!(b.mch.ecam(), None);
    set_config(&b, 0x60, 0xb000_0001);
    b.host.reset();
    assert_eq!((b.mch.ecam(), id(0xf_b000_0000)), (None, 0xffff_ffff));
}

#[test]
fn ecam_widths() {
    let b = board();
    set_config(&b, 0x60, 0xb000_0001);
    let at = 0xb000_0000 + (3 << 15);
    assert_eq!(get(&b.seat.memory, at), [0xf4, 0x1a, 0x48, 0x10, 0, 0, 0x10, 0]);
    assert_eq!(get(&b.seat.memory, at + 1), [0x1a, 0x48]);
    assert_eq!(get(&b.seat.memory, at + 3), [0x10, 0, 0, 0x10]);
    assert_eq!(get(&b.seat.memory, at + 0xffc), [0; 4]);
    assert_eq!(get(&b.seat.memory, at + 0xffe), [0, 0, 0xff, 0xff], "not the next function");
    b.seat.memory.write(at + 0x10, &[0, 0xc0, 0, 0, 0, 0, 0, 0xd0]);
    assert_eq!((config(&b, 0x1810), config(&b, 0x1814)), (0xc001, 0xd000_0004));
}

#[test]
fn ecam_on_top_of_a_device_waits() {
    let b = board();
    b.seat.memory.map(0xb800_0000, 0x1000, Window::new(9)).unwrap();
    set_config(&b, 0x60, 0xb000_0001);
    assert_eq!((b.mch.ecam(), get(&b.seat.memory, 0xb800_0000)), (None, [9]));
    b.seat.memory.unmap(0xb800_0000);
    set_config(&b, 0x60, 0xb000_0001);
    assert!(b.mch.ecam().is_some());
}

#[test]
fn pm_block_and_chipset_registers_follow_their_bases() {
    let b = board();
    assert_eq!(b.sci.load(Ordering::SeqCst), 9);
    set_config(&b, 0xf840, 0x601);
    assert_eq!((get(&b.seat.ports, 0x600), b.lpc.pm_base()), ([0xff], None));
    set_config(&b, 0xf844, 0x80);
    assert_eq!((get(&b.seat.ports, 0x600), get(&b.seat.ports, 0x67f)), ([0x3c], [0x3c]));
    assert_eq!((get(&b.seat.ports, 0x680), b.lpc.pm_base()), ([0xff], Some(0x600)));
    set_config(&b, 0xf840, 0xffff_ffff);
    assert_eq!((config(&b, 0xf840), get(&b.seat.ports, 0xff80)), (0xff81, [0x3c]));
    // The configuration ports themselves are in the way: the block answers nowhere, and the ports still do.
    set_config(&b, 0xf840, 0xc81);
    assert_eq!((b.lpc.pm_base(), config(&b, 0xf800)), (None, 0x2918_8086));
    set_config(&b, 0xf840, 0x601);
    set_config(&b, 0xf844, 0x82);
    assert_eq!((b.lpc.sci(), b.sci.load(Ordering::SeqCst)), (11, 11));

    set_config(&b, 0xf8f0, 0xfed1_c001);
    assert_eq!((get(&b.seat.memory, 0xfed1_c000), get(&b.seat.memory, 0xfed1_fffc)), ([0; 4], [0; 4]));
    assert_eq!(get(&b.seat.memory, 0xfed2_0000), [0xff; 4]);
    b.host.reset();
    assert_eq!((b.lpc.pm_base(), get(&b.seat.memory, 0xfed1_c000)), (None, [0xff; 4]));
    assert_eq!((b.lpc.sci(), b.sci.load(Ordering::SeqCst)), (9, 9));
}

#[test]
fn pirq_routes_reach_isa() {
    let b = board();
    // Slot 3, INTA#: PIRQ H, the last byte of the second group.
    let wire = b.router.wire(3, 0);
    wire.set_level(true);
    assert!(!b.isa[11].is_high());
    set_config(&b, 0xf868, 0x0b0b_0a0a);
    assert!(b.isa[11].is_high() && !b.isa[10].is_high());
    set_config(&b, 0xf868, 0x050b_0a0a);
    assert!(!b.isa[11].is_high() && b.isa[5].is_high());
    b.host.reset();
    assert!(!b.isa[5].is_high());
}

#[test]
fn assignment_for_direct_boot() {
    let b = board();
    let mut big =
        PciDeviceBuilder::new("big", &header(), &InterruptSpec::default(), b.seat.seat.clone()).unwrap();
    big.bar(0, Bar::new(BarKind::Port, 32, Window::new(0x20)));
    big.bar(2, Bar::new(BarKind::Memory64, 0x4000, Window::new(0x22)).prefetchable());
    big.bar(4, Bar::new(BarKind::Memory64, 0x200_0000, Window::new(0x24)));
    b.host.add(Bdf::new(0, 4, 0), Arc::new(big.build().unwrap())).unwrap();
    let resources = Resources {
        ports: 0xc000..0x1_0000,
        memory32: 0xc000_0000..0xc010_0000,
        memory64: Some(0x80_0000_0000..0x81_0000_0000),
        decode: false,
    };
    assign_resources(&b.host, &resources).unwrap();
    assert_eq!(
        [0x10, 0x14, 0x18, 0x1c].map(|o| config(&b, 0x1800 | o)),
        [0xc001, 0xc004_0004, 0, 0xc000_0000]
    );
    assert_eq!(
        [0x10, 0x18, 0x1c, 0x20, 0x24].map(|o| config(&b, 0x2000 | o)),
        [0xc101, 0x0200_000c, 0x80, 0x0000_0004, 0x80]
    );
    assert_eq!((config(&b, 0x1804) & 7, config(&b, 0x2004) & 7), (0, 0));
    // Slot 3 has PIRQ H, slot 4 PIRQ E.
    assert_eq!((config(&b, 0x183c) & 0xff, config(&b, 0x203c) & 0xff), (11, 10));
    assert_eq!(config(&b, 0x3c) & 0xff, 0, "no pin, no line");

    assign_resources(&b.host, &Resources { decode: true, ..resources.clone() }).unwrap();
    assert_eq!((config(&b, 0x1804) & 7, get(&b.seat.memory, 0xc000_0000)), (3, [0x13]));
    assert_eq!((get(&b.seat.ports, 0xc11f), get(&b.seat.memory, 0x80_0000_0000)), ([0x20], [0x24]));
    let tight = Resources { memory32: 0xc000_0000..0xc002_0000, memory64: None, ..resources };
    assert!(assign_resources(&b.host, &tight).is_err());

    program_chipset(&b.host, 0x600, 0xe000_0000);
    assert_eq!((b.lpc.pm_base(), b.mch.ecam()), (Some(0x600), Some(0xe000_0000..0xf000_0000)));
    assert_eq!((config(&b, 0xf860), config(&b, 0xf868)), (0x0b0b_0a0a, 0x0b0b_0a0a));
}

proptest! {
    #[test]
    fn random_accesses_never_panic(
        ops in prop::collection::vec((0_u64..10, 0_u64..0x1_0100, prop::collection::vec(any::<u8>(), 1..9)), 0..200)
    ) {
        let b = board();
        set_config(&b, 0x60, 0xb000_0001);
        for (kind, at, data) in ops {
            let mut back = vec![0; data.len()];
            match kind {
                0..4 => {
                    outl(&b, 0xcf8, 0x8000_0000 | at as u32);
                    b.seat.ports.write(0xcfc + at % 4, &data);
                }
                4..7 => b.seat.memory.write(0xb000_0000 + at, &data),
                7 => b.seat.ports.write(0xcf8 + at % 8, &data),
                8 => b.seat.memory.read(0xb000_0000 + at, &mut back),
                _ => b.seat.ports.read(0xcf8 + at % 8, &mut back),
            }
        }
        prop_assert_eq!(config(&b, 0), 0x29c0_8086);
        b.host.reset();
        prop_assert!(b.mch.ecam().is_none() && b.lpc.pm_base().is_none());
        prop_assert_eq!((config(&b, 0xf840), config(&b, 0x1804)), (1, 0x0010_0000));
    }
}
