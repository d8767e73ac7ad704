//! Units that go while the host fails or does not answer.

use devices::iothread::IoThread;
use devices::scsi::Disk;
use devices::storage::{Action, BlockErrorKind};
use devices::testing::{Effect, Fault, FaultDisk, RamDisk};

use super::*;
use crate::machine::control::Control;

/// Takes note of targets.
#[derive(Default)]
struct Quiet;

impl HotPlug for Quiet {
    fn units(&self, _: &config::Lun, image: &Arc<Image>, disk: DiskConfig) -> Result<Vec<LogicalUnit>> {
        Ok(vec![LogicalUnit::Disk(Disk::new(image.clone(), disk)?)])
    }
    fn attach_targets(&self, _: u8, _: &[Arc<Target>]) -> Result<Arrival> {
        Ok(Arrival::There)
    }
    fn detach_targets(&self, _: u8) -> Result<()> {
        Ok(())
    }
}

/// Target 4, over an image in `directory`.
fn lun(directory: &tempfile::TempDir) -> config::Lun {
    std::fs::write(directory.path().join("a.img"), [0; 512]).unwrap();
    let text = "[[hba]]\ntype = \"virtio-scsi\"\n[[hba.lun]]\ntarget = 4\nimage = \"a.img\"\n";
    config::parse_hba(text, directory.path()).unwrap().luns.remove(0)
}

/// An adapter with a disk at target 4 whose flushes end in this way.
fn adapter(thread: &IoThread, effect: Effect, patience: Duration) -> (Adapter, Arc<Image>) {
    let space = Space::new(Control::new(0).unwrap());
    let group = TargetGroup::default();
    let mut adapter = Adapter::new("scsi0", HbaType::VirtioScsi, thread.remote(), &space, &group);
    adapter.connect(Arc::new(Quiet));
    adapter.patience = patience;
    let lun = lun(&tempfile::tempdir().unwrap());
    let fault = FaultDisk::new(RamDisk::new(1 << 20));
    fault.inject(Fault::every(Action::Flush, effect));
    let image = Arc::new(Image::Fault(fault));
    let units = Quiet.units(&lun, &image, DiskConfig::default()).unwrap();
    adapter.insert(&lun, image.clone(), units).unwrap();
    (adapter, image)
}

#[test]
fn a_detach_says_that_the_image_could_not_be_closed() {
    let thread = IoThread::start("test").unwrap();
    let (adapter, image) = adapter(&thread, Effect::Fail(BlockErrorKind::NoSpace), Duration::from_secs(60));
    let said = format!("{:#}", adapter.detach(4, 0).unwrap_err());
    assert!(said.starts_with("target 4 lun 0 has left the guest, but /"), "{said}");
    let reason = "/a.img: closing the image failed, what was written last may not be in it: ";
    assert!(said.contains(reason), "{said}");
    assert!(adapter.units().is_empty() && adapter.targets().is_empty(), "the guest has lost it");
    assert_eq!(Arc::strong_count(&image), 1);
    assert_eq!(adapter.detach(4, 0).unwrap_err().to_string(), "nothing at target 4 lun 0");
}

#[test]
fn a_detach_gives_a_host_up_that_does_not_answer() {
    let thread = IoThread::start("test").unwrap();
    let (adapter, image) = adapter(&thread, Effect::Stall, Duration::from_millis(50));
    let said = format!("{:#}", adapter.detach(4, 0).unwrap_err());
    assert!(said.contains("/a.img: the host does not answer"), "{said}");
    assert!(adapter.units().is_empty() && adapter.targets().is_empty());
    // The place is free, and the old image is closed once the host answers.
    let Image::Fault(fault) = &*image else { panic!("another kind of image") };
    assert_eq!(fault.stalled(), 1);
    fault.heal();
    fault.release();
    let start = std::time::Instant::now();
    while Arc::strong_count(&image) > 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "somebody still holds the image");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_unit_that_is_being_detached_is_neither_there_nor_is_its_place_free() {
    let thread = IoThread::start("test").unwrap();
    let (adapter, image) = adapter(&thread, Effect::Stall, Duration::from_secs(60));
    let Image::Fault(fault) = &*image else { panic!("another kind of image") };
    std::thread::scope(|scope| {
        let detach = scope.spawn(|| adapter.detach(4, 0));
        while fault.stalled() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let said = adapter.detach(4, 0).unwrap_err().to_string();
        assert_eq!(said, "target 4 lun 0 is being detached already");
        let lun = lun(&tempfile::tempdir().unwrap());
        let said = adapter.attach(&lun).unwrap_err().to_string();
        assert_eq!(said, "target 4 lun 0 is being detached");
        assert!(!detach.is_finished(), "the image is not closed yet");
        fault.release();
        detach.join().unwrap().unwrap();
    });
    assert!(adapter.units().is_empty());
}
