//! Files that claim to be kernels, with an initrd and a command line, into a small memory.
#![cfg_attr(fuzzing, no_main)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use boot::acpi::{Machine, TableSet};
use boot::linux::{Source, load};
use boot::{RamLayout, testing};
use devices::mem::GuestRam;
use fuzz::Bytes;
use vm_memory::{Bytes as _, GuestAddress};

const RAM: u64 = 24 << 20;

struct Bench {
    directory: tempfile::TempDir,
    layout: RamLayout,
    ram: GuestRam,
    tables: TableSet,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let layout = RamLayout::new(RAM).expect("a size");
        let machine = Machine::direct_boot(&layout, 40, vec![0, 1], |_, pin| 16 + u32::from(pin));
        Bench {
            directory: tempfile::tempdir_in("/dev/shm").expect("a folder in memory"),
            ram: GuestRam::from_ranges(&layout.regions()).expect("memory"),
            tables: machine.tables().expect("tables"),
            layout,
        }
    })
}

/// A kernel of 64 bits without a note, entered by the boot protocol: an ELF file with one segment.
fn vmlinux() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 0x3e].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1_u32.to_le_bytes());
    file.extend([0x100_0000_u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    file.extend([1_u32, 7].into_iter().flat_map(u32::to_le_bytes));
    let segment = [120_u64, 0xffff_ffff_8100_0000, 0x100_0000, 64, 8192, 4096];
    file.extend(segment.into_iter().flat_map(u64::to_le_bytes));
    file.resize(120 + 64, 0x90);
    file
}

/// One of the kinds, of which the bytes change some.
fn kernel(kind: u8, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut file = match kind % 4 {
        0 => testing::bzimage(&[0x90; 1024], 0x10_0000),
        1 => testing::pvh_elf32(&[0xf4; 64]),
        2 => vmlinux(),
        _ => return bytes.0.to_vec(),
    };
    // Most of what is read is at these places: the setup header, or the headers of ELF.
    let (base, room) = if kind % 4 == 0 { (0x1f1, 0x80) } else { (0, 0xc0) };
    let changes = bytes.u8() % 16;
    for _ in 0..changes {
        let (place, len) = (bytes.u8(), 1 + bytes.u8() % 8);
        let at = base + usize::from(place) % room;
        for (to, from) in file.iter_mut().skip(at).zip(bytes.take(len.into())) {
            *to = *from;
        }
    }
    let cut = bytes.u16();
    if cut & 0x8000 != 0 {
        file.truncate(usize::from(cut & 0x7ff));
    }
    // Segments may name more of the file.
    file.extend(bytes.0);
    file
}

fn write(name: &str, content: &[u8]) -> PathBuf {
    let path = bench().directory.path().join(name);
    std::fs::write(&path, content).expect("space in memory");
    path
}

fn check_firmware(path: &Path) {
    if let Err(error) = boot::firmware::Image::read(path) {
        one_line(&error.to_string());
    }
}

fn one_line(said: &str) {
    assert!(!said.is_empty() && !said.contains('\n'), "{said:?} is no line");
}

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let (kind, initrd_len, cmdline_len) = (bytes.u8(), bytes.u16(), bytes.u16());
    let kernel = write("kernel", &kernel(kind, &mut bytes));
    check_firmware(&kernel);
    let initrd =
        (kind & 4 != 0).then(|| write("initrd", &vec![kind; usize::from(initrd_len) << (kind >> 5)]));
    let cmdline = "x".repeat(usize::from(cmdline_len) % 3000);
    let source = Source::new(Some(kernel), initrd, Some(cmdline)).expect("a source").expect("a kernel");
    let Bench { layout, ram, tables, .. } = bench();
    let entry = match load(ram, layout, &source, tables) {
        Ok(entry) => entry,
        Err(error) => return one_line(&error.to_string()),
    };
    let kernel = entry.kernel;
    assert!(kernel.base <= kernel.end() && kernel.end() <= layout.low_top(), "{kernel:?} is not in memory");
    if let Some(initrd) = entry.initrd {
        assert!(
            initrd.base >= kernel.end() && initrd.end() <= layout.low_top(),
            "{initrd:?} is over {kernel:?}"
        );
        let mut ends = [0; 2];
        ram.read_slice(&mut ends[..1], GuestAddress(initrd.base)).expect("memory");
        ram.read_slice(&mut ends[1..], GuestAddress(initrd.end() - 1)).expect("memory");
        assert_eq!(ends, [kind; 2], "the initrd is not there");
    }
});
