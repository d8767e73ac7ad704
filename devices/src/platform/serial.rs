//! The serial port: a 16550A UART (National Semiconductor PC16550D data sheet, "DS").
//!
//! Registers, FIFO and loop-back are those of `vm_superio`. Interrupt identification is done here: the crate's
//! merges two causes into the code of a third and forgets data that an interrupt handler left in the FIFO, and its
//! interrupts are edges only, whereas INTR of a 16550 stays high while any enabled cause exists (DS 8.5, 8.6).

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Registers};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::sink::Sink;
use super::{read_bytes, write_bytes};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

/// First I/O port of COM1.
pub const COM1_BASE: u64 = 0x3f8;
/// Ports of one UART.
pub const SERIAL_LEN: u64 = 8;
/// Interrupt of COM1.
pub const COM1_IRQ: u32 = 4;

// Register offsets (DS table II).
const RBR_THR: u8 = 0;
const IER: u8 = 1;
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

const IER_RECEIVED_DATA: u8 = 0x01;
const IER_THR_EMPTY: u8 = 0x02;
const IER_LINE_STATUS: u8 = 0x04;
const IER_DEFINED: u8 = 0x0f;

// Interrupt identification codes, highest priority first (DS table IV).
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_RECEIVED_DATA: u8 = 0x04;
const IIR_CHARACTER_TIMEOUT: u8 = 0x0c;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_NONE: u8 = 0x01;
const IIR_FIFOS_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_RESET_RECEIVER: u8 = 0x02;

const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
/// Bits 7:5 of MCR are permanently zero (DS 8.7).
const MCR_DEFINED: u8 = 0x1f;
const LSR_BREAK: u8 = 0x10;
const LSR_DATA_READY: u8 = 0x01;
const LSR_ERROR_IN_FIFO: u8 = 0x80;

/// Free bytes of the receive FIFO at which a feeder that had to stop is told to go on: enough to make it worth while.
const RESUME_AT: usize = 32;

/// A 16550A at eight I/O ports.
///
/// Output goes byte by byte to the sink, after the registers are unlocked, so that a slow reader of the output holds up
/// only the vCPU that prints. Input comes through [`Serial::receive`].
pub struct Serial {
    state: Mutex<State>,
    line: Arc<dyn IrqLine>,
    sink: Arc<dyn Sink>,
    space: EventFd,
    fifo_size: usize,
}

struct State {
    regs: Registers<NoTrigger, NoEvents, Transmitted>,
    ier: u8,
    fcr: u8,
    /// The transmitter-empty interrupt is due: set when the register empties or the interrupt is enabled, cleared by
    /// reading IIR while it is the cause shown there.
    thr_empty_due: bool,
    /// How many bytes lie in front of the break character in the FIFO.
    break_behind: Option<usize>,
    /// A feeder was refused bytes and waits for `space`.
    starved: bool,
    /// Level last given to the interrupt line.
    high: bool,
}

impl Serial {
    /// A port in its reset state. `line` is its interrupt; guest output goes to `sink`.
    /// Fails when the process has no descriptor left.
    pub fn new(line: Arc<dyn IrqLine>, sink: Arc<dyn Sink>) -> io::Result<Self> {
        let state = State::new();
        let fifo_size = state.regs.fifo_capacity();
        Ok(Self { state: Mutex::new(state), line, sink, space: EventFd::new(EFD_NONBLOCK)?, fifo_size })
    }

    /// Puts bytes from the line into the receive FIFO and returns how many fitted.
    ///
    /// When that is not all, [`Self::space_event`] is signalled once there is room again; until then the caller keeps
    /// the rest. In loop-back mode the port does not listen and takes nothing.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = state.regs.enqueue_raw_bytes(bytes).unwrap_or(0);
        state.starved |= taken < bytes.len();
        self.update_line(&mut state);
        taken
    }

    /// A break on the line: a zero byte marked in the line status register (DS 8.4). Returns false, and does nothing,
    /// when there is no room for it or an earlier break has not been read yet; then the space event follows.
    pub fn receive_break(&self) -> bool {
        let mut state = self.lock();
        let queued = self.fifo_size - state.regs.fifo_capacity();
        let taken = state.break_behind.is_none() && state.regs.enqueue_raw_bytes(&[0]).is_ok_and(|n| n == 1);
        if taken {
            state.break_behind = Some(queued);
            self.update_line(&mut state);
        }
        state.starved |= !taken;
        taken
    }

    /// Signalled when a feeder whose bytes were refused may try again. Non-blocking; the feeder polls and reads it.
    pub fn space_event(&self) -> &EventFd {
        &self.space
    }

    /// System reset: registers as at power-on, FIFOs empty.
    pub fn reset(&self) {
        let mut state = self.lock();
        let (starved, high) = (state.starved, state.high);
        *state = State { starved, high, ..State::new() };
        self.tell_feeder(&mut state);
        self.update_line(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, state: &mut State, register: u8) -> u8 {
        let value = match register {
            RBR_THR if !state.dlab() => {
                // The break character itself is read: the mark goes with it.
                state.break_behind = state.break_behind.and_then(|ahead| ahead.checked_sub(1));
                state.regs.read(RBR_THR)
            }
            IER if !state.dlab() => state.ier,
            IIR_FCR => {
                let cause = state.cause(self.fifo_size);
                if cause == IIR_THR_EMPTY {
                    state.thr_empty_due = false;
                }
                cause | if state.fcr & FCR_ENABLE != 0 { IIR_FIFOS_ENABLED } else { 0 }
            }
            LSR => state.read_line_status(),
            other => state.regs.read(other),
        };
        self.tell_feeder(state);
        self.update_line(state);
        value
    }

    /// Returns the byte to send, if the write was one.
    fn write_register(&self, state: &mut State, register: u8, value: u8) -> Option<u8> {
        match register {
            IER if !state.dlab() => {
                let rising = value & !state.ier;
                state.ier = value & IER_DEFINED;
                state.thr_empty_due |= rising & IER_THR_EMPTY != 0;
            }
            IIR_FCR => state.write_fifo_control(value),
            register => {
                let value = if register == MCR { value & MCR_DEFINED } else { value };
                // Neither the trigger nor the writer behind it can fail.
                let _ = state.regs.write(register, value);
                state.thr_empty_due |= register == RBR_THR && !state.dlab();
            }
        }
        self.tell_feeder(state);
        self.update_line(state);
        state.regs.writer_mut().0.take()
    }

    fn tell_feeder(&self, state: &mut State) {
        if state.starved && !state.looped() && state.regs.fifo_capacity() >= RESUME_AT {
            // A full counter (the only failure) is a signal too.
            let _ = self.space.write(1);
            state.starved = false;
        }
    }

    fn update_line(&self, state: &mut State) {
        let high = state.cause(self.fifo_size) != IIR_NONE;
        if high != state.high {
            state.high = high;
            self.line.set_level(high);
        }
    }
}

impl State {
    fn new() -> Self {
        Self {
            regs: Registers::new(NoTrigger, Transmitted(None)),
            ier: 0,
            fcr: 0,
            thr_empty_due: false,
            break_behind: None,
            starved: false,
            high: false,
        }
    }

    fn dlab(&mut self) -> bool {
        self.regs.read(LCR) & LCR_DLAB != 0
    }

    fn looped(&mut self) -> bool {
        self.regs.read(MCR) & MCR_LOOP != 0
    }

    /// The pending enabled cause of highest priority.
    fn cause(&self, fifo_size: usize) -> u8 {
        let queued = fifo_size - self.regs.fifo_capacity();
        if self.ier & IER_LINE_STATUS != 0 && self.break_behind == Some(0) {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVED_DATA != 0 && queued > 0 {
            // Nothing more is on its way, so what is below the trigger level has timed out (DS 8.11).
            if queued >= self.trigger_level() { IIR_RECEIVED_DATA } else { IIR_CHARACTER_TIMEOUT }
        } else if self.ier & IER_THR_EMPTY != 0 && self.thr_empty_due {
            IIR_THR_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// Bytes in the receive FIFO that a "received data" interrupt promises (DS 8.8).
    fn trigger_level(&self) -> usize {
        match (self.fcr & FCR_ENABLE, self.fcr >> 6) {
            (0, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    fn read_line_status(&mut self) -> u8 {
        let mut value = self.regs.read(LSR);
        if self.fcr & FCR_ENABLE != 0 && self.break_behind.is_some() {
            value |= LSR_ERROR_IN_FIFO;
        }
        if self.break_behind == Some(0) {
            value |= LSR_BREAK;
            self.break_behind = None;
        }
        value
    }

    fn write_fifo_control(&mut self, value: u8) {
        let switched = (value ^ self.fcr) & FCR_ENABLE != 0;
        if switched || value & (FCR_ENABLE | FCR_RESET_RECEIVER) == FCR_ENABLE | FCR_RESET_RECEIVER {
            self.clear_receiver();
        }
        // Without the enable bit the others are not programmed (DS 8.8).
        self.fcr = if value & FCR_ENABLE != 0 { value & (FCR_ENABLE | 0xc0) } else { 0 };
    }

    fn clear_receiver(&mut self) {
        let mut registers = self.regs.state();
        registers.in_buffer.clear();
        registers.line_status &= !LSR_DATA_READY;
        if let Ok(regs) = Registers::from_state(&registers, NoTrigger, NoEvents, Transmitted(None)) {
            self.regs = regs;
        }
        self.break_behind = None;
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        read_bytes(offset, data, |port| match u8::try_from(port) {
            Ok(register @ 0..=7) => self.read_register(&mut state, register),
            _ => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |port, byte| {
            let Ok(register @ 0..=7) = u8::try_from(port) else { return };
            let sent = self.write_register(&mut self.lock(), register, byte);
            if let Some(sent) = sent {
                self.sink.put(&[sent]);
            }
        });
    }

    fn name(&self) -> &str {
        "serial"
    }
}

/// Interrupts are worked out here, not by the register file.
struct NoTrigger;

impl Trigger for NoTrigger {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The byte last sent, until it is passed on with the registers unlocked.
struct Transmitted(Option<u8>);

impl Write for Transmitted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied().or(self.0);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
