//! The device as firmware drives it.

use std::sync::atomic::{AtomicU8, Ordering};

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::mem::GuestRam;

/// RAM with a hole: 64 KiB at 0 and 64 KiB at 1 MiB.
fn ram() -> Arc<GuestRam> {
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x10_0000), 0x1_0000)];
    Arc::new(GuestRam::from_ranges(&ranges).unwrap())
}

struct Guest {
    device: FwCfg,
    ram: Arc<GuestRam>,
}

/// Where the tests put descriptors.
const AT: u64 = 0x1000;

impl Guest {
    fn new(builder: FwCfgBuilder) -> Self {
        let ram = ram();
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        Self { device: builder.build(dma), ram }
    }

    fn select(&self, key: u16) {
        self.device.write(0, &key.to_le_bytes());
    }

    fn byte(&self) -> u8 {
        let mut byte = [0x5a];
        self.device.read(1, &mut byte);
        byte[0]
    }

    fn bytes(&self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }

    /// Runs a descriptor and returns the control field after it.
    fn dma_at(&self, at: u64, control: u32, length: u32, address: u64) -> u32 {
        let mut descriptor = control.to_be_bytes().to_vec();
        descriptor.extend(length.to_be_bytes());
        descriptor.extend(address.to_be_bytes());
        self.ram.write_slice(&descriptor, GuestAddress(at)).unwrap();
        if at >> 32 != 0 {
            self.device.write(4, &((at >> 32) as u32).to_be_bytes());
        }
        self.device.write(8, &(at as u32).to_be_bytes());
        let mut control = [0; 4];
        self.ram.read_slice(&mut control, GuestAddress(at)).unwrap();
        u32::from_be_bytes(control)
    }

    fn dma(&self, control: u32, length: u32, address: u64) -> u32 {
        self.dma_at(AT, control, length, address)
    }

    fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// A descriptor's control field.
const fn command(key: u16, bits: u32) -> u32 {
    (key as u32) << 16 | bits
}

fn with(name: &str, content: Content) -> FwCfgBuilder {
    let mut builder = FwCfgBuilder::new();
    builder.file(name, content).unwrap();
    builder
}

#[test]
fn signature_and_id_by_ports() {
    let guest = Guest::new(FwCfgBuilder::new());
    assert_eq!(guest.bytes(4), b"QEMU", "key 0 is selected at power-on");
    guest.select(0);
    assert_eq!(guest.bytes(6), b"QEMU\0\0", "zeroes after the end");
    guest.select(1);
    assert_eq!(guest.bytes(4), [3, 0, 0, 0]);
    guest.select(0x7777);
    assert_eq!(guest.bytes(2), [0, 0], "an unknown key is empty");
    guest.select(0x4001);
    assert_eq!(guest.byte(), 3, "the write channel bit does not matter");
}

#[test]
fn other_widths_and_ports() {
    let guest = Guest::new(FwCfgBuilder::new());
    let read = |offset, len| {
        let mut data = vec![0x5a; len];
        guest.device.read(offset, &mut data);
        data
    };
    assert_eq!(read(0, 2), [0xff; 2]);
    assert_eq!(read(1, 2), [0xff; 2]);
    assert_eq!(read(2, 1), [0xff]);
    assert_eq!(read(4, 4), b"QEMU");
    assert_eq!(read(8, 4), b" CFG");
    assert_eq!(read(5, 1), b"E");
    assert_eq!(read(10, 4), [b'F', b'G', 0xff, 0xff]);
    for offset in 0..12 {
        for len in 1..=8 {
            guest.device.write(offset, &[0xff; 8][..len]);
        }
    }
    guest.select(0);
    assert_eq!(guest.byte(), b'Q', "odd accesses leave the rest alone");
}

#[test]
fn the_directory_lists_files_by_name() {
    let mut builder = with("opt/b", Content::fixed([1, 2, 3]));
    builder.file("etc/a", Content::fixed([9; 0x102])).unwrap();
    let guest = Guest::new(builder);
    guest.select(0x19);
    assert_eq!(guest.bytes(4), [0, 0, 0, 2]);
    let entry = guest.bytes(64);
    assert_eq!(entry[..8], [0, 0, 1, 2, 0, 0x20, 0, 0]);
    assert_eq!(&entry[8..14], b"etc/a\0");
    let entry = guest.bytes(64);
    assert_eq!(entry[..8], [0, 0, 0, 3, 0, 0x21, 0, 0]);
    assert_eq!(&entry[8..14], b"opt/b\0");
    assert_eq!(guest.bytes(2), [0, 0]);
    guest.select(0x21);
    assert_eq!(guest.bytes(3), [1, 2, 3]);
}

#[test]
fn bad_files_are_refused() {
    let mut builder = with("a", Content::fixed([]));
    assert_eq!(builder.file("a", Content::fixed([])), Err(FwCfgError::Twice("a".into())));
    let long = "x".repeat(56);
    for name in ["", "a\0b", &long] {
        assert_eq!(builder.file(name, Content::fixed([])), Err(FwCfgError::Name(name.into())));
    }
    builder.file(&long[..55], Content::fixed([])).unwrap();
    let huge = Content::Lazy { len: 1 << 32, make: Arc::new(Vec::new) };
    assert_eq!(builder.file("huge", huge), Err(FwCfgError::TooMuch("huge".into())));
}

#[test]
fn dma_selects_reads_skips() {
    let guest = Guest::new(with("f", Content::fixed(b"0123456789")));
    guest.ram.write_slice(&[0xee; 32], GuestAddress(0x2000)).unwrap();
    assert_eq!(guest.dma(command(0x20, 0x0a), 4, 0x2000), 0, "select and read");
    assert_eq!(&guest.peek::<5>(0x2000), b"0123\xee");
    assert_eq!(guest.dma(0x04, 3, 0), 0, "skip");
    assert_eq!(guest.dma(0x02, 8, 0x2000), 0, "read on");
    assert_eq!(&guest.peek::<9>(0x2000), b"789\0\0\0\0\0\xee", "zeroes after the end");
    assert_eq!(guest.dma(command(0, 0x08), 100, 0x2000), 0, "select only");
    assert_eq!(guest.byte(), b'Q', "ports and DMA share the position");
    assert_eq!(guest.dma(0x04, u32::MAX, 0), 0);
    assert_eq!(guest.byte(), 0);
    assert_eq!(guest.dma(0, 0, 0), 0);
    assert_eq!(guest.dma(command(0x20, 0x0a), 0, u64::MAX), 0, "no bytes go anywhere");
}

#[test]
fn dma_address_has_two_halves_and_the_high_one_is_used_once() {
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(1 << 32), 0x1_0000)];
    let ram = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
    let dma = Dma::new(ram.clone());
    dma.set_bus_master(true);
    let guest = Guest { device: FwCfgBuilder::new().build(dma), ram };
    assert_eq!(guest.dma_at(0x1_0000_0100, command(0, 0x0a), 4, 0x1_0000_0200), 0);
    assert_eq!(&guest.peek::<4>(0x1_0000_0200), b"QEMU");
    assert_eq!(guest.dma_at(0x100, command(0, 0x0a), 4, 0x200), 0, "the high half is zero again");
    assert_eq!(&guest.peek::<4>(0x200), b"QEMU");
}

#[test]
fn dma_out_of_ram_sets_the_error_bit_and_moves_nothing() {
    let guest = Guest::new(with("f", Content::fixed([7; 0x100])));
    let read = |length, address| guest.dma(command(0x20, 0x0a), length, address);
    for address in [0x2_0000, 0xffc0, 0xf_ffff, 0x11_0000 - 1, u64::MAX, u64::MAX - 0x7f] {
        assert_eq!(read(0x80, address), 1, "{address:#x}");
    }
    assert_eq!(guest.peek::<1>(0xffc0), [0], "not even the part that is RAM");
    assert_eq!(read(0xffff_ffff, 0), 1, "longer than anything");
    assert_eq!(guest.byte(), 7, "the position did not move");
    // The descriptor itself: nobody to tell, and no harm.
    for at in [0x2_0000_u32, 0xfff8, 0xffff_ffff] {
        guest.device.write(8, &at.to_be_bytes());
    }
    guest.device.write(4, &[0xff; 4]);
    guest.device.write(8, &[0xff; 4]);
    assert_eq!(read(0x80, 0x3000), 0);
}

#[test]
fn a_descriptor_may_lie_in_its_own_target() {
    let guest = Guest::new(with("f", Content::fixed([7; 0x100])));
    assert_eq!(guest.dma(command(0x20, 0x0a), 0x20, AT), 0, "the status comes last");
}

#[test]
fn lazy_files_are_made_at_each_selection_and_have_a_fixed_size() {
    let turn = Arc::new(AtomicU8::new(0));
    let make = {
        let turn = turn.clone();
        Arc::new(move || vec![turn.fetch_add(1, Ordering::SeqCst) + 1; 3]) as Make
    };
    let guest = Guest::new(with("f", Content::Lazy { len: 5, make }));
    guest.select(0x19);
    assert_eq!(guest.bytes(8)[4..], [0, 0, 0, 5]);
    assert_eq!(turn.load(Ordering::SeqCst), 0, "the directory makes nothing");
    guest.select(0x20);
    assert_eq!(guest.bytes(6), [1, 1, 1, 0, 0, 0]);
    assert_eq!(guest.dma(command(0x20, 0x0a), 5, 0x2000), 0);
    assert_eq!(guest.peek::<5>(0x2000), [2, 2, 2, 0, 0]);
    let long = Content::Lazy { len: 2, make: Arc::new(|| vec![1; 9]) };
    let guest = Guest::new(with("f", long));
    guest.select(0x20);
    assert_eq!(guest.bytes(3), [1, 1, 0]);
}

#[test]
fn writes_reach_writable_files_only() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let written: Written = {
        let seen = seen.clone();
        Arc::new(move |bytes| seen.lock().unwrap().push(bytes.to_vec()))
    };
    let mut builder = with("etc/w", Content::Writable { first: [0; 4].into(), written });
    builder.file("etc/x", Content::fixed([5; 4])).unwrap();
    let guest = Guest::new(builder);
    guest.ram.write_slice(b"abcdef", GuestAddress(0x2000)).unwrap();
    assert_eq!(guest.dma(command(0x20, 0x18), 4, 0x2000), 0);
    assert_eq!(guest.dma(command(0x20, 0x0c), 1, 0), 0, "skip one");
    assert_eq!(guest.dma(0x10, 2, 0x2004), 0, "then write");
    assert_eq!(*seen.lock().unwrap(), [b"abcd".to_vec(), b"aefd".to_vec()]);
    guest.select(0x20);
    assert_eq!(guest.bytes(4), b"aefd");
    for (key, length, address) in
        [(0x20, 5, 0x2000), (0x21, 4, 0x2000), (0x99, 1, 0x2000), (0x20, 4, 0x2_0000)]
    {
        assert_eq!(guest.dma(command(key, 0x18), length, address), 1, "{key:#x} {length}");
    }
    assert_eq!(seen.lock().unwrap().len(), 2);
    guest.device.reset();
    guest.select(0x20);
    assert_eq!(guest.bytes(4), [0; 4], "a reset restores the file");
}

#[test]
fn reset_selects_key_0_and_forgets_the_high_half() {
    let guest = Guest::new(FwCfgBuilder::new());
    guest.select(1);
    guest.device.write(4, &[0xff; 4]);
    guest.device.reset();
    assert_eq!(guest.byte(), b'Q');
    assert_eq!(guest.dma(command(0, 0x0a), 4, 0x2000), 0);
}

proptest! {
    #[test]
    fn any_descriptor_ends_with_0_or_1(
        control: u32, length: u32, address: u64, small in 0u32..0x400, low in 0u64..0x12_0000,
    ) {
        let written: Written = Arc::new(|_| ());
        let guest = Guest::new(with("etc/w", Content::Writable { first: [0; 64].into(), written }));
        for (length, address) in [(length, address), (small, low), (small, address), (length, low)] {
            // Away from the descriptor itself.
            let address = if address < 0x2000 { address + 0x2000 } else { address };
            for control in [control, control & 0xffff | 0x20 << 16] {
                let status = guest.dma(control, length, address);
                prop_assert!(status <= 1);
            }
        }
    }
}
