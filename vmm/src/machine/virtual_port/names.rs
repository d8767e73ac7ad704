//! A port that changes its names, and who waits for that.

use std::sync::mpsc::{self, RecvTimeoutError};

use anyhow::{Context, Result, anyhow, ensure};
use hba_virtio_scsi::fc::Active;

use super::{VirtualPort, lock};

/// Who waits for other names.
#[derive(Default)]
pub(super) struct Waits {
    /// The number of the last request.
    pub(super) last: u64,
    pub(super) who: Option<(u64, mpsc::Sender<Option<String>>)>,
}

impl VirtualPort {
    /// Has the port log in with these of its names, and waits until all units are there by those. On a thread that may wait.
    pub(in crate::machine) fn activate(&self, active: Active) -> Result<()> {
        let (tell, told) = mpsc::channel();
        let mut waits = lock(&self.waits);
        ensure!(waits.who.is_none(), "its names are being changed already; try again in a moment");
        let number = waits.last.wrapping_add(1);
        let ended = || {
            "the process that has its virtual port (vmm-fcport) has ended; see whether the kernel's log says why (dmesg), and start the \
             machine anew"
        };
        (self.activate)(number, active).with_context(ended)?;
        *waits = Waits { last: number, who: Some((number, tell)) };
        drop(waits);
        let result = match told.recv_timeout(self.names_time) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(anyhow!(why)),
            Err(RecvTimeoutError::Timeout) => Err(anyhow!(
                "nothing was heard of its other names within {} s; query-hbas shows which it has",
                self.names_time.as_secs()
            )),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!(ended())),
        };
        // By now another client may wait for another request.
        lock(&self.waits).who.take_if(|(of, _)| *of == number);
        result
    }

    /// What became of a request: it has these names now, or why it has not.
    pub(super) fn activated(&self, number: u64, active: Active, why: Option<String>) {
        let hba = &self.adapter.id;
        let mut known = lock(&self.port);
        let other = known.other.take_if(|(of, _)| *of == number);
        match &why {
            None => {
                if let Some((_, port)) = other {
                    let (wwpn, vport) = (port.wwpn, &port.vport);
                    tracing::info!(
                        "hba {hba}: its port has its {} names now: {wwpn:016x} ({vport})",
                        which(active)
                    );
                    known.port = Some(port);
                }
            }
            Some(why) => tracing::warn!("hba {hba}: its port keeps the names that it has: {why}"),
        }
        drop(known);
        if let Some((_, tell)) = lock(&self.waits).who.take_if(|(of, _)| *of == number) {
            let _ = tell.send(why);
        }
    }
}

/// The names of a port in a word.
fn which(active: Active) -> &'static str {
    match active {
        Active::None => "no",
        Active::Primary => "primary",
        Active::Secondary => "secondary",
    }
}
