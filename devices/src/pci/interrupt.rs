//! The one way a device interrupts its driver: MSI-X when enabled, else MSI, else INTx.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::config::{ConfigSpace, bits};
use super::intx::Intx;
use super::msi::{Msi, MsiSpec};
use super::msix::{Msix, MsixSpec};
use super::{PciError, PciSeat};
use crate::irq::MsiVector;

/// What a function offers besides its interrupt pin.
#[derive(Clone, Copy, Debug, Default)]
pub struct InterruptSpec {
    /// MSI.
    pub msi: Option<MsiSpec>,
    /// MSI-X.
    pub msix: Option<MsixSpec>,
}

/// How interrupts leave a function at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptMode {
    /// The INTx# wire, level-triggered.
    Intx,
    /// Message-signalled, vectors in configuration space.
    Msi,
    /// Message-signalled, vectors in a table.
    Msix,
}

/// Handle to interrupt the driver; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Interrupt {
    inner: Arc<Inner>,
}

struct Inner {
    mode: AtomicU8,
    intx: Intx,
    msi: Option<(Msi, u16)>,
    msix: Option<(Arc<Msix>, u16)>,
}

const INTX: u8 = 0;
const MSI: u8 = 1;
const MSIX: u8 = 2;

impl Interrupt {
    /// Adds the capabilities to `config`.
    pub(super) fn new(
        spec: &InterruptSpec,
        config: &mut ConfigSpace,
        pin: u8,
        seat: &PciSeat,
    ) -> Result<Self, PciError> {
        let msi = match &spec.msi {
            Some(msi) => Some((Msi::new(msi, seat.msi.clone()), msi.add_to(config)?)),
            None => None,
        };
        let msix = match &spec.msix {
            Some(msix) => Some((Arc::new(Msix::new(msix, seat.msi.clone())), msix.add_to(config)?)),
            None => None,
        };
        let intx = Intx::new((pin != 0).then(|| seat.intx.clone()));
        Ok(Self { inner: Arc::new(Inner { mode: AtomicU8::new(INTX), intx, msi, msix }) })
    }

    /// Interrupts: sends the message of `vector` (masked: makes it pending), or asserts INTx# until
    /// [`deassert_intx`](Self::deassert_intx).
    pub fn notify(&self, vector: u16) {
        match (self.inner.mode.load(Ordering::Acquire), &self.inner.msi, &self.inner.msix) {
            (MSIX, _, Some((msix, _))) => msix.trigger(vector),
            (MSI, Some((msi, _)), _) => msi.trigger(vector),
            _ => self.inner.intx.assert(true),
        }
    }

    /// What delivers MSI-X vector `vector` without this handle: its [`MsiVector::eventfd`] is for whoever signals the driver past this
    /// process. `None` while MSI-X is off or the vector masked, when only [`notify`](Self::notify) does the right thing.
    /// Changes are told by [`listen`](Self::listen).
    pub fn direct(&self, vector: u16) -> Option<Arc<dyn MsiVector>> {
        match (self.mode(), &self.inner.msix) {
            (InterruptMode::Msix, Some((msix, _))) => msix.direct(vector),
            _ => None,
        }
    }

    /// Has `listener` called after each change of what [`direct`](Self::direct) says, on the thread that makes it and with the
    /// configuration registers locked: it may ask nothing else of the function. Only the first listener counts.
    pub fn listen(&self, listener: Box<dyn Fn() + Send + Sync>) {
        if let Some((msix, _)) = &self.inner.msix {
            msix.listen(listener);
        }
    }

    fn changed(&self) {
        if let Some((msix, _)) = &self.inner.msix {
            msix.changed();
        }
    }

    /// Takes from the hypervisor what MSI-X vector `vector` needs, before the driver enables it: a device that tells its driver
    /// when there is none asks for it. False when there is no such vector, or the hypervisor has no more.
    pub fn reserve(&self, vector: u16) -> bool {
        self.inner.msix.as_ref().is_some_and(|(msix, _)| msix.reserve(vector))
    }

    /// The cause of a level-triggered interrupt is gone. Harmless in the other modes.
    pub fn deassert_intx(&self) {
        self.inner.intx.assert(false);
    }

    /// How interrupts leave at the moment. A device with one status register for INTx asks for it.
    pub fn mode(&self) -> InterruptMode {
        match self.inner.mode.load(Ordering::Acquire) {
            MSIX => InterruptMode::Msix,
            MSI => InterruptMode::Msi,
            _ => InterruptMode::Intx,
        }
    }

    pub(super) fn msix(&self) -> Option<&Arc<Msix>> {
        self.inner.msix.as_ref().map(|(msix, _)| msix)
    }

    /// Follows the command register and the capabilities after a configuration write.
    pub(super) fn follow(&self, config: &ConfigSpace) {
        let msix = self.inner.msix.as_ref().is_some_and(|(msix, at)| msix.set_control(config.u16(at + 2)));
        let msi = self.inner.msi.as_ref().is_some_and(|(msi, at)| msi.follow(config, *at));
        let mode = match (msix, msi) {
            (true, _) => MSIX,
            (false, true) => MSI,
            (false, false) => INTX,
        };
        let before = self.inner.mode.swap(mode, Ordering::AcqRel);
        let disabled = config.command() & bits::INTERRUPT_DISABLE != 0;
        self.inner.intx.allow(mode == INTX && !disabled);
        if mode == MSIX || before == MSIX {
            self.changed();
        }
    }

    /// Puts what is live into the registers before a read: Interrupt Status and the pending bits of MSI.
    pub(super) fn show(&self, config: &mut ConfigSpace) {
        config.assign_bits(super::config::reg::STATUS, bits::INTERRUPT_STATUS, self.inner.intx.is_asserted());
        if let Some((msi, at)) = &self.inner.msi
            && let Some(pending) = msi.pending()
        {
            config.set_u32(at + 20, pending);
        }
    }

    pub(super) fn reset(&self) {
        self.inner.mode.store(INTX, Ordering::Release);
        self.inner.intx.assert(false);
        self.inner.intx.allow(true);
        if let Some((msi, _)) = &self.inner.msi {
            msi.reset();
        }
        if let Some((msix, _)) = &self.inner.msix {
            msix.reset();
        }
        self.changed();
    }
}
