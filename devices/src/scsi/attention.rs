//! Unit attention conditions (SAM-6, 5.14): pending for one initiator port on one logical unit.

use std::sync::atomic::{AtomicU32, Ordering};

use super::sense::{Code, SenseData, SenseKey};

/// A unit attention condition. Declared in order of precedence: the first pending one is reported first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
    PowerOn,
    /// BUS DEVICE RESET FUNCTION OCCURRED: a LOGICAL UNIT RESET
    UnitReset,
    /// I_T NEXUS LOSS OCCURRED
    NexusLoss,
    /// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED
    MediumChanged,
    /// RESERVATIONS PREEMPTED
    ReservationsPreempted,
    /// RESERVATIONS RELEASED
    ReservationsReleased,
    /// REGISTRATIONS PREEMPTED
    RegistrationsPreempted,
    /// COMMANDS CLEARED BY ANOTHER INITIATOR
    CommandsCleared,
    /// MODE PARAMETERS CHANGED
    ModeChanged,
    /// CAPACITY DATA HAS CHANGED
    CapacityChanged,
    /// INQUIRY DATA HAS CHANGED
    InquiryChanged,
    /// REPORTED LUNS DATA HAS CHANGED
    LunsChanged,
}

impl Attention {
    const ALL: [Self; 12] = [
        Self::PowerOn,
        Self::UnitReset,
        Self::NexusLoss,
        Self::MediumChanged,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
        Self::CommandsCleared,
        Self::ModeChanged,
        Self::CapacityChanged,
        Self::InquiryChanged,
        Self::LunsChanged,
    ];

    /// ASC and ASCQ.
    pub(crate) const fn code(self) -> Code {
        match self {
            Self::PowerOn => (0x29, 0x00),
            Self::UnitReset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::MediumChanged => (0x28, 0x00),
            Self::ReservationsPreempted => (0x2a, 0x03),
            Self::ReservationsReleased => (0x2a, 0x04),
            Self::RegistrationsPreempted => (0x2a, 0x05),
            Self::CommandsCleared => (0x2f, 0x00),
            Self::ModeChanged => (0x2a, 0x01),
            Self::CapacityChanged => (0x2a, 0x09),
            Self::InquiryChanged => (0x3f, 0x03),
            Self::LunsChanged => (0x3f, 0x0e),
        }
    }

    /// Whether it comes before the status RESERVATION CONFLICT; the others come after it (SAM-5, 5.3.3).
    pub(crate) const fn precedes_conflict(self) -> bool {
        matches!(self, Self::PowerOn | Self::UnitReset | Self::NexusLoss)
    }

    /// As sense data.
    pub(crate) const fn sense(self) -> SenseData {
        SenseData::new(SenseKey::UnitAttention, self.code())
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// The pending conditions of one I_T_L nexus.
#[derive(Debug, Default)]
pub(crate) struct Attentions(AtomicU32);

impl Attentions {
    /// Nothing but power on.
    pub(crate) fn power_on() -> Self {
        Self(AtomicU32::new(Attention::PowerOn.bit()))
    }

    /// Establishes a condition. Power on leaves nothing else to say: it replaces whatever was pending.
    pub(crate) fn raise(&self, attention: Attention) {
        if attention == Attention::PowerOn {
            self.0.store(attention.bit(), Ordering::Release);
        } else {
            self.0.fetch_or(attention.bit(), Ordering::AcqRel);
        }
    }

    /// Takes the condition that precedes all others: to report it is to clear it.
    pub(crate) fn take(&self) -> Option<Attention> {
        let mut pending = self.0.load(Ordering::Acquire);
        loop {
            if pending == 0 {
                return None;
            }
            let lowest = pending & pending.wrapping_neg();
            match self.0.compare_exchange_weak(
                pending,
                pending & !lowest,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Attention::ALL.into_iter().find(|a| a.bit() == lowest),
                Err(now) => pending = now,
            }
        }
    }

    /// The condition that [`Attentions::take`] would take.
    pub(crate) fn first(&self) -> Option<Attention> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            pending => Attention::ALL.into_iter().find(|attention| attention.bit() & pending != 0),
        }
    }

    /// Clears one condition without reporting it.
    pub(crate) fn clear(&self, attention: Attention) {
        self.0.fetch_and(!attention.bit(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_come_in_order_of_precedence_and_once() {
        let pending = Attentions::default();
        for a in
            [Attention::LunsChanged, Attention::ModeChanged, Attention::NexusLoss, Attention::ModeChanged]
        {
            pending.raise(a);
        }
        let order: Vec<_> = std::iter::from_fn(|| pending.take()).map(Attention::code).collect();
        assert_eq!(order, [(0x29, 0x07), (0x2a, 0x01), (0x3f, 0x0e)]);
    }

    #[test]
    fn power_on_replaces_the_others() {
        let pending = Attentions::default();
        pending.raise(Attention::CapacityChanged);
        pending.raise(Attention::PowerOn);
        assert_eq!(pending.take().map(Attention::code), Some((0x29, 0x00)));
        assert_eq!(pending.take(), None);
    }
}
