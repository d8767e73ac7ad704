use super::super::fakes::{FakeLine, FakeMachine, inb, outb};
use super::*;

struct Bench {
    kbc: I8042,
    irq1: Arc<FakeLine>,
    irq12: Arc<FakeLine>,
    machine: Arc<FakeMachine>,
}

fn bench() -> Bench {
    let (irq1, irq12, machine) = (FakeLine::new(), FakeLine::new(), FakeMachine::new());
    let kbc = I8042::new(irq1.clone(), irq12.clone(), machine.clone());
    Bench { kbc, irq1, irq12, machine }
}

impl Bench {
    fn status(&self) -> u8 {
        inb(&self.kbc, 4)
    }
    fn data(&self) -> u8 {
        inb(&self.kbc, 0)
    }
    fn command(&self, command: u8) {
        outb(&self.kbc, 4, command);
    }
    fn send(&self, byte: u8) {
        outb(&self.kbc, 0, byte);
    }
    fn config(&self) -> u8 {
        self.command(0x20);
        self.data()
    }
    fn set_config(&self, config: u8) {
        self.command(0x60);
        self.send(config);
    }
    fn aux(&self, byte: u8) {
        self.command(0xd4);
        self.send(byte);
    }
    /// All bytes there are, with whether each is the mouse's.
    fn drain(&self) -> Vec<(u8, bool)> {
        let mut bytes = Vec::new();
        while self.status() & 0x01 != 0 {
            let aux = self.status() & 0x20 != 0;
            bytes.push((self.data(), aux));
        }
        bytes
    }
    fn drain_keyboard(&self) -> Vec<u8> {
        self.drain()
            .into_iter()
            .map(|(byte, aux)| if aux { panic!("mouse byte {byte:#x}") } else { byte })
            .collect()
    }
    fn drain_mouse(&self) -> Vec<u8> {
        self.drain()
            .into_iter()
            .map(|(byte, aux)| if aux { byte } else { panic!("key byte {byte:#x}") })
            .collect()
    }
}

#[test]
fn controller_commands() {
    let b = bench();
    assert_eq!(b.status() & 0x15, 0x10, "empty, before self-test, not locked");
    b.command(0xaa);
    assert_eq!(b.status() & 0x2d, 0x0d, "SYS and CMD, a byte is there");
    assert_eq!(b.data(), 0x55);
    assert_eq!(b.status() & 0x01, 0);
    for (command, answer) in [(0xab, 0x00), (0xa9, 0x00), (0xc0, 0x80), (0xd0, 0xc3)] {
        b.command(command);
        assert_eq!(b.drain_keyboard(), [answer], "{command:#x}");
    }
    b.set_config(0x30);
    assert_eq!(b.config(), 0x30);
    b.command(0x63);
    b.send(0x77);
    b.command(0x23);
    assert_eq!(b.data(), 0x77, "controller RAM");
    b.command(0x55);
    assert_eq!(b.drain(), [], "no such command");
}

#[test]
fn seabios_start() {
    let b = bench();
    b.command(0xa7);
    b.command(0xad);
    b.command(0xaa);
    assert_eq!(b.drain_keyboard(), [0x55]);
    b.command(0xab);
    assert_eq!(b.drain_keyboard(), [0x00]);
    b.set_config(0x30);
    b.send(0xff);
    assert_eq!(b.drain_keyboard(), [0xfa, 0xaa]);
    for (bytes, answer) in [(&[0xf5][..], &[0xfa][..]), (&[0xf0, 0x02], &[0xfa, 0xfa]), (&[0xf4], &[0xfa])] {
        bytes.iter().for_each(|byte| b.send(*byte));
        assert_eq!(b.drain_keyboard(), answer);
    }
    b.set_config(0x61);
    b.kbc.key(Key::Plain(0x1e), true);
    b.kbc.key(Key::Plain(0x1e), false);
    assert_eq!(b.drain(), [(0x1e, false), (0x9e, false)]);
}

/// The probe of Linux drivers/input/serio/i8042.c, step by step.
#[test]
fn linux_finds_both_ports_without_a_complaint() {
    let b = bench();
    assert_eq!(b.drain(), [], "i8042_flush");
    let config = b.config();
    assert_eq!(config & 0x40, 0x40, "translation is on");
    assert_eq!(b.status() & 0x10, 0x10, "key lock not active");
    b.set_config(config & !0x01 | 0x10);
    // i8042_check_aux: the loop command, then bit assignment.
    b.command(0xd3);
    b.send(0x5a);
    assert_eq!(b.drain_mouse(), [0x5a]);
    b.command(0xa7);
    assert_eq!(b.config() & 0x20, 0x20);
    b.command(0xa8);
    assert_eq!(b.config() & 0x20, 0x00);
    // Interrupt delivery.
    b.irq12.take_rises();
    b.set_config((b.config() | 0x02) & !0x20);
    b.command(0xd3);
    b.send(0xa5);
    assert_eq!(b.irq12.take_rises(), 1);
    assert_eq!(b.drain_mouse(), [0xa5]);
    assert!(!b.irq12.is_high());
    // No active multiplexing: the last byte of the knock comes back as it is.
    for byte in [0xf0, 0x56, 0xa4] {
        b.command(0xd3);
        b.send(byte);
        assert_eq!(b.drain_mouse(), [byte]);
    }
    // atkbd and psmouse.
    b.set_config(0x47);
    b.send(0xf2);
    assert_eq!(b.drain_keyboard(), [0xfa, 0xab, 0x41], "83h translated");
    b.aux(0xf2);
    assert_eq!(b.drain_mouse(), [0xfa, 0x00]);
    b.aux(0xff);
    assert_eq!(b.drain_mouse(), [0xfa, 0xaa, 0x00]);
}

#[test]
fn every_key_byte_has_its_own_edge() {
    let b = bench();
    b.kbc.key(Key::Extended(0x48), true);
    assert!(b.irq1.is_high());
    assert_eq!(b.irq1.take_rises(), 1);
    assert_eq!(b.data(), 0xe0);
    assert_eq!(b.irq1.take_rises(), 1);
    assert_eq!(b.data(), 0x48);
    assert_eq!(b.irq1.take_rises(), 0);
    assert!(!b.irq1.is_high());
    assert_eq!(b.data(), 0x48, "an empty buffer shows its last byte");
}

#[test]
fn translation_can_be_off() {
    let b = bench();
    b.set_config(0x01);
    b.kbc.key(Key::Plain(0x1e), true);
    b.kbc.key(Key::Plain(0x1e), false);
    assert_eq!(b.drain_keyboard(), [0x1c, 0xf0, 0x1c]);
}

#[test]
fn disabled_ports_keep_their_bytes() {
    let b = bench();
    b.command(0xad);
    b.kbc.key(Key::Plain(0x02), true);
    assert_eq!(b.drain(), []);
    b.command(0xae);
    assert_eq!(b.drain_keyboard(), [0x02]);
    b.aux(0xf4);
    assert_eq!(b.drain_mouse(), [0xfa]);
    b.command(0xa7);
    b.kbc.mouse(MouseMotion { dx: 1, ..MouseMotion::default() });
    assert_eq!(b.drain(), []);
    b.command(0xa8);
    assert!(b.irq12.is_high() && !b.irq1.is_high());
    assert_eq!(b.drain_mouse(), [0x08, 0x01, 0x00]);
}

#[test]
fn interrupts_obey_the_configuration() {
    let b = bench();
    b.set_config(0x40);
    b.kbc.key(Key::Plain(0x02), true);
    assert!(!b.irq1.is_high());
    b.set_config(0x41);
    assert!(b.irq1.is_high());
    b.data();
    b.command(0xd2);
    b.send(0x99);
    assert!(b.irq1.is_high());
    assert_eq!(b.drain_keyboard(), [0x99], "looks like a key");
}

#[test]
fn resets_the_machine_in_its_three_ways() {
    let b = bench();
    b.command(0xfe);
    assert_eq!(b.machine.take(), [MachineRequest::Reset("keyboard controller")]);
    b.command(0xff);
    b.command(0xd1);
    b.send(0x03);
    assert_eq!(b.machine.take(), []);
    b.command(0xd1);
    b.send(0xfe);
    assert_eq!(b.machine.take().len(), 1);
    b.command(0xf0);
    assert_eq!(b.machine.take().len(), 1);
}

#[test]
fn a20_is_stored() {
    let b = bench();
    for (command, bit) in [(0xdd, 0x00), (0xdf, 0x02)] {
        b.command(command);
        b.command(0xd0);
        assert_eq!(b.data() & 0x02, bit);
    }
    b.command(0xd1);
    b.send(0x01);
    b.command(0xd0);
    assert_eq!(b.data() & 0x02, 0);
}

#[test]
fn reset_forgets_everything() {
    let b = bench();
    b.kbc.key(Key::Plain(0x02), true);
    b.set_config(0x33);
    b.kbc.reset();
    assert!(!b.irq1.is_high());
    assert_eq!((b.drain(), b.config()), (vec![], 0x43));
}

#[test]
fn any_access_is_survived() {
    let b = bench();
    for command in 0..=255 {
        for byte in 0..=255 {
            b.command(command);
            b.send(byte);
        }
        if command % 3 == 0 {
            b.drain();
        }
    }
    for offset in [0, 1, 3, 4, 5, u64::MAX] {
        for width in 1..=8 {
            b.kbc.write(offset, &[0xff; 8][..width]);
            b.kbc.read(offset, &mut [0; 8][..width]);
        }
    }
    assert_eq!(inb(&b.kbc, 1), 0xff, "port 61h is not ours");
}
