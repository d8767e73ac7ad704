use std::fs::File;
use std::path::Path;

use devices::iothread::IoThread;
use devices::scsi::TargetGroup;
use devices::storage::{CacheMode, RawImage, RawOptions, Sharing};
use devices::testing::pci::TestSeat;
use hba_megasas::{EventMarks, EventRecord, EventStore, KeptEvents, Megasas, Model, Options};

use super::*;
use crate::config::{self, HbaType};
use crate::machine::Event;
use crate::machine::adapter::Adapter;
use crate::machine::space::Space;
use crate::vcpu::install_kick;

const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_wait_ends_by_time_or_because_the_end_is_wanted() {
    let control = Control::new(0).unwrap();
    control.post(Event::Quit);
    let mut short = Patience::limited(&control, Duration::from_millis(20));
    let mut long = Patience::limited(&control, Duration::from_secs(3600));
    assert!(long.lasts(), "the first wish is what it is for");
    let begin = Instant::now();
    while short.lasts() {
        std::thread::yield_now();
    }
    assert!(begin.elapsed() >= Duration::from_millis(15));
    control.post(Event::Signal(15));
    let begin = Instant::now();
    while long.lasts() {
        assert!(begin.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(begin.elapsed() >= HURRY / 2);
}

/// As the ports of a machine whose images were waited for.
#[test]
fn who_was_in_a_hurry_stays_so() {
    let control = Control::new(0).unwrap();
    let patient = Patience::limited(&control, Duration::ZERO).then(Duration::from_secs(3600));
    assert!(patient.until.unwrap() > Instant::now() + LONG);
    let mut hurried = Patience::limited(&control, Duration::from_secs(3600));
    // What came between the two waits counts as well.
    let late = Patience::limited(&control, Duration::from_secs(3600));
    control.post(Event::Quit);
    assert!(hurried.lasts());
    for mut next in [hurried.then(Duration::from_secs(3600)), late.then(Duration::from_secs(3600))] {
        let begin = Instant::now();
        while next.lasts() {
            assert!(begin.elapsed() < LONG);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn an_endless_wait_hears_also_what_came_before_it() {
    let control = Control::new(0).unwrap();
    control.post(Event::Quit);
    assert_eq!(control.take_event(), Some(Event::Quit));
    assert!(Patience::endless(&control).lasts_in_part(Instant::now()), "that was heard");
    control.post(Event::Reset("test"));
    control.post(Event::Signal(15));
    let begin = Instant::now();
    let mut patience = Patience::endless(&control);
    while patience.lasts() {
        assert!(begin.elapsed() < LONG, "it is never heard");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(begin.elapsed() >= HURRY / 2);
}

#[test]
fn a_first_step_leaves_time_for_the_next() {
    let control = Control::new(0).unwrap();
    let mut patience = Patience::limited(&control, Duration::from_millis(400));
    let begin = Instant::now();
    while patience.lasts_in_part(begin) {
        std::thread::yield_now();
    }
    assert!(begin.elapsed() >= Duration::from_millis(95));
    let mut patience = Patience::limited(&control, Duration::from_secs(4000));
    assert!(patience.lasts_in_part(Instant::now() - Duration::from_secs(990)));
    assert!(!patience.lasts_in_part(Instant::now() - Duration::from_secs(1400)) && patience.lasts());
}

#[test]
fn what_is_over_is_told_when_the_last_goes() {
    let control = Control::new(0).unwrap();
    let (over, done) = Over::new(&control);
    let other = over.clone();
    drop(over);
    assert!(done.try_recv().is_err());
    std::thread::spawn(move || drop(other)).join().unwrap();
    assert!(done.try_recv().is_ok());
    assert!(control.wake().read().is_ok(), "the main thread looks");
}

/// A store whose end takes until something comes or goes; it says when it begins.
struct Store {
    ends: SyncSender<()>,
    until: Receiver<()>,
}

impl EventStore for Store {
    fn load(&mut self) -> KeptEvents {
        KeptEvents::default()
    }
    fn keep(&mut self, _: u32, _: &EventRecord) {}
    fn keep_marks(&mut self, _: EventMarks) {}
    fn keep_settings(&mut self, _: &[u8]) {}
    fn forget_events(&mut self) {}
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.ends.send(());
        let _ = self.until.recv();
    }
}

/// A machine with a board, whose events are kept by `store`, and an image.
fn machine(control: &Arc<Control>, directory: &Path, store: Store) -> Hbas {
    File::create(directory.join("a.img")).unwrap().set_len(1 << 20).unwrap();
    let thread = IoThread::start("test").unwrap();
    let (space, group) = (Space::new(control.clone()), TargetGroup::default());
    let adapter = Adapter::new("raid", HbaType::Megasas, thread.remote(), &space, &group);
    let options = Options {
        model: Model::Gen2,
        serial: "1".into(),
        sas_address: 1,
        write_back: false,
        differences: Default::default(),
    };
    let seat = TestSeat::new(1 << 20).seat;
    let board =
        Megasas::new(seat, Default::default(), thread.remote(), options, Some(Box::new(store))).unwrap();
    let text = "[[hba]]\ntype = \"megasas\"\n[[hba.lun]]\ntarget = 4\nimage = \"a.img\"\n";
    let hba = config::parse_hba(text, directory).unwrap();
    let config::Controller::Megasas(settings) = &hba.controller else { panic!("another board") };
    adapter.connect(Arc::new(crate::machine::raid::Board::new("raid", settings, board.clone())));
    adapter.attach(&hba.luns[0]).unwrap();
    Hbas::of(vec![Arc::new(adapter)], vec![thread]).with_board(board)
}

fn is_closed(image: &Path) -> bool {
    let (read_only, cache, sharing) = (false, CacheMode::Writeback, Sharing::default());
    RawImage::open(&RawOptions { path: image.into(), read_only, cache, sharing }).is_ok()
}

/// The end of a machine with one vCPU, which acts like this, and an event log that ends when `until` says so. It has so
/// long, and then it ends on a thread of its own.
fn end(
    directory: &Path,
    time: Duration,
    until: Receiver<()>,
    vcpu: impl FnOnce(&Control, Receiver<()>) + Send + 'static,
) -> std::thread::JoinHandle<bool> {
    install_kick().unwrap();
    let (directory, (built, ready)) = (directory.to_owned(), mpsc::channel());
    let end = std::thread::spawn(move || {
        let control = Control::new(1).unwrap();
        let (ends, ended) = mpsc::sync_channel(1);
        let hbas = machine(&control, &directory, Store { ends, until });
        assert!(!is_closed(&directory.join("a.img")));
        built.send(()).unwrap();
        let seat = control.clone();
        let threads = vec![VcpuThread::of(std::thread::spawn(move || vcpu(&seat, ended)))];
        let mut events = MainLoop::new(control.clone()).unwrap();
        let mut patience = Patience::limited(&control, time);
        Ending { control: &control, hbas: &hbas, events: &mut events, patience: &mut patience }.run(threads)
    });
    ready.recv().unwrap();
    end
}

fn wait_until_closed(directory: &Path) {
    let begin = Instant::now();
    while !is_closed(&directory.join("a.img")) {
        assert!(begin.elapsed() < LONG, "the image is never closed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn images_are_closed_beside_a_vcpu_that_does_not_end() {
    let directory = tempfile::tempdir().unwrap();
    let (release, hangs) = mpsc::channel::<()>();
    let vcpu = move |_: &Control, _| assert!(hangs.recv().is_err());
    let end = end(directory.path(), Duration::from_secs(8), mpsc::channel().1, vcpu);
    wait_until_closed(directory.path());
    drop(release);
    assert!(end.join().unwrap(), "it has ended after all");
}

#[test]
fn images_are_closed_beside_an_event_log_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let (release, hangs) = mpsc::channel();
    let vcpu = |control: &Control, _| while !matches!(control.next(0), crate::machine::Order::Exit) {};
    let end = end(directory.path(), Duration::from_secs(8), hangs, vcpu);
    wait_until_closed(directory.path());
    drop(release);
    assert!(end.join().unwrap());
}

#[test]
fn hbas_go_before_vcpus_which_may_wait_for_one() {
    let directory = tempfile::tempdir().unwrap();
    // As one that waits for a reset beside a disk that hangs.
    let vcpu = |_: &Control, gone: Receiver<()>| gone.recv().unwrap();
    let begin = Instant::now();
    let end = end(directory.path(), Duration::from_secs(3600), mpsc::channel().1, vcpu);
    assert!(end.join().unwrap() && begin.elapsed() < LONG);
    assert!(is_closed(&directory.path().join("a.img")));
}

#[test]
fn what_does_not_end_is_given_up_in_one_time_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let ((_vcpu, hangs), (_store, log)) = (mpsc::channel::<()>(), mpsc::channel());
    let begin = Instant::now();
    let end = end(directory.path(), Duration::from_secs(2), log, move |_, _| assert!(hangs.recv().is_err()));
    assert!(!end.join().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
}
