//! The registers and the state of the firmware behind them. Plain data: no guest memory, no threads.

use std::sync::Arc;

use devices::pci::RegisterPage;

use crate::differences::{Difference, Differences};
use crate::limits::Limits;
use crate::spec::{State, WRITE_SEQUENCE, diag, doorbell, interrupt, register};

/// What a register write asks for beyond the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Status or mask of the interrupt changed.
    Interrupt,
    /// A frame at this guest physical address.
    Submit(u64),
    /// Everything is forgotten; then READY.
    Reset,
    /// The same, by a driver that recovers and repeats what was under way.
    AdapterReset,
    /// Everything is forgotten; FAULT.
    Stop,
    /// Commands end early; queues stay.
    Cancel,
}

/// The frame address in a value written to an inbound queue port. Bits 4:1 are a hint of the driver how much of the
/// frame to fetch, bit 0 has no meaning.
pub(crate) fn frame_address(value: u32) -> u64 {
    u64::from(value & !0x1f)
}

/// Offsets of all registers that read as anything but zero.
const READABLE: [u16; 7] = [
    register::HOST_DIAG as u16,
    register::OUTBOUND_INTR_MASK as u16,
    register::OUTBOUND_INTR_STATUS as u16,
    register::OUTBOUND_DOORBELL_CLEAR as u16,
    register::OUTBOUND_SCRATCH_PAD_1 as u16,
    register::OUTBOUND_MESSAGE_0 as u16,
    register::OUTBOUND_SCRATCH_PAD_0 as u16,
];

/// What [`register::OUTBOUND_SCRATCH_PAD_1`] of QEMU's board reads.
const QEMU_SCRATCH_PAD_1: u32 = 15;

/// The register file, and the page in which guests read it: it follows with every change.
#[derive(Debug)]
pub(crate) struct Registers {
    limits: Limits,
    page: Arc<RegisterPage>,
    differences: Differences,
    state: State,
    /// Commands of the time before are still under way; READY waits for them.
    quiescing: bool,
    status: u32,
    mask: u32,
    diag: u32,
    /// How many keys of [`WRITE_SEQUENCE`] were right so far.
    keys: usize,
    high: u32,
}

impl Registers {
    /// As after power-on.
    pub(crate) fn new(limits: Limits, page: Arc<RegisterPage>, differences: Differences) -> Self {
        let registers = Self {
            limits,
            page,
            differences,
            state: State::Ready,
            quiescing: false,
            status: 0,
            mask: u32::MAX,
            diag: 0,
            keys: 0,
            high: 0,
        };
        registers.publish();
        registers
    }

    /// Has the page say what the registers read. The status word comes last: what it announces is there.
    fn publish(&self) {
        for offset in READABLE {
            self.page.set(offset, self.read(offset.into()));
        }
    }

    /// The value at `offset`. Reading has no effect anywhere.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            register::OUTBOUND_MESSAGE_0 | register::OUTBOUND_SCRATCH_PAD_0 => self.status_word(),
            register::OUTBOUND_INTR_STATUS => self.status,
            register::OUTBOUND_INTR_MASK => self.mask,
            register::HOST_DIAG => self.diag,
            register::OUTBOUND_SCRATCH_PAD_1 if self.differences.has(Difference::ScratchPad1) => {
                QEMU_SCRATCH_PAD_1
            }
            register::OUTBOUND_DOORBELL_CLEAR if self.differences.has(Difference::DoorbellClear) => {
                (self.status != 0).into()
            }
            _ => 0,
        }
    }

    /// As [`Self::read`], by a guest: the trace tells of it.
    pub(crate) fn read_by_guest(&self, offset: u64) -> u32 {
        match offset {
            register::OUTBOUND_SCRATCH_PAD_1 => _ = self.differences.happens(Difference::ScratchPad1),
            register::OUTBOUND_DOORBELL_CLEAR => _ = self.differences.happens(Difference::DoorbellClear),
            _ => {}
        }
        self.read(offset)
    }

    /// Takes a write of `value` to `offset`.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Effect {
        let effect = self.take(offset, value);
        self.publish();
        effect
    }

    fn take(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            register::INBOUND_DOORBELL => self.ring(value),
            register::OUTBOUND_INTR_MASK => {
                self.mask = value;
                Effect::Interrupt
            }
            register::OUTBOUND_DOORBELL_CLEAR => {
                self.status &= !value;
                Effect::Interrupt
            }
            register::INBOUND_QUEUE_PORT => Effect::Submit(frame_address(value)),
            register::INBOUND_HIGH_QUEUE_PORT => {
                self.high = value;
                Effect::None
            }
            register::INBOUND_LOW_QUEUE_PORT => {
                let high = std::mem::take(&mut self.high);
                Effect::Submit(u64::from(high) << 32 | frame_address(value))
            }
            register::SEQ_OFFSET => {
                self.key(value);
                Effect::None
            }
            register::HOST_DIAG if self.diag & value & diag::WRITE_ENABLE != 0 => {
                if value & diag::RESET_ADAPTER == 0 {
                    return Effect::None;
                }
                self.diag |= diag::RESET_ADAPTER;
                Effect::AdapterReset
            }
            _ => Effect::None,
        }
    }

    fn ring(&self, bits: u32) -> Effect {
        if bits & doorbell::ADAPTER_RESET != 0 {
            return Effect::AdapterReset;
        }
        if self.state == State::Fault {
            let leaves = bits & doorbell::READY != 0 && self.differences.happens(Difference::ReadyInFault);
            return if leaves { Effect::Reset } else { Effect::None };
        }
        if bits & doorbell::STOP != 0 {
            return Effect::Stop;
        }
        match (bits & doorbell::READY != 0, bits & doorbell::ABORT != 0) {
            (true, _) => Effect::Reset,
            (false, true) => Effect::Cancel,
            (false, false) => Effect::None,
        }
    }

    fn key(&mut self, value: u32) {
        if WRITE_SEQUENCE.get(self.keys) == Some(&value) {
            self.keys += 1;
            if self.keys == WRITE_SEQUENCE.len() {
                self.keys = 0;
                self.diag |= diag::WRITE_ENABLE;
            }
        } else {
            self.diag &= !diag::WRITE_ENABLE;
            self.keys = usize::from(WRITE_SEQUENCE.first() == Some(&value));
        }
    }

    /// The firmware status word.
    fn status_word(&self) -> u32 {
        let state = if self.quiescing && self.state == State::Ready { State::FwInit } else { self.state };
        (state as u32) << 28 | self.limits.word()
    }

    /// State of the firmware; READY and being busy with what was before are one here.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether the time before still lasts.
    pub(crate) fn is_quiescing(&self) -> bool {
        self.quiescing
    }

    /// A reset begins: READY or FAULT once everything is quiet, which [`Self::quiet`] tells. Interrupts are off, so
    /// that the wire is quiet too.
    pub(crate) fn begin(&mut self, state: State) {
        let diag = self.diag & diag::RESET_ADAPTER;
        let (limits, page, differences) = (self.limits, self.page.clone(), self.differences);
        let (status, mask, keys, high) = (0, u32::MAX, 0, 0);
        *self = Self { limits, page, differences, state, quiescing: true, diag, status, mask, keys, high };
        self.publish();
    }

    /// Nothing of the time before can touch guest memory any more.
    pub(crate) fn quiet(&mut self) {
        self.quiescing = false;
        self.diag &= !diag::RESET_ADAPTER;
        self.publish();
    }

    /// INIT has set a reply queue up.
    pub(crate) fn operate(&mut self) {
        self.state = State::Operational;
        self.publish();
    }

    /// The controller was shut down: READY once everything is quiet, with what the driver has yet to see left in place.
    pub(crate) fn retire(&mut self) {
        (self.state, self.quiescing) = (State::Ready, true);
        self.publish();
    }

    /// There are completions.
    pub(crate) fn set_reply(&mut self) {
        self.status |= self.limits.model().reply_bit();
        self.publish();
    }

    /// The state changed by itself.
    pub(crate) fn set_state_change(&mut self) {
        self.status |= interrupt::STATE_CHANGE;
        self.publish();
    }

    /// Takes mask and status over from before a reset, for a fault that the driver shall hear of.
    pub(crate) fn keep_mask(&mut self, mask: u32) {
        self.mask = mask;
        self.publish();
    }

    /// The interrupt mask.
    pub(crate) fn mask(&self) -> u32 {
        self.mask
    }

    /// Whether the interrupt is asserted.
    pub(crate) fn interrupts(&self) -> bool {
        self.status & !self.mask != 0
    }
}

#[cfg(test)]
mod tests {
    use devices::scsi::TransferLimits;

    use super::*;
    use crate::model::Model;

    fn new(model: Model) -> Registers {
        let limits = Limits::new(model, TransferLimits::default());
        Registers::new(limits, Arc::new(RegisterPage::new().unwrap()), Differences::default())
    }

    fn gen2() -> Registers {
        new(Model::Gen2)
    }

    fn unlock(registers: &mut Registers) {
        for key in [0, 4, 0xb, 2, 7, 0xd] {
            assert_eq!(registers.write(0xfc, key), Effect::None);
        }
    }

    #[test]
    fn status_words_of_both_boards() {
        let mut a = gen2();
        let mut b = new(Model::Sas1078);
        assert_eq!((a.read(0xb0), b.read(0xb0)), (0xb43c_03f0, 0xb050_03e8));
        assert_eq!((a.read(0x18), b.read(0x18)), (0xb43c_03f0, 0xb050_03e8));
        a.operate();
        b.operate();
        assert_eq!((a.read(0xb0), b.read(0xb0)), (0xc43c_03f0, 0xc050_03e8));
    }

    #[test]
    fn rule_4_bit_26_goes_with_60_elements() {
        for model in [Model::Gen2, Model::Sas1078] {
            let word = new(model).read(0xb0);
            let sges = if word & 1 << 26 != 0 { 60 } else { 80 };
            assert_eq!(word >> 16 & 0xff, sges);
        }
    }

    #[test]
    fn all_dwords_read_without_effect() {
        let mut registers = gen2();
        registers.operate();
        registers.set_reply();
        unlock(&mut registers);
        let dump =
            |registers: &Registers| (0..0x100).step_by(4).map(|at| registers.read(at)).collect::<Vec<_>>();
        assert_eq!(dump(&registers), dump(&registers));
        assert_eq!((registers.read(0x30), registers.read(0xf8), registers.read(0x20)), (1, 0x80, 0));
        assert_eq!(registers.read(0xfff0), 0);
    }

    #[test]
    fn interrupt_status_and_mask() {
        for (model, bit) in [(Model::Gen2, 1), (Model::Sas1078, 0x8000_0000_u32)] {
            let mut registers = new(model);
            assert_eq!(registers.read(0x34), u32::MAX, "all masked at power-on");
            registers.set_reply();
            assert_eq!((registers.read(0x30), registers.interrupts()), (bit, false));
            assert_eq!(registers.write(0x34, !bit), Effect::Interrupt);
            assert!(registers.interrupts());
            assert_eq!(registers.read(0x34), !bit);
            registers.set_state_change();
            assert_eq!(registers.write(0xa0, 4), Effect::Interrupt);
            assert_eq!(
                (registers.read(0x30), registers.interrupts()),
                (bit, true),
                "ones clear their bits only"
            );
            registers.write(0xa0, bit);
            assert!(!registers.interrupts());
        }
    }

    #[test]
    fn queue_ports() {
        let mut registers = gen2();
        assert_eq!(registers.write(0x40, 0x1234_5600 | 7 << 1 | 1), Effect::Submit(0x1234_5600));
        assert_eq!(registers.write(0xc4, 5), Effect::None);
        assert_eq!(registers.write(0xc0, 0x8000_0041), Effect::Submit(0x5_8000_0040));
        assert_eq!(
            registers.write(0xc0, 0x8000_0041),
            Effect::Submit(0x8000_0040),
            "the latch is zero again"
        );
    }

    #[test]
    fn doorbell_commands() {
        let mut registers = gen2();
        // What Linux, SeaBIOS, FreeBSD and illumos write.
        for handshake in [0x18, 0x10, 0x08, 0x04] {
            assert_eq!(registers.write(0x20, handshake), Effect::None);
        }
        for ready in [0x07, 0x02, 0x0f] {
            assert_eq!(registers.write(0x20, ready), Effect::Reset);
        }
        assert_eq!(registers.write(0x20, 0x40), Effect::AdapterReset);
        assert_eq!(registers.write(0x20, 0x01), Effect::Cancel);
        assert_eq!(registers.write(0x20, 0x20), Effect::Stop);
        registers.begin(State::Fault);
        assert_eq!(registers.read(0xb0) >> 28, 0xf, "FAULT shows at once");
        registers.quiet();
        assert_eq!(registers.write(0x20, 0x07), Effect::None, "only an adapter reset leaves FAULT");
        assert_eq!(registers.write(0x20, 0x40), Effect::AdapterReset);
    }

    #[test]
    fn adapter_reset_by_the_diagnostic_register() {
        let mut registers = gen2();
        assert_eq!(registers.write(0xf8, 0x84), Effect::None, "locked");
        assert_eq!(registers.read(0xf8), 0);
        unlock(&mut registers);
        assert_eq!(registers.read(0xf8), 0x80);
        assert_eq!(registers.write(0xf8, 0x84), Effect::AdapterReset);
        registers.write(0x34, 0);
        registers.begin(State::Ready);
        assert_eq!(registers.read(0xf8), 0x04, "set until it is done");
        assert_eq!((registers.read(0xb0) >> 28, registers.read(0x34)), (0x4, u32::MAX));
        registers.quiet();
        assert_eq!((registers.read(0xf8), registers.read(0xb0) >> 28), (0, 0xb));
    }

    #[test]
    fn cve_2017_8380_the_key_sequence_never_runs_over() {
        let mut registers = gen2();
        for key in [0, 4, 0xb, 2, 7, 7, 0xd, 0, 4, 0xb, 2, 7] {
            registers.write(0xfc, key);
            assert_eq!(registers.read(0xf8), 0);
        }
        registers.write(0xfc, 0xd);
        assert_eq!(registers.read(0xf8), 0x80);
        registers.write(0xfc, 0x55);
        assert_eq!(registers.read(0xf8), 0, "a wrong key locks");
        // A zero that is wrong in its place begins anew.
        for key in [0, 4, 0, 4, 0xb, 2, 7, 0xd] {
            registers.write(0xfc, key);
        }
        assert_eq!(registers.read(0xf8), 0x80);
        for _ in 0..1000 {
            registers.write(0xfc, 0xd);
        }
    }

    /// What a guest reads from the page is what it would read from the registers, after every change.
    #[test]
    fn the_page_follows() {
        for (model, differences) in [(Model::Gen2, &[][..]), (Model::Sas1078, &Difference::ALL)] {
            let mut registers = new(model);
            registers.differences = differences.iter().copied().collect();
            registers.publish();
            let mut seen = std::collections::BTreeSet::new();
            let mut check = |registers: &Registers| {
                let page: Vec<u32> = (0..0x1000).step_by(4).map(|at| registers.page.get(at)).collect();
                let read: Vec<u32> = (0..0x1000).step_by(4).map(|at| registers.read(at)).collect();
                assert_eq!(page, read);
                seen.insert(page);
            };
            check(&registers);
            registers.operate();
            check(&registers);
            registers.write(0x34, 0x1234);
            check(&registers);
            registers.set_reply();
            check(&registers);
            registers.write(0xa0, u32::MAX);
            check(&registers);
            registers.set_state_change();
            check(&registers);
            registers.keep_mask(7);
            check(&registers);
            registers.retire();
            check(&registers);
            unlock(&mut registers);
            check(&registers);
            registers.write(0xf8, 0x84);
            check(&registers);
            registers.begin(State::Ready);
            check(&registers);
            registers.quiet();
            check(&registers);
            registers.begin(State::Fault);
            check(&registers);
            assert_eq!(seen.len(), 11, "only the status that was cleared is as it was before");
        }
    }
}
