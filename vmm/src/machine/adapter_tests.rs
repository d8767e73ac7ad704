//! Units that go while the host fails or does not answer.

use devices::iothread::IoThread;
use devices::mem::ToGuest;
use devices::scsi::generic::{
    Answer as HostAnswer, Command, Driver, GenericConfig, Host, Identity, Part, Returning, Wanted,
};
use devices::scsi::{Allow, Disk, DiskConfig, Generic, HostLimits};
use devices::storage::{Action, BlockErrorKind};
use devices::testing::{Effect, Fault, FaultDisk, RamDisk};

use super::*;
use crate::config::Device;
use crate::machine::control::Control;
use crate::machine::hbas::{Closing, Hbas};

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

/// Takes note of units that are to be looked for again.
#[derive(Default)]
struct Again(Mutex<Vec<(u8, Lun)>>);

impl HotPlug for Again {
    fn units(&self, _: &config::Lun, _: &Arc<Image>, _: DiskConfig) -> Result<Vec<LogicalUnit>> {
        bail!("no images")
    }
    fn attach_targets(&self, _: u8, _: &[Arc<Target>]) -> Result<Arrival> {
        Ok(Arrival::There)
    }
    fn detach_targets(&self, _: u8) -> Result<()> {
        Ok(())
    }
    fn look_again(&self, id: u8, lun: Lun) {
        self.0.lock().unwrap().push((id, lun));
    }
}

/// A disk of the host, which may go and come back.
struct Passed;

impl Host for Passed {
    fn execute(&self, command: &Command) -> std::io::Result<HostAnswer> {
        let mut inquiry = [0; 36];
        (inquiry[2], inquiry[3], inquiry[4]) = (6, 2, 31);
        ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &inquiry);
        Ok(HostAnswer::good())
    }
    fn reset(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn passed(name: &str) -> HostUnit {
    let identity = Identity {
        address: "5:0:0:5".into(),
        device_type: 0,
        names: vec![name.into()],
        vendor: String::new(),
        product: String::new(),
        serial: String::new(),
    };
    let wanted = Wanted {
        identity,
        driver: Driver::Sg,
        parts: vec![Part::Sg],
        allow: Allow::All,
        shared: false,
        directory: "/sys/devices/x".into(),
        number: 1,
    };
    let config = GenericConfig {
        name: name.into(),
        allow: Allow::All,
        bounce: false,
        shared: false,
        depth: 1,
        limits: HostLimits::default(),
        block: None,
        size: None,
        wanted: Some(wanted),
    };
    HostUnit::Generic(Generic::new(Arc::new(Passed), config).unwrap())
}

/// A guest that looked while its device was away has not found it.
#[test]
fn a_unit_that_goes_on_is_to_be_looked_for() {
    let thread = IoThread::start("test").unwrap();
    let (space, group) = (Space::new(Control::new(0).unwrap()), TargetGroup::default());
    let adapter = Adapter::new("scsi0", HbaType::VirtioScsi, thread.remote(), &space, &group);
    let device = Arc::<Again>::default();
    adapter.connect(device.clone());
    for (target, lun) in [(3, 0), (3, 7), (9, 513)] {
        let unit = passed(&format!("{target}-{lun}"));
        adapter.attach_native(target, number(lun), unit, false, false).unwrap();
    }
    for unit in Returning::all() {
        adapter.returned(&unit);
    }
    let (tell, over) = mpsc::channel();
    thread.remote().spawn(move |_| async move { tell.send(()).unwrap() });
    over.recv().unwrap();
    let mut told = device.0.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, [(3, number(0)), (3, number(7)), (9, number(513))]);
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
    let Device::Disk(disk) = &lun.device else { panic!("no disk") };
    adapter.insert(&lun, Attached::disk(disk, image.clone()), units).unwrap();
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

/// Waits until the host holds the flush of `image` back.
fn stalled(image: &Arc<Image>) -> &FaultDisk {
    let Image::Fault(fault) = &**image else { panic!("another kind of image") };
    while fault.stalled() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    fault
}

/// The machine ends while the image of a detached unit is being closed: that is waited for, and only once.
fn end_during_a_detach(patience: Duration, given_up: bool) {
    let thread = IoThread::start("test").unwrap();
    let (adapter, image) = adapter(&thread, Effect::Stall, patience);
    let adapter = Arc::new(adapter);
    let hbas = Hbas::of(vec![adapter.clone()], vec![thread]);
    let control = Control::new(0).unwrap();
    std::thread::scope(|scope| {
        let detach = scope.spawn(|| adapter.detach(4, 0));
        let fault = stalled(&image);
        let detach = match given_up {
            true => {
                let said = format!("{:#}", detach.join().unwrap().unwrap_err());
                assert!(said.contains("the host does not answer"), "{said}");
                None
            }
            false => Some(detach),
        };
        let Closing { names, closed } = hbas.close(&control);
        let soon = closed.recv_timeout(Duration::from_millis(50));
        assert_eq!(soon, Err(RecvTimeoutError::Timeout), "it is not closed yet");
        let [name] = names.as_slice() else { panic!("{names:?}") };
        assert!(name.starts_with("hba scsi0, target 4 lun 0, /") && name.ends_with("/a.img"), "{name}");
        fault.release();
        assert_eq!(closed.recv_timeout(Duration::from_secs(60)), Ok((0, Ok(()))));
        assert!(closed.recv_timeout(Duration::from_secs(60)).is_err(), "nothing else is closed");
        if let Some(detach) = detach {
            detach.join().unwrap().unwrap();
        }
    });
    assert!(hbas.close(&control).names.is_empty(), "nothing is left");
}

#[test]
fn the_end_waits_for_the_close_of_a_detach_that_is_under_way() {
    end_during_a_detach(Duration::from_secs(60), false);
}

#[test]
fn the_end_waits_for_the_close_of_a_detach_that_nobody_waits_for_any_more() {
    end_during_a_detach(Duration::from_millis(20), true);
}

#[test]
fn closes_that_are_over_are_not_waited_for() {
    let thread = IoThread::start("test").unwrap();
    let (adapter, _image) = adapter(&thread, Effect::Fail(BlockErrorKind::NoSpace), Duration::from_secs(60));
    adapter.detach(4, 0).unwrap_err();
    let hbas = Hbas::of(vec![Arc::new(adapter)], vec![thread]);
    assert!(hbas.close(&Control::new(0).unwrap()).names.is_empty());
}

/// Descriptors of a file on a server that hangs are closed when the server answers.
#[test]
fn an_image_that_the_host_does_not_let_go_holds_nobody_else_up() {
    const SOON: Duration = Duration::from_secs(10);
    let thread = IoThread::start("test").unwrap();
    let (adapter, image) = adapter(&thread, Effect::Delay(Duration::ZERO), Duration::from_millis(200));
    let Image::Fault(fault) = &*image else { panic!("another kind of image") };
    let ((begin, begun), (answer, answered)) = (mpsc::channel(), mpsc::channel::<()>());
    fault.at_end(move || {
        begin.send(()).unwrap();
        let _ = answered.recv();
    });
    drop(image);
    let adapter = Arc::new(adapter);
    let detach = std::thread::spawn({
        let adapter = adapter.clone();
        move || adapter.detach(4, 0)
    });
    begun.recv_timeout(SOON).expect("the image goes");
    // Each on a thread of its own: the test ends also when one hangs.
    let (tell, told) = mpsc::channel();
    let others = adapter.clone();
    std::thread::spawn(move || tell.send((others.units().len(), others.take_units().units.len())));
    assert_eq!(
        told.recv_timeout(SOON).expect("somebody waits for the host").1,
        0,
        "it is being closed already"
    );
    while !detach.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let said = format!("{:#}", detach.join().unwrap().unwrap_err());
    assert!(said.contains("/a.img: the host does not answer"), "{said}");
    assert!(adapter.units().is_empty());
    drop(answer);
}

/// Two operators attach at the same time, and leave the target to the machine.
#[test]
fn a_free_target_is_promised_once() {
    let thread = IoThread::start("test").unwrap();
    let (space, group) = (Space::new(Control::new(0).unwrap()), TargetGroup::default());
    let adapter = Adapter::new("scsi0", HbaType::VirtioScsi, thread.remote(), &space, &group);
    adapter.target(1).unwrap();
    let promises = [(); 3].map(|()| adapter.free_target().unwrap());
    assert_eq!([0, 1, 2].map(|at: usize| promises[at].target()), [0, 2, 3]);
    let [first, ..] = promises;
    drop(first);
    assert_eq!(adapter.free_target().unwrap().target(), 0);
}
