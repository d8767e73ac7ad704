//! The keyboard controller: Intel 8042 with IBM's PS/2 firmware (IBM PS/2 Technical Reference, "Keyboard and auxiliary
//! device controller") at ports 60h and 64h, with a keyboard and a mouse attached.

mod keyboard;
mod mouse;
mod scancode;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::keyboard::Keyboard;
use self::mouse::Mouse;
use super::{Machine, MachineRequest, read_bytes, write_bytes};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

pub use self::keyboard::Key;
pub use self::mouse::MouseMotion;

/// First port: data. Port 64h is at offset 4; those between answer all ones, as port 61h is the hypervisor's.
pub const I8042_BASE: u64 = 0x60;
/// Ports to map.
pub const I8042_LEN: u64 = 5;
/// Interrupt of the keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// Interrupt of the mouse.
pub const MOUSE_IRQ: u32 = 12;

const DATA: u64 = 0;
const COMMAND_STATUS: u64 = 4;

// Answers of both devices.
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

// Status register.
const ST_OUTPUT_FULL: u8 = 1 << 0;
const ST_SYSTEM: u8 = 1 << 2;
const ST_COMMAND: u8 = 1 << 3;
/// Clear when the key lock is locked.
const ST_UNLOCKED: u8 = 1 << 4;
const ST_AUXILIARY: u8 = 1 << 5;

// Configuration ("command") byte.
const CF_KEYBOARD_INT: u8 = 1 << 0;
const CF_MOUSE_INT: u8 = 1 << 1;
const CF_SYSTEM: u8 = 1 << 2;
const CF_KEYBOARD_OFF: u8 = 1 << 4;
const CF_MOUSE_OFF: u8 = 1 << 5;
const CF_TRANSLATE: u8 = 1 << 6;
/// As firmware leaves it, for guests that boot without one.
const CF_DEFAULT: u8 = CF_KEYBOARD_INT | CF_MOUSE_INT | CF_TRANSLATE;

// Output port.
const OP_NO_RESET: u8 = 1 << 0;
const OP_A20: u8 = 1 << 1;
const OP_KEYBOARD_FULL: u8 = 1 << 4;
const OP_MOUSE_FULL: u8 = 1 << 5;
/// Clock and data lines of the keyboard at rest.
const OP_LINES: u8 = 0xc0;

/// Answers of the controller that nobody read.
const MAX_REPLIES: usize = 8;

const RESET_CAUSE: &str = "keyboard controller";

/// The controller with its two devices.
pub struct I8042 {
    state: Mutex<State>,
    keyboard_line: Arc<dyn IrqLine>,
    mouse_line: Arc<dyn IrqLine>,
    machine: Machine,
}

struct State {
    config: u8,
    /// The rest of the controller's RAM, which commands 21h to 3Fh and 61h to 7Fh reach.
    ram: [u8; 32],
    /// Status bits SYS and CMD.
    status: u8,
    output: Option<Output>,
    /// What an empty output buffer still shows.
    last_data: u8,
    replies: VecDeque<Output>,
    /// The command that waits for a byte at the data port.
    awaiting: Option<u8>,
    a20: bool,
    /// The keyboard sent the prefix of a released key, which translation folds into the next byte.
    release: bool,
    /// Levels last given to the keyboard's and the mouse's line.
    levels: (bool, bool),
    keyboard: Keyboard,
    mouse: Mouse,
}

/// A byte for the host, and whether it counts as the mouse's.
#[derive(Clone, Copy)]
struct Output {
    byte: u8,
    auxiliary: bool,
}

impl I8042 {
    /// A controller as at power-on, with its interrupts ([`KEYBOARD_IRQ`], [`MOUSE_IRQ`]).
    pub fn new(keyboard_line: Arc<dyn IrqLine>, mouse_line: Arc<dyn IrqLine>, machine: Machine) -> Self {
        Self { state: Mutex::new(State::new()), keyboard_line, mouse_line, machine }
    }

    /// A key goes down or up. Repeats are the caller's: a held key is one that goes down again.
    pub fn key(&self, key: Key, down: bool) {
        let mut state = self.lock();
        state.keyboard.key(key, down);
        self.settle(&mut state);
    }

    /// The mouse moves, its wheel turns or its buttons change.
    pub fn mouse(&self, motion: MouseMotion) {
        let mut state = self.lock();
        state.mouse.motion(motion);
        self.settle(&mut state);
    }

    /// System reset of the controller and both devices.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = State { levels: state.levels, ..State::new() };
        self.settle(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the output buffer and drives both interrupt lines.
    fn settle(&self, state: &mut State) {
        state.refill();
        self.drive(state, state.interrupts());
    }

    fn drive(&self, state: &mut State, levels: (bool, bool)) {
        let (old_keyboard, old_mouse) = std::mem::replace(&mut state.levels, levels);
        let (keyboard, mouse) = levels;
        if keyboard != old_keyboard {
            self.keyboard_line.set_level(keyboard);
        }
        if mouse != old_mouse {
            self.mouse_line.set_level(mouse);
        }
    }

    fn read_data(&self, state: &mut State) -> u8 {
        if let Some(output) = state.output.take() {
            state.last_data = output.byte;
            // The next byte needs an edge of its own.
            self.drive(state, (false, false));
            self.settle(state);
        }
        state.last_data
    }

    fn write_data(&self, state: &mut State, value: u8) {
        state.status &= !ST_COMMAND;
        match state.awaiting.take() {
            Some(0x60) => {
                state.config = value;
                state.status = (state.status & !ST_SYSTEM) | (value & CF_SYSTEM);
            }
            Some(command @ 0x61..=0x7f) => state.write_ram(command & 0x1f, value),
            Some(0xd1) => {
                state.a20 = value & OP_A20 != 0;
                if value & OP_NO_RESET == 0 {
                    self.machine.request(MachineRequest::Reset(RESET_CAUSE));
                }
            }
            Some(0xd2) => state.reply_as(value, false),
            Some(0xd3) => state.reply_as(value, true),
            Some(0xd4) => {
                state.config &= !CF_MOUSE_OFF;
                state.mouse.command(value);
            }
            _ => {
                // Sending opens the keyboard's clock line.
                state.config &= !CF_KEYBOARD_OFF;
                state.keyboard.command(value);
            }
        }
        self.settle(state);
    }

    fn write_command(&self, state: &mut State, command: u8) {
        state.status |= ST_COMMAND;
        state.awaiting = None;
        match command {
            0x20 => state.reply(state.config),
            0x21..=0x3f => state.reply(state.ram.get(usize::from(command & 0x1f)).copied().unwrap_or(0)),
            0x60..=0x7f | 0xd1..=0xd4 => state.awaiting = Some(command),
            0xa7 => state.config |= CF_MOUSE_OFF,
            0xa8 => state.config &= !CF_MOUSE_OFF,
            // Interface tests: no error.
            0xa9 | 0xab => state.reply(0x00),
            0xaa => {
                state.status |= ST_SYSTEM;
                state.config |= CF_SYSTEM;
                state.reply(0x55);
            }
            0xad => state.config |= CF_KEYBOARD_OFF,
            0xae => state.config &= !CF_KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => state.reply(0x80),
            0xd0 => state.reply(state.output_port()),
            0xdd | 0xdf => state.a20 = command == 0xdf,
            // Pulses the output port lines whose bits are 0; line 0 resets the machine.
            0xf0..=0xff if command & OP_NO_RESET == 0 => {
                self.machine.request(MachineRequest::Reset(RESET_CAUSE));
            }
            _ => crate::log_limited!(debug, "keyboard controller: no such command {command:#04x}"),
        }
        self.settle(state);
    }
}

impl State {
    fn new() -> Self {
        Self {
            config: CF_DEFAULT,
            ram: [0; 32],
            status: ST_COMMAND,
            output: None,
            last_data: 0,
            replies: VecDeque::new(),
            awaiting: None,
            a20: true,
            release: false,
            levels: (false, false),
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        }
    }

    fn write_ram(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn reply(&mut self, byte: u8) {
        self.reply_as(byte, false);
    }

    fn reply_as(&mut self, byte: u8, auxiliary: bool) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(Output { byte, auxiliary });
        }
    }

    fn refill(&mut self) {
        if self.output.is_some() {
            return;
        }
        self.output = self.replies.pop_front();
        if self.output.is_none() && self.config & CF_KEYBOARD_OFF == 0 {
            self.output = self.next_key_byte().map(|byte| Output { byte, auxiliary: false });
        }
        if self.output.is_none() && self.config & CF_MOUSE_OFF == 0 {
            self.output = self.mouse.pop().map(|byte| Output { byte, auxiliary: true });
        }
    }

    fn next_key_byte(&mut self) -> Option<u8> {
        loop {
            let byte = self.keyboard.pop()?;
            if self.config & CF_TRANSLATE == 0 {
                return Some(byte);
            }
            if byte == scancode::BREAK {
                self.release = true;
                continue;
            }
            let released = std::mem::take(&mut self.release);
            return Some(scancode::translate(byte) | if released { 0x80 } else { 0 });
        }
    }

    /// Levels of the keyboard's and the mouse's interrupt.
    fn interrupts(&self) -> (bool, bool) {
        match self.output {
            None => (false, false),
            Some(Output { auxiliary: true, .. }) => (false, self.config & CF_MOUSE_INT != 0),
            Some(_) => (self.config & (CF_KEYBOARD_INT | CF_KEYBOARD_OFF) == CF_KEYBOARD_INT, false),
        }
    }

    fn status(&self) -> u8 {
        let full = match self.output {
            None => 0,
            Some(Output { auxiliary: false, .. }) => ST_OUTPUT_FULL,
            Some(_) => ST_OUTPUT_FULL | ST_AUXILIARY,
        };
        self.status | ST_UNLOCKED | full
    }

    fn output_port(&self) -> u8 {
        let full = match self.output {
            None => 0,
            Some(Output { auxiliary: false, .. }) => OP_KEYBOARD_FULL,
            Some(_) => OP_MOUSE_FULL,
        };
        OP_LINES | OP_NO_RESET | full | if self.a20 { OP_A20 } else { 0 }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        read_bytes(offset, data, |port| match port {
            DATA => self.read_data(&mut state),
            COMMAND_STATUS => state.status(),
            _ => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        write_bytes(offset, data, |port, value| match port {
            DATA => self.write_data(&mut state, value),
            COMMAND_STATUS => self.write_command(&mut state, value),
            _ => {}
        });
    }

    fn name(&self) -> &str {
        "i8042"
    }
}

#[cfg(test)]
mod tests;
