//! Which kind of kernel a file is, by its first bytes.

use super::error::LoadError;
use super::file::BootFile;
use super::{Plan, bzimage, elf};

/// Enough for the bzImage setup header (it ends at 0x290 at most) and the ELF header.
const HEAD: usize = 1024;

const DECOMPRESS: &str = "decompress it, or use the bzImage (vmlinuz) of the same kernel";

/// Files that people pass as kernels by mistake: offset, magic bytes, name, remedy.
const KNOWN: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\x1f\x8b", "gzip-compressed data", DECOMPRESS),
    (0, b"\xfd7zXZ\0", "xz-compressed data", DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data", DECOMPRESS),
    (0, b"BZh", "bzip2-compressed data", DECOMPRESS),
    (0, b"\x5d\0\0", "LZMA-compressed data", DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "LZ4-compressed data", DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "LZ4-compressed data", DECOMPRESS),
    (0, b"\x89LZO", "LZO-compressed data", DECOMPRESS),
    (0, b"070701", "a cpio archive", "name it as the initrd, and a kernel as the kernel"),
    (0, b"QFI\xfb", "a qcow2 disk image", "attach it as a disk, and boot it with firmware or name a kernel"),
    (0x38, b"ARM\x64", "a kernel for 64-bit ARM", "use a kernel for x86-64"),
    (0x8001, b"CD001", "a CD image", "attach it as a CD, and boot it with firmware"),
    (0, b"MZ", "an EFI application", "boot it with UEFI firmware, or use a bzImage"),
    (
        0x1fe,
        b"\x55\xaa",
        "a disk image or an ancient kernel",
        "attach it as a disk and boot it with firmware",
    ),
];

/// Decides how to load a kernel file into RAM that ends at `limit`.
pub(super) fn plan(file: &BootFile, limit: u64) -> Result<Plan, LoadError> {
    let head = file.bytes(0, HEAD)?;
    if head.starts_with(elf::MAGIC) {
        return elf::plan(file, &head, limit);
    }
    if bzimage::has_magic(&head) {
        return bzimage::plan(file, &head, limit);
    }
    let mut found = ("data of an unknown kind", "name a bzImage (vmlinuz) or an ELF kernel");
    for &(offset, magic, name, remedy) in KNOWN {
        if file.bytes(offset as u64, magic.len())? == magic {
            found = (name, remedy);
            break;
        }
    }
    Err(LoadError::NotAKernel { path: file.path().to_path_buf(), found: found.0, remedy: found.1 })
}
