//! Descriptors of files that have no name any more, and of what is no image.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::*;
use crate::mem::{SgList, ToGuest};
use crate::storage::{
    Backing, BlockBackend, ByteOffset, CacheMode, Content, Ending, Image, Qcow2Image, Qcow2Options, RawImage,
    RawOptions, Rehearsal, Sharing, let_go, user_of,
};
use crate::testing::conformance::{check as conforms, contents};
use crate::testing::{FileServer, LoopDevice, on_io_thread, temp_dir, temp_file};

fn file_of(len: u64) -> tempfile::NamedTempFile {
    let file = temp_file();
    file.as_file().set_len(len).unwrap();
    file
}

fn given(path: &Path, write: bool) -> OwnedFd {
    File::options().read(true).write(write).open(path).unwrap().into()
}

/// A set of its own, for no test runs alone.
fn set(descriptors: Vec<OwnedFd>, opaque: Option<&str>) -> (u64, PathBuf) {
    let (number, _) = add(descriptors, None, opaque).unwrap();
    (number, PathBuf::from(format!("/dev/fdset/{number}")))
}

/// A set of a file that nobody can open.
fn nameless(len: u64) -> (u64, PathBuf) {
    let file = file_of(len);
    let set = set(vec![given(file.path(), true)], None);
    file.close().unwrap();
    set
}

fn options(path: &Path, read_only: bool, cache: CacheMode) -> RawOptions {
    RawOptions { path: path.into(), read_only, cache, sharing: Sharing::Exclusive }
}

fn open(path: &Path, read_only: bool) -> Result<RawImage, String> {
    RawImage::open(&options(path, read_only, CacheMode::Writeback)).map_err(|e| said(&e))
}

fn said(error: &crate::storage::OpenError) -> String {
    match &error.source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn listed(number: u64) -> Option<Vec<Listed>> {
    list().into_iter().find(|(other, _)| *other == number).map(|(_, listed)| listed)
}

/// Whether the description that is locked so (flock(2)) is open somewhere.
fn is_open(path: &Path) -> bool {
    File::open(path).unwrap().try_lock().is_err()
}

#[test]
fn the_names_of_sets_are_numbers() {
    let of = |path: &str| number(Path::new(path));
    assert_eq!((of("/dev/fdset/0"), of("/dev/fdset/17")), (Some(0), Some(17)));
    assert_eq!(of("/dev/fdset/9223372036854775807"), Some(NUMBER_MAX));
    for other in ["", "x", "-1", "+1", "1/", "1.img", "9223372036854775808", "99999999999999999999"] {
        assert_eq!(of(&format!("/dev/fdset/{other}")), None, "{other}");
    }
    assert_eq!(of("/dev/fd/1"), None);
    assert_eq!(metadata(Path::new("/dev/null")).unwrap().rdev(), libc::makedev(1, 3));
}

#[test]
fn descriptors_stay_until_they_are_removed() {
    let file = file_of(4096);
    let first = File::open(file.path()).unwrap();
    first.lock().unwrap();
    let (number, fds) = add(vec![first.into()], None, Some("a\n\"b\"")).unwrap();
    let path = PathBuf::from(format!("/dev/fdset/{number}"));
    let opaque = Some("a\n\"b\"".to_owned());
    assert_eq!(listed(number), Some(vec![Listed { fd: fds[0], opaque: opaque.clone() }]));
    assert_eq!(shown(&path), format!("/dev/fdset/{number} (\"a\\n\\\"b\\\"\")"));
    assert_eq!(origin(&path), file.path());
    let (again, more) = add(vec![given(file.path(), true)], Some(number), None).unwrap();
    assert_eq!((again, listed(number).unwrap().len()), (number, 2));
    assert!(is_open(file.path()));
    assert!(matches!(remove(number, Some(-1)), Err(FdSetError::NoDescriptor(..))));
    remove(number, Some(fds[0])).unwrap();
    assert!(!is_open(file.path()), "a removed descriptor is closed");
    assert_eq!(listed(number), Some(vec![Listed { fd: more[0], opaque: None }]));
    remove(number, None).unwrap();
    assert_eq!(listed(number), None);
    assert!(matches!(remove(number, None), Err(FdSetError::NoSet(_))));
    assert!(metadata(&path).unwrap_err().to_string().contains("no descriptors were added as set"));
}

#[test]
fn what_is_no_image_is_refused_and_closed() {
    let refused = |fd: OwnedFd| add(vec![fd], None, None).unwrap_err().to_string();
    let (mut reader, writer) = std::io::pipe().unwrap();
    assert!(
        refused(writer.into()).starts_with("the descriptor is of a pipe, expected one of a regular file")
    );
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the other end is closed");
    let (mut one, other) = UnixStream::pair().unwrap();
    assert!(refused(other.into()).contains("of a socket"));
    assert_eq!(one.read(&mut [0]).unwrap(), 0);
    let directory = temp_dir();
    assert!(refused(File::open(directory.path()).unwrap().into()).contains("of a directory"));
    assert!(refused(File::open("/dev/null").unwrap().into()).contains("of a character device"));
    let (a, b) = (file_of(512), file_of(512));
    let path_only = File::options().read(true).custom_flags(libc::O_PATH).open(a.path()).unwrap();
    assert!(refused(path_only.into()).contains("(O_PATH)"));
    assert!(refused(File::options().write(true).open(a.path()).unwrap().into()).contains("for writing only"));
    let both = vec![given(a.path(), true), given(b.path(), true)];
    assert!(matches!(add(both, None, None), Err(FdSetError::Several)));
    let (number, _) = set(vec![given(a.path(), true)], None);
    let other = add(vec![given(b.path(), true)], Some(number), None).unwrap_err().to_string();
    assert!(other.contains(&format!("set {number} is of another file")), "{other}");
    assert!(matches!(add(Vec::new(), None, None), Err(FdSetError::NotGiven)));
    let long = "x".repeat(OPAQUE_MAX + 1);
    assert!(matches!(add(vec![given(a.path(), true)], None, Some(&long)), Err(FdSetError::Opaque)));
    assert_eq!(listed(number).unwrap().len(), 1, "nothing of it is there");
    remove(number, None).unwrap();
}

#[test]
fn there_are_so_many_descriptors_and_sets() {
    let file = file_of(512);
    let one = || Descriptor::of(given(file.path(), false).into(), None).unwrap();
    let mut sets = Sets(BTreeMap::new());
    for number in 0..MOST as u64 {
        let (id, descriptor) = one();
        assert_eq!(sets.insert(&mut vec![descriptor], id, None).unwrap(), number);
    }
    let (id, descriptor) = one();
    let mut more = vec![descriptor];
    assert!(matches!(sets.insert(&mut more, id, None), Err(FdSetError::TooMany)));
    assert_eq!((more.len(), sets.0.len()), (1, MOST), "it is the caller's to close");
    // The first number that is free.
    sets.0.get_mut(&7).unwrap().descriptors[0].removed = true;
    assert_eq!(sets.tidy().len(), 1);
    assert_eq!(sets.insert(&mut more, id, None).unwrap(), 7);
}

#[test]
fn a_file_without_a_name_is_a_disk() {
    for cache in CacheMode::ALL {
        let (number, path) = nameless(3 << 20);
        let image = match RawImage::open(&options(&path, false, cache)) {
            Err(e) if cache.is_direct() && e.message.contains("no direct I/O") => continue,
            image => image.unwrap(),
        };
        assert_eq!(&**image.name(), path.to_str().unwrap());
        on_io_thread(move |io| async move {
            conforms(&io, &image, 11, 40).await;
            let image = Image::Raw(image).guarded(None, None);
            conforms(&io, &image, 13, 40).await;
            conforms(&io, &image.private(), 15, 40).await;
        });
        // Whoever looks at it next does so as at a file that was just opened.
        assert_eq!(Content::of(&path).unwrap(), None);
        assert_eq!(Ending::find(&path).unwrap().len, 3 << 20);
        assert_eq!(user_of(&path), None);
        remove(number, None).unwrap();
    }
}

#[test]
fn the_fitting_descriptor_is_taken_and_a_missing_one_is_named() {
    let file = file_of(4096);
    let (number, path) = set(vec![given(file.path(), false)], Some("root disk"));
    let shown = format!("cannot open the image /dev/fdset/{number} (\"root disk\"): ");
    assert_eq!(
        open(&path, false).err().unwrap(),
        shown.clone()
            + "it has no descriptor that is open for reading and writing (O_RDWR), only for reading (O_RDONLY); add one, or \
               set readonly = true"
    );
    drop(open(&path, true).unwrap());
    let (_, fds) = add(vec![given(file.path(), true)], Some(number), None).unwrap();
    let image = open(&path, false).unwrap();
    assert!(image.name().ends_with("(\"root disk\")"));
    drop(image);
    remove(number, Some(listed(number).unwrap()[0].fd)).unwrap();
    let refused = open(&path, true).err().unwrap();
    assert!(refused.contains("no descriptor that is open for reading only (O_RDONLY)"), "{refused}");
    let image = open(&path, false).unwrap();
    remove(number, Some(fds[0])).unwrap();
    assert_eq!(listed(number), Some(Vec::new()), "the disk still uses it");
    let refused = open(&path, false).err().unwrap();
    assert!(refused.contains(&format!("all descriptors of set {number} were removed")), "{refused}");
    drop(image);
    assert_eq!(listed(number), None);
    let gone = open(&path, false).err().unwrap();
    assert!(gone.ends_with(&format!("no descriptors were added as set {number} (add-fd)")), "{gone}");
}

#[test]
fn a_description_serves_one_disk_at_a_time() {
    let file = file_of(4096);
    let first = given(file.path(), false);
    let (number, path) = set(vec![first.try_clone().unwrap()], None);
    let image = open(&path, true).unwrap();
    assert!(open(&path, true).err().unwrap().contains("in use by other disks"));
    // A duplicate has the same locks.
    let (twin, same) = set(vec![first], None);
    let refused = open(&same, true).err().unwrap();
    assert!(refused.contains("a duplicate of one that another disk uses"), "{refused}");
    let kept = || open(file.path(), false).err().expect("the disk that runs has lost its lock");
    assert!(kept().contains("two disks of this machine use the same image"));
    assert!(check(twin, false, false).is_err() && Content::of(&same).is_err());
    kept();
    add(vec![given(file.path(), false)], Some(number), None).unwrap();
    let second = open(&path, true).unwrap();
    drop((image, second));
    drop(open(&same, true).unwrap());
    for number in [number, twin] {
        remove(number, None).unwrap();
    }
}

#[test]
fn locks_go_with_the_disk_and_not_with_the_descriptor() {
    let file = file_of(4096);
    let (number, path) = set(vec![given(file.path(), true)], None);
    let image = open(&path, false).unwrap();
    let refused = open(file.path(), false).err().unwrap();
    assert!(refused.contains("two disks of this machine use the same image"), "{refused}");
    drop(image);
    let image = open(file.path(), false).unwrap();
    let refused = open(&path, false).err().unwrap();
    assert!(refused.starts_with(path.to_str().unwrap()), "{refused}");
    assert!(refused.contains("two disks of this machine use the same image"), "{refused}");
    drop(image);
    // Nothing of the try is left, although the descriptor is.
    drop(open(file.path(), false).unwrap());
    let mut rehearsal = Rehearsal::default();
    rehearsal.raw(&options(&path, false, CacheMode::Writeback)).unwrap();
    let twice = rehearsal.raw(&options(file.path(), true, CacheMode::Writeback)).unwrap_err();
    assert!(twice.to_string().contains("two disks"), "{twice}");
    drop(open(file.path(), false).unwrap());
    remove(number, None).unwrap();
}

/// The host is not done with a disk that has gone.
#[test]
fn what_the_host_still_does_keeps_the_lock() {
    let file = file_of(4096);
    let (number, path) = set(vec![given(file.path(), true)], None);
    let taken = take(number, Mode::Write, false).unwrap();
    taken.lock("it", false, Sharing::Exclusive).unwrap();
    let Taken { file: of_operation, lease, .. } = taken;
    drop(lease);
    assert!(open(file.path(), true).is_err(), "still locked");
    assert!(open(&path, false).err().unwrap().contains("in use"));
    drop(of_operation);
    drop(open(&path, false).unwrap());
    drop(open(file.path(), true).unwrap());
    remove(number, None).unwrap();
}

/// A read was given up, its disk was detached, and then nobody looks at the sets any more.
#[test]
fn locks_go_when_the_host_answers_at_last() {
    let file = file_of(1 << 20);
    let (number, path) = set(vec![given(file.path(), true)], None);
    let image = Image::Raw(open(&path, false).unwrap()).private();
    let other = File::open(file.path()).unwrap();
    on_io_thread(move |io| async move {
        // The lock of a writer who shares with none.
        let is_locked = || sys::is_byte_taken(&other, 201).unwrap();
        io.hang_from(0);
        let memory = ToGuest::new(SgList::host(4096, 4096).unwrap());
        let read = io.at_most(Duration::from_millis(20), image.read(&io, ByteOffset(0), memory)).await;
        assert!(read.is_none() && io.hanging() == 1);
        let_go(&io, image).await;
        assert!(is_locked(), "the host still reads");
        io.answer();
        let begin = Instant::now();
        while is_locked() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the lock stays");
            io.sleep(Duration::from_millis(5)).await;
        }
    });
    remove(number, None).unwrap();
}

#[test]
fn a_server_whose_locks_hang_holds_no_other_file_up() {
    let Some(server) = FileServer::of_locks() else { return };
    let two = |path: &Path| set(vec![given(path, true), given(path, true)], None).0;
    let file = file_of(4096);
    let (hung, sound) = (two(&server.file()), two(file.path()));
    let first = take(hung, Mode::Write, false).unwrap();
    server.hang();
    let waits = std::thread::spawn(move || take(hung, Mode::Write, false).map(drop));
    let in_use = || sets().0[&hung].descriptors.iter().filter(|one| one.used == Used::Yes).count();
    while in_use() < 2 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    let (tell, told) = mpsc::channel();
    let both = move || [(); 2].map(|()| take(sound, Mode::Write, false).unwrap()).len();
    let other = std::thread::spawn(move || tell.send(both()));
    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(2), "it waits for the other server");
    assert!(!waits.is_finished(), "the server does not answer");
    // What was asked has no answer, and that of another does not matter here.
    drop(server);
    let _ = waits.join().unwrap();
    other.join().unwrap().unwrap();
    drop(first);
    [hung, sound].iter().for_each(|number| remove(*number, None).unwrap());
}

/// A disk that has gone, with which its server was done only when it answered no more.
#[test]
fn a_server_that_keeps_a_lock_holds_up_nobody_who_uses_another_file() {
    let Some(server) = FileServer::of_locks() else { return };
    let file = file_of(4096);
    let (hung, _) = set(vec![given(&server.file(), true)], None);
    let (sound, _) = set(vec![given(file.path(), true)], None);
    let taken = take(hung, Mode::Write, false).unwrap();
    taken.lock("it", false, Sharing::Exclusive).unwrap();
    let Taken { file: of_operation, lease, .. } = taken;
    let left = Arc::downgrade(&of_operation);
    drop(lease);
    server.hang();
    drop(of_operation);
    let (tell, told) = mpsc::channel();
    let (one, path) = (given(file.path(), true), file.path().to_owned());
    let other = std::thread::spawn(move || {
        drop(take(sound, Mode::Write, false).unwrap());
        let (_, fds) = add(vec![one], Some(sound), None).unwrap();
        assert_eq!(any(sound).unwrap().metadata().unwrap().ino(), fs::metadata(path).unwrap().ino());
        remove(sound, Some(fds[0])).unwrap();
        assert!(listed(hung).is_some());
        tell.send(())
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(()), "it waits for the other server");
    drop(server);
    other.join().unwrap().unwrap();
    settle(&left);
    [hung, sound].iter().for_each(|number| remove(*number, None).unwrap());
}

/// Who wants to have another descriptor of the same file, and asks the server, which may take its time.
#[test]
fn who_only_asks_about_a_descriptor_does_not_keep_its_lock() {
    let file = file_of(4096);
    let (number, path) = set(vec![given(file.path(), true), given(file.path(), true)], None);
    let image = open(&path, false).unwrap();
    let other = File::open(file.path()).unwrap();
    let is_locked = || sys::is_byte_taken(&other, 201).unwrap();
    let id = sets().0[&number].id;
    let asked = sets().ask_used_of(id, &Arc::new(file_of(1).into_file()));
    assert!(is_locked());
    drop(image);
    drop(asked);
    assert!(!is_locked(), "nobody sees to it any more");
    remove(number, None).unwrap();
}

#[test]
fn status_flags_are_as_transfers_need_them() {
    let file = file_of(8192);
    let odd =
        File::options().read(true).append(true).custom_flags(libc::O_NONBLOCK).open(file.path()).unwrap();
    let watch = odd.try_clone().unwrap();
    let flags = || sys::status_flags(&watch).unwrap();
    let (number, path) = set(vec![odd.into()], None);
    let has = |flag| flags() & flag != 0;
    assert!(has(libc::O_APPEND) && has(libc::O_NONBLOCK), "nobody has used it yet");
    drop(open(&path, false).unwrap());
    assert!(!has(libc::O_APPEND) && !has(libc::O_NONBLOCK));
    match RawImage::open(&options(&path, false, CacheMode::None)) {
        Ok(image) => {
            assert!(has(libc::O_DIRECT));
            drop(image);
            Content::of(&path).unwrap();
            assert!(!has(libc::O_DIRECT));
        }
        Err(e) => assert!(e.message.contains("no direct I/O"), "{e}"),
    }
    remove(number, None).unwrap();
}

#[test]
fn an_end_that_direct_io_cannot_reach_is_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(4096 + 512).unwrap();
    let refused = crate::storage::raw::whole_blocks(&file, 4096, "it").unwrap_err().to_string();
    assert!(refused.contains("4608 bytes is no multiple of 4096"), "{refused}");
    crate::storage::raw::whole_blocks(&file, 512, "it").unwrap();
    file.rewind().unwrap();
}

#[test]
fn a_device_is_taken_as_it_is() {
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let (number, path) = set(vec![given(device.path(), true)], None);
    let image = Arc::new(open(&path, false).unwrap());
    assert!(open(device.path(), false).is_err() && open(device.backing(), false).is_err());
    let of_thread = image.clone();
    let got = on_io_thread(move |io| async move { contents(&io, &*of_thread).await });
    assert_eq!(got.len(), 1 << 20);
    drop(image);
    drop(open(device.path(), false).unwrap());
    remove(number, None).unwrap();
}

#[test]
fn a_qcow2_image_and_its_backing_file_can_be_passed() {
    let dir = temp_dir();
    let img = |args: &[&str]| {
        let out = std::process::Command::new("qemu-img").args(args).current_dir(dir.path()).output().ok()?;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Some(())
    };
    let base = file_of(1 << 20);
    base.as_file().write_all_at(&[7; 512], 4096).unwrap();
    let (below, _) = set(vec![given(base.path(), false)], None);
    let backing = format!("/dev/fdset/{below}");
    let top = dir.path().join("top.qcow2");
    let made = ["create", "-q", "-u", "-f", "qcow2", "-b", &backing, "-F", "raw", "top.qcow2", "1M"];
    if img(&made).is_none() {
        crate::testing::skipped("qemu-img is not installed");
        return;
    }
    let (number, path) = set(vec![given(&top, true)], Some("top"));
    std::fs::remove_file(&top).unwrap();
    let open = |cache, backing| {
        Qcow2Image::open(&Qcow2Options {
            path: path.clone(),
            read_only: false,
            cache,
            sharing: Sharing::Exclusive,
            backing,
            discard: false,
        })
    };
    let refused = open(CacheMode::Writeback, Backing::SameDirectory).err().unwrap().to_string();
    assert!(refused.contains(&format!("names the backing file \"{backing}\"")), "{refused}");
    let listed = || Backing::Listed(vec![backing.clone().into()]);
    for (round, cache) in
        [CacheMode::Writeback, CacheMode::None, CacheMode::Writethrough].into_iter().enumerate()
    {
        let image = match open(cache, listed()) {
            Err(e) if cache.is_direct() && e.message.contains("no direct I/O") => continue,
            image => image.unwrap(),
        };
        on_io_thread(move |io| async move {
            if round == 0 {
                let got = contents(&io, &image).await;
                assert!(got[4096..4608] == [7; 512] && got[..4096] == [0; 4096]);
            }
            conforms(&io, &image, 17, 40).await;
        });
    }
    remove(number, None).unwrap();
    remove(below, None).unwrap();
}

#[test]
fn a_second_description_keeps_the_errors_of_syncs_apart() {
    let file = file_of(1 << 20);
    let (number, path) = set(vec![given(file.path(), true)], None);
    assert!(!open(&path, false).unwrap().has_audit(), "one descriptor");
    let (_, fds) = add(vec![given(file.path(), true)], Some(number), None).unwrap();
    let image = open(&path, false).unwrap();
    assert!(image.has_audit());
    on_io_thread(move |io| async move { conforms(&io, &image, 19, 40).await });
    // A duplicate is no second one.
    remove(number, Some(fds[0])).unwrap();
    let twin = OwnedFd::from(any(number).unwrap());
    add(vec![twin], Some(number), None).unwrap();
    let image = open(&path, false).unwrap();
    assert!(!image.has_audit());
    assert!(open(file.path(), false).is_err(), "it is the first one's lock that the duplicate has");
    drop(image);
    drop(open(file.path(), false).unwrap());
    remove(number, None).unwrap();
}
