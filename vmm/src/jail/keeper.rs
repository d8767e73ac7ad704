//! What the processes beside the machine give up: that which looks for devices of the host (`crate::keeper`), and that which has its
//! Fibre Channel ports (`crate::fc_port`). They have threads that listen to the kernel, and one for each node that they open. They open
//! them as who started the machine.

use anyhow::Result;
use libc::sock_filter;

use super::calls::{self, Refusal};
use super::paths::{self, Paths};
use super::{capabilities, confine, refusal, refused};
use crate::config::Sandbox;

/// Confines the calling thread, and those that it starts, for good: that which looks for devices.
///
/// # Errors
/// The host does not let it.
pub(crate) fn confine_keeper(sandbox: Sandbox) -> Result<()> {
    beside(sandbox, paths::of_keeper, calls::keeper)
}

/// The same of that which has Fibre Channel ports. It makes the directories first that it keeps.
///
/// # Errors
/// The host does not let it.
pub(crate) fn confine_port(sandbox: Sandbox) -> Result<()> {
    beside(sandbox, paths::of_port, calls::port)
}

/// A process beside the machine, with its rules of paths and its calls.
fn beside(
    sandbox: Sandbox,
    rules: fn() -> Result<Option<Paths>>,
    filter: fn(Refusal) -> Vec<sock_filter>,
) -> Result<()> {
    let Some(refusal) = refusal(sandbox) else { return Ok(()) };
    let paths = match refusal {
        Refusal::End => rules()?,
        Refusal::Log => None,
    };
    let kept = (refusal == Refusal::End).then_some(capabilities::ANY_FILE);
    confine::confine_alone(kept, paths.as_ref(), &filter(refusal)).map_err(refused)
}
