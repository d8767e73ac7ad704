//! Closing images: a step of its own, with one owner and an end that somebody hears of.
//!
//! A unit goes in three steps: the guest loses it, what it still runs ends, its image is closed. The last two wait for
//! the host, which may never answer; so whoever asked waits for a time at most, and the I/O thread goes on alone.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
/// and what became of it is logged with `what`, the name of the unit.
pub(super) fn close_with_deadline<M, F>(
    remote: &Remote,
    what: String,
    patience: Duration,
    close: M,
) -> Result<(), CloseError>
where
    M: FnOnce(Io) -> F + Send + 'static,
    F: Future<Output = Result<(), String>> + 'static,
{
    let answer = Arc::new(Answer::default());
    let asked = Asked { answer: answer.clone(), what };
    remote.spawn(move |io| {
        let close = close(io);
        async move {
            let end = close.await;
            asked.tell(State::Done(end));
        }
    });
    let waiting = |state: &mut State| matches!(state, State::Waiting);
    let state = answer.state.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = answer.told.wait_timeout_while(state, patience, waiting);
    let mut state = wait.unwrap_or_else(PoisonError::into_inner).0;
    match std::mem::replace(&mut *state, State::GivenUp) {
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

#[derive(Default)]
struct Answer {
    state: Mutex<State>,
    told: Condvar,
}

/// The side of the I/O thread.
struct Asked {
    answer: Arc<Answer>,
    what: String,
}

impl Asked {
    fn tell(&self, end: State) {
        let mut state = self.answer.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*state, end) {
            (State::Waiting, end) => {
                *state = end;
                self.answer.told.notify_all();
            }
            (State::GivenUp, State::Done(Ok(()))) => tracing::info!("{}: closed at last", self.what),
            (State::GivenUp, State::Done(Err(error))) => {
                tracing::error!("{}: closing failed at last: {error}", self.what);
            }
            (State::GivenUp, State::Dropped) => tracing::error!("{}: never closed", self.what),
            _ => {}
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.tell(State::Dropped);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use devices::iothread::IoThread;

    #[test]
    fn whoever_closes_hears_how_it_ended_or_that_it_has_not() {
        let thread = IoThread::start("test").unwrap();
        let close = |patience: u64, end: Result<(), String>| {
            let patience = Duration::from_millis(patience);
            close_with_deadline(&thread.remote(), "a".into(), patience, move |_| async move { end })
        };
        close(60_000, Ok(())).unwrap();
        let said = close(60_000, Err("no space".into())).unwrap_err().to_string();
        assert!(said.ends_with("may not be in it: no space"), "{said}");
        // What it waits for comes after the wait was given up: it is done all the same.
        let (release, released) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let given_up =
            close_with_deadline(&thread.remote(), "b".into(), Duration::from_millis(10), |io| async move {
                let released = io.blocking(move || released.recv().is_ok()).await;
                ended.send(released.unwrap()).unwrap();
                Ok(())
            });
        assert!(matches!(given_up, Err(CloseError::GivenUp(_))), "{given_up:?}");
        release.send(()).unwrap();
        assert!(end.recv().unwrap());
        drop(thread);
    }
}
