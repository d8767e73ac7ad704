//! What the host has back when a disk has gone from a machine in its sandbox.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::paths::{LoopDevice, Machine, machine, needs_landlock};
use super::vm::{hypervisor, skipped, turn};

/// A file system of its own. Gone when dropped.
struct Mounted {
    device: LoopDevice,
    place: PathBuf,
}

impl Mounted {
    fn new(place: PathBuf) -> Option<Self> {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(16 << 20).unwrap();
        let device = LoopDevice::over(image.path())?;
        fs::create_dir(&place).unwrap();
        let did = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = did(Command::new("mkfs.ext4").arg("-q").arg(&device.0))
            && did(Command::new("mount").arg(&device.0).arg(&place));
        made.then_some(Self { device, place })
    }

    fn unmount(&self) -> Result<(), String> {
        let output = Command::new("umount").arg(&self.place).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
    }

    /// The bytes that are free.
    fn free(&self) -> u64 {
        let path = CString::new(self.place.as_os_str().as_bytes()).unwrap();
        // SAFETY: a structure of integers.
        #[allow(unsafe_code)]
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the call reads a string and fills a structure, which outlive it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
        assert_eq!(result, 0);
        stat.f_bfree * stat.f_bsize.cast_unsigned()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Unless the test has.
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).output();
    }
}

/// Whether nobody uses a block device: who opens it for itself alone gets it (open(2), O_EXCL).
fn is_free(device: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    fs::File::options().read(true).custom_flags(libc::O_EXCL).open(device).is_ok()
}

/// A machine with a disk on a file system of its own, which has been detached.
fn detached(test: &str, directories: &str, look: impl FnOnce(&Mounted)) {
    let vm = machine("virtio-scsi")
        .set(&format!("security.directories={directories}"))
        .set("hba.0.lun.1.image=mnt/a.img")
        .set("hba.0.lun.1.target=1");
    let Some(mounted) = Mounted::new(vm.path("mnt")) else {
        skipped(test, "no file system can be mounted here");
        return;
    };
    fs::write(vm.path("mnt/a.img"), vec![1; 4 << 20]).unwrap();
    let _turn = turn();
    let mut machine = Machine::start(&vm);
    assert_eq!(machine.ask("detach", "\"target\": 1"), "{\"return\":{}}");
    look(&mounted);
    let ended = machine.quit();
    assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{directories}");
}

#[test]
fn the_file_system_of_a_disk_that_has_gone_can_be_unmounted() {
    let name = "the_file_system_of_a_disk_that_has_gone_can_be_unmounted";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    for directories in ["[]", "['mnt']"] {
        detached(name, directories, |mounted| {
            assert_eq!(mounted.unmount(), Ok(()), "{directories}");
            assert!(is_free(&mounted.device.0), "{directories}");
        });
    }
}

#[test]
fn an_image_that_is_removed_after_it_has_gone_leaves_its_room() {
    let name = "an_image_that_is_removed_after_it_has_gone_leaves_its_room";
    if !hypervisor(name) || !needs_landlock(name) {
        return;
    }
    detached(name, "['mnt']", |mounted| {
        let before = mounted.free();
        fs::remove_file(mounted.place.join("a.img")).unwrap();
        assert!(mounted.free() >= before + (4 << 20), "{before} {}", mounted.free());
    });
}
