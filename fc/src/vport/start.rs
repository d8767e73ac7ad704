//! What is defined is started when the host starts: its ports come one after the other, their links later, and the fabric last.

use std::time::Duration;

use super::remove::Target;
use super::{CreateError, Kernel, Pause, Ports, Request};
use crate::choose::NoPort;
use crate::model::{San, Vport, vports};
use crate::names::Unfit;
use crate::state::Life;

/// When to look again for a port that has not come yet.
const AGAIN: Duration = Duration::from_millis(500);
/// How long one attempt may take: a virtual port that is created too early never gets better with some drivers (qla2xxx).
const ATTEMPT: Duration = Duration::from_secs(30);

impl<K: Kernel> Ports<'_, K> {
    /// Creates a virtual port that is defined, unless it is there; waits for its port, for the link, and for the fabric, all within the
    /// request's time. What is there and of nobody, or of a process that has ended, stays for good.
    ///
    /// # Errors
    /// Why it was not there at the end.
    pub fn start(&mut self, request: &Request<'_>) -> Result<Vport, CreateError> {
        self.again(request, CreateError::passes, |ports, time| match ports.adopt(request)? {
            Some(mut target) => ports.wait(&mut target, time),
            None => ports.when_online(request, time),
        })
    }

    /// Creates a virtual port for a process, as [`Ports::create`]; but the link of its port, and the fabric, may come within the request's
    /// time. A port of the host that there is not is not waited for: the request may be wrong.
    ///
    /// # Errors
    /// Why it was not there at the end.
    pub fn create_in_time(&mut self, request: &Request<'_>) -> Result<Vport, CreateError> {
        let passes = |error: &CreateError| {
            error.passes() && !matches!(error, CreateError::Port(NoPort::NoHosts | NoPort::Unknown { .. }))
        };
        self.again(request, passes, |ports, time| ports.when_online(request, time))
    }

    /// Tries, and tries again while that may help, within the request's time.
    fn again(
        &mut self,
        request: &Request<'_>,
        passes: impl Fn(&CreateError) -> bool,
        mut attempt: impl FnMut(&mut Self, Duration) -> Result<Vport, CreateError>,
    ) -> Result<Vport, CreateError> {
        let begin = self.kernel.now();
        loop {
            let left = request.deadline.saturating_sub(self.kernel.now().saturating_sub(begin));
            match attempt(self, left.min(ATTEMPT)) {
                Err(error) if passes(&error) && !left.is_zero() => {
                    if self.kernel.pause(AGAIN) == Pause::Interrupted {
                        return Err(CreateError::Interrupted { wwpn: request.names.wwpn });
                    }
                }
                result => return result,
            }
        }
    }

    fn when_online(&mut self, request: &Request<'_>, time: Duration) -> Result<Vport, CreateError> {
        let san = San::try_read(self.roots)?;
        let host = request.wanted.choose(&san)?;
        if !host.is_online() {
            return Err(NoPort::Offline { host: host.name(), state: host.state.clone() }.into());
        }
        self.create(&Request { deadline: time, ..request.clone() })
    }

    /// The virtual port, if it is there. It is nobody's then.
    fn adopt(&mut self, request: &Request<'_>) -> Result<Option<Target>, CreateError> {
        let names = request.names;
        let there = |vports: Vec<Vport>| {
            let mut targets = vports.iter().filter_map(Target::of);
            targets.find(|target| target.names == names)
        };
        let Some(found) = there(vports(self.roots)?) else { return Ok(None) };
        if let Some((name, _)) =
            self.others(Some(request))?.iter().find(|(_, other)| other.wwpn == names.wwpn)
        {
            return Err(Unfit::Taken("WWPN", names.wwpn, format!("the definition {name} has it")).into());
        }
        let Some(record) = self.store.record_of(names.wwpn)? else { return Ok(Some(found)) };
        match record.life(self.roots) {
            // Whoever cleans asks the kernel with this lock only, and looks at the record then.
            Life::Ended | Life::OtherStart => {
                let _one = self.lock_one(names.wwpn)?;
                self.forget(&record)?;
                Ok(there(vports(self.roots)?))
            }
            // It may yet delete it.
            Life::Lives => Err(CreateError::Owned { wwpn: names.wwpn, owner: record.owner, pid: record.pid }),
            Life::Unknown => {
                Err(CreateError::Unclear { wwpn: names.wwpn, owner: record.owner, pid: record.pid })
            }
        }
    }
}
