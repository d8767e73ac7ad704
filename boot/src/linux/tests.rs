//! Hand-made kernels in, bytes in guest RAM out, at the offsets the protocols document.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::acpi::Machine;
use crate::testing;

const MIB: u64 = 1 << 20;

/// A directory with kernel and initrd, and the machine to load them into.
struct Bench {
    directory: TempDir,
    layout: RamLayout,
    ram: GuestRam,
    acpi: TableSet,
}

impl Bench {
    fn new(ram: u64) -> Self {
        let layout = RamLayout::new(ram).unwrap();
        let machine = Machine::direct_boot(&layout, 40, vec![0, 1], |_, pin| 16 + u32::from(pin));
        Self {
            directory: tempfile::tempdir().unwrap(),
            layout,
            ram: GuestRam::from_ranges(&layout.regions()).unwrap(),
            acpi: machine.tables().unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn load_files(&self, kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<Entry, LoadError> {
        let source = Source::new(Some(kernel.into()), initrd.map(Into::into), Some(cmdline.into()))?.unwrap();
        load(&self.ram, &self.layout, &source, &self.acpi)
    }

    fn load(&self, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<Entry, LoadError> {
        let kernel = self.file("kernel", kernel);
        let initrd = initrd.map(|bytes| self.file("initrd", bytes));
        self.load_files(&kernel, initrd.as_deref(), cmdline)
    }

    /// The error line for a kernel, with the directory's name taken out.
    fn refused(&self, kernel: &[u8]) -> String {
        self.line(self.load(kernel, None, "").unwrap_err())
    }

    fn line(&self, error: LoadError) -> String {
        let line = error.to_string();
        assert!(!line.contains('\n'));
        line.replace(&format!("{}/", self.directory.path().display()), "")
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn dword(&self, at: u64) -> u32 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    fn qword(&self, at: u64) -> u64 {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + 1) as u8).collect()
}

#[test]
fn bzimage_and_its_zero_page() {
    let bench = Bench::new(128 * MIB);
    let (code, initrd) = (payload(5 << 20), payload(70_001));
    let entry =
        bench.load(&testing::bzimage(&code, 0x200_0000), Some(&initrd), "console=ttyS0 quiet").unwrap();

    assert_eq!((entry.kind, entry.needs_64bit), (EntryKind::Long64, true));
    assert_eq!((entry.cpu.rip, entry.cpu.rsi), (0x100_0200, 0x7000));
    assert_eq!(entry.kernel, AddrRange::new(0x100_0000, 0x300_0000));
    assert!(bench.bytes(0x100_0000, code.len()) == code);

    // As high as possible: page-aligned, below the ACPI tables at the end of RAM.
    let range = entry.initrd.unwrap();
    assert_eq!((range.size, range.base % 4096), (70_001, 0));
    assert!(bench.bytes(range.base, initrd.len()) == initrd);

    // Zero page: header copied, loader's fields filled in.
    assert_eq!(bench.bytes(0x7000 + 0x1f1, 1), [1]);
    assert_eq!(bench.bytes(0x7000 + 0x1fe, 8), b"\x55\xaa\xeb\x66HdrS");
    assert_eq!(bench.bytes(0x7000 + 0x210, 1), [0xff]);
    assert_eq!(bench.dword(0x7000 + 0x214), 0x100_0000);
    assert_eq!(u64::from(bench.dword(0x7000 + 0x218)), range.base);
    assert_eq!(bench.dword(0x7000 + 0x21c), 70_001);
    assert_eq!(bench.dword(0x7000 + 0x228), 0x2_0000);
    assert_eq!(bench.qword(0x7000 + 0x258), 0x100_0000);
    assert_eq!(bench.dword(0x7000 + 0x260), 0x200_0000);
    assert_eq!(bench.qword(0x7000 + 0x0c0), 0, "ext_ramdisk");
    assert_eq!(bench.bytes(0x7000 + 0x1ef, 1), [0], "sentinel");
    assert_eq!(bench.qword(0x7000 + 0x070), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(bench.bytes(0xe_0000, 8), b"RSD PTR ");
    assert_eq!(bench.bytes(0x2_0000, 20), b"console=ttyS0 quiet\0");

    // Memory map: count at 0x1e8, 20-byte entries from 0x2d0.
    let count = bench.bytes(0x7000 + 0x1e8, 1)[0];
    let rows: Vec<_> = (0..u64::from(count))
        .map(|n| 0x72d0 + n * 20)
        .map(|at| (bench.qword(at), bench.qword(at + 8), bench.dword(at + 16)))
        .collect();
    assert_eq!(rows[0], (0, 0x9_fc00, 1));
    let tables = rows.iter().find(|row| row.2 == 3).unwrap();
    assert_eq!(tables.0 + tables.1, 128 * MIB);
    assert_eq!(bench.bytes(tables.0, 4), b"FACS");
    assert!(range.end() <= tables.0 && tables.0 - range.end() < 4096);
}

#[test]
fn a_32_bit_bzimage_is_entered_where_it_was_loaded() {
    let bench = Bench::new(128 * MIB);
    let mut kernel = testing::bzimage(&payload(600), 0x10_0000);
    // xloadflags: no 64-bit entry.
    kernel[0x236..0x238].fill(0);
    let entry = bench.load(&kernel, None, "console=ttyS0").unwrap();
    assert_eq!((entry.kind, entry.needs_64bit), (EntryKind::Linux32, false));
    assert_eq!((entry.cpu.rip, entry.cpu.rsi), (0x100_0000, 0x7000));
    assert_eq!(bench.dword(0x7000 + 0x214), 0x100_0000, "code32_start");
    assert_eq!(bench.dword(0x7000 + 0x228), 0x2_0000, "cmd_line_ptr");
}

#[test]
fn header_bytes_behind_its_end_are_not_copied() {
    let bench = Bench::new(64 * MIB);
    let mut kernel = testing::bzimage(&payload(1024), 0x10_0000);
    // The header ends at 0x268 (0x202 + 0x66): kernel_info_offset at 0x268 does not exist.
    kernel[0x268..0x26c].copy_from_slice(&[0xff; 4]);
    bench.load(&kernel, None, "").unwrap();
    assert_eq!(bench.dword(0x7000 + 0x268), 0);
    assert_eq!((bench.dword(0x7000 + 0x218), bench.dword(0x7000 + 0x21c)), (0, 0), "no initrd");
}

#[test]
fn fixed_kernels_go_to_one_mib() {
    let bench = Bench::new(64 * MIB);
    let mut kernel = testing::bzimage(&payload(4096), 0x8_0000);
    kernel[0x234] = 0;
    kernel[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    let entry = bench.load(&kernel, None, "").unwrap();
    assert_eq!(entry.cpu.rip, 0x10_0200);
    assert_eq!(entry.kernel, AddrRange::new(0x10_0000, 0x18_0000));
    assert!(bench.bytes(0x10_0000, 4096) == payload(4096));
}

#[test]
fn initrd_respects_the_kernels_limit() {
    let bench = Bench::new(256 * MIB);
    let mut kernel = testing::bzimage(&payload(4096), 0x10_0000);
    kernel[0x22c..0x230].copy_from_slice(&0x37f_ffffu32.to_le_bytes());
    let entry = bench.load(&kernel, Some(&[1; 5000]), "").unwrap();
    assert_eq!(entry.initrd, Some(AddrRange { base: 0x37f_e000, size: 5000 }));
}

#[test]
fn pvh_kernel_and_its_start_info() {
    let bench = Bench::new(16 * MIB);
    // Dirty memory where the kernel's zeroed part goes, as after a reset.
    bench.ram.write_slice(&[0xff; 8192], GuestAddress(0x10_0000)).unwrap();
    let code = [0xb0, b'K', 0xe6, 0x80, 0xf4];
    let entry = bench.load(&testing::pvh_elf32(&code), Some(b"module"), "a=b").unwrap();

    assert_eq!((entry.kind, entry.needs_64bit), (EntryKind::Pvh32, false));
    assert_eq!((entry.cpu.rip, entry.cpu.rbx, entry.cpu.cr0), (0x10_0000, 0x6000, 0x11));
    assert_eq!(bench.bytes(0x10_0000, 5), code);
    assert_eq!(bench.bytes(0x10_0005, 4096), [0; 4096]);
    assert_eq!(bench.bytes(0x10_0005 + 4096, 1), [0xff]);

    // hvm_start_info version 1.
    let info: Vec<u32> = (0..4).map(|n| bench.dword(0x6000 + n * 4)).collect();
    assert_eq!(info, [0x336e_c578, 1, 0, 1]);
    let [modules, cmdline, rsdp, memmap] = [16, 24, 32, 40].map(|at| bench.qword(0x6000 + at));
    assert_eq!(bench.bytes(cmdline, 4), b"a=b\0");
    assert_eq!(bench.bytes(rsdp, 8), b"RSD PTR ");
    let initrd = entry.initrd.unwrap();
    assert_eq!((bench.qword(modules), bench.qword(modules + 8)), (initrd.base, 6));
    assert_eq!((bench.qword(modules + 16), bench.qword(modules + 24)), (0, 0));
    assert_eq!(bench.bytes(initrd.base, 6), b"module");
    let count = bench.dword(0x6030);
    let rows: Vec<_> = (0..u64::from(count))
        .map(|n| memmap + n * 24)
        .map(|at| (bench.qword(at), bench.qword(at + 8), bench.dword(at + 16), bench.dword(at + 20)))
        .collect();
    assert_eq!(rows[0], (0, 0x9_fc00, 1, 0));
    assert_eq!(rows.last(), Some(&(0xfeff_c000, 0x4000, 2, 0)));
}

#[test]
fn without_initrd_there_is_no_module() {
    let bench = Bench::new(16 * MIB);
    bench.load(&testing::pvh_elf32(&[0xf4]), None, "").unwrap();
    assert_eq!((bench.dword(0x600c), bench.qword(0x6010)), (0, 0));
    assert_eq!(bench.bytes(0x2_0000, 1), [0]);
}

/// A 64-bit ELF file with one segment at 16 MiB, linked to the upper half, and optional notes.
fn elf64(notes: &[u8], code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 62].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1u32.to_le_bytes());
    file.extend([0x100_0000u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    let notes_at = 64 + 2 * 56;
    let code_at = notes_at + notes.len() as u64;
    let (n, c) = (notes.len() as u64, code.len() as u64);
    for (kind, rest) in [
        (1u32, [code_at, 0xffff_ffff_8100_0000, 0x100_0000, c, c + 100, 4096]),
        (4, [notes_at, 0, 0, n, n, 4]),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        file.extend(rest.into_iter().flat_map(u64::to_le_bytes));
    }
    file.extend(notes);
    file.extend(code);
    file
}

/// An ELF note with 4-byte padding.
fn note(kind: u32, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [name.len() as u32, value.len() as u32, kind].into_iter().flat_map(u32::to_le_bytes).collect();
    for part in [name, value] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[test]
fn vmlinux_with_pvh_note_among_others() {
    let bench = Bench::new(64 * MIB);
    let notes = [
        note(3, b"GNU\0", &[9; 20]),
        note(18, b"Other\0", &[1; 4]),
        note(18, b"Xen\0", &0x100_0010u64.to_le_bytes()),
    ]
    .concat();
    let entry = bench.load(&elf64(&notes, &payload(64)), None, "").unwrap();
    assert_eq!((entry.kind, entry.needs_64bit), (EntryKind::Pvh32, true));
    assert_eq!((entry.cpu.rip, entry.cpu.efer), (0x100_0010, 0));
    assert!(bench.bytes(0x100_0000, 64) == payload(64));
    assert_eq!(entry.kernel, AddrRange { base: 0x100_0000, size: 164 });
}

#[test]
fn vmlinux_without_note_uses_the_64_bit_protocol() {
    let bench = Bench::new(64 * MIB);
    let entry = bench.load(&elf64(&note(1, b"GNU\0", &[0; 4]), &payload(64)), None, "root=/dev/sda").unwrap();
    assert_eq!((entry.kind, entry.needs_64bit), (EntryKind::Long64, true));
    assert_eq!((entry.cpu.rip, entry.cpu.rsi), (0x100_0000, 0x7000));
    assert_eq!(bench.bytes(0x7000 + 0x1fe, 2), [0x55, 0xaa]);
    assert_eq!(bench.bytes(0x7000 + 0x202, 4), b"HdrS");
    assert_eq!(bench.bytes(0x7000 + 0x210, 1), [0xff]);
    assert_eq!(bench.dword(0x7000 + 0x228), 0x2_0000);
}

#[test]
fn files_that_cannot_be_read() {
    let bench = Bench::new(64 * MIB);
    let missing = bench.directory.path().join("vmlinuz");
    let line = |result: Result<Entry, LoadError>| bench.line(result.unwrap_err());
    assert_eq!(line(bench.load_files(&missing, None, "")), "kernel vmlinuz: no such file; check the path");
    let directory = bench.directory.path().join("boot");
    fs::create_dir(&directory).unwrap();
    assert_eq!(
        line(bench.load_files(&directory, None, "")),
        "kernel boot: is a directory; name the kernel file inside it"
    );
    let below = bench.file("plain", b"x").join("vmlinuz");
    let text = line(bench.load_files(&below, None, ""));
    assert!(text.starts_with("kernel plain/vmlinuz: cannot be read: Not a directory"), "{text}");
    assert_eq!(
        line(bench.load_files(Path::new("/dev/zero"), None, "")),
        "kernel /dev/zero: is not a regular file; copy its contents into one"
    );
    assert_eq!(bench.refused(b""), "kernel kernel: is empty; build or download it again");

    let kernel = testing::bzimage(&payload(600), 4096);
    assert_eq!(
        line(bench.load(&kernel, Some(b""), "")),
        "initrd initrd: is empty; build or download it again"
    );
    let good = bench.file("good", &kernel);
    assert_eq!(
        line(bench.load_files(&good, Some(&missing), "")),
        "initrd vmlinuz: no such file; check the path"
    );
}

#[test]
fn files_that_are_no_kernels() {
    let bench = Bench::new(64 * MIB);
    assert_eq!(
        bench.refused(b"\x1f\x8b\x08\0rest"),
        "kernel kernel: is gzip-compressed data, neither a bzImage nor an ELF file; decompress it, or use the \
         bzImage (vmlinuz) of the same kernel"
    );
    for (bytes, name) in [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x02\x21\x4c\x18", "LZ4"),
        (b"MZ\x90\0", "EFI application"),
        (b"070701", "cpio"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
        (b"hello", "unknown kind"),
        (b"\x7fEL", "unknown kind"),
        (b"#!/bin/sh", "unknown kind"),
    ] {
        let line = bench.refused(bytes);
        assert!(line.contains(name) && line.contains("neither a bzImage nor an ELF file; "), "{line}");
    }
    let mut iso = vec![0; 0x9000];
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    assert!(bench.refused(&iso).contains("is a CD image"));
}

#[test]
fn bzimages_that_cannot_be_started() {
    let bench = Bench::new(64 * MIB);
    let good = testing::bzimage(&payload(600), 0x100_0000);
    let with = |at: usize, bytes: &[u8]| {
        let mut kernel = good.clone();
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
        bench.refused(&kernel)
    };
    assert_eq!(
        with(0x206, &[0x0a, 0x02]),
        "kernel kernel: speaks boot protocol 2.10, older than 2.12; use Linux 3.8 or later"
    );
    assert_eq!(with(0x211, &[0]), "kernel kernel: is a zImage, which loads below 1 MiB; use a bzImage");
    assert_eq!(
        with(0x201, &[0x20]),
        "kernel kernel: is damaged: its header is shorter than its version demands; build or download it again"
    );
    assert_eq!(
        bench.refused(&good[..1400]),
        "kernel kernel: is damaged: the file ends after 1400 of 1632 bytes; build or download it again"
    );
    assert!(bench.refused(&good[..0x230]).contains("is damaged: its header is cut off"));
    assert_eq!(
        with(0x260, &0x400_0000u32.to_le_bytes()),
        "kernel kernel: needs memory up to 80 MiB, but only 63.9 MiB of low memory can hold it; give the \
         machine more memory"
    );
    // Nonsense addresses do not overflow.
    assert!(with(0x258, &[0xff; 8]).contains("give the machine more memory"));
}

#[test]
fn elf_files_that_cannot_be_started() {
    let bench = Bench::new(64 * MIB);
    let good = testing::pvh_elf32(&[0xf4; 64]);
    let with = |at: usize, bytes: &[u8]| {
        let mut kernel = good.clone();
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
        bench.refused(&kernel)
    };
    assert_eq!(
        with(18, &[183, 0]),
        "kernel kernel: is an ELF file for another processor; use a kernel for x86-64"
    );
    assert_eq!(
        with(116, &[1]),
        "kernel kernel: is an ELF file without a PVH entry note and no 64-bit Linux vmlinux; build the kernel \
         with CONFIG_PVH=y or use its bzImage"
    );
    assert!(with(4, &[3]).contains("neither a 32-bit nor a 64-bit"));
    assert!(with(42, &[56]).contains("program header table is malformed"));
    assert!(with(44, &[200]).contains("program header table is malformed"));
    assert!(with(44, &[0]).contains("without segments"));
    // Physical address of the segment.
    assert!(with(64, &0x7000u32.to_le_bytes()).contains("at address 0x7000, below 1 MiB"));
    assert!(with(64, &0xffff_fff0u32.to_le_bytes()).contains("needs memory up to 4096.0 MiB"));
    assert!(with(68, &[0xff, 0xff]).contains("larger in the file than in memory"));
    assert!(with(56, &[0xff, 0xff]).contains("beyond the end of the file"));
    assert!(with(132, &[0xff]).contains("its entry 0x1000ff lies in no segment"));
    assert!(bench.refused(&good[..40]).contains("header is cut off"));
    assert!(bench.refused(&good[..100]).contains("program header table is cut off"));
}

#[test]
fn cve_2020_13765_segments_that_overlap() {
    const ADDRESS: u32 = testing::CODE_ADDRESS;
    let bench = Bench::new(64 * MIB);
    // One more segment than the good file has, of the same bytes, with 64 bytes in the file and `size` in memory.
    let with = |address: u32, size: u32| {
        let mut kernel = testing::pvh_elf32(&[0xf4; 64]);
        let word = |kernel: &[u8], at: usize| u32::from_le_bytes(kernel[at..at + 4].try_into().unwrap());
        for at in [56, 88] {
            let offset = word(&kernel, at) + 32;
            kernel[at..at + 4].copy_from_slice(&offset.to_le_bytes());
        }
        kernel[44] = 3;
        let segment = [1, word(&kernel, 56), address, address, 64, size, 7, 4];
        kernel.splice(116..116, segment.into_iter().flat_map(u32::to_le_bytes));
        kernel
    };
    let end = ADDRESS + 64 + testing::BSS_SIZE;
    // From the same byte, within, over the last one, and from before the first.
    for (address, size) in [(ADDRESS, 64), (ADDRESS + 16, 64), (end - 1, 64), (ADDRESS, 1 << 20)] {
        let line = bench.refused(&with(address, size));
        assert!(line.contains("its segments overlap"), "{address:#x} {size:#x}: {line}");
    }
    assert!(bench.load(&with(end, 64), None, "").is_ok(), "beside each other");
    // An end that is no number any more.
    let line = bench.refused(&with(ADDRESS + 16, u32::MAX));
    assert!(line.contains("needs memory up to"), "{line}");
}

#[test]
fn user_programs_are_not_kernels() {
    let bench = Bench::new(64 * MIB);
    let program = std::env::current_exe().unwrap();
    let line = bench.load_files(&program, None, "").unwrap_err().to_string();
    assert!(line.contains("without a PVH entry note"), "{line}");
}

#[test]
fn an_initrd_that_does_not_fit() {
    let bench = Bench::new(24 * MIB);
    let kernel = testing::bzimage(&payload(600), 0x10_0000);
    let error = bench.load(&kernel, Some(&vec![0; 10 << 20]), "").unwrap_err();
    assert_eq!(
        bench.line(error),
        "initrd initrd: its 10 MiB do not fit: 6.9 MiB are free above the kernel in 24 MiB of low memory; give \
         the machine more memory or use a smaller initrd"
    );
    assert!(bench.load(&kernel, Some(&vec![0; 6 << 20]), "").is_ok());
}

#[test]
fn command_line_limits() {
    let bench = Bench::new(64 * MIB);
    let kernel = testing::bzimage(&payload(600), 0x10_0000);
    let longest = "x".repeat(2047);
    assert!(bench.load(&kernel, None, &longest).is_ok());
    assert_eq!(bench.bytes(0x2_0000 + 2047, 1), [0]);
    let error = bench.load(&kernel, None, &format!("{longest}x")).unwrap_err();
    assert_eq!(
        bench.line(error),
        "cmdline: its 2048 bytes are more than the 2047 that kernel kernel takes; shorten it"
    );
    let error = bench.load(&kernel, None, "a\0b").unwrap_err();
    assert_eq!(error.to_string(), "cmdline: contains a NUL character at byte 1; remove it");
}

#[test]
fn parts_without_a_kernel() {
    let line = |initrd: Option<&str>, cmdline: Option<&str>| {
        Source::new(None, initrd.map(Into::into), cmdline.map(Into::into)).unwrap_err().to_string()
    };
    assert_eq!(
        line(Some("initrd.img"), Some("quiet")),
        "initrd initrd.img: is given without a kernel; add the kernel it belongs to or remove it"
    );
    assert_eq!(line(None, Some("quiet")), "cmdline: is given without a kernel; add the kernel or remove it");
    assert_eq!(Source::new(None, None, None).unwrap(), None);
}

/// Loads what may be nonsense; only a panic or a kernel outside RAM fails.
fn survives(bench: &Bench, kernel: &[u8]) {
    if let Ok(entry) = bench.load(kernel, Some(b"initrd"), "quiet") {
        let (kernel, initrd) = (entry.kernel, entry.initrd.unwrap());
        assert!(kernel.base >= MIB && kernel.end() <= initrd.base && initrd.end() <= bench.layout.low_top());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mangled_headers_never_panic(
        which in 0usize..3,
        cut in 0usize..1800,
        changes in prop::collection::vec((0usize..0x270, any::<u8>()), 0..12),
    ) {
        let bench = Bench::new(32 * MIB);
        let mut kernel = match which {
            0 => testing::bzimage(&payload(700), 0x10_0000),
            1 => testing::pvh_elf32(&payload(700)),
            _ => elf64(&note(18, b"Xen\0", &0x100_0000u32.to_le_bytes()), &payload(700)),
        };
        for (at, byte) in changes {
            if let Some(place) = kernel.get_mut(at) {
                *place = byte;
            }
        }
        kernel.truncate(cut.max(1));
        survives(&bench, &kernel);
    }
}
