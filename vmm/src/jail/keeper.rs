//! What the process gives up that looks for devices of the host (`crate::keeper`). It has a thread that listens to the
//! kernel, and one for each node that it opens. It opens them as who started the machine, and runs as long as that.

use anyhow::Result;

use super::calls::{self, Refusal};
use super::{capabilities, confine, paths, refusal, refused};
use crate::config::Sandbox;

/// Confines the calling thread, and those that it starts, for good.
///
/// # Errors
/// The host does not let it.
pub(crate) fn confine_keeper(sandbox: Sandbox) -> Result<()> {
    let Some(refusal) = refusal(sandbox) else { return Ok(()) };
    let paths = match refusal {
        Refusal::End => paths::of_keeper()?,
        Refusal::Log => None,
    };
    let kept = (refusal == Refusal::End).then_some(capabilities::ANY_FILE);
    confine::confine_alone(kept, paths.as_ref(), &calls::keeper(refusal)).map_err(refused)
}
