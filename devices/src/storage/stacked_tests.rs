//! A loop device and the file below it are one image, and so is whatever else is made of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{CacheMode, RawImage, RawOptions, Sharing, user_of};
use crate::testing::{FileServer, LoopDevice, temp_dir, temp_file};

fn open(path: &Path, read_only: bool) -> Result<RawImage, String> {
    let path = path.into();
    let options = RawOptions { path, read_only, cache: CacheMode::Writeback, sharing: Sharing::Exclusive };
    RawImage::open(&options).map_err(|error| error.to_string())
}

const WRITE: bool = false;
const READ: bool = true;

/// Opens `first` and then `second`, which must be refused as two disks of this machine.
#[track_caller]
fn conflict(first: (&Path, bool), second: (&Path, bool)) -> String {
    let _first = open(first.0, first.1).unwrap();
    let said = open(second.0, second.1).err().expect("two writers");
    assert!(said.contains("two disks of this machine use the same image"), "{said}");
    said
}

#[test]
fn a_loop_device_and_its_file_are_one_image() {
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let (above, below) = (device.path(), device.backing());
    let said = conflict((below, WRITE), (above, WRITE));
    let shown = format!("{}, which is made of {}: two disks", above.display(), below.display());
    assert!(said.starts_with(&shown), "{said}");
    conflict((above, WRITE), (below, WRITE));
    conflict((above, READ), (below, WRITE));
    conflict((above, WRITE), (below, READ));
    drop((open(above, READ).unwrap(), open(below, READ).unwrap()));
    // One after the other.
    drop(open(above, WRITE).unwrap());
    drop(open(below, WRITE).unwrap());
}

#[test]
fn devices_over_one_file_are_one_image() {
    let Some(one) = LoopDevice::new(1 << 20, 512) else { return };
    let Some(other) = LoopDevice::over(one.backing(), &[]) else { return };
    conflict((one.path(), WRITE), (other.path(), WRITE));
    conflict((other.path(), WRITE), (one.path(), READ));
}

#[test]
fn loop_devices_over_loop_devices_are_followed() {
    let Some(low) = LoopDevice::new(1 << 20, 512) else { return };
    let Some(high) = LoopDevice::over(low.path(), &[]) else { return };
    for (a, b) in [(low.path(), high.path()), (low.backing(), high.path())] {
        conflict((a, WRITE), (b, WRITE));
        conflict((b, WRITE), (a, WRITE));
    }
}

#[test]
fn partitions_are_parts_of_the_file_below() {
    let directory = temp_dir();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(2 << 20).unwrap();
    let Some(device) = LoopDevice::over(&path, &["-P"]) else { return };
    let part = |number: u32| PathBuf::from(format!("{}p{number}", device.path().display()));
    let add = |number: u32, start: &str| {
        let made =
            Command::new("addpart").arg(device.path()).args([&number.to_string(), start, "1024"]).status();
        made.is_ok_and(|made| made.success()) && part(number).exists()
    };
    if !add(1, "1024") || !add(2, "2048") {
        crate::testing::skipped("no partitions of loop devices can be made here");
        return;
    }
    // Two disks may be two partitions.
    let both = [open(&part(1), WRITE).unwrap(), open(&part(2), WRITE).unwrap()];
    let said = open(&path, WRITE).err().expect("its partitions are in use");
    assert!(said.contains("two disks of this machine"), "{said}");
    drop(both);
    conflict((&path, WRITE), (&part(1), WRITE));
    let Some(other) = LoopDevice::over(&path, &[]) else { return };
    conflict((&part(1), WRITE), (other.path(), WRITE));
    conflict((other.path(), WRITE), (&part(2), WRITE));
    conflict((&part(1), WRITE), (device.path(), WRITE));
}

#[test]
fn two_nodes_of_one_device_are_one_image() {
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let directory = temp_dir();
    let node = directory.path().join("node");
    let number = device.path().display().to_string().replace("/dev/loop", "");
    let made = Command::new("mknod").arg(&node).args(["b", "7", &number]).status();
    if !made.is_ok_and(|status| status.success()) || File::open(&node).is_err() {
        crate::testing::skipped("no device node can be made here");
        return;
    }
    let _first = open(device.path(), WRITE).unwrap();
    let said = open(&node, WRITE).err().expect("two writers");
    assert!(said.contains("two disks of this machine use the same"), "{said}");
}

/// What the host has mounted through a loop device is not given to a guest as well.
#[test]
fn a_file_whose_loop_device_is_mounted_is_refused() {
    let Some(device) = LoopDevice::new(4 << 20, 512) else { return };
    let directory = temp_dir();
    let run = |name: &str, args: &[&std::ffi::OsStr]| {
        Command::new(name).args(args).output().is_ok_and(|out| out.status.success())
    };
    let (above, place) = (device.path().as_os_str(), directory.path().as_os_str());
    if !run("mkfs.ext4", &["-q".as_ref(), above]) || !run("mount", &[above, place]) {
        crate::testing::skipped("nothing can be mounted here");
        return;
    }
    let said = open(device.backing(), WRITE).err();
    let user = user_of(device.backing());
    let read = open(device.backing(), READ).err();
    assert!(run("umount", &[place]));
    let line = format!("{}, a device over it, is mounted at {}", above.display(), place.display());
    assert_eq!(user, Some(line.clone()));
    assert!(said.as_ref().is_some_and(|said| said.contains(&line)), "{said:?}");
    assert_eq!(read, None);
    assert_eq!(user_of(device.backing()), None);
    open(device.backing(), WRITE).unwrap();
}

/// Other programs lock the device, and know nothing of the file.
#[test]
fn a_file_whose_loop_device_is_locked_by_another_program_is_refused() {
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let there = ["qemu-io", "qemu-img"].map(|tool| Command::new(tool).arg("--version").output().is_ok());
    if there != [true; 2] {
        crate::testing::skipped("no QEMU here");
        return;
    }
    let mut other = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(device.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Err("it did not start".to_owned());
    for _ in 0..200 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        said = open(device.backing(), WRITE).map(drop);
        if said.is_err() {
            break;
        }
    }
    drop(other.stdin.take());
    other.wait().unwrap();
    let said = said.expect_err("it opened while QEMU has the device");
    assert!(said.contains("qemu-io"), "{said}");
    fs::metadata(device.backing()).unwrap();
    open(device.backing(), WRITE).unwrap();
}

/// What others have made of files whose server hangs is nobody's business.
#[test]
fn a_server_that_hangs_below_a_loop_device_holds_up_no_other_image() {
    let Some(server) = FileServer::new() else { return };
    let Some(_device) = LoopDevice::over(&server.file(), &[]) else { return };
    let image = temp_file();
    image.as_file().set_len(1 << 20).unwrap();
    server.hang();
    let path = image.path().to_owned();
    let (opened, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..3 {
            let begin = Instant::now();
            drop(open(&path, WRITE).unwrap());
            let _ = opened.send(begin.elapsed());
        }
    });
    let mut times: Vec<_> = (0..3).map(|_| said.recv_timeout(Duration::from_secs(10))).collect();
    // What hangs goes on.
    drop(server);
    let last = times.pop().unwrap().expect("it waits for the server");
    assert!(last < Duration::from_secs(1), "{last:?}, after {times:?}");
}

/// Who has an image is told while another one of this process hangs.
#[test]
fn a_server_that_hangs_keeps_no_conflict_from_being_told() {
    let Some(server) = FileServer::new() else { return };
    let held = open(&server.file(), WRITE).unwrap();
    let image = temp_file();
    image.as_file().set_len(1 << 20).unwrap();
    server.hang();
    let path = image.path().to_owned();
    let (opened, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || opened.send(conflict((&path, WRITE), (&path, WRITE))));
    let said = said.recv_timeout(Duration::from_secs(10));
    drop(server);
    said.expect("it waits for the server");
    drop(held);
}

/// A loop device is known by what it is made of, whatever the kernel calls that.
#[test]
fn a_file_with_two_names_is_found_below_a_loop_device() {
    let directory = temp_dir();
    let [one, other] = ["one.img", "other.img"].map(|name| directory.path().join(name));
    File::create(&one).unwrap().set_len(1 << 20).unwrap();
    fs::hard_link(&one, &other).unwrap();
    let Some(device) = LoopDevice::over(&one, &[]) else { return };
    let Some(high) = LoopDevice::over(device.path(), &[]) else { return };
    conflict((device.path(), WRITE), (&other, WRITE));
    conflict((high.path(), WRITE), (&other, WRITE));
    let node = directory.path().join("node");
    let number = device.path().display().to_string().replace("/dev/loop", "");
    if Command::new("mknod").arg(&node).args(["b", "7", &number]).status().is_ok_and(|made| made.success())
        && File::open(&node).is_ok()
    {
        let _high = open(high.path(), WRITE).unwrap();
        let said = open(&node, WRITE).err().expect("two writers");
        assert!(said.contains("two disks of this machine"), "{said}");
    }
}
