//! The mouse at the auxiliary port: commands and packets of the IBM PS/2 mouse (IBM PS/2 Technical Reference,
//! "Auxiliary device") with the wheel and buttons 4 and 5 that Microsoft's IntelliMouse added.

use std::collections::VecDeque;

use super::{ACK, RESEND, SELF_TEST_PASSED};

/// What the pointer did since the last call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MouseMotion {
    /// To the right.
    pub dx: i32,
    /// Down, as on a screen.
    pub dy: i32,
    /// Wheel steps, towards the user positive.
    pub wheel: i32,
    /// Buttons held now: bit 0 left, 1 right, 2 middle, 3 and 4 the side buttons.
    pub buttons: u8,
}

/// Bytes that wait for the host at most; further motion is added up meanwhile.
const QUEUE: usize = 16;
/// What is added up at most: some screens.
const FARTHEST: i32 = 1 << 14;

const DEFAULT_RATE: u8 = 100;
const DEFAULT_RESOLUTION: u8 = 2;

#[derive(Clone, Copy)]
enum Parameter {
    Rate,
    Resolution,
}

pub(super) struct Mouse {
    queue: VecDeque<u8>,
    awaiting: Option<Parameter>,
    reporting: bool,
    remote: bool,
    wrap: bool,
    double_scale: bool,
    rate: u8,
    resolution: u8,
    /// Device identifier: 0 plain, 3 with wheel, 4 with five buttons.
    id: u8,
    /// The last sample rates set: certain sequences unlock the further identifiers.
    rates: [u8; 3],
    motion: MouseMotion,
    moved: bool,
    last: u8,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            awaiting: None,
            reporting: false,
            remote: false,
            wrap: false,
            double_scale: false,
            rate: DEFAULT_RATE,
            resolution: DEFAULT_RESOLUTION,
            id: 0,
            rates: [0; 3],
            motion: MouseMotion::default(),
            moved: false,
            last: 0,
        }
    }

    /// The next byte for the host.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last = byte;
        self.report();
        Some(byte)
    }

    /// Movement, wheel and buttons.
    pub(super) fn motion(&mut self, now: MouseMotion) {
        let sum = |a: i32, b: i32| a.saturating_add(b).clamp(-FARTHEST, FARTHEST);
        if self.reporting {
            let old = self.motion;
            self.motion.dx = sum(old.dx, now.dx);
            self.motion.dy = sum(old.dy, now.dy);
            self.motion.wheel = sum(old.wheel, now.wheel);
            self.moved |= now != MouseMotion { buttons: old.buttons, ..MouseMotion::default() };
        }
        self.motion.buttons = now.buttons & 0x1f;
        self.report();
    }

    /// In stream mode, turns what has added up into packets as far as there is room.
    fn report(&mut self) {
        while self.reporting && !self.remote && self.moved && self.queue.len() + 4 <= QUEUE {
            self.packet();
        }
    }

    fn packet(&mut self) {
        let MouseMotion { dx, dy, wheel, buttons } = self.motion;
        // Nine-bit two's complement, y upwards.
        let (x, y) = (dx.clamp(-255, 255), dy.clamp(-255, 255));
        let z = if self.id == 0 { wheel } else { wheel.clamp(-8, 7) };
        let sign = |value: i32, bit: u8| if value < 0 { bit } else { 0 };
        let first = (buttons & 0x07) | 0x08 | sign(x, 0x10) | sign(-y, 0x20);
        self.queue.extend([first, x as u8, (-y) as u8]);
        match self.id {
            3 => self.queue.push_back(z as u8),
            4 => self.queue.push_back((z as u8 & 0x0f) | (buttons & 0x18) << 1),
            _ => {}
        }
        self.motion = MouseMotion { dx: dx - x, dy: dy - y, wheel: wheel - z, buttons };
        self.moved = self.motion != MouseMotion { buttons, ..MouseMotion::default() };
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        match self.awaiting.take() {
            Some(Parameter::Rate) => return self.set_rate(byte),
            Some(Parameter::Resolution) => {
                self.resolution = byte & 0x03;
                return self.answer(&[ACK]);
            }
            None => {}
        }
        if self.wrap && !matches!(byte, 0xec | 0xff) {
            return self.answer(&[byte]);
        }
        match byte {
            0xe6 | 0xe7 => self.double_scale = byte == 0xe7,
            0xe8 => self.awaiting = Some(Parameter::Resolution),
            0xe9 => return self.answer(&[ACK, self.status(), self.resolution, self.rate]),
            0xea => self.remote = false,
            0xeb => {
                self.answer(&[ACK]);
                return self.packet();
            }
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf2 => return self.answer(&[ACK, self.id]),
            0xf3 => self.awaiting = Some(Parameter::Rate),
            0xf4 => self.reporting = true,
            0xf5 => self.stop(),
            0xf6 => self.set_defaults(),
            0xfe if self.queue.len() < 2 * QUEUE => return self.queue.push_front(self.last),
            0xfe => return,
            0xff => {
                let buttons = self.motion.buttons;
                *self = Self::new();
                self.motion.buttons = buttons;
                return self.answer(&[ACK, SELF_TEST_PASSED, self.id]);
            }
            _ => return self.answer(&[RESEND]),
        }
        self.answer(&[ACK]);
    }

    fn stop(&mut self) {
        self.reporting = false;
        self.queue.clear();
        self.motion = MouseMotion { buttons: self.motion.buttons, ..MouseMotion::default() };
        self.moved = false;
    }

    fn set_defaults(&mut self) {
        self.stop();
        self.remote = false;
        self.double_scale = false;
        self.rate = DEFAULT_RATE;
        self.resolution = DEFAULT_RESOLUTION;
    }

    fn set_rate(&mut self, rate: u8) {
        self.rate = rate;
        let [_, second, third] = self.rates;
        self.rates = [second, third, rate];
        match (self.rates, self.id) {
            ([200, 100, 80], 0) => self.id = 3,
            ([200, 200, 80], 3) => self.id = 4,
            _ => {}
        }
        self.answer(&[ACK]);
    }

    /// First byte of the answer to "status request". Its buttons are in the reverse order of a packet's.
    fn status(&self) -> u8 {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let buttons = self.motion.buttons;
        flag(self.remote, 0x40)
            | flag(self.reporting, 0x20)
            | flag(self.double_scale, 0x10)
            | flag(buttons & 1 != 0, 0x04)
            | flag(buttons & 4 != 0, 0x02)
            | flag(buttons & 2 != 0, 0x01)
    }

    fn answer(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() > 2 * QUEUE {
            self.queue.clear();
        }
        self.queue.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(mouse: &mut Mouse, commands: &[u8]) -> Vec<u8> {
        commands.iter().for_each(|byte| mouse.command(*byte));
        std::iter::from_fn(|| mouse.pop()).collect()
    }

    fn moved(dx: i32, dy: i32, wheel: i32, buttons: u8) -> MouseMotion {
        MouseMotion { dx, dy, wheel, buttons }
    }

    #[test]
    fn commands() {
        let m = &mut Mouse::new();
        assert_eq!(answers(m, &[0xff]), [0xfa, 0xaa, 0x00]);
        assert_eq!(answers(m, &[0xf2]), [0xfa, 0x00]);
        assert_eq!(answers(m, &[0xe9]), [0xfa, 0x00, 0x02, 0x64]);
        assert_eq!(answers(m, &[0xe8, 0x03, 0xf3, 0x28, 0xe7, 0xf4]), [0xfa; 6]);
        m.motion(moved(0, 0, 0, 0b001));
        answers(m, &[]);
        assert_eq!(answers(m, &[0xe9]), [0xfa, 0x34, 0x03, 0x28]);
        assert_eq!(answers(m, &[0xe6, 0xea, 0xf5, 0xf6]), [0xfa], "disabling and defaults empty the queue");
        assert_eq!(answers(m, &[0xe1]), [0xfe], "no TrackPoint");
        assert_eq!(answers(m, &[0xee, 0x55, 0xf2, 0xec, 0xf2]), [0xfa, 0x55, 0xf2, 0xfa, 0xfa, 0x00]);
    }

    #[test]
    fn knocking_unlocks_wheel_and_side_buttons() {
        let m = &mut Mouse::new();
        answers(m, &[0xf3, 200, 0xf3, 100, 0xf3, 80]);
        assert_eq!(answers(m, &[0xf2]), [0xfa, 3]);
        answers(m, &[0xf4]);
        m.motion(moved(0, 0, -1, 0));
        assert_eq!(answers(m, &[]), [0x08, 0, 0, 0xff]);
        answers(m, &[0xf3, 200, 0xf3, 200, 0xf3, 80]);
        assert_eq!(answers(m, &[0xf2]), [0xfa, 4]);
        m.motion(moved(0, 0, 1, 0b01000));
        assert_eq!(answers(m, &[]), [0x08, 0, 0, 0x11]);
        assert_eq!(answers(m, &[0xff]), [0xfa, 0xaa, 0x00]);
    }

    #[test]
    fn packets_have_signs_and_y_upwards() {
        let m = &mut Mouse::new();
        m.motion(moved(5, 5, 0, 0));
        assert_eq!(answers(m, &[0xf4]), [0xfa], "nothing before reporting is on");
        m.motion(moved(3, 4, 0, 0b110));
        assert_eq!(answers(m, &[]), [0x2e, 0x03, 0xfc]);
        m.motion(moved(-3, -4, 0, 0));
        assert_eq!(answers(m, &[]), [0x18, 0xfd, 0x04]);
        m.motion(moved(300, 0, 0, 0));
        assert_eq!(answers(m, &[]), [0x08, 0xff, 0x00, 0x08, 0x2d, 0x00], "far moves take two");
        m.motion(moved(0, 0, 0, 0));
        assert_eq!(answers(m, &[]), [], "nothing happened");
    }

    #[test]
    fn remote_mode_answers_only_when_asked() {
        let m = &mut Mouse::new();
        answers(m, &[0xf4, 0xf0]);
        m.motion(moved(7, 0, 0, 1));
        assert_eq!(answers(m, &[]), []);
        assert_eq!(answers(m, &[0xeb]), [0xfa, 0x09, 0x07, 0x00]);
        assert_eq!(answers(m, &[0xeb]), [0xfa, 0x09, 0x00, 0x00]);
    }

    #[test]
    fn unread_motion_adds_up_and_queues_are_bounded() {
        let m = &mut Mouse::new();
        answers(m, &[0xf4]);
        for _ in 0..1000 {
            m.motion(moved(1, 0, 0, 0));
        }
        let packets = answers(m, &[]);
        let total: i32 = packets.chunks(3).map(|packet| i32::from(packet[1])).sum();
        assert_eq!(total, 1000);
        m.motion(moved(i32::MIN, i32::MAX, i32::MIN, 0xff));
        m.motion(moved(i32::MIN, i32::MAX, i32::MIN, 0xff));
        for _ in 0..1000 {
            m.command(0xeb);
            m.command(0xe9);
            m.command(0xfe);
            assert!(m.queue.len() <= 40);
        }
    }
}
