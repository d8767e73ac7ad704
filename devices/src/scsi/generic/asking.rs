//! Devices that are asked who they are. After the time that a command has, the kernel may look after its adapter for as long as that
//! takes. Somebody may wait for that, the start of the machine or an operator: not for ever.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::threads::{self, Kind};

/// After how long the log says that a device is waited for, and when it is no more.
const PATIENCE: (Duration, Duration) = match cfg!(test) {
    true => (Duration::from_millis(50), Duration::from_secs(3)),
    false => (Duration::from_secs(3), Duration::from_secs(60)),
};

/// What comes of `ask` in time.
///
/// # Errors
/// Nothing, for this reason. A thread may go on with it, and has the device until it ends.
pub(super) fn in_time<T: Send + 'static>(
    name: &str,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (soon, most) = PATIENCE;
    await_answer(name, ask, |told| {
        told.recv_timeout(most.saturating_sub(soon))
            .map_err(|_| format!("nothing for {} seconds", most.as_secs()))
    })
}

/// What comes of `ask` for one that nobody waits for, however long that takes.
///
/// # Errors
/// Nothing, for this reason.
pub(super) fn in_its_time<T: Send + 'static>(
    name: &str,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    await_answer(name, ask, |told| told.recv().map_err(|_| "the thread that asks has ended".into()))
}

/// With a line in the log if that is not soon.
fn await_answer<T: Send + 'static>(
    name: &str,
    ask: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(&Receiver<T>) -> Result<T, String>,
) -> Result<T, String> {
    let (tell, told) = mpsc::channel();
    let thread = threads::spawn(Kind::Returns, "ask-device", move || {
        let _ = tell.send(ask());
    });
    thread.map_err(|error| format!("there is no thread to ask it: {error}"))?;
    told.recv_timeout(PATIENCE.0).or_else(|error| {
        if error == RecvTimeoutError::Timeout {
            crate::log_limited!(warn, "waiting for \"{name}\", which does not answer");
        }
        late(&told)
    })
}
