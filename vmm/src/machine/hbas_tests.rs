//! The end of a machine beside a host that does not answer for one of its disks.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use devices::iothread::mischief::{Trick, Victim};
use devices::mem::{Dma, GuestRam};
use devices::scsi::{Cdb, DataBuffers, ScsiRequest, Tag, TaskAttribute};
use devices::storage::{BlockBackend, Durability};
use vm_memory::GuestAddress;

use super::super::control::Event;
use super::*;

const LONG: Duration = Duration::from_secs(30);
/// What is read from the disk that hangs, in blocks.
const FAR: u8 = 64;

fn open(path: &Path) -> bool {
    let options = RawOptions {
        path: path.into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::default(),
    };
    RawImage::open(&options).is_ok()
}

/// The same of an image that nobody here has: a program that another test starts has it, and its lock, until it runs.
fn is_free(path: &Path) -> bool {
    (0..50).any(|_| {
        let opened = open(path);
        if !opened {
            std::thread::sleep(Duration::from_millis(20));
        }
        opened
    })
}

/// READ(10) into memory of the guest.
fn read() -> ScsiRequest {
    let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()));
    dma.set_bus_master(true);
    ScsiRequest {
        tag: Tag(1),
        lun: Lun::default(),
        cdb: Cdb::new(&[0x28, 0, 0, 0, 0, FAR, 0, 0, 1, 0]),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: DataBuffers::to_initiator(dma.to_guest([(0, 512)]).unwrap()),
    }
}

#[test]
fn healthy_images_are_closed_and_unlocked_beside_one_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["good.img", "hung.img"] {
        File::create(path(name)).unwrap().set_len(1 << 20).unwrap();
    }
    // The one that hangs comes first.
    let text = "[[hba]]\ntype = \"virtio-scsi\"\n\
                [[hba.lun]]\ntarget = 0\nimage = \"hung.img\"\n[[hba.lun]]\ntarget = 1\nimage = \"good.img\"\n";
    let hba = config::parse_hba(text, directory.path()).unwrap();
    let control = Control::new(0).unwrap();
    let space = Space::new(control.clone());
    let thread = IoThread::start("test").unwrap();
    let remote = thread.remote();
    let group = TargetGroup::default();
    let adapter = Adapter::new("scsi0", HbaType::VirtioScsi, remote.clone(), &space, &group);
    attach_all(&hba, open_all(&hba, &adapter).unwrap(), &adapter).unwrap();
    let nexuses: Vec<_> = adapter.targets().into_iter().map(|target| Nexus::new(target, None)).collect();
    let (begun, begin) = mpsc::channel();
    let nexus = nexuses[0].clone();
    remote.spawn(move |io| {
        io.plot(move |victim| {
            let far = u64::from(FAR) * 512;
            matches!(victim, Victim::Read { at, .. } if at == far).then(|| {
                begun.send(()).unwrap();
                Trick::Hang
            })
        });
        async move {
            // POWER ON comes first.
            for _ in 0..2 {
                let _ = nexus.execute(&io, read()).await;
            }
        }
    });
    begin.recv_timeout(LONG).unwrap();
    let hbas = Hbas::of(vec![Arc::new(adapter)], vec![thread]);
    let closing = hbas.close(&control);
    assert_eq!(closing.closed.recv_timeout(LONG), Ok((1, Ok(()))));
    assert!(is_free(&path("good.img")) && !open(&path("hung.img")), "unlocked, and still locked");
    assert!(closing.closed.try_recv().is_err());
    let (hung, good) = (&closing.names[0], &closing.names[1]);
    assert!(hung.starts_with("hba scsi0, target 0 lun 0, /") && hung.ends_with("/hung.img"), "{hung}");
    assert!(good.ends_with("/good.img"), "{good}");
    // Later the host answers.
    remote.spawn(|io| {
        io.answer();
        async {}
    });
    assert_eq!(closing.closed.recv_timeout(LONG), Ok((0, Ok(()))));
    assert!(is_free(&path("hung.img")));
    let (over, done) = Over::new(&control);
    hbas.end_threads(&over);
    drop(over);
    done.recv_timeout(LONG).unwrap();
}

/// Whoever copies the images after exit code 0 must not copy one that lacks what the guest wrote.
#[test]
fn an_image_that_had_failed_before_is_an_error_of_the_end() {
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("a.img")).unwrap().set_len(1 << 20).unwrap();
    let text = "[[hba]]\ntype = \"virtio-scsi\"\n[[hba.lun]]\ntarget = 0\nimage = \"a.img\"\n";
    let hba = config::parse_hba(text, directory.path()).unwrap();
    let control = Control::new(0).unwrap();
    let space = Space::new(control.clone());
    let thread = IoThread::start("test").unwrap();
    let remote = thread.remote();
    let group = TargetGroup::default();
    let adapter = Adapter::new("scsi0", HbaType::VirtioScsi, remote.clone(), &space, &group);
    attach_all(&hba, open_all(&hba, &adapter).unwrap(), &adapter).unwrap();
    let nexuses: Vec<_> = adapter.targets().into_iter().map(|target| Nexus::new(target, None)).collect();
    let (done, flushed) = mpsc::channel();
    let nexus = nexuses[0].clone();
    remote.spawn(move |io| {
        let mut lost = Some(Trick::Fail(libc::EIO));
        io.plot(move |victim| (victim == Victim::Sync).then(|| lost.take()).flatten());
        async move {
            // POWER ON comes first.
            for _ in 0..2 {
                let cdb = Cdb::new(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                let _ = nexus.execute(&io, ScsiRequest { cdb, ..read() }).await;
            }
            done.send(()).unwrap();
        }
    });
    flushed.recv_timeout(LONG).unwrap();
    let hbas = Hbas::of(vec![Arc::new(adapter)], vec![thread]);
    let closing = hbas.close(&control);
    let (number, end) = closing.closed.recv_timeout(LONG).unwrap();
    assert_eq!(number, 0);
    let said = end.expect_err("it lacks what could not be made stable");
    assert!(said.contains("a.img") && said.contains("could not be made stable before"), "{said}");
}

/// Its data is written by then: the guest shall not get an error for it that the machine was to wait for.
#[test]
fn protection_information_waits_for_space_as_its_disk_does() {
    let directory = tempfile::tempdir().unwrap();
    File::create(directory.path().join("a.img")).unwrap().set_len(1 << 20).unwrap();
    let text = "[[hba]]\ntype = \"virtio-scsi\"\n[[hba.lun]]\ntarget = 0\nimage = \"a.img\"\nprotection = 1\n\
                on_no_space = \"pause\"\n";
    let hba = config::parse_hba(text, directory.path()).unwrap();
    let space = Space::new(Control::new(0).unwrap());
    let Device::Disk(found) = &hba.luns[0].device else { panic!("no disk") };
    let (image, config) = disk("scsi0", &hba.luns[0], &space, &Identities::default()).unwrap();
    let of = found.protection.as_ref().unwrap();
    let (store, _) = protection::store(of, cache_mode(found.cache), &image, &config).unwrap();
    let (thread, (done, ended)) = (IoThread::start("test").unwrap(), mpsc::channel());
    let parking = space.waits().unwrap().parking;
    thread.remote().spawn(move |io| {
        let mut full = Some(Trick::Fail(libc::ENOSPC));
        io.plot(move |victim| matches!(victim, Victim::Write { .. }).then(|| full.take()).flatten());
        async move {
            let tuples = devices::mem::FromGuest::new(devices::mem::SgList::host(8, 16).unwrap());
            let mut write =
                std::pin::pin!(store.write(&io, devices::storage::ByteOffset(0), tuples, Durability::Cached));
            let result = std::future::poll_fn(|cx| {
                let polled = write.as_mut().poll(cx);
                if parking.is_waiting() {
                    parking.resume();
                }
                polled
            });
            done.send(result.await.map_err(|error| error.kind)).unwrap();
        }
    });
    assert_eq!(ended.recv_timeout(LONG), Ok(Ok(())));
}

#[test]
fn an_io_uring_that_fails_ends_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let hba =
        config::parse_hba("[[hba]]\nid = \"scsi0\"\ntype = \"virtio-scsi\"\n", directory.path()).unwrap();
    let control = Control::new(0).unwrap();
    let threads = threads(&hba, &control).unwrap();
    threads[0].remote().spawn(|_| {
        devices::testing::forbid_system_call(libc::SYS_io_uring_enter);
        async {}
    });
    let begin = std::time::Instant::now();
    let event = loop {
        if let Some(event) = control.take_event() {
            break event;
        }
        assert!(begin.elapsed() < LONG, "nobody hears of it");
        std::thread::sleep(Duration::from_millis(5));
    };
    let line = "hba scsi0: its io_uring failed, and its disks with it: Operation not permitted";
    assert_eq!(event, Event::Crash(Crash::Host(line.into())));
}
