//! Commands that a device works on although nobody waits for them any more: they were ended, or whoever asked has gone. Linux has
//! no way to abort them.

use std::time::Duration;

use super::Generic;
use crate::iothread::Owner;
use crate::scsi::Cdb;
use crate::scsi::nexus::is_harmless;
use crate::scsi::unit::Context;

/// How long a command waits for what is no more before it hears BUSY, counted from when that was given up.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

impl Generic {
    /// Whether there are any.
    pub(super) fn has_orphans(&self) -> bool {
        self.commands.owner().orphans() > 0
    }

    /// Whether [`Self::wait_for_orphans`] has anything to do.
    pub(super) fn may_be_held_up(&self, context: &Context<'_>, cdb: &Cdb) -> bool {
        let hurried = context.nexus.is_hurried();
        (hurried && context.path.unit.background.has_left_behind())
            || self.has_orphans() && (hurried || is_harmless(cdb))
    }

    /// If there are `most` or more: how long one who comes has to wait before he hears BUSY.
    pub(super) fn hold_up(&self, most: usize) -> Option<Duration> {
        hold_up(self.commands.owner(), most)
    }
}

fn hold_up(commands: &Owner, most: usize) -> Option<Duration> {
    (commands.orphans() >= most).then(|| PATIENCE.saturating_sub(commands.orphaned()))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use super::*;
    use crate::iothread::Io;
    use crate::testing::on_io_thread;

    #[test]
    fn what_is_given_up_counts_until_it_is_over() {
        on_io_thread(|io| async move {
            let commands = Owner::with_helpers(2);
            let begin = async |io: &Io, release: mpsc::Receiver<()>| {
                let (tell, told) = mpsc::channel();
                let work = move || {
                    tell.send(()).unwrap();
                    let _ = release.recv();
                };
                let mut work = pin!(io.blocking_on(&commands, work));
                while told.try_recv().is_err() {
                    assert!(io.at_most(Duration::from_millis(1), work.as_mut()).await.is_none());
                }
                assert!(hold_up(&commands, 2).is_none());
            };
            io.blocking_on(&commands, || ()).await.unwrap();
            assert_eq!(commands.orphans(), 0, "it was over");
            let ((first, one), (second, two)) = (mpsc::channel(), mpsc::channel());
            begin(&io, one).await;
            assert!(hold_up(&commands, 1).is_some_and(|left| left <= PATIENCE));
            begin(&io, two).await;
            assert!(hold_up(&commands, 2).is_some() && hold_up(&commands, 3).is_none());
            // One that waits for a helper never begins.
            assert!(io.at_most(Duration::from_millis(5), io.blocking_on(&commands, || ())).await.is_none());
            assert!(hold_up(&commands, 3).is_none());
            for (end, left) in [(first, 1), (second, 0)] {
                drop(end);
                while commands.orphans() != left {
                    io.sleep(Duration::from_millis(1)).await;
                }
            }
            assert!(hold_up(&commands, 1).is_none());
        });
    }
}
