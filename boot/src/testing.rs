//! Hand-made kernels for tests (feature "testing").
//!
//! [`pvh_elf32`] wraps machine code in the smallest 32-bit ELF file with a PVH entry note. Such a kernel
//! needs no 64-bit guest support, so it runs even where KVM can only emulate simple 32-bit code:
//!
//! ```
//! use boot::linux::{Source, load};
//!
//! // mov al, 'K'; out 0x80, al; hlt
//! let kernel = boot::testing::pvh_elf32(&[0xb0, b'K', 0xe6, 0x80, 0xf4]);
//! let file = std::env::temp_dir().join(format!("kernel-{}", std::process::id()));
//! std::fs::write(&file, kernel)?;
//!
//! let layout = boot::RamLayout::new(16 << 20)?;
//! let ram = devices::mem::GuestRam::from_ranges(&layout.regions())?;
//! let gsi = |slot, pin| 16 + u32::from(slot + pin) % 8;
//! let machine = boot::acpi::Machine::direct_boot(&layout, 40, vec![0], gsi);
//! let source = Source::new(Some(file.clone()), None, Some("quiet".into()))?.ok_or("no kernel")?;
//! let entry = load(&ram, &layout, &source, &machine.tables()?)?;
//! assert!(!entry.needs_64bit);
//! assert_eq!(entry.cpu.rip, 0x10_0000); // the first byte of the code
//! assert_eq!(entry.cpu.rbx, 0x6000); // the start info, as PVH prescribes
//! # std::fs::remove_file(file)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! At the first instruction the processor is in flat 32-bit protected mode: paging and interrupts off, a
//! small stack in ESP, EBX pointing to the start info. The code must be position-independent or expect
//! address 1 MiB.

/// Where [`pvh_elf32`] links its code.
pub const CODE_ADDRESS: u32 = 0x10_0000;
/// Zeroed memory that [`pvh_elf32`] asks for behind the code.
pub const BSS_SIZE: u32 = 4096;

const ELF_HEADER: u32 = 52;
const PROGRAM_HEADER: u32 = 32;

/// A 32-bit ELF file that loads `code` to 1 MiB, with [`BSS_SIZE`] zero bytes behind it, and is entered at
/// the first byte of `code` by the PVH protocol.
pub fn pvh_elf32(code: &[u8]) -> Vec<u8> {
    // Note: name size, value size, type XEN_ELFNOTE_PHYS32_ENTRY (18), name, value.
    let note: Vec<u8> = [4, 4, 18]
        .into_iter()
        .chain([u32::from_le_bytes(*b"Xen\0"), CODE_ADDRESS])
        .flat_map(u32::to_le_bytes)
        .collect();
    let note_at = ELF_HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + note.len() as u32;
    let size = code.len() as u32;

    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_386, version, entry, program headers, section headers, flags.
    file.extend([2u16, 3].into_iter().flat_map(u16::to_le_bytes));
    file.extend([1, CODE_ADDRESS, ELF_HEADER, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    // Header size, program header size and count, section header size, count and names.
    file.extend(
        [ELF_HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes),
    );
    // PT_LOAD and PT_NOTE: type, offset, virtual and physical address, file and memory size, flags,
    // alignment.
    let load = [1, code_at, CODE_ADDRESS, CODE_ADDRESS, size, size.saturating_add(BSS_SIZE), 7, 4];
    let notes = [4, note_at, 0, 0, note.len() as u32, note.len() as u32, 4, 4];
    file.extend(load.into_iter().chain(notes).flat_map(u32::to_le_bytes));
    file.extend(note);
    file.extend(code);
    file
}

/// A bzImage with boot protocol 2.12 whose protected-mode part is `payload`. The 64-bit entry is at
/// `payload[0x200]`.
///
/// It is relocatable, prefers address 16 MiB, takes 2047 bytes of command line, and asks for `init_size`
/// bytes of memory.
pub fn bzimage(payload: &[u8], init_size: u32) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 1;
    let mut file = vec![0u8; (usize::from(SETUP_SECTORS) + 1) * 512];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in file.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1f4, &(payload.len().div_ceil(16) as u32).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0c, 0x02]);
    put(0x211, &[0x01]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 0x01, 0x00]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &init_size.to_le_bytes());
    file.extend_from_slice(payload);
    file
}
