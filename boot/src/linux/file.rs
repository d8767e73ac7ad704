//! Files read straight into guest RAM, by several threads, without a copy in between.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::iter;
use std::num::NonZero;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use devices::mem::GuestRam;
use devices::sandbox;
use devices::threads::{self, Kind};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, ReadVolatile, VolatileMemoryError};

use super::error::{LoadError, Role};

/// Piece one thread reads at a time: large enough for few system calls, small enough to share the work.
const CHUNK: u64 = 2 << 20;
/// More threads than this only contend for memory bandwidth.
const MAX_THREADS: usize = 4;
/// The kernel could not write where guest RAM is (asm-generic/errno-base.h).
const EFAULT: i32 = 14;
/// What memory is cleared with.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A regular, non-empty file opened for reading.
#[derive(Debug)]
pub(super) struct BootFile {
    role: Role,
    path: PathBuf,
    file: File,
    identity: (u64, u64),
    size: u64,
}

impl BootFile {
    pub(super) fn open(role: Role, path: &Path) -> Result<Self, LoadError> {
        let owned = || path.to_path_buf();
        let refused = |source: io::Error| match sandbox::explain_boot(path, &source) {
            Some(why) => LoadError::Confined { role, path: owned(), why },
            None if source.kind() == io::ErrorKind::NotFound => LoadError::Missing { role, path: owned() },
            None => LoadError::Unreadable { role, path: owned(), source },
        };
        // Ask before opening: opening a pipe would wait for its writer.
        let kind = fs::metadata(path).map_err(refused)?;
        if kind.is_dir() {
            return Err(LoadError::Directory { role, path: owned() });
        }
        if !kind.is_file() {
            return Err(LoadError::NotRegular { role, path: owned() });
        }
        let file = File::open(path).map_err(refused)?;
        let metadata = file.metadata().map_err(refused)?;
        if metadata.len() == 0 {
            return Err(LoadError::Empty { role, path: owned() });
        }
        Ok(Self {
            role,
            path: owned(),
            file,
            identity: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Up to `length` bytes at `offset`; fewer only at the end of the file.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>, LoadError> {
        let wanted = self.size.saturating_sub(offset).min(length as u64) as usize;
        let mut bytes = vec![0; wanted];
        self.file.read_exact_at(&mut bytes, offset).map_err(|source| self.failed(source))?;
        Ok(bytes)
    }

    fn failed(&self, source: io::Error) -> LoadError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => LoadError::Changed { role: self.role, path },
            _ => LoadError::Unreadable { role: self.role, path, source },
        }
    }

    /// A second open file with its own position, so that threads read side by side.
    fn reopen(&self) -> Result<File, LoadError> {
        let file = File::open(&self.path).map_err(|source| self.failed(source))?;
        let now = file.metadata().map_err(|source| self.failed(source))?;
        if (now.dev(), now.ino()) != self.identity {
            return Err(LoadError::Changed { role: self.role, path: self.path.clone() });
        }
        Ok(file)
    }
}

/// Part of a file that belongs at a guest physical address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) file: &'a BootFile,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) address: u64,
}

impl<'a> Piece<'a> {
    /// Cut where the guest address is a multiple of [`CHUNK`], so that no two threads populate one huge page.
    fn chunks(self) -> impl Iterator<Item = Piece<'a>> {
        let mut rest = self;
        iter::from_fn(move || {
            let size = rest.size.min(CHUNK - rest.address % CHUNK);
            let chunk = Piece { size, ..rest };
            rest.offset += size;
            rest.address += size;
            rest.size -= size;
            (size != 0).then_some(chunk)
        })
    }

    fn read_into(&self, ram: &GuestRam) -> Result<(), LoadError> {
        let mut file = self.file.reopen()?;
        file.seek(SeekFrom::Start(self.offset)).map_err(|source| self.file.failed(source))?;
        for slice in ram.get_slices(GuestAddress(self.address), self.size as usize) {
            let mut slice = slice.map_err(|source| LoadError::Memory { address: self.address, source })?;
            file.read_exact_volatile(&mut slice).map_err(|error| match error {
                VolatileMemoryError::IOError(source) if source.raw_os_error() == Some(EFAULT) => {
                    LoadError::HostMemory { address: self.address }
                }
                VolatileMemoryError::IOError(source) => self.file.failed(source),
                other => LoadError::Memory { address: self.address, source: GuestMemoryError::from(other) },
            })?;
        }
        Ok(())
    }
}

/// Reads every piece into guest RAM. Pieces must not overlap. On an error RAM holds an unspecified part of
/// them.
pub(super) fn read_all(ram: &GuestRam, pieces: &[Piece<'_>]) -> Result<(), LoadError> {
    let mut chunks: Vec<_> = pieces.iter().copied().flat_map(Piece::chunks).collect();
    // Asking for the number of processors reads several files, longer than a small kernel takes to load.
    let threads = match chunks.len() {
        0 | 1 => 1,
        chunks => thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS).min(chunks),
    };
    chunks.reverse();
    let queue = Mutex::new(chunks);
    // A poisoned queue means another worker panicked; the scope reports that by itself.
    let next = || queue.lock().ok().and_then(|mut chunks| chunks.pop());
    let worker = || {
        while let Some(chunk) = next() {
            chunk.read_into(ram)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        // A thread that cannot be started is no reason to fail: this thread drains the queue in any case.
        let helpers: Vec<_> = (1..threads)
            .filter_map(|_| threads::spawn_scoped(scope, Kind::Load, "load", worker).ok())
            .collect();
        let own = worker();
        helpers.into_iter().fold(own, |result, helper| {
            let helped = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and(helped)
        })
    })
}

/// Clears `size` bytes of guest RAM at `address`.
pub(super) fn zero(ram: &GuestRam, address: u64, size: u64) -> Result<(), LoadError> {
    for slice in ram.get_slices(GuestAddress(address), size as usize) {
        let slice = slice.map_err(|source| LoadError::Memory { address, source })?;
        for start in (0..slice.len()).step_by(ZEROES.len()) {
            let length = ZEROES.len().min(slice.len() - start);
            let part = slice
                .subslice(start, length)
                .map_err(|error| LoadError::Memory { address, source: GuestMemoryError::from(error) })?;
            part.copy_from(ZEROES.get(..length).unwrap_or_default());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn pieces_land_where_they_belong() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..(9u32 << 20)).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect();
        file.write_all(&bytes).unwrap();
        // Two regions, so that one chunk crosses from one to the other.
        let ram =
            GuestRam::from_ranges(&[(GuestAddress(0), 5 << 20), (GuestAddress(5 << 20), 11 << 20)]).unwrap();
        let boot_file = BootFile::open(Role::Initrd, file.path()).unwrap();
        let piece = Piece { file: &boot_file, offset: 3, size: (9 << 20) - 5, address: 0x10_0001 };
        read_all(&ram, &[piece]).unwrap();
        let mut found = vec![0; bytes.len()];
        ram.read_slice(&mut found, GuestAddress(0x10_0001 - 3)).unwrap();
        assert_eq!(found[..3], [0, 0, 0]);
        assert!(found[3..found.len() - 2] == bytes[3..bytes.len() - 2]);
        assert_eq!(found[found.len() - 2..], [0, 0]);
    }

    #[test]
    fn a_file_that_shrinks_is_reported() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let boot_file = BootFile::open(Role::Initrd, file.path()).unwrap();
        file.as_file().set_len(100).unwrap();
        let piece = Piece { file: &boot_file, offset: 0, size: 8192, address: 0 };
        let error = read_all(&ram, &[piece]).unwrap_err().to_string();
        assert!(error.contains("changed while it was being read"), "{error}");
    }

    /// What is behind the size that the file had is not read, and what memory is for it stays as it was.
    #[test]
    fn cve_2018_20815_a_file_that_grows_is_read_as_far_as_it_was_measured() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        ram.write_slice(&[0x77; 16384], GuestAddress(0)).unwrap();
        let boot_file = BootFile::open(Role::Initrd, file.path()).unwrap();
        file.write_all(&[2; 1 << 20]).unwrap();
        assert_eq!(boot_file.size(), 8192);
        assert_eq!(boot_file.bytes(8000, 1 << 20).unwrap(), [1; 192]);
        let piece = Piece { file: &boot_file, offset: 0, size: boot_file.size(), address: 0 };
        read_all(&ram, &[piece]).unwrap();
        let mut found = [0; 16384];
        ram.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert_eq!(found, *[[1; 8192], [0x77; 8192]].as_flattened());
    }

    /// As where huge pages ran out. The file is not at fault.
    #[test]
    fn memory_that_the_host_cannot_give_is_reported() {
        use vm_memory::mmap::MmapRegion;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        // PROT_NONE; MAP_PRIVATE and MAP_ANONYMOUS (asm-generic/mman-common.h).
        let mapping = MmapRegion::build(None, 8192, 0, 0x22).unwrap();
        let region = vm_memory::GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let ram = GuestRam::from_regions(vec![region]).unwrap();
        let boot_file = BootFile::open(Role::Initrd, file.path()).unwrap();
        let piece = Piece { file: &boot_file, offset: 0, size: 8192, address: 0 };
        let error = read_all(&ram, &[piece]).unwrap_err().to_string();
        assert!(error.contains("the host has no memory behind guest address 0x0"), "{error}");
    }

    #[test]
    fn zero_clears_exactly() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let (start, size) = (0x1001u64, (5u64 << 20) + 3);
        ram.write_slice(&vec![0xff; 8 << 20], GuestAddress(0)).unwrap();
        zero(&ram, start, size).unwrap();
        let mut bytes = vec![0; 8 << 20];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let cleared = start as usize..(start + size) as usize;
        assert!(bytes[cleared.clone()].iter().all(|&byte| byte == 0));
        assert_eq!((bytes[cleared.start - 1], bytes[cleared.end]), (0xff, 0xff));
    }
}
