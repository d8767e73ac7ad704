//! Closing images: a step of its own, with one owner and an end that somebody hears of.
//!
//! A unit goes in three steps: the guest loses it, what it still runs ends, its image is closed. The last two wait for
//! the host, which may never answer; so whoever asked waits for a time at most, and the I/O thread goes on alone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::iothread::{Io, Remote};
use thiserror::Error;

/// Why an image is not known to be closed.
#[derive(Debug, Error)]
pub(super) enum CloseError {
    /// The host refused; the image may lack what was written last.
    #[error("closing the image failed, what was written last may not be in it: {0}")]
    Failed(String),
    /// The host does not answer. The I/O thread goes on, and the end is logged.
    #[error("the host does not answer: after {} s the image is not closed yet; its end will be logged", .0.as_secs())]
    GivenUp(Duration),
    /// Nobody is left to close it.
    #[error("the I/O thread has ended")]
    Ended,
}

/// Runs `close` on the I/O thread of `remote` and waits until it is done, at most for `patience`. After that it goes on,
/// and what became of it is logged, or told to the [heir](Answer::inherit).
pub(super) fn close_with_deadline<M, F>(
    remote: &Remote,
    asked: Asked,
    patience: Duration,
    close: M,
) -> Result<(), CloseError>
where
    M: FnOnce(Io) -> F + Send + 'static,
    F: Future<Output = Result<(), String>> + 'static,
{
    let answer = asked.0.clone();
    remote.spawn(move |io| {
        let close = close(io);
        async move {
            let end = close.await;
            asked.0.tell(State::Done(end));
        }
    });
    let waiting = |told: &mut Told| matches!(told.state, State::Waiting);
    let wait = answer.changed.wait_timeout_while(answer.lock(), patience, waiting);
    let mut told = wait.unwrap_or_else(PoisonError::into_inner).0;
    match std::mem::replace(&mut told.state, State::GivenUp) {
        State::Done(end) => end.map_err(CloseError::Failed),
        State::Waiting | State::GivenUp => Err(CloseError::GivenUp(patience)),
        State::Dropped => Err(CloseError::Ended),
    }
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Done(Result<(), String>),
    /// The I/O thread has ended before it was done.
    Dropped,
    /// Nobody waits any more.
    GivenUp,
}

/// Called with the end of a closing.
type Heir = Box<dyn FnOnce(Result<(), String>) + Send>;

#[derive(Default)]
struct Told {
    state: State,
    over: bool,
    heir: Option<Heir>,
}

/// What becomes of a unit that is being closed.
pub struct Answer {
    what: String,
    told: Mutex<Told>,
    changed: Condvar,
}

impl Answer {
    /// The name of the unit.
    pub(super) fn name(&self) -> &str {
        &self.what
    }

    /// Whether closing has come to its end, whatever that was.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// The end of the machine waits, too: `heir` is called with the end of the closing; with `Ok` when that was told already.
    pub(super) fn inherit(&self, heir: impl FnOnce(Result<(), String>) + Send + 'static) {
        let mut told = self.lock();
        if told.over {
            drop(told);
            return heir(Ok(()));
        }
        told.heir = Some(Box::new(heir));
    }

    fn tell(&self, end: State) {
        let mut told = self.lock();
        if std::mem::replace(&mut told.over, true) {
            return;
        }
        let heir = told.heir.take();
        let result = match &end {
            State::Done(end) => end.clone(),
            _ => Err(CloseError::Ended.to_string()),
        };
        match (&told.state, &end) {
            (State::Waiting, _) => {
                told.state = end;
                self.changed.notify_all();
            }
            // The heir says it.
            _ if heir.is_some() => {}
            (State::GivenUp, State::Done(Ok(()))) => tracing::warn!("{}: closed at last", self.what),
            (State::GivenUp, State::Done(Err(error))) => {
                tracing::error!("{}: closing failed at last: {error}", self.what);
            }
            (State::GivenUp, State::Dropped) => tracing::error!("{}: never closed", self.what),
            _ => {}
        }
        drop(told);
        if let Some(heir) = heir {
            heir(result);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of the I/O thread.
pub(super) struct Asked(Arc<Answer>);

impl Asked {
    /// The unit called `what` is to be closed.
    pub(super) fn new(what: String) -> Self {
        Self(Arc::new(Answer { what, told: Mutex::default(), changed: Condvar::new() }))
    }

    /// Where others hear how it ends.
    pub(super) fn answer(&self) -> Arc<Answer> {
        self.0.clone()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.tell(State::Dropped);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use devices::iothread::{IoThread, Owner};

    #[test]
    fn whoever_closes_hears_how_it_ended_or_that_it_has_not() {
        let thread = IoThread::start("test").unwrap();
        let close =
            |patience: u64, end: Result<(), String>| {
                let patience = Duration::from_millis(patience);
                close_with_deadline(&thread.remote(), Asked::new("a".into()), patience, move |_| async move {
                    end
                })
            };
        close(60_000, Ok(())).unwrap();
        let said = close(60_000, Err("no space".into())).unwrap_err().to_string();
        assert!(said.ends_with("may not be in it: no space"), "{said}");
        // What it waits for comes after the wait was given up: it is done all the same.
        let (release, released) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let given_up = close_with_deadline(
            &thread.remote(),
            Asked::new("b".into()),
            Duration::from_millis(10),
            |io| async move {
                let released = io.blocking_on(&Owner::default(), move || released.recv().is_ok()).await;
                ended.send(released.unwrap()).unwrap();
                Ok(())
            },
        );
        assert!(matches!(given_up, Err(CloseError::GivenUp(_))), "{given_up:?}");
        release.send(()).unwrap();
        assert!(end.recv().unwrap());
        drop(thread);
    }
}
