//! The buffer between the guest's output and whoever reads it: filled byte by byte on vCPU threads, emptied in bursts
//! by the console thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::platform::sink::Sink;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes that wait for the reader at most.
pub(super) const CAPACITY: usize = 16 << 10;
/// Bytes that are kept at most while nobody may wait: what vCPUs write until they stop is far less, but a guest can have
/// itself reset again and again.
const KEPT: usize = 16 * CAPACITY;
/// At this fill the console thread writes even though its last write was only just before.
const HALF: usize = CAPACITY / 2;

/// What happens to output that the reader does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// The guest waits: nothing is ever lost.
    Endless,
    /// The guest waits this long once; until the reader takes something again, further output is lost.
    Limited(Duration),
}

/// What the console thread does at the moment, which decides when it must be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consumer {
    /// It will look at the buffer by itself.
    Busy,
    /// It sleeps until there is anything.
    Idle,
    /// It sleeps until its pause is over, unless the buffer fills up.
    Paced,
}

/// The buffer.
pub(super) struct Output {
    ring: Mutex<Ring>,
    space: Condvar,
    wake: EventFd,
    patience: Patience,
}

struct Ring {
    bytes: VecDeque<u8>,
    consumer: Consumer,
    /// Somebody is connected.
    connected: bool,
    /// The reader did not take anything for longer than our patience.
    stalled: bool,
    /// The vCPUs are being stopped: nobody waits.
    released: bool,
    closing: bool,
    lost: u64,
}

impl Ring {
    /// The reader takes nothing. He may do so again and again, as long as the guest prints.
    fn stall(&mut self) {
        self.stalled = true;
        devices::log_limited!(warn, "console: the reader takes nothing; output is lost until it goes on");
    }
}

impl Output {
    pub(super) fn new(patience: Patience, connected: bool) -> io::Result<Self> {
        let ring = Ring {
            bytes: VecDeque::new(),
            consumer: Consumer::Busy,
            connected,
            stalled: false,
            released: false,
            closing: false,
            lost: 0,
        };
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { ring: Mutex::new(ring), space: Condvar::new(), wake, patience })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the console thread.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the thread is being woken already.
        let _ = self.wake.write(1);
    }

    /// The descriptor that becomes readable when the console thread must look at the buffer.
    pub(super) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Tells that the console thread is awake; `woken` if by [`Self::wake_fd`].
    pub(super) fn awake(&self, woken: bool) {
        self.lock().consumer = Consumer::Busy;
        if woken {
            let _ = self.wake.read();
        }
    }

    /// Says that the console thread is about to sleep, `paced` for a moment only. Returns false when there is
    /// something to write now.
    pub(super) fn about_to_sleep(&self, paced: bool) -> bool {
        let mut ring = self.lock();
        if ring.closing || ring.bytes.len() >= if paced { HALF } else { 1 } {
            return false;
        }
        ring.consumer = if paced { Consumer::Paced } else { Consumer::Idle };
        true
    }

    /// Copies the oldest bytes to `buffer` and returns how many; they stay until [`Self::consume`].
    pub(super) fn peek(&self, buffer: &mut [u8]) -> usize {
        let ring = self.lock();
        let (first, _) = ring.bytes.as_slices();
        let count = first.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), first.get(..count)) {
            to.copy_from_slice(from);
        }
        count
    }

    /// Forgets the `count` oldest bytes: they have been written.
    pub(super) fn consume(&self, count: usize) {
        let mut ring = self.lock();
        let count = count.min(ring.bytes.len());
        ring.bytes.drain(..count);
        if std::mem::take(&mut ring.stalled) {
            devices::log_limited!(
                warn,
                "console: the reader goes on; {} bytes of output were lost",
                ring.lost
            );
        }
        drop(ring);
        self.space.notify_all();
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Somebody connected or left. Nothing is kept for a reader who is not there.
    pub(super) fn set_connected(&self, connected: bool) {
        let mut ring = self.lock();
        ring.connected = connected;
        ring.stalled = false;
        if !connected {
            ring.lost += ring.bytes.len() as u64;
            ring.bytes.clear();
        }
        drop(ring);
        self.space.notify_all();
    }

    /// Puts in a message of our own, without waiting; when much waits already it is lost.
    pub(super) fn say(&self, text: &str) {
        let mut ring = self.lock();
        if ring.bytes.len() < KEPT {
            ring.bytes.extend(text.as_bytes());
        }
        drop(ring);
        self.wake();
    }

    /// Until [`Self::bind`] no vCPU waits here: what comes is kept beyond the bound, up to another one.
    pub(super) fn release(&self) {
        self.lock().released = true;
        self.space.notify_all();
    }

    /// The bound holds again, unless the console closes.
    pub(super) fn bind(&self) {
        let mut ring = self.lock();
        ring.released = ring.closing;
    }

    /// Asks the console thread to write out what is left and to end.
    pub(super) fn close(&self) {
        let mut ring = self.lock();
        ring.released = true;
        ring.closing = true;
        drop(ring);
        self.space.notify_all();
        self.wake();
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn closing(&self) -> bool {
        self.lock().closing
    }

    /// Waits for room; false when the byte is to be dropped.
    fn wait_for_room<'a>(&'a self, mut ring: MutexGuard<'a, Ring>) -> (MutexGuard<'a, Ring>, bool) {
        while ring.connected && !ring.released && ring.bytes.len() >= CAPACITY {
            match self.patience {
                Patience::Endless => {
                    ring = self.space.wait(ring).unwrap_or_else(PoisonError::into_inner);
                }
                Patience::Limited(_) if ring.stalled => return (ring, false),
                Patience::Limited(limit) => {
                    let (again, timeout) =
                        self.space.wait_timeout(ring, limit).unwrap_or_else(PoisonError::into_inner);
                    ring = again;
                    if timeout.timed_out() && ring.bytes.len() >= CAPACITY {
                        ring.stall();
                    }
                }
            }
        }
        let full = ring.bytes.len() >= KEPT;
        if full && !ring.stalled {
            ring.stall();
        }
        let keep = ring.connected && !full;
        (ring, keep)
    }
}

impl Sink for Output {
    fn put(&self, bytes: &[u8]) {
        for &byte in bytes {
            let (mut ring, keep) = self.wait_for_room(self.lock());
            if !keep {
                ring.lost += 1;
                if ring.lost == 1 && !ring.connected {
                    tracing::info!("console: nobody is connected; output is lost until somebody is");
                }
                continue;
            }
            ring.bytes.push_back(byte);
            let wake = match ring.consumer {
                Consumer::Busy => false,
                Consumer::Idle => true,
                Consumer::Paced => ring.bytes.len() >= HALF,
            };
            if wake {
                ring.consumer = Consumer::Busy;
                drop(ring);
                self.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    fn woken(output: &Output) -> bool {
        output.wake.read().is_ok()
    }

    fn take(output: &Output, count: usize) -> Vec<u8> {
        let mut buffer = vec![0; count];
        let n = output.peek(&mut buffer);
        output.consume(n);
        buffer.truncate(n);
        buffer
    }

    #[test]
    fn one_wake_up_for_a_burst() {
        let output = Output::new(Patience::Endless, true).unwrap();
        assert!(output.about_to_sleep(false));
        output.put(b"l");
        assert!(woken(&output), "the first byte at once");
        output.put(b"ogin: ");
        assert!(!woken(&output));
        assert!(!output.about_to_sleep(false), "there is something to write");
        assert_eq!(take(&output, 100), b"login: ");
        assert!(output.about_to_sleep(true));
        output.put(&vec![b'x'; HALF - 1]);
        assert!(!woken(&output), "within the pause");
        output.put(b"x");
        assert!(woken(&output), "but not until it is full");
    }

    #[test]
    fn a_patient_guest_waits_for_room_and_loses_nothing() {
        let output = Arc::new(Output::new(Patience::Endless, true).unwrap());
        let (done, finished) = mpsc::channel();
        let writer = thread::spawn({
            let output = output.clone();
            move || {
                (0..40_000u32).for_each(|i| output.put(&[i as u8]));
                done.send(()).unwrap();
            }
        });
        assert!(finished.recv_timeout(Duration::from_millis(100)).is_err(), "it must wait");
        let mut seen = Vec::new();
        while seen.len() < 40_000 {
            assert!(output.len() <= CAPACITY);
            seen.extend(take(&output, 1000));
        }
        writer.join().unwrap();
        assert!(seen.iter().enumerate().all(|(i, byte)| *byte == i as u8));
    }

    #[test]
    fn release_lets_a_waiting_guest_go_on_without_loss() {
        let output = Arc::new(Output::new(Patience::Endless, true).unwrap());
        output.put(&vec![b'.'; CAPACITY]);
        let writer = thread::spawn({
            let output = output.clone();
            move || output.put(b"the end")
        });
        thread::sleep(Duration::from_millis(50));
        output.release();
        writer.join().unwrap();
        assert_eq!(output.len(), CAPACITY + 7);
    }

    #[test]
    fn after_a_release_the_bound_holds_again() {
        let output = Arc::new(Output::new(Patience::Endless, true).unwrap());
        output.put(&vec![b'.'; CAPACITY]);
        output.release();
        output.put(b"what a vCPU had begun");
        output.bind();
        let kept = output.len();
        let (done, finished) = mpsc::channel();
        let writer = thread::spawn({
            let output = output.clone();
            move || {
                (0..3 * CAPACITY).for_each(|_| output.put(b"x"));
                done.send(()).unwrap();
            }
        });
        assert!(finished.recv_timeout(Duration::from_millis(100)).is_err(), "it must wait");
        assert_eq!(output.len(), kept);
        output.close();
        output.bind();
        writer.join().unwrap();
        assert_eq!(output.len(), kept + 3 * CAPACITY, "at the end nobody waits, whoever asks for it");
    }

    #[test]
    fn a_guest_that_is_stopped_again_and_again_fills_no_memory() {
        for patience in [Patience::Endless, Patience::Limited(Duration::from_millis(1))] {
            let output = Output::new(patience, true).unwrap();
            for _ in 0..100 {
                output.release();
                output.put(&[b'x'; CAPACITY]);
                output.say("help");
                output.bind();
            }
            assert!((CAPACITY..=KEPT + 4).contains(&output.len()), "{} bytes", output.len());
            // The reader goes on.
            while output.len() > 0 {
                take(&output, CAPACITY);
            }
            output.put(b"again");
            assert_eq!(take(&output, 10), b"again");
        }
    }

    #[test]
    fn an_impatient_guest_waits_once() {
        let limit = Duration::from_millis(100);
        let output = Output::new(Patience::Limited(limit), true).unwrap();
        output.put(&vec![b'.'; CAPACITY]);
        let start = Instant::now();
        output.put(&[b'!'; 1000]);
        let waited = start.elapsed();
        assert!(waited >= limit && waited < 5 * limit, "{waited:?}");
        assert_eq!(output.len(), CAPACITY);
        take(&output, 10);
        output.put(b"again");
        assert_eq!(output.len(), CAPACITY - 5);
    }

    #[test]
    fn nobody_connected_costs_no_time_and_keeps_nothing() {
        let output = Output::new(Patience::Endless, false).unwrap();
        output.put(&vec![b'.'; 2 * CAPACITY]);
        assert_eq!(output.len(), 0);
        output.set_connected(true);
        output.put(b"now");
        assert_eq!(take(&output, 10), b"now");
        output.put(b"stale");
        output.set_connected(false);
        output.set_connected(true);
        assert_eq!(output.len(), 0, "a new reader does not get an old one's rest");
    }
}
