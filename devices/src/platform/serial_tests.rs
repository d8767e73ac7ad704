use super::*;
use crate::platform::fakes::{FakeLine, FakeSink, inb, outb};

fn port() -> (Serial, Arc<FakeLine>, Arc<FakeSink>) {
    let (line, sink) = (FakeLine::new(), FakeSink::new());
    (Serial::new(line.clone(), sink.clone()).unwrap(), line, sink)
}

fn signalled(event: &EventFd) -> bool {
    event.read().is_ok()
}

#[test]
fn registers_at_reset() {
    let (com, line, _) = port();
    assert_eq!(inb(&com, 1), 0x00, "IER");
    assert_eq!(inb(&com, 2), 0x01, "IIR: nothing pending, FIFOs off");
    assert_eq!(inb(&com, 5), 0x60, "LSR: THRE and TEMT");
    assert_eq!(inb(&com, 6), 0xb0, "MSR: CTS, DSR, DCD");
    outb(&com, 7, 0xa5);
    assert_eq!(inb(&com, 7), 0xa5, "scratch");
    assert!(!line.is_high());
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let (com, _, sink) = port();
    outb(&com, 1, 0x05);
    outb(&com, 3, 0x83);
    outb(&com, 0, 0x01);
    outb(&com, 1, 0x02);
    assert_eq!((inb(&com, 0), inb(&com, 1)), (0x01, 0x02));
    outb(&com, 3, 0x03);
    assert_eq!(inb(&com, 1), 0x05);
    assert_eq!(sink.take(), b"", "divisor bytes are not sent");
}

#[test]
fn identifies_as_a_16550a_and_not_a_16750() {
    let (com, ..) = port();
    outb(&com, 2, 0x01);
    assert_eq!(inb(&com, 2) & 0xc0, 0xc0);
    outb(&com, 2, 0x21);
    assert_eq!(inb(&com, 2), 0xc1, "bit 5 would be the 64-byte FIFO of a 16750");
    outb(&com, 2, 0x00);
    assert_eq!(inb(&com, 2), 0x01);
}

#[test]
fn sends_bytes_in_order_and_splits_wide_writes() {
    let (com, _, sink) = port();
    for byte in b"login: " {
        outb(&com, 0, *byte);
    }
    com.write(0, b"A\x00");
    assert_eq!(sink.take(), b"login: A");
    assert_eq!(inb(&com, 1), 0, "the high half of the word went to IER");
}

#[test]
fn transmitter_empty_interrupt_comes_goes_and_returns() {
    let (com, line, _) = port();
    outb(&com, 2, 0x01);
    outb(&com, 1, 0x02);
    assert!(line.is_high(), "enabling it while THR is empty raises it");
    assert_eq!(inb(&com, 2), 0xc2);
    assert!(!line.is_high(), "reading IIR acknowledges it");
    assert_eq!(inb(&com, 2), 0xc1);
    line.take_rises();
    outb(&com, 0, b'x');
    assert_eq!(line.take_rises(), 1);
    assert_eq!(inb(&com, 2), 0xc2);
    outb(&com, 1, 0x00);
    outb(&com, 1, 0x02);
    assert_eq!(inb(&com, 2), 0xc2, "off and on again raises it again");
}

#[test]
fn received_data_holds_the_line_until_all_is_read() {
    let (com, line, _) = port();
    outb(&com, 2, 0x01);
    outb(&com, 1, 0x01);
    assert_eq!(com.receive(b"ab"), 2);
    assert!(line.is_high());
    assert_eq!(inb(&com, 2), 0xc4);
    assert_eq!(inb(&com, 5), 0x61);
    assert_eq!(inb(&com, 0), b'a');
    assert!(line.is_high(), "one byte is left");
    assert_eq!(inb(&com, 2), 0xc4);
    assert_eq!(inb(&com, 0), b'b');
    assert!(!line.is_high());
    assert_eq!((inb(&com, 2), inb(&com, 5)), (0xc1, 0x60));
}

#[test]
fn received_data_comes_before_transmitter_empty_and_hides_neither() {
    let (com, _, _) = port();
    outb(&com, 1, 0x03);
    com.receive(b"k");
    assert_eq!(inb(&com, 2), 0x04);
    inb(&com, 0);
    assert_eq!(inb(&com, 2), 0x02, "not acknowledged by reading the other cause");
}

#[test]
fn below_the_trigger_level_it_is_a_timeout() {
    let (com, ..) = port();
    outb(&com, 2, 0xc1);
    outb(&com, 1, 0x01);
    com.receive(&[b'.'; 13]);
    assert_eq!(inb(&com, 2), 0xcc);
    com.receive(b".");
    assert_eq!(inb(&com, 2), 0xc4, "14 bytes are there");
}

#[test]
fn refused_input_is_announced_when_there_is_room() {
    let (com, ..) = port();
    let input: Vec<u8> = (0..90).collect();
    let first = com.receive(&input);
    assert!((16..90).contains(&first));
    assert!(!signalled(com.space_event()));
    let mut seen = Vec::new();
    while !signalled(com.space_event()) {
        seen.push(inb(&com, 0));
        assert!(seen.len() <= first, "no signal though the FIFO is empty");
    }
    assert_eq!(com.receive(&input[first..]), 90 - first);
    while inb(&com, 5) & 1 != 0 {
        seen.push(inb(&com, 0));
    }
    assert_eq!(seen, input);
    assert!(!signalled(com.space_event()), "nobody waits");
}

#[test]
fn fifo_control_clears_the_receiver() {
    let (com, line, _) = port();
    outb(&com, 2, 0x01);
    outb(&com, 1, 0x01);
    com.receive(b"junk");
    outb(&com, 2, 0x03);
    assert_eq!(inb(&com, 5), 0x60);
    assert!(!line.is_high());
    assert_eq!(inb(&com, 1), 0x01);
    com.receive(b"junk");
    outb(&com, 2, 0x00);
    assert_eq!(inb(&com, 5), 0x60, "switching FIFOs off clears them");
}

#[test]
fn loop_back_as_drivers_probe_it() {
    let (com, _, sink) = port();
    outb(&com, 4, 0x1a);
    assert_eq!(inb(&com, 6) & 0xf0, 0x90, "RTS to CTS, OUT2 to DCD");
    outb(&com, 0, 0xae);
    assert_eq!(inb(&com, 0), 0xae);
    assert_eq!(sink.take(), b"", "nothing leaves the port");
    assert_eq!(com.receive(b"x"), 0, "nothing enters it");
    outb(&com, 4, 0xeb);
    assert_eq!(inb(&com, 4), 0x0b, "bits 7:5 do not exist");
    assert!(signalled(com.space_event()), "it listens again");
    assert_eq!(com.receive(b"x"), 1);
}

#[test]
fn break_is_marked_where_it_stands() {
    let (com, _, _) = port();
    outb(&com, 2, 0x01);
    outb(&com, 1, 0x05);
    com.receive(b"a");
    assert!(com.receive_break());
    assert!(!com.receive_break(), "one at a time");
    com.receive(b"b");
    assert_eq!(inb(&com, 2), 0xc4);
    assert_eq!(inb(&com, 5), 0xe1, "error somewhere in the FIFO, not at its head");
    assert_eq!(inb(&com, 0), b'a');
    assert_eq!(inb(&com, 2), 0xc6, "line status");
    assert_eq!(inb(&com, 5), 0xf1, "break");
    assert_eq!(inb(&com, 5), 0x61, "reading clears it");
    assert_eq!((inb(&com, 0), inb(&com, 0)), (0, b'b'));
}

#[test]
fn reset_drops_input_and_lowers_the_line() {
    let (com, line, _) = port();
    outb(&com, 1, 0x03);
    outb(&com, 3, 0x80);
    com.receive(&[0; 100]);
    assert!(line.is_high());
    com.reset();
    assert!(!line.is_high());
    assert_eq!((inb(&com, 1), inb(&com, 2), inb(&com, 3), inb(&com, 5)), (0, 1, 3, 0x60));
    assert!(signalled(com.space_event()));
}

#[test]
fn any_access_is_survived() {
    let (com, ..) = port();
    for offset in [0, 1, 5, 7, 8, u64::MAX] {
        for width in 1..=8 {
            com.write(offset, &[0xff; 8][..width]);
            com.read(offset, &mut [0; 8][..width]);
        }
    }
    let mut data = [0; 2];
    com.read(7, &mut data);
    assert_eq!(data[1], 0xff, "beyond the eight ports nobody answers");
}

/// No rate follows from the divisor, so none is divided by.
#[test]
fn cve_2016_8669_a_divisor_of_any_value() {
    let (com, _, sink) = port();
    for (low, high) in [(0, 0), (1, 0), (0, 1), (0xff, 0xff), (0, 0)] {
        outb(&com, 3, 0x83);
        outb(&com, 0, low);
        outb(&com, 1, high);
        assert_eq!((inb(&com, 0), inb(&com, 1)), (low, high));
        outb(&com, 3, 0x03);
        outb(&com, 0, b'x');
        assert_eq!(sink.take(), b"x");
        assert_eq!(com.receive(b"y"), 1);
        assert_eq!(inb(&com, 0), b'y');
    }
}

/// What came from the line is bounded whatever the guest switches, and resets keep nothing.
#[test]
fn cve_2017_5579_and_2020_27173_input_is_bounded() {
    let (com, ..) = port();
    let mut most = 0;
    for round in 0..1000_u32 {
        let taken = com.receive(&[b'.'; 1 << 16]);
        most = most.max(taken);
        assert_eq!(com.receive(b"x"), 0, "full");
        match round % 4 {
            0 => com.reset(),
            1 => outb(&com, 2, 0x03),
            2 => outb(&com, 2, 0),
            _ => {
                outb(&com, 4, 0x10);
                outb(&com, 0, b'z');
                outb(&com, 4, 0);
                com.reset();
            }
        }
    }
    assert!((16..=256).contains(&most), "{most} bytes");
}
