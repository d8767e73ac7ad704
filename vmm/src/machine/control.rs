//! Running, pausing, resetting: the one place where the threads of a machine agree on what happens next.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boot::Entry;
use devices::platform::{MachineControl, MachineRequest};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vcpu::VcpuThread;

/// How long a kicked vCPU may take before the kick is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(1);
/// How often to ask whether to go on waiting for the vCPUs' reset.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the main thread may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// When a vCPU that does not stop is worth a line in the log.
const SLOW_STOP: Duration = Duration::from_secs(5);

/// Why a machine cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The guest's processor shut down: triple fault.
    Guest(String),
    /// The host cannot run the guest.
    Host(String),
}

/// Something for the main thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset; by which register.
    Reset(&'static str),
    /// It cannot go on.
    Crash(Crash),
    /// The user quit, from the console or the control socket.
    Quit,
    /// The user wants the guest to stand still, or to go on.
    Pause(bool),
    /// A write waits because the host has no space; what the host said.
    NoSpace(String),
    /// Those that waited for space were tried again, and no write waits any more.
    SpaceAgain,
    /// A signal that ends the process.
    Signal(i32),
    /// A signal that stops the process until it is continued.
    Suspend,
    /// The process was stopped and has been continued.
    Continued,
}

impl Event {
    /// Whether the operator wants the end.
    fn is_end(&self) -> bool {
        matches!(self, Self::Quit | Self::Signal(_))
    }

    /// Whether it makes `other`, which came before, needless.
    fn revokes(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Pause(false), Self::Pause(true)))
    }
}

/// What a vCPU thread is to do.
pub enum Order {
    /// Run the guest until [`Control::is_running`] says no.
    Run,
    /// Return to the state after power-on, then enter the kernel if there is an entry.
    Reset(Option<Arc<Entry>>),
    /// End the thread.
    Exit,
}

#[derive(Clone)]
enum Goal {
    Pause,
    Run,
    Reset { generation: u64, entry: Option<Arc<Entry>> },
    Exit,
}

struct Seat {
    parked: bool,
    /// The last reset that this vCPU did.
    generation: u64,
}

struct State {
    goal: Goal,
    seats: Vec<Seat>,
    generation: u64,
    events: VecDeque<Event>,
    /// The user wants the guest to stand still, and it does.
    paused: bool,
}

/// The agreement between the main thread and the vCPU threads.
pub struct Control {
    running: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
    /// See [`Self::ends`].
    ends: AtomicUsize,
}

impl Control {
    /// For `cpus` vCPUs, which wait at first.
    pub fn new(cpus: u32) -> io::Result<Arc<Self>> {
        let seats = (0..cpus).map(|_| Seat { parked: false, generation: 0 }).collect();
        let state = State { goal: Goal::Pause, seats, generation: 0, events: VecDeque::new(), paused: false };
        Ok(Arc::new(Self {
            running: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK)?,
            ends: AtomicUsize::new(0),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether vCPUs may run: asked after every exit.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Readable when [`Control::take_event`] has something.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The oldest event, if there is one.
    pub fn take_event(&self) -> Option<Event> {
        self.lock().events.pop_front()
    }

    /// Hands `event` to the main thread.
    pub fn post(&self, event: Event) {
        let mut state = self.lock();
        if event.is_end() {
            self.ends.fetch_add(1, Ordering::AcqRel);
        }
        state.events.push_back(event);
        drop(state);
        self.nudge();
    }

    /// Has the main thread look whether what it waits for is there.
    pub fn nudge(&self) {
        if let Err(e) = self.wake.write(1) {
            tracing::error!("waking the main thread: {e}");
        }
    }

    /// How often the operator has asked for the end so far.
    pub fn ends(&self) -> usize {
        self.ends.load(Ordering::Acquire)
    }

    /// How often he has, and the main thread has taken note of it.
    pub fn ends_taken(&self) -> usize {
        let state = self.lock();
        self.ends() - state.events.iter().filter(|event| event.is_end()).count()
    }

    /// Whether what came after `event` makes it needless: the guest is to go on after all.
    pub fn is_revoked(&self, event: &Event) -> bool {
        self.lock().events.iter().any(|other| other.revokes(event))
    }

    /// Takes what is to be done instead of `event`, which waits for a vCPU that does not stop: the end, or what revokes it.
    pub fn take_instead(&self, event: &Event) -> Option<Event> {
        self.take_end().or_else(|| {
            let events = &mut self.lock().events;
            let place = events.iter().position(|other| other.revokes(event))?;
            events.remove(place)
        })
    }

    /// Takes the oldest event by which the operator asks for the end, before all others.
    pub fn take_end(&self) -> Option<Event> {
        let events = &mut self.lock().events;
        let place = events.iter().position(Event::is_end)?;
        events.remove(place)
    }

    /// Has the main thread pause the guest, or let it go on, and returns when that is done. A pause that does not come within
    /// `patience` is taken back.
    pub fn ask_to_pause(&self, pause: bool, patience: Duration) -> io::Result<()> {
        self.post(Event::Pause(pause));
        let state = self.lock();
        let wait = self.changed.wait_timeout_while(state, patience, |state| state.paused != pause);
        let (state, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if !timeout.timed_out() {
            return Ok(());
        }
        if pause {
            // A vCPU waits for the host, say, and the others stand still meanwhile.
            self.post(Event::Pause(false));
        }
        Err(io::Error::other("the machine does not answer"))
    }

    /// Whether the user paused the guest.
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Takes note that the guest stands still, or goes on, as the user wanted.
    pub fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
        self.changed.notify_all();
    }

    /// Stops the calling vCPU at once and lets the main thread decide.
    pub fn crashed(&self, crash: Crash) {
        self.running.store(false, Ordering::Release);
        self.post(Event::Crash(crash));
    }

    /// A reset wished by the guest through `register`.
    pub fn reset_requested(&self, register: &'static str) {
        self.running.store(false, Ordering::Release);
        self.post(Event::Reset(register));
    }

    /// Parks vCPU `index` until there is something for it to do.
    pub fn next(&self, index: u32) -> Order {
        let mut state = self.lock();
        let index = index as usize;
        loop {
            let goal = state.goal.clone();
            let Some(seat) = state.seats.get_mut(index) else { return Order::Exit };
            match goal {
                Goal::Exit => return Order::Exit,
                // A request that came between the goal and now has cleared `running`: park until it is handled.
                Goal::Run if self.is_running() => {
                    seat.parked = false;
                    return Order::Run;
                }
                Goal::Reset { generation, entry } if seat.generation < generation => {
                    seat.generation = generation;
                    seat.parked = false;
                    return Order::Reset(entry);
                }
                _ => {}
            }
            // Once: else those that are parked would wake each other for ever.
            if !std::mem::replace(&mut seat.parked, true) {
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stops all vCPUs and returns when each has left the guest; false when `goes_on` has said before, asked again and
    /// again, not to wait any more.
    pub fn pause(&self, threads: &[VcpuThread], mut goes_on: impl FnMut() -> bool) -> bool {
        self.running.store(false, Ordering::Release);
        let mut state = self.lock();
        state.goal = Goal::Pause;
        let begin = Instant::now();
        let mut said = false;
        loop {
            // Wakes a parked vCPU that has yet to see its seat.
            let waiting: Vec<usize> =
                state.seats.iter().enumerate().filter(|(_, s)| !s.parked).map(|(i, _)| i).collect();
            if waiting.is_empty() {
                return true;
            }
            for thread in waiting.iter().filter_map(|&i| threads.get(i)) {
                thread.kick();
            }
            if begin.elapsed() > SLOW_STOP && !said {
                said = true;
                devices::log_limited!(warn, "vCPUs {waiting:?} do not stop; still waiting");
            }
            state = self.changed.wait_timeout(state, KICK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
            if state.seats.iter().any(|seat| !seat.parked) {
                drop(state);
                if !goes_on() {
                    return false;
                }
                state = self.lock();
            }
        }
    }

    /// Resets paused vCPUs and returns when all are done. What the guest has asked for until now is forgotten: a
    /// second request, of another vCPU or along another way, was for the machine that is no more.
    ///
    /// False when `goes_on` has said before, asked again and again, not to wait any more.
    pub fn reset(&self, entry: Option<Arc<Entry>>, mut goes_on: impl FnMut() -> bool) -> bool {
        let mut state = self.lock();
        let of_guest = |event: &Event| {
            matches!(event, Event::PowerOff | Event::Reset(_) | Event::Crash(Crash::Guest(_)))
        };
        state.events.retain(|event| !of_guest(event));
        state.generation += 1;
        let generation = state.generation;
        state.goal = Goal::Reset { generation, entry };
        self.changed.notify_all();
        while state.seats.iter().any(|s| s.generation < generation || !s.parked) {
            let (back, timeout) =
                self.changed.wait_timeout(state, ASK_AGAIN).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if timeout.timed_out() {
                drop(state);
                if !goes_on() {
                    return false;
                }
                state = self.lock();
            }
        }
        state.goal = Goal::Pause;
        true
    }

    /// Lets paused vCPUs run.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.goal = Goal::Run;
        self.running.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Ends vCPU threads; those that run the guest have to be kicked.
    pub fn exit(&self) {
        self.running.store(false, Ordering::Release);
        self.lock().goal = Goal::Exit;
        self.changed.notify_all();
    }
}

impl MachineControl for Control {
    fn request(&self, what: MachineRequest) {
        match what {
            MachineRequest::PowerOff => {
                self.running.store(false, Ordering::Release);
                self.post(Event::PowerOff);
            }
            MachineRequest::Reset(register) => self.reset_requested(register),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// Threads that act like vCPUs: count rounds while they run, count resets.
    fn spawn(
        control: &Arc<Control>,
        n: u32,
        rounds: &Arc<AtomicU64>,
        resets: &Arc<AtomicU64>,
    ) -> Vec<std::thread::JoinHandle<()>> {
        (0..n)
            .map(|i| {
                let (control, rounds, resets) = (control.clone(), rounds.clone(), resets.clone());
                std::thread::spawn(move || {
                    loop {
                        match control.next(i) {
                            Order::Run => {
                                while control.is_running() {
                                    rounds.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                            Order::Reset(_) => {
                                resets.fetch_add(1, Ordering::Relaxed);
                            }
                            Order::Exit => return,
                        }
                    }
                })
            })
            .collect()
    }

    #[test]
    fn parked_vcpus_leave_each_other_asleep() {
        /// How often the calling thread has slept.
        fn sleeps() -> libc::c_long {
            // SAFETY: integers only, of which all may be zero.
            #[allow(unsafe_code)]
            let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
            // SAFETY: a live structure.
            #[allow(unsafe_code)]
            let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
            assert_eq!(result, 0);
            usage.ru_nvcsw
        }
        let control = Control::new(3).unwrap();
        let vcpu = |index| {
            let control = control.clone();
            std::thread::spawn(move || {
                assert!(matches!(control.next(index), Order::Exit));
                sleeps()
            })
        };
        let vcpus: Vec<_> = (0..3).map(vcpu).collect();
        assert!(control.pause(&[], || true));
        std::thread::sleep(Duration::from_millis(200));
        control.exit();
        let slept: Vec<_> = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).collect();
        assert!(slept.iter().all(|times| *times < 50), "{slept:?}");
    }

    #[test]
    fn a_reset_forgets_what_the_guest_asked_for_before_it() {
        let control = Control::new(0).unwrap();
        // Several vCPUs at once; the main thread takes the first.
        control.reset_requested("one");
        control.reset_requested("two");
        control.crashed(Crash::Guest("three".into()));
        control.request(MachineRequest::PowerOff);
        control.post(Event::Signal(15));
        control.crashed(Crash::Host("broken".into()));
        control.post(Event::Quit);
        assert_eq!(control.take_event(), Some(Event::Reset("one")));
        assert!(control.pause(&[], || true));
        assert!(control.reset(None, || true));
        assert_eq!(control.take_event(), Some(Event::Signal(15)));
        assert_eq!(control.take_event(), Some(Event::Crash(Crash::Host("broken".into()))));
        assert_eq!(control.take_event(), Some(Event::Quit));
        assert_eq!(control.take_event(), None);
    }

    #[test]
    fn waits_have_a_way_out_and_who_asks_for_the_end_is_heard_first() {
        // A vCPU that never comes.
        let control = Control::new(1).unwrap();
        control.resume();
        control.post(Event::Pause(true));
        control.post(Event::Quit);
        control.post(Event::Signal(15));
        let mut asked = 0;
        let mut thrice = || {
            asked += 1;
            asked % 3 != 0
        };
        assert!(!control.pause(&[], &mut thrice));
        assert!(!control.reset(None, &mut thrice));
        assert_eq!((asked, control.ends()), (6, 2));
        assert_eq!(control.take_end(), Some(Event::Quit));
        assert_eq!(control.take_event(), Some(Event::Pause(true)));
    }

    #[test]
    fn a_pause_that_waits_for_a_vcpu_is_taken_back_by_a_resume() {
        // A vCPU that never comes.
        let control = Control::new(1).unwrap();
        let pause = Event::Pause(true);
        let in_vain = |revoked: &mut dyn FnMut()| {
            let mut asked = 0;
            control.pause(&[], || {
                asked += 1;
                assert!(asked < 10_000, "nobody hears it");
                revoked();
                !control.is_revoked(&pause)
            })
        };
        assert!(!in_vain(&mut || control.post(Event::Pause(false))));
        assert_eq!(control.take_instead(&pause), Some(Event::Pause(false)));
        while control.take_event().is_some() {}
        // And by whoever asked for it, when it takes too long.
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| control.ask_to_pause(true, Duration::from_millis(20)));
            assert!(!in_vain(&mut || ()));
            asking.join().unwrap().unwrap_err();
        });
        assert_eq!(control.take_event(), Some(Event::Pause(true)));
        assert_eq!(control.take_instead(&pause), Some(Event::Pause(false)));
        control.post(Event::Pause(false));
        control.post(Event::Quit);
        assert_eq!(control.take_instead(&pause), Some(Event::Quit), "first of all");
        assert!(!control.is_revoked(&Event::Reset("test")), "only a pause");
    }

    #[test]
    fn pause_reset_resume_exit() {
        let control = Control::new(3).unwrap();
        let (rounds, resets) = (Arc::default(), Arc::new(AtomicU64::new(0)));
        let threads = spawn(&control, 3, &rounds, &resets);
        assert!(control.pause(&[], || true));
        assert_eq!(rounds.load(Ordering::Relaxed), 0, "nothing runs before resume");
        for turn in 1..=200 {
            control.resume();
            if turn % 3 == 0 {
                control.request(MachineRequest::Reset("test"));
                assert_eq!(control.take_event(), Some(Event::Reset("test")));
            }
            assert!(control.pause(&[], || true));
            let before = rounds.load(Ordering::Relaxed);
            assert!(control.reset(None, || true));
            assert_eq!(resets.load(Ordering::Relaxed), turn * 3, "each vCPU resets once");
            assert_eq!(rounds.load(Ordering::Relaxed), before, "nothing runs while paused");
        }
        control.exit();
        for t in threads {
            t.join().unwrap();
        }
    }
}
