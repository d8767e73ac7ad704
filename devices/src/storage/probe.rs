//! What a file holds that is said to be the bytes of a disk: formats of images, and what images are packed in.
//!
//! A format is never taken from the content, which belongs to whoever wrote it, the guest included. But a file of another
//! format that is served as it is would show the guest nonsense, and the guest would overwrite it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::fdset::{self, Lease, Mode, Taken};
use super::raw::length;

/// Bytes of the start and of the end that are looked at.
const PART: usize = 512;

/// Something other than the bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// What it is, with its article.
    pub what: &'static str,
    remedy: Remedy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// It is supported, by its name.
    Qcow2,
    /// qemu-img reads it by this name.
    Convert(&'static str),
    /// This program unpacks it.
    Unpack(&'static str),
}

use Remedy::{Convert, Qcow2, Unpack};

/// What stands where at the start of a file.
const STARTS: &[(usize, &[u8], &str, Remedy)] = &[
    (0, b"QFI\xfb\0\0\0\x01", "a qcow image (version 1)", Convert("qcow")),
    (0, b"QFI\xfb", "a qcow2 image", Qcow2),
    (0, b"KDMV", "a VMDK image", Convert("vmdk")),
    (0, b"COWD", "a VMDK image", Convert("vmdk")),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", Convert("vmdk")),
    (0, &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "a VMDK image", Convert("vmdk")),
    (0, b"vhdxfile", "a VHDX image", Convert("vhdx")),
    (0, b"conectix", "a VHD image", Convert("vpc")),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image", Convert("vdi")),
    (0, b"QED\0", "a QED image", Convert("qed")),
    (0, b"WithoutFreeSpace", "a Parallels image", Convert("parallels")),
    (0, b"WithouFreSpacExt", "a Parallels image", Convert("parallels")),
    (0, b"Bochs Virtual HD Image", "a Bochs image", Convert("bochs")),
    (0, &[0x1f, 0x8b, 0x08], "packed with gzip", Unpack("gunzip")),
    (0, b"\xfd7zXZ\0", "packed with xz", Unpack("unxz")),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "packed with zstd", Unpack("unzstd")),
    (0, &[0x04, 0x22, 0x4d, 0x18], "packed with lz4", Unpack("unlz4")),
    (4, &[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], "packed with bzip2", Unpack("bunzip2")),
    (0, b"PK\x03\x04", "a zip archive", Unpack("unzip")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", Unpack("7z")),
    (257, b"ustar", "a tar archive, as .ova files are", Unpack("tar")),
    (0, &[0x3a, 0xff, 0x26, 0xed], "a sparse image of Android", Unpack("simg2img")),
];

/// What stands in the last sector of a file.
const ENDS: &[(&[u8], &str, Remedy)] =
    &[(b"conectix", "a VHD image of fixed size", Convert("vpc")), (b"koly", "a DMG image", Convert("dmg"))];

impl Content {
    /// What the file or block device at `path` holds, if that is not the bytes of a disk. Changes nothing, not even the time
    /// of the last access where that can be avoided.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        let file = open_quietly(path)?;
        let len = length(&file)?;
        let read = |at: u64| -> io::Result<[u8; PART]> {
            let mut part = [0; PART];
            let there = usize::try_from(len.saturating_sub(at)).unwrap_or(PART).min(PART);
            if let Some(part) = part.get_mut(..there) {
                file.read_exact_at(part, at)?;
            }
            Ok(part)
        };
        let start = Self::of_start(&read(0)?);
        Ok(start.or(Self::of_end(&read(len.saturating_sub(PART as u64))?)))
    }

    /// What begins so.
    pub(super) fn of_start(start: &[u8]) -> Option<Self> {
        let found = STARTS
            .iter()
            .find(|(at, magic, ..)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
        // LUKS is left out: a guest that encrypts its whole disk makes it.
        found.map(|(_, _, what, remedy)| Self { what, remedy: *remedy })
    }

    fn of_end(end: &[u8]) -> Option<Self> {
        let found = ENDS.iter().find(|(magic, ..)| end.starts_with(magic));
        found.map(|(_, what, remedy)| Self { what, remedy: *remedy })
    }

    /// Whether it is a qcow2 image.
    pub fn is_qcow2(&self) -> bool {
        self.remedy == Qcow2
    }

    /// What to do about it, but for taking its bytes as they are.
    pub fn remedy(&self, path: &Path) -> String {
        match self.remedy {
            Qcow2 => "set format = \"qcow2\"".into(),
            Convert(name) => {
                format!(
                    "convert it with qemu-img convert -f {name} -O qcow2 \"{}\" NEW.qcow2",
                    fdset::origin(path).display()
                )
            }
            Unpack(program) => format!("unpack it first with {program}"),
        }
    }
}

/// A file that is open to be looked at.
pub(super) struct Looked {
    file: Arc<File>,
    _lease: Option<Lease>,
}

impl Deref for Looked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl From<File> for Looked {
    fn from(file: File) -> Self {
        Self { file: file.into(), _lease: None }
    }
}

impl From<Taken> for Looked {
    fn from(taken: Taken) -> Self {
        Self { file: taken.file, _lease: Some(taken.lease) }
    }
}

/// Opens for reading, leaving the time of the last access alone where the file is ours. Of a set, a descriptor that no disk uses.
pub(super) fn open_quietly(path: &Path) -> io::Result<Looked> {
    if let Some(number) = fdset::number(path) {
        return fdset::take(number, Mode::Any, false).map(Into::into);
    }
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK).open(path);
    match open(libc::O_NOATIME) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => open(0),
        result => result,
    }
    .map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{LoopDevice, temp_dir};

    #[test]
    fn images_and_archives_are_known_by_their_bytes() {
        let directory = temp_dir();
        let path = directory.path().join("disk.img");
        let what = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Content::of(&path).unwrap().map(|content| (content.what, content.remedy(&path)))
        };
        let shown = path.display();
        let at = |at: usize, magic: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            bytes
        };
        let convert =
            |name| format!("convert it with qemu-img convert -f {name} -O qcow2 \"{shown}\" NEW.qcow2");
        // Magic numbers of the formats' own documents; VDI's is little-endian.
        assert_eq!(
            what(&at(0, &[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3])),
            Some(("a qcow2 image", "set format = \"qcow2\"".into()))
        );
        assert_eq!(what(&at(0, &[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1])).unwrap().1, convert("qcow"));
        for (bytes, name) in [
            (at(0, b"KDMV\x01\0\0\0"), "vmdk"),
            (at(0, b"COWD"), "vmdk"),
            (b"# Disk DescriptorFile\nversion=1\n".to_vec(), "vmdk"),
            (at(0, b"vhdxfile"), "vhdx"),
            (at(0, b"conectix"), "vpc"),
            (at(4096 - 512, b"conectix"), "vpc"),
            (at(64, &0xbeda_107f_u32.to_le_bytes()), "vdi"),
            (at(0, b"QED\0"), "qed"),
            (at(0, b"WithoutFreeSpace"), "parallels"),
        ] {
            assert_eq!(what(&bytes).unwrap().1, convert(name), "{name}");
        }
        assert_eq!(
            what(&at(0, &[0x1f, 0x8b, 8])),
            Some(("packed with gzip", "unpack it first with gunzip".into()))
        );
        assert_eq!(what(b"BZh91AY&SY").unwrap().0, "packed with bzip2");
        assert!(what(&at(257, b"ustar")).unwrap().0.contains(".ova"));
    }

    #[test]
    fn the_bytes_of_disks_are_nothing_else() {
        let directory = temp_dir();
        let path = directory.path().join("disk.img");
        let mut boot_sector = vec![0; 2048];
        boot_sector[..3].copy_from_slice(&[0xeb, 0x63, 0x90]);
        boot_sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        // Zeros, a boot sector, a disk that its guest encrypted, one that is odd, one that is nearly empty.
        for bytes in
            [vec![0; 512], boot_sector, b"LUKS\xba\xbe\0\x02".to_vec(), vec![7; 700], vec![], vec![0x51]]
        {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Content::of(&path).unwrap(), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn block_devices_are_looked_into_as_files_are() {
        let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
        assert_eq!(Content::of(device.path()).unwrap(), None);
        let file = OpenOptions::new().write(true).open(device.path()).unwrap();
        file.write_all_at(b"conectix", (1 << 20) - 512).unwrap();
        assert_eq!(Content::of(device.path()).unwrap().unwrap().what, "a VHD image of fixed size");
    }
}
