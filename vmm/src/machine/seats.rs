//! Connections that are there at once. Whoever connects may have sent a descriptor whose last close waits for the host, and
//! it is closed with the connection: each connection ends on a thread of its own, and accepting waits for none of them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use devices::threads::{self, Kind};

use crate::listen;

/// Connections that are being refused at once. Usually that takes no time.
const REFUSALS_MAX: usize = 4;

/// How many there are.
#[derive(Clone, Copy, Default)]
struct Taken {
    served: usize,
    refused: usize,
}

/// Places for connections.
pub(super) struct Seats {
    served_max: usize,
    taken: Mutex<Taken>,
    changed: Condvar,
}

/// A place, until it is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    /// Whether the connection is served; else it is one too many.
    pub(super) served: bool,
}

impl Seats {
    /// So many that are served.
    pub(super) fn new(served_max: usize) -> Arc<Self> {
        Arc::new(Self { served_max, taken: Mutex::default(), changed: Condvar::new() })
    }

    /// The next place. Where not even one connection more can be refused it waits until one of all has ended.
    pub(super) fn next(self: &Arc<Self>) -> Seat {
        let full = |taken: &mut Taken| taken.served >= self.served_max && taken.refused >= REFUSALS_MAX;
        let mut taken = self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        let served = taken.served < self.served_max;
        *if served { &mut taken.served } else { &mut taken.refused } += 1;
        drop(taken);
        Seat { seats: self.clone(), served }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        let count = if self.served { &mut taken.served } else { &mut taken.refused };
        *count = count.saturating_sub(1);
        drop(taken);
        self.seats.changed.notify_all();
    }
}

/// Has `work` done with `connection` in `seat`, on a thread of its own, where the connection also ends. It waits until the host
/// has such a thread.
pub(super) fn serve<C, W>(connection: C, seat: Seat, work: W)
where
    C: Send + 'static,
    W: FnOnce(&C, &Seat) + Clone + Send + 'static,
{
    // Handed over, so that it is never closed here.
    let waiting = Arc::new(Mutex::new(Some((connection, seat))));
    loop {
        let (taken, work) = (waiting.clone(), work.clone());
        let there = move || {
            let taken = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some((connection, seat)) = taken else { return };
            work(&connection, &seat);
            // Before another one takes the place.
            drop(connection);
            drop(seat);
        };
        match threads::spawn(Kind::Client, "control-client", there) {
            Ok(_) => return,
            Err(error) => {
                devices::log_limited!(warn, "a control connection waits for a thread: {error}");
                std::thread::sleep(listen::PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn some_are_served_some_are_refused_and_the_rest_wait() {
        let seats = Seats::new(2);
        let served = [(); 2].map(|()| seats.next());
        let refused = [(); REFUSALS_MAX].map(|()| seats.next());
        assert!(served.iter().all(|seat| seat.served) && refused.iter().all(|seat| !seat.served));
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(seats.next().served));
        told.recv_timeout(Duration::from_millis(20)).unwrap_err();
        drop(served);
        assert!(told.recv().unwrap(), "a place of one that was served");
        drop(refused);
    }

    #[test]
    fn a_connection_ends_on_its_thread_before_its_place_is_free() {
        struct Slow(mpsc::Receiver<()>);
        impl Drop for Slow {
            fn drop(&mut self) {
                let _ = self.0.recv();
            }
        }
        let seats = Seats::new(1);
        let (end, ends) = mpsc::channel();
        serve(Slow(ends), seats.next(), |_, seat| assert!(seat.served));
        let next = seats.next();
        assert!(!next.served, "it has not ended");
        drop(end);
        drop(next);
        while !seats.next().served {
            std::thread::yield_now();
        }
    }
}
