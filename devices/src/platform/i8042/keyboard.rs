//! The keyboard at the first port: commands and answers of the IBM enhanced keyboard (IBM PS/2 Technical Reference,
//! "Keyboards").

use std::collections::VecDeque;

use super::scancode::{BREAK, EXTENDED, set2_of};
use super::{ACK, RESEND, SELF_TEST_PASSED};

/// A key, by the code it has in scan code set 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A key of the original keyboard: 01h to 7Fh.
    Plain(u8),
    /// A key with the prefix E0h: its second byte, 01h to 7Fh.
    Extended(u8),
    /// Pause, which is only ever pressed.
    Pause,
}

/// Bytes of key strokes that the keyboard keeps (16 in the real one). What does not fit is lost as a whole.
const KEY_BUFFER: usize = 16;
const DEFAULT_SET: u8 = 2;

/// Commands with a parameter.
#[derive(Clone, Copy)]
enum Parameter {
    Leds,
    ScanCodeSet,
    Rate,
}

pub(super) struct Keyboard {
    queue: VecDeque<u8>,
    awaiting: Option<Parameter>,
    scanning: bool,
    set: u8,
    last: u8,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new(), awaiting: None, scanning: true, set: DEFAULT_SET, last: 0 }
    }

    /// The next byte for the host.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last = byte;
        Some(byte)
    }

    /// A key goes down or up.
    pub(super) fn key(&mut self, key: Key, down: bool) {
        if !self.scanning {
            return;
        }
        let stroke = match (key, self.set) {
            (Key::Pause, _) if !down => return,
            (Key::Pause, 1) => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
            (Key::Pause, _) => vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            (Key::Plain(code) | Key::Extended(code), set) => {
                let Some(set2) = set2_of(code) else { return };
                let mut stroke = Vec::with_capacity(3);
                if matches!(key, Key::Extended(_)) {
                    stroke.push(EXTENDED);
                }
                match (set, down) {
                    (1, true) => stroke.push(code),
                    (1, false) => stroke.push(code | 0x80),
                    (_, true) => stroke.push(set2),
                    (_, false) => stroke.extend([BREAK, set2]),
                }
                stroke
            }
        };
        if self.queue.len() + stroke.len() <= KEY_BUFFER {
            self.queue.extend(stroke);
        }
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        // A byte that cannot be a parameter is a new command.
        match self.awaiting.take() {
            Some(Parameter::Leds) if byte < 0x08 => return self.answer(&[ACK]),
            Some(Parameter::Rate) if byte < 0x80 => return self.answer(&[ACK]),
            Some(Parameter::ScanCodeSet) if byte < 0x04 => return self.choose_set(byte),
            _ => {}
        }
        match byte {
            0xed => self.expect(Parameter::Leds),
            0xee => self.answer(&[0xee]),
            0xf0 => self.expect(Parameter::ScanCodeSet),
            // Identifier of an enhanced keyboard.
            0xf2 => self.answer(&[ACK, 0xab, 0x83]),
            0xf3 => self.expect(Parameter::Rate),
            0xf4 => {
                self.queue.clear();
                self.scanning = true;
                self.answer(&[ACK]);
            }
            0xf5 => {
                *self = Self { scanning: false, ..Self::new() };
                self.answer(&[ACK]);
            }
            0xf6 => {
                *self = Self { scanning: self.scanning, ..Self::new() };
                self.answer(&[ACK]);
            }
            // Key types of scan code set 3, which is not offered.
            0xf7..=0xfa => self.answer(&[ACK]),
            0xfe if self.queue.len() < 2 * KEY_BUFFER => self.queue.push_front(self.last),
            0xfe => {}
            0xff => {
                *self = Self::new();
                self.answer(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn expect(&mut self, parameter: Parameter) {
        self.awaiting = Some(parameter);
        self.answer(&[ACK]);
    }

    /// Set 0 asks for the present one. Set 3 is acknowledged but not taken, as a keyboard does that has none.
    fn choose_set(&mut self, set: u8) {
        match set {
            0 => return self.answer(&[ACK, self.set]),
            1 | 2 => self.set = set,
            _ => {}
        }
        self.answer(&[ACK]);
    }

    /// Answers are kept even when nobody reads them, but not without limit.
    fn answer(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() > 2 * KEY_BUFFER {
            self.queue.clear();
        }
        self.queue.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(keyboard: &mut Keyboard, commands: &[u8]) -> Vec<u8> {
        commands.iter().for_each(|byte| keyboard.command(*byte));
        std::iter::from_fn(|| keyboard.pop()).collect()
    }

    #[test]
    fn commands() {
        let k = &mut Keyboard::new();
        assert_eq!(answers(k, &[0xff]), [0xfa, 0xaa]);
        assert_eq!(answers(k, &[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(answers(k, &[0xee]), [0xee]);
        assert_eq!(answers(k, &[0xed, 0x07]), [0xfa, 0xfa]);
        assert_eq!(answers(k, &[0xf3, 0x2b]), [0xfa, 0xfa]);
        assert_eq!(answers(k, &[0xf0, 0x02]), [0xfa, 0xfa]);
        assert_eq!(answers(k, &[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
        assert_eq!(answers(k, &[0xf0, 0x03, 0xf0, 0x00]), [0xfa, 0xfa, 0xfa, 0xfa, 0x02]);
        assert_eq!(answers(k, &[0xf4]), [0xfa]);
        assert_eq!(answers(k, &[0x01]), [0xfe]);
        assert_eq!(answers(k, &[0xed, 0xf2]), [0xfa, 0xfa, 0xab, 0x83], "a command instead of the parameter");
    }

    #[test]
    fn resend_gives_the_last_byte_again() {
        let k = &mut Keyboard::new();
        assert_eq!(answers(k, &[0xee]), [0xee]);
        assert_eq!(answers(k, &[0xfe]), [0xee]);
    }

    #[test]
    fn strokes_in_set_2_and_1() {
        let k = &mut Keyboard::new();
        let strokes = |k: &mut Keyboard| {
            k.key(Key::Plain(0x1e), true);
            k.key(Key::Plain(0x1e), false);
            k.key(Key::Extended(0x48), true);
            k.key(Key::Extended(0x48), false);
            std::iter::from_fn(|| k.pop()).collect::<Vec<_>>()
        };
        assert_eq!(strokes(k), [0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75]);
        answers(k, &[0xf0, 0x01]);
        assert_eq!(strokes(k), [0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
        answers(k, &[0xf6]);
        k.key(Key::Pause, true);
        k.key(Key::Pause, false);
        assert_eq!(answers(k, &[]), [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
    }

    #[test]
    fn disabled_keyboard_is_silent_and_buffers_are_bounded() {
        let k = &mut Keyboard::new();
        assert_eq!(answers(k, &[0xf5]), [0xfa]);
        k.key(Key::Plain(0x1e), true);
        assert_eq!(answers(k, &[0xf4]), [0xfa]);
        for _ in 0..100 {
            k.key(Key::Plain(0x1e), false);
        }
        assert_eq!(answers(k, &[]), [0xf0, 0x1c].repeat(8));
        for _ in 0..1000 {
            k.command(0xf2);
            k.command(0xfe);
        }
        assert!(answers(k, &[]).len() <= 32);
    }
}
