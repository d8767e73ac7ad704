//! Guest RAM: host memory and the KVM slots over it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use boot::RamLayout;
use boot::layout::VGA;
use devices::mem::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::config::huge_page_pool;

/// Host mappings start at a multiple of this, or of a larger page, and so do guest blocks: KVM can then use huge pages.
const HUGE: usize = 2 << 20;

/// Where the pages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// A memfd, mapped shared, which other processes can be handed.
    Shared,
}

/// Why there is no RAM for the guest.
#[derive(Debug, Error)]
pub enum RamError {
    #[error("cannot map {len} bytes of guest memory{}: {source}; {}", kind(*huge), remedy(*huge))]
    Map { len: u64, huge: Option<u64>, source: io::Error },
    #[error("cannot arrange guest memory: {0}")]
    Region(#[from] MmapRegionError),
    #[error("cannot arrange guest memory: {0}")]
    Layout(String),
    #[error("KVM refuses the memory at {addr:#x}, {len} bytes: {source}")]
    Slot { addr: u64, len: u64, source: io::Error },
}

/// One guest block in one host mapping, cut into KVM slots so that holes stay holes.
struct Block {
    addr: u64,
    len: u64,
}

/// Maps the RAM of `layout`, below and above the hole under 4 GiB, and gives it to the VM.
pub fn allocate(
    vm: &VmFd,
    layout: &RamLayout,
    backing: Backing,
    huge: Option<u64>,
) -> Result<Arc<GuestRam>, RamError> {
    let blocks: Vec<Block> =
        layout.regions().into_iter().map(|(addr, len)| Block { addr: addr.0, len: len as u64 }).collect();
    let size = layout.total();
    let file = match backing {
        Backing::Anonymous => None,
        Backing::Shared => Some(Arc::new(memory_file(size, huge)?)),
    };
    let mut regions = Vec::new();
    let mut file_offset = 0;
    for block in &blocks {
        let host = map_block(block.len as usize, file.as_deref(), file_offset, huge)?;
        for (addr, len) in pieces(block) {
            let within = addr - block.addr;
            let from_file = file.as_ref().map(|f| FileOffset::from_arc(f.clone(), file_offset + within));
            regions.push(region(host.wrapping_add(within as usize), addr, len, from_file)?);
        }
        file_offset += block.len;
    }
    let ram = GuestRam::from_regions(regions).map_err(|e| RamError::Layout(e.to_string()))?;
    for (slot, region) in ram.iter().enumerate() {
        give_to_vm(vm, slot as u32, region)?;
    }
    Ok(Arc::new(ram))
}

/// The parts of a block that are RAM: the first leaves out the legacy video window.
fn pieces(block: &Block) -> Vec<(u64, u64)> {
    let end = block.addr + block.len;
    if block.addr > 0 || end <= VGA.base {
        return vec![(block.addr, block.len)];
    }
    let mut parts = vec![(0, VGA.base)];
    if end > VGA.end() {
        parts.push((VGA.end(), end - VGA.end()));
    }
    parts
}

fn memory_file(size: u64, huge: Option<u64>) -> Result<File, RamError> {
    let fail = |source| RamError::Map { len: size, huge, source };
    let name = CString::new("guest-ram").map_err(|e| fail(e.into()))?;
    let flags = libc::MFD_CLOEXEC | huge_flags(huge, libc::MFD_HUGETLB);
    // SAFETY: a plain system call with a valid string; the result is checked.
    #[allow(unsafe_code)]
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just made and has no other owner.
    #[allow(unsafe_code)]
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).map_err(fail)?;
    Ok(file)
}

/// Flags for huge pages of this size: the flag itself and the size's logarithm in bits 26 to 31 (mmap(2)).
fn huge_flags(huge: Option<u64>, flag: u32) -> u32 {
    huge.map_or(0, |size| flag | (size.trailing_zeros() << libc::MAP_HUGE_SHIFT))
}

fn kind(huge: Option<u64>) -> String {
    huge.map_or_else(String::new, |size| format!(" in huge pages of {} KiB", size >> 10))
}

fn remedy(huge: Option<u64>) -> String {
    match huge {
        Some(size) => format!("free pages are needed: raise {}", huge_page_pool(size)),
        None => "lower `memory` in [vm], or raise the host's limit (vm.overcommit_memory, ulimit -v)".into(),
    }
}

/// Reserves addresses for `len` bytes that start at a multiple of `align`.
fn reserve(len: usize, align: usize) -> io::Result<*mut libc::c_void> {
    // More than needed, so that the start can be moved to a boundary.
    let whole = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new private reservation without access rights, placed by the kernel.
    #[allow(unsafe_code)]
    let start = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0)
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start.map_addr(|a| a.next_multiple_of(align)))
}

/// Maps `len` bytes at a boundary of their pages. The mapping lives as long as the process: guest RAM is never freed
/// while I/O could still be under way.
fn map_block(len: usize, file: Option<&File>, offset: u64, huge: Option<u64>) -> Result<*mut u8, RamError> {
    use std::os::fd::AsRawFd;
    let fail = |source| RamError::Map { len: len as u64, huge, source };
    let aligned = reserve(len, huge.map_or(HUGE, |size| HUGE.max(size as usize))).map_err(fail)?;
    let (fd, mut flags) = match file {
        Some(f) => (f.as_raw_fd(), libc::MAP_SHARED),
        None => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
    };
    flags |= libc::MAP_FIXED;
    // Huge pages are reserved here: one that is not, and is missing when the guest comes to it, would be a SIGBUS.
    if huge.is_none() {
        flags |= libc::MAP_NORESERVE;
    }
    if file.is_none() {
        flags |= huge_flags(huge, libc::MAP_HUGETLB as u32) as i32;
    }
    // SAFETY: replaces a part of our own reservation, which `aligned..aligned + len` lies in.
    #[allow(unsafe_code)]
    let host = unsafe {
        libc::mmap(aligned, len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset as libc::off_t)
    };
    if host == libc::MAP_FAILED {
        return Err(fail(io::Error::last_os_error()));
    }
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
        // SAFETY: advice about our own mapping; a kernel without it refuses, which is harmless.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::madvise(host, len, advice) };
    }
    Ok(host.cast())
}

fn region(
    host: *mut u8,
    addr: u64,
    len: u64,
    file: Option<FileOffset>,
) -> Result<GuestRegionMmap<()>, RamError> {
    let shared = file.is_some();
    let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: `host..host+len` is a part of a mapping of `map_block`, which is never unmapped.
    #[allow(unsafe_code)]
    let mapping = unsafe { MmapRegion::build_raw(host, len as usize, prot, flags) }?;
    GuestRegionMmap::new(mapping, GuestAddress(addr))
        .ok_or_else(|| RamError::Layout(format!("{addr:#x} wraps")))
}

fn give_to_vm(vm: &VmFd, slot: u32, region: &GuestRegionMmap<()>) -> Result<(), RamError> {
    let entry = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr().addr() as u64,
    };
    // SAFETY: the memory is mapped for the life of the process.
    #[allow(unsafe_code)]
    let done = unsafe { vm.set_user_memory_region(entry) };
    done.map_err(|e| RamError::Slot { addr: entry.guest_phys_addr, len: entry.memory_size, source: e.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_video_window_is_not_ram() {
        let parts = |len| pieces(&Block { addr: 0, len });
        assert_eq!(parts(1 << 30), [(0, 0xa0000), (0xc0000, (1 << 30) - 0xc0000)]);
        assert_eq!(parts(0x80000), [(0, 0x80000)]);
        assert_eq!(parts(0xb0000), [(0, 0xa0000)]);
        assert_eq!(pieces(&Block { addr: 1 << 32, len: 4096 }), [(1 << 32, 4096)]);
    }

    #[test]
    fn a_mapping_starts_at_a_boundary_of_its_pages() {
        for align in [HUGE, 1 << 30] {
            // The kernel puts one below the other, so an odd length leaves an odd place for the next.
            for len in [HUGE, HUGE + 4096, 3 << 30] {
                assert_eq!(reserve(len, align).unwrap().addr() % align, 0, "{len} bytes at {align}");
            }
        }
        assert!(reserve(usize::MAX, HUGE).is_err());
    }

    /// How many huge pages of this size can be had: free ones that nobody has reserved, and those that the kernel would add.
    fn to_be_had(size: u64) -> Option<u64> {
        let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size >> 10);
        let count = |name| -> Option<u64> {
            std::fs::read_to_string(format!("{pool}/{name}")).ok()?.trim().parse().ok()
        };
        let free = count("free_hugepages")?.saturating_sub(count("resv_hugepages")?);
        Some(free + count("nr_overcommit_hugepages")?.saturating_sub(count("surplus_hugepages")?))
    }

    /// What is not reserved in the beginning would end the process with SIGBUS once the guest comes to it.
    #[test]
    fn huge_pages_that_there_are_not_are_missed_at_the_start() {
        for size in [2 << 20, 1 << 30] {
            let Some(there) = to_be_had(size) else {
                devices::testing::skipped(&format!("this host has no huge pages of {size} bytes"));
                continue;
            };
            let len = (there + 1) * size;
            let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", size >> 10);
            let file = memory_file(len, Some(size)).unwrap();
            for file in [None, Some(&file)] {
                let error = map_block(len as usize, file, 0, Some(size)).unwrap_err();
                let RamError::Map { source, .. } = &error else { panic!("{error}") };
                assert_eq!(source.kind(), io::ErrorKind::OutOfMemory, "{size}: {error}");
                assert!(error.to_string().contains(&pool), "{error}");
            }
        }
    }
}
