//! Where QEMU's board answers otherwise than this one and no known driver says who is right: switches, for drivers that are not known.

/// The target of the trace: `VMM_LOG=hba_megasas::differences=debug`.
macro_rules! target {
    () => {
        "hba_megasas::differences"
    };
}

/// A case in which the answers differ. The names are those of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A direct command that nobody knows is done (status 00h, no data), not refused.
    UnknownDcmd,
    /// INIT when there is a reply queue is done without a look at it, not refused.
    InitTwice,
    /// The doorbell's READY leads out of FAULT.
    ReadyInFault,
    /// The second scratch pad (B4h) reads as 15, not 0.
    ScratchPad1,
    /// The register that acknowledges interrupts (A0h) reads as 1 while there is one, not 0.
    DoorbellClear,
    /// What completes while all interrupts are masked is not posted.
    MaskedCompletions,
    /// After a shutdown the reply queue stays: frames are posted as before.
    AfterShutdown,
}

impl Difference {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::UnknownDcmd,
        Self::InitTwice,
        Self::ReadyInFault,
        Self::ScratchPad1,
        Self::DoorbellClear,
        Self::MaskedCompletions,
        Self::AfterShutdown,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownDcmd => "unknown-dcmd",
            Self::InitTwice => "init-twice",
            Self::ReadyInFault => "ready-in-fault",
            Self::ScratchPad1 => "scratch-pad-1",
            Self::DoorbellClear => "doorbell-clear",
            Self::MaskedCompletions => "masked-completions",
            Self::AfterShutdown => "after-shutdown",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|difference| difference.name() == name)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Those cases in which the board answers as QEMU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences(u8);

impl Differences {
    /// Whether this one is among them.
    pub(crate) fn has(self, difference: Difference) -> bool {
        self.0 & difference.bit() != 0
    }

    /// The same, when the case happens: the trace says so.
    pub(crate) fn happens(self, difference: Difference) -> bool {
        let like_qemu = self.has(difference);
        let answer = if like_qemu { "answered as QEMU does" } else { "answered as this board does" };
        tracing::debug!(target: target!(), "{}: {answer}", difference.name());
        like_qemu
    }

    /// Whether anyone listens to the trace. Registers that are read without the board's knowledge say nothing then.
    pub(crate) fn are_traced() -> bool {
        tracing::enabled!(target: target!(), tracing::Level::DEBUG)
    }
}

impl FromIterator<Difference> for Differences {
    fn from_iter<I: IntoIterator<Item = Difference>>(all: I) -> Self {
        Self(all.into_iter().fold(0, |bits, difference| bits | difference.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_switch_of_its_own() {
        for difference in Difference::ALL {
            assert_eq!(Difference::named(difference.name()), Some(difference));
            let only: Differences = [difference].into_iter().collect();
            let having = Difference::ALL.into_iter().filter(|other| only.has(*other));
            assert_eq!(having.collect::<Vec<_>>(), [difference]);
        }
        assert_eq!(Difference::named("all"), None);
        assert_eq!(Differences::default(), [].into_iter().collect());
    }
}
