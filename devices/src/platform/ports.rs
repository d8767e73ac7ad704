//! Single I/O ports of a PC: fast reset, A20, diagnostics and scratch registers.
//!
//! The reset control register at CF9h lies amid the PCI configuration ports and is theirs. Left unclaimed on purpose:
//! the 8237 DMA controllers (firmware only writes them). The PIT, both PICs, ELCR and port 61h are the hypervisor's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use super::sink::Sink;
use super::{Machine, MachineRequest, read_bytes, write_bytes};
use crate::bus::BusDevice;

/// System control port A (port 92h): bit 0 fast reset, bit 1 A20 gate.
///
/// The A20 bit is stored only: with hardware virtualisation address line 20 is always open.
pub struct SystemControlPortA {
    value: AtomicU8,
    machine: Machine,
}

impl SystemControlPortA {
    /// Where it is mapped, one port long.
    pub const PORT: u64 = 0x92;
    const FAST_RESET: u8 = 1 << 0;
    const A20: u8 = 1 << 1;

    /// The port at its reset value.
    pub fn new(machine: Machine) -> Self {
        Self { value: AtomicU8::new(Self::A20), machine }
    }

    /// System reset.
    pub fn reset(&self) {
        self.value.store(Self::A20, Ordering::Relaxed);
    }
}

impl BusDevice for SystemControlPortA {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = self.value.load(Ordering::Relaxed);
        read_bytes(offset, data, |at| if at == 0 { value } else { 0xff });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| {
            if at != 0 {
                return;
            }
            let old = self.value.swap(value, Ordering::Relaxed);
            if value & !old & Self::FAST_RESET != 0 {
                self.machine.request(MachineRequest::Reset("system control port 92h"));
            }
        });
    }

    fn name(&self) -> &str {
        "port92"
    }
}

/// Byte registers that do nothing but keep their values. Lock-free.
///
/// Serves the APM control and status ports (B2h, B3h: without SMM a command there has no effect) and the DMA page
/// registers (80h to 8Fh), of which port 80h takes diagnostic codes and the dummy writes by which Linux delays.
pub struct ScratchPorts<const N: usize> {
    name: &'static str,
    values: [AtomicU8; N],
}

/// APM control and status, at [`APM_BASE`].
pub type ApmPorts = ScratchPorts<2>;
/// First of the two APM ports.
pub const APM_BASE: u64 = 0xb2;

/// Diagnostic code and DMA page registers, at [`DMA_PAGE_BASE`].
pub type DmaPagePorts = ScratchPorts<16>;
/// First of the sixteen DMA page registers; also the POST code port.
pub const DMA_PAGE_BASE: u64 = 0x80;

impl<const N: usize> ScratchPorts<N> {
    /// `N` zeroed ports called `name` in traces.
    pub fn new(name: &'static str) -> Self {
        Self { name, values: [const { AtomicU8::new(0) }; N] }
    }

    /// How many ports to map.
    pub fn len(&self) -> u64 {
        N as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        N == 0
    }

    /// System reset.
    pub fn reset(&self) {
        self.values.iter().for_each(|value| value.store(0, Ordering::Relaxed));
    }

    fn get(&self, at: u64) -> Option<&AtomicU8> {
        self.values.get(usize::try_from(at).ok()?)
    }
}

impl<const N: usize> BusDevice for ScratchPorts<N> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| self.get(at).map_or(0xff, |port| port.load(Ordering::Relaxed)));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| {
            if let Some(port) = self.get(at) {
                port.store(value, Ordering::Relaxed);
            }
        });
    }

    fn name(&self) -> &str {
        self.name
    }
}

/// The debug console of firmware at port 402h: bytes written go to a sink, reads tell that it exists. Where nobody
/// reads it, leave it out: SeaBIOS then spares an access for each of some three thousand bytes.
pub struct DebugConsole {
    sink: Arc<dyn Sink>,
}

impl DebugConsole {
    /// Where it is mapped, one port long.
    pub const PORT: u64 = 0x402;
    /// What a read gives. SeaBIOS and OVMF stay silent without it.
    const PRESENT: u8 = 0xe9;

    /// A console that prints to `sink`, for example a [`LineLog`].
    pub fn new(sink: Arc<dyn Sink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for DebugConsole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| if at == 0 { Self::PRESENT } else { 0xff });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(byte)) = (offset, data.get(..1)) {
            self.sink.put(byte);
        }
    }

    fn name(&self) -> &str {
        "debug-console"
    }
}

/// A sink that gathers lines and hands each to a function, usually one that logs.
///
/// A line ends at a newline or after [`LineLog::MAX_LINE`] bytes; control characters are shown escaped, so that a
/// guest cannot send commands to the terminal that shows the log.
pub struct LineLog {
    line: Mutex<Vec<u8>>,
    emit: Box<dyn Fn(&str) + Send + Sync>,
}

impl LineLog {
    /// Bytes of the longest line.
    pub const MAX_LINE: usize = 256;

    /// Calls `emit` for each line, without its end.
    pub fn new(emit: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { line: Mutex::default(), emit: Box::new(emit) }
    }

    fn flush(&self, line: &mut Vec<u8>) {
        if !line.is_empty() {
            (self.emit)(&line.escape_ascii().to_string());
            line.clear();
        }
    }
}

impl Sink for LineLog {
    fn put(&self, bytes: &[u8]) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            match byte {
                b'\n' => self.flush(&mut line),
                b'\r' => {}
                byte => line.push(byte),
            }
            if line.len() == Self::MAX_LINE {
                self.flush(&mut line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fakes::{FakeMachine, FakeSink, inb, outb};
    use super::*;

    #[test]
    fn port_92_stores_a20_and_resets_on_bit_0() {
        let machine = FakeMachine::new();
        let port = SystemControlPortA::new(machine.clone());
        assert_eq!(inb(&port, 0), 0x02, "A20 is open");
        outb(&port, 0, 0x00);
        assert_eq!(inb(&port, 0), 0x00);
        outb(&port, 0, 0x03);
        assert!(matches!(machine.take()[..], [MachineRequest::Reset(_)]));
        outb(&port, 0, 0x03);
        assert_eq!(machine.take(), []);
        port.reset();
        assert_eq!(inb(&port, 0), 0x02);
    }

    #[test]
    fn scratch_ports_keep_bytes_and_end_where_they_end() {
        let apm = ApmPorts::new("apm");
        apm.write(0, &[0x12, 0x34, 0x56]);
        let mut data = [0; 4];
        apm.read(0, &mut data);
        assert_eq!(data, [0x12, 0x34, 0xff, 0xff]);
        apm.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff, 0x12, 0x34, 0xff]);
        apm.reset();
        assert_eq!(inb(&apm, 1), 0);
        assert_eq!(DmaPagePorts::new("dma-page").len(), 16);
    }

    #[test]
    fn debug_console_is_found_and_prints() {
        let sink = FakeSink::new();
        let console = DebugConsole::new(sink.clone());
        assert_eq!(inb(&console, 0), 0xe9);
        outb(&console, 0, b'S');
        console.write(0, b"eX");
        assert_eq!(sink.take(), b"Se", "the second byte of a word is another port");
        let mut data = [0; 2];
        console.read(0, &mut data);
        assert_eq!(data, [0xe9, 0xff]);
    }

    #[test]
    fn lines_are_gathered_split_and_made_harmless() {
        let lines = Arc::new(Mutex::new(Vec::<String>::new()));
        let log = LineLog::new({
            let lines = lines.clone();
            move |line| lines.lock().unwrap().push(line.into())
        });
        for byte in b"SeaBIOS (version 1)\r\n\nhalf" {
            log.put(&[*byte]);
        }
        log.put(b" line\x1b[2J\n");
        assert_eq!(*lines.lock().unwrap(), ["SeaBIOS (version 1)", "half line\\x1b[2J"]);
        lines.lock().unwrap().clear();
        log.put(&[b'x'; 300]);
        assert_eq!(*lines.lock().unwrap(), ["x".repeat(256)]);
    }
}
