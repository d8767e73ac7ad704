//! Firmware images: SeaBIOS, or the code part of OVMF.
//!
//! The image ends at 4 GiB, where the processor starts; its last 128 KiB appear once more below 1 MiB. There they
//! are ordinary RAM that is filled before each start: the chipset's write protection of that area is not modelled.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use devices::mem::GuestRam;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, FOUR_GIB};
use crate::linux::Size;

/// Images are whole pages.
const PAGE: u64 = 4 << 10;
/// From the end of KVM's own pages to 4 GiB.
pub const MAX_SIZE: u64 = FOUR_GIB - (layout::KVM_PAGES.base + layout::KVM_PAGES.size);
/// The processor's first instruction is this far from the image's end.
const RESET_VECTOR: usize = 16;

/// Why a file is no firmware; one line for the user.
#[derive(Debug, Error)]
pub enum FirmwareError {
    /// It cannot be opened or read.
    #[error("firmware {}: cannot be read: {source}; check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A directory, device, pipe or socket.
    #[error("firmware {}: is not a regular file; name an image such as bios-256k.bin", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// Zero bytes.
    #[error("firmware {}: is empty; copy or download it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Not whole pages.
    #[error(
        "firmware {}: {size} bytes are not a multiple of 4096; the file is cut off or is no firmware image",
        path.display()
    )]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// More than there is room for.
    #[error("firmware {}: {} are too much; at most {} fit below 4 GiB", path.display(), Size(*size), Size(MAX_SIZE))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Nothing but zeroes or ones where the processor starts.
    #[error(
        "firmware {}: is blank where the processor starts; variable stores and option ROMs are no firmware",
        path.display()
    )]
    Blank {
        /// The file.
        path: PathBuf,
    },
}

/// The bytes of a firmware image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(Vec<u8>);

impl Image {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// When it cannot be firmware of this machine; see [`FirmwareError`].
    pub fn read(path: &Path) -> Result<Self, FirmwareError> {
        let name = || path.to_path_buf();
        let unreadable = |source| FirmwareError::Unreadable { path: name(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(FirmwareError::NotRegular { path: name() });
        }
        let size = metadata.len();
        if size > MAX_SIZE {
            return Err(FirmwareError::TooLarge { path: name(), size });
        }
        let mut bytes = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut bytes).map_err(unreadable)?;
        let size = bytes.len() as u64;
        if size == 0 {
            return Err(FirmwareError::Empty { path: name() });
        }
        if !size.is_multiple_of(PAGE) {
            return Err(FirmwareError::Unaligned { path: name(), size });
        }
        let start = bytes.get(bytes.len() - RESET_VECTOR..).unwrap_or_default();
        if [0, 0xff].iter().any(|blank| start.iter().all(|byte| byte == blank)) {
            return Err(FirmwareError::Blank { path: name() });
        }
        Ok(Self(bytes))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Guest physical address of the first byte: the image ends at 4 GiB.
    pub fn address(&self) -> u64 {
        FOUR_GIB - self.0.len() as u64
    }

    /// Fills the BIOS area below 1 MiB with the image's end, as after power-on: before each start.
    ///
    /// # Errors
    /// When that is not RAM.
    pub fn fill_bios_area(&self, ram: &GuestRam) -> Result<(), GuestMemoryError> {
        let area = layout::BIOS;
        let from = self.0.len().saturating_sub(area.size as usize);
        let tail = self.0.get(from..).unwrap_or_default();
        let gap = vec![0; area.size as usize - tail.len()];
        ram.write_slice(&gap, GuestAddress(area.base))?;
        ram.write_slice(tail, GuestAddress(area.base + gap.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// An image of `len` bytes, each 4 KiB page filled with its number.
    fn pages(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 4096) as u8).collect()
    }

    fn read(bytes: &[u8]) -> Result<Image, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let name = file.path().display().to_string();
        Image::read(file.path()).map_err(|error| error.to_string().replace(&name, "F"))
    }

    #[test]
    fn an_image_ends_at_4_gib_and_at_1_mib() {
        let image = read(&pages(0x4_0000)).unwrap();
        assert_eq!((image.address(), image.bytes().len()), (0xfffc_0000, 0x4_0000));
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        ram.write_slice(&[0x5a; 0x2_0002], GuestAddress(0xd_ffff)).unwrap();
        image.fill_bios_area(&ram).unwrap();
        let at = |address| ram.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!(
            [0xd_ffff, 0xe_0000, 0xf_0000, 0xf_ffff, 0x10_0000].map(at),
            [0x5a, 0x20, 0x30, 0x3f, 0x5a]
        );
    }

    #[test]
    fn a_small_image_has_zeroes_before_it() {
        let image = read(&pages(0x1_0000)).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        ram.write_slice(&[0x5a; 0x2_0000], GuestAddress(0xe_0000)).unwrap();
        image.fill_bios_area(&ram).unwrap();
        let at = |address| ram.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!([0xe_0000, 0xe_ffff, 0xf_1000, 0xf_ffff].map(at), [0, 0, 1, 0x0f]);
        assert_eq!(image.address(), 0xffff_0000);
    }

    #[test]
    fn the_code_of_ovmf_has_a_size_of_its_own() {
        assert_eq!(read(&pages(0x37_c000)).unwrap().address(), 0xffc8_4000);
    }

    #[test]
    fn what_is_no_firmware_is_refused_in_one_line() {
        let message = |bytes: &[u8]| read(bytes).unwrap_err();
        assert_eq!(message(b""), "firmware F: is empty; copy or download it again");
        assert_eq!(
            message(&pages(0x1_0200)),
            "firmware F: 66048 bytes are not a multiple of 4096; the file is cut off or is no firmware image"
        );
        let blank = "firmware F: is blank where the processor starts; variable stores and option ROMs are no firmware";
        assert_eq!(message(&[0; 0x1_0000]), blank);
        assert_eq!(message(&[0xff; 0x1_0000]), blank);
        let large = tempfile::NamedTempFile::new().unwrap();
        large.as_file().set_len((16 << 20) + 4096).unwrap();
        let error = Image::read(large.path()).unwrap_err().to_string();
        assert!(error.ends_with("16.0 MiB are too much; at most 16 MiB fit below 4 GiB"), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let error = Image::read(directory.path()).unwrap_err().to_string();
        assert!(error.ends_with("is not a regular file; name an image such as bios-256k.bin"), "{error}");
        let error = Image::read(&directory.path().join("gone")).unwrap_err().to_string();
        assert!(error.contains("gone: cannot be read: No such file"), "{error}");
    }
}
