//! Devices that are asked who they are while somebody waits for that: the start of the machine, or an operator. After the time that a
//! command has, the kernel may look after its adapter for as long as that takes.

use std::sync::mpsc::{self, RecvTimeoutError};
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
    let (tell, told) = mpsc::channel();
    let thread = threads::spawn(Kind::Returns, "ask-device", move || {
        let _ = tell.send(ask());
    });
    thread.map_err(|error| format!("there is no thread to ask it: {error}"))?;
    let (soon, most) = PATIENCE;
    let answer = told.recv_timeout(soon).or_else(|error| {
        if error == RecvTimeoutError::Timeout {
            tracing::warn!("waiting for \"{name}\", which does not answer");
        }
        told.recv_timeout(most.saturating_sub(soon))
    });
    answer.map_err(|_| format!("nothing for {} seconds", most.as_secs()))
}
