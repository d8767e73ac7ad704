//! What opening images would find wrong, without opening them for use: nothing is locked, claimed, made or changed.
//!
//! The images of one machine come one after the other: each is compared with what those before it would have locked.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::lock::{self, Wanted};
use super::raw::probe;
use super::{OpenError, Qcow2Image, Qcow2Options, RawOptions, Sharing, fdset, in_use, stacked};

/// The images that were looked at so far.
#[derive(Default)]
pub struct Rehearsal {
    /// Device and inode of files, and their locks.
    locked: Vec<((u64, u64), Wanted)>,
    /// Devices that are for one user alone.
    claimed: Vec<u64>,
}

impl Rehearsal {
    /// What [`RawImage::open`](super::RawImage::open) would say.
    pub fn raw(&mut self, options: &RawOptions) -> Result<(), OpenError> {
        let (path, read_only, sharing) = (options.path.as_path(), options.read_only, options.sharing);
        let file = probe(options)?;
        let shown = fdset::shown(path);
        self.lock(&file, &shown, read_only, sharing)?;
        let failed = |e| OpenError::host(format!("{shown}: cannot look at the image"), e);
        let found = file.metadata().map_err(failed)?;
        let is_device = found.file_type().is_block_device();
        if is_device {
            for below in stacked::below(path, &file, sharing)? {
                self.lock(&below.file, &below.shown, read_only, below.sharing)?;
            }
        }
        stacked::look_above(path, &file, read_only, sharing)?;
        if is_device && !read_only && sharing == Sharing::Exclusive {
            let related = in_use::related(found.rdev());
            if self.claimed.iter().any(|other| related.contains(other)) {
                return Err(in_use::used_twice(path));
            }
            self.claimed.push(found.rdev());
            if fdset::number(path).is_some() {
                return in_use::look(path, &file);
            }
            // For a moment only, which others wait for.
            in_use::claim(path, &file)?;
        }
        Ok(())
    }

    /// What [`Qcow2Image::open`] would say of the files of an image, whose content
    /// [`inspect`](Qcow2Image::inspect) looks at.
    pub fn qcow2(&mut self, options: &Qcow2Options) -> Result<(), OpenError> {
        Qcow2Image::raw_files(options)?.iter().try_for_each(|file| self.raw(file))
    }

    fn lock(&mut self, file: &File, shown: &str, read_only: bool, sharing: Sharing) -> Result<(), OpenError> {
        let Some(wanted) = Wanted::of(read_only, sharing) else { return Ok(()) };
        lock::look(file, shown, read_only, sharing)?;
        let Ok(found) = file.metadata() else { return Ok(()) };
        let id = (found.dev(), found.ino());
        if self.locked.iter().any(|(other, theirs)| *other == id && theirs.excludes(&wanted)) {
            return Err(lock::used_twice(shown));
        }
        self.locked.push((id, wanted));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::{CacheMode, RawImage};
    use crate::testing::{LoopDevice, temp_dir};

    fn options(path: &Path, read_only: bool) -> RawOptions {
        RawOptions { path: path.into(), read_only, cache: CacheMode::Writeback, sharing: Sharing::Exclusive }
    }

    /// Opens all in turn, in earnest and not; both have to say the same.
    #[track_caller]
    fn same(images: &[(&Path, bool)]) -> Option<String> {
        // A program that another test starts has, until it runs, what was open here a moment ago, and the locks with it.
        for _ in 0..20 {
            let (rehearsed, opened) = both(images);
            if rehearsed == opened {
                return opened.into_iter().flatten().next();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let (rehearsed, opened) = both(images);
        assert_eq!(rehearsed, opened);
        opened.into_iter().flatten().next()
    }

    /// What is said of each image when it is rehearsed, and when it is opened.
    fn both(images: &[(&Path, bool)]) -> (Vec<Option<String>>, Vec<Option<String>>) {
        let mut rehearsal = Rehearsal::default();
        let rehearsed = images
            .iter()
            .map(|(path, read_only)| rehearsal.raw(&options(path, *read_only)).err().map(|e| e.to_string()))
            .collect();
        let opened: Vec<_> =
            images.iter().map(|(path, read_only)| RawImage::open(&options(path, *read_only))).collect();
        (rehearsed, opened.iter().map(|image| image.as_ref().err().map(ToString::to_string)).collect())
    }

    #[test]
    fn images_of_one_machine_are_compared_as_their_locks_would() {
        let directory = temp_dir();
        let path = |name: &str| directory.path().join(name);
        for name in ["a", "b"] {
            File::create(path(name)).unwrap().set_len(4096).unwrap();
        }
        std::fs::hard_link(path("a"), path("link")).unwrap();
        let (a, b, link) = (path("a"), path("b"), path("link"));
        assert_eq!(same(&[(&a, false), (&b, false)]), None);
        assert_eq!(same(&[(&a, true), (&link, true)]), None);
        for second in [true, false] {
            let said = same(&[(&a, false), (&link, second)]).unwrap();
            assert!(said.contains("link: two disks of this machine use the same image"), "{said}");
        }
        assert!(same(&[(&a, true), (&a, false)]).is_some());
        assert!(same(&[(&path("gone"), true)]).is_some());
        assert!(same(&[(directory.path(), true)]).is_some());
        // Those of another machine, and nothing is left locked.
        let open = RawImage::open(&options(&a, false)).unwrap();
        let said = Rehearsal::default().raw(&options(&a, true)).unwrap_err();
        assert!(said.to_string().contains("two disks"), "{said}");
        drop(open);
        assert_eq!(same(&[(&a, false)]), None);
    }

    #[test]
    fn devices_are_compared_as_well() {
        let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
        let (above, below) = (device.path(), device.backing());
        for (first, second) in [(above, below), (below, above), (above, above)] {
            assert!(same(&[(first, false), (second, false)]).is_some());
        }
        assert_eq!(same(&[(above, true), (below, true)]), None);
        let host = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), libc::O_EXCL)
            .open(above)
            .unwrap();
        assert!(same(&[(above, false)]).unwrap().contains("another program has it for itself"));
        drop(host);
    }
}
