//! A vCPU of the host's KVM with a few instructions and one device that keeps a record.

use std::path::Path;
use std::sync::{Arc, Mutex};

use boot::RamLayout;
use devices::bus::{Bus, BusDevice};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::kvm::{Backing, Hypervisor, add_chips, allocate_ram};

/// Where the device is.
const DEVICE: u64 = 0x8000_0000;
/// Where the instructions are, and those of the next start.
const CODE: u64 = 0x1000;
const NEXT: u64 = 0x1100;
/// `mov [80000010h], eax`
const TELL_EAX: [u8; 5] = [0xa3, 0x10, 0x00, 0x00, 0x80];

/// Reads as 10h in every byte. Keeps what was written and where.
#[derive(Default)]
struct Record(Mutex<Vec<(u64, Vec<u8>)>>);

impl Record {
    fn take(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl BusDevice for Record {
    fn name(&self) -> &str {
        "record"
    }

    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0x10);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

struct Bench {
    vcpu: Vcpu,
    buses: Buses,
    device: Arc<Record>,
}

impl Bench {
    /// In protected mode with flat segments, at the first instruction of `code`.
    fn new(code: &[u8]) -> Self {
        let hypervisor = Hypervisor::open(Path::new("/dev/kvm")).unwrap();
        let vm = hypervisor.create_vm().unwrap();
        let ram = allocate_ram(&vm, &RamLayout::new(4 << 20).unwrap(), Backing::Anonymous, None).unwrap();
        add_chips(&vm).unwrap();
        ram.write_slice(code, GuestAddress(CODE)).unwrap();
        ram.write_slice(&TELL_EAX, GuestAddress(NEXT)).unwrap();
        let device = Arc::new(Record::default());
        let buses = Buses { ports: Arc::new(Bus::new()), memory: Arc::new(Bus::new()), ram };
        buses.memory.map(DEVICE, 0x2000, device.clone()).unwrap();
        let cpuid = CpuidTemplate::new(hypervisor.kvm(), 1).unwrap();
        let vcpu = Vcpu::new(hypervisor.kvm(), &vm, &cpuid, 0).unwrap();
        let bench = Self { vcpu, buses, device };
        bench.enter(CODE, 0);
        bench
    }

    fn enter(&self, rip: u64, rax: u64) {
        let mut special = self.vcpu.fd.get_sregs().unwrap();
        special.cr0 |= 1;
        for segment in [&mut special.cs, &mut special.ds] {
            (segment.base, segment.limit, segment.g, segment.db) = (0, u32::MAX, 1, 1);
        }
        self.vcpu.fd.set_sregs(&special).unwrap();
        let mut registers = self.vcpu.fd.get_regs().unwrap();
        (registers.rip, registers.rax, registers.rflags) = (rip, rax, 2);
        self.vcpu.fd.set_regs(&registers).unwrap();
    }

    fn step(&mut self) {
        assert_eq!(exit::run_once(&mut self.vcpu.fd, &self.buses), exit::Outcome::Continue);
    }
}

/// An instruction may need several accesses: all belong to before the pause, and none to the state of the next start.
#[test]
fn an_instruction_under_way_ends_before_a_pause() {
    // or dword [80000000h], 1: a read, then a write.
    let or = [0x83, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x01];
    // mov [80000ffeh], eax, and mov eax, [80000ffeh]: in two pages, so two accesses.
    let store = [0xa3, 0xfe, 0x0f, 0x00, 0x80];
    let load = [0xa1, 0xfe, 0x0f, 0x00, 0x80];
    let two_writes = vec![(0xffe, vec![0; 2]), (0x1000, vec![0; 2])];
    for (code, seen) in
        [(&or[..], vec![(0, vec![0x11, 0x10, 0x10, 0x10])]), (&store, two_writes), (&load, vec![])]
    {
        let mut bench = Bench::new(code);
        bench.step();
        bench.vcpu.complete_access(&bench.buses);
        assert_eq!(bench.device.take(), seen, "{code:x?}");
        assert_eq!(bench.vcpu.fd.get_regs().unwrap().rip, CODE + code.len() as u64, "{code:x?}");
        bench.enter(NEXT, 0x55);
        bench.step();
        assert_eq!(bench.device.take(), [(0x10, vec![0x55, 0, 0, 0])], "{code:x?}");
    }
}
