//! A vCPU of the host's KVM with a few instructions and one device that keeps a record.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use boot::RamLayout;
use devices::bus::{Bus, BusDevice};
use devices::mem::GuestRam;
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

/// KVM takes an access to memory that the host cannot give for one to a device. Lost writes would be silent.
#[test]
fn memory_that_the_host_cannot_give_is_no_device() {
    // mov eax, [500000h], and mov [500000h], eax.
    for code in [[0xa1, 0x00, 0x00, 0x50, 0x00], [0xa3, 0x00, 0x00, 0x50, 0x00]] {
        let mut bench = Bench::new(&code);
        // KVM has the first 4 MiB.
        bench.buses.ram = GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap().into();
        let outcome = exit::run_once(&mut bench.vcpu.fd, &bench.buses);
        let exit::Outcome::Fatal(reason) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("no memory behind guest address 0x500000"), "{reason}");
    }
}

/// The rest of an instruction is as much a part of the guest as its start.
#[test]
fn memory_that_is_missed_just_before_a_pause_is_told() {
    // movsd: from the device to memory.
    let mut bench = Bench::new(&[0xa5]);
    bench.buses.ram = GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap().into();
    let mut special = bench.vcpu.fd.get_sregs().unwrap();
    special.es = special.ds;
    bench.vcpu.fd.set_sregs(&special).unwrap();
    let mut registers = bench.vcpu.fd.get_regs().unwrap();
    (registers.rsi, registers.rdi) = (DEVICE, 0x50_0000);
    bench.vcpu.fd.set_regs(&registers).unwrap();
    bench.step();
    let end = bench.vcpu.complete_access(&bench.buses);
    let exit::Outcome::Fatal(reason) = end else { panic!("{end:?}") };
    assert!(reason.contains("no memory behind guest address 0x500000"), "{reason}");
}

/// Guests that have a hypervisor of their own ready are in VMX operation all the time, and reset while they are.
///
/// Only a processor with VMX can show this: no other has a state in which KVM refuses the control registers.
#[test]
fn a_reset_ends_vmx_operation() {
    const PAGE_DIRECTORY: u64 = 0x2000;
    const POINTER: u64 = 0x3000;
    const REGION: u64 = 0x4000;
    const MSR_VMX_BASIC: u32 = 0x480;
    // vmxon [3000h], then mov [80000010h], eax.
    let vmxon = [0xf3, 0x0f, 0xc7, 0x35, 0x00, 0x30, 0x00, 0x00];
    let mut bench = Bench::new(&[&vmxon[..], &TELL_EAX].concat());
    let leaves = bench.vcpu.fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    if !leaves.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & (1 << 5) != 0) {
        devices::testing::skipped("the guests of this host have no VMX");
        return;
    }
    let put = |at, bytes: &[u8]| bench.buses.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    // VMX operation wants paging: 4 MiB pages, each at its own address.
    for page in [0, DEVICE >> 22] {
        put(PAGE_DIRECTORY + page * 4, &((page << 22) as u32 | 0x83).to_le_bytes());
    }
    let msr = |index, data| kvm_bindings::kvm_msr_entry { index, data, ..Default::default() };
    let mut basic = kvm_bindings::Msrs::from_entries(&[msr(MSR_VMX_BASIC, 0)]).unwrap();
    assert_eq!(bench.vcpu.fd.get_msrs(&mut basic).unwrap(), 1);
    put(REGION, &(basic.as_slice()[0].data as u32 & 0x7fff_ffff).to_le_bytes());
    put(POINTER, &REGION.to_le_bytes());
    // Locked, VMXON allowed.
    let control = kvm_bindings::Msrs::from_entries(&[msr(0x3a, 5)]).unwrap();
    assert_eq!(bench.vcpu.fd.set_msrs(&control).unwrap(), 1);
    let mut special = bench.vcpu.fd.get_sregs().unwrap();
    // PE, NE, PG; PSE, VMXE.
    (special.cr0, special.cr3, special.cr4) = (0x8000_0021, PAGE_DIRECTORY, 0x2010);
    bench.vcpu.fd.set_sregs(&special).unwrap();
    bench.step();
    assert_eq!(bench.device.take().len(), 1, "in VMX operation");
    bench.vcpu.complete_access(&bench.buses);
    bench.vcpu.power_on.restore(&bench.vcpu.fd).unwrap();
    assert_eq!(bench.vcpu.fd.get_sregs().unwrap().cr4 & 0x2000, 0);
    bench.enter(NEXT, 0x55);
    bench.step();
    assert_eq!(bench.device.take(), [(0x10, vec![0x55, 0, 0, 0])]);
}

/// A machine with two vCPUs that do not run.
fn two_vcpus() -> (Arc<kvm_ioctls::VmFd>, [VcpuFd; 2]) {
    let hypervisor = Hypervisor::open(Path::new("/dev/kvm")).unwrap();
    let vm = hypervisor.create_vm().unwrap();
    add_chips(&vm).unwrap();
    let vcpus = [0, 1].map(|index| vm.create_vcpu(index).unwrap());
    (vm, vcpus)
}

#[test]
fn counters_are_set_back_together() {
    let (vm, vcpus) = two_vcpus();
    let all = || [&vcpus[0], &vcpus[1], &vcpus[0]].map(|vcpu| clock::tsc(vcpu).unwrap());
    let ordered = |[a, b, c]: [u64; 3]| a <= b && b <= c;
    assert!(ordered(all()), "they agree at first");
    let khz = u64::from(vcpus[0].get_tsc_khz().unwrap());
    let ticks = |time: Duration| u64::try_from(time.as_micros()).unwrap() * khz / 1000;
    let mut methods = vec![clock::Method::Value];
    // Kernels before 5.16 have no other.
    methods.extend((clock::Method::of(&vcpus[0]) == clock::Method::Offset).then_some(clock::Method::Offset));
    for method in methods {
        // Shorter and longer than what KVM takes for the same.
        for pause in [Duration::from_millis(300), Duration::from_millis(1500)] {
            let (begin, before) = (Instant::now(), all());
            let clock_before = crate::kvm::kvmclock(&vm).unwrap();
            std::thread::sleep(pause);
            let passed = clock::tsc(&vcpus[0]).unwrap() - before[2];
            match clock::set_back(&[&vcpus[0], &vcpus[1]], passed, method) {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                    devices::testing::skipped("guests have the host's own time stamp counter");
                    return;
                }
                other => other.unwrap(),
            }
            crate::kvm::set_kvmclock(&vm, clock_before).unwrap();
            let (after, clock_after) = (all(), crate::kvm::kvmclock(&vm).unwrap());
            assert!(ordered(after), "{method:?} {pause:?}: they do not agree: {after:?}");
            assert!(before[2] <= after[0], "{method:?} {pause:?}: time went back: {before:?} {after:?}");
            // A thousandth for what is known of the frequency.
            let most = ticks(begin.elapsed() - pause + begin.elapsed() / 1000);
            assert!(
                after[2] - before[0] <= most,
                "{method:?} {pause:?}: {before:?} {after:?}, at most {most}"
            );
            let passed = Duration::from_nanos(clock_after.checked_sub(clock_before).unwrap());
            assert!(passed <= begin.elapsed() - pause, "{method:?} {pause:?}: kvmclock went on: {passed:?}");
        }
    }
}

/// What the guest before has set is not that of the next: neither ranges of memory types nor what else KVM does not list.
#[test]
fn a_reset_takes_memory_types_back() {
    let bench = Bench::new(&TELL_EAX);
    let set = |index, data| kvm_bindings::kvm_msr_entry { index, data, ..Default::default() };
    let guest = [
        set(0x2ff, 0xc06),
        set(0x202, 0x8000_0006),
        set(0x203, 0x8000_0800),
        set(0x250, 0x0606_0606_0606_0606),
        set(0x26f, 0x0505_0505_0505_0505),
        // IA32_MC1_STATUS.
        set(0x405, 1 << 63),
    ];
    let read = || {
        let mut now = state::collect(&guest).unwrap();
        assert_eq!(bench.vcpu.fd.get_msrs(&mut now).unwrap(), guest.len());
        now.as_slice().iter().map(|msr| (msr.index, msr.data)).collect::<Vec<_>>()
    };
    state::write_msrs(&bench.vcpu.fd, &guest).unwrap();
    assert_eq!(read(), guest.iter().map(|msr| (msr.index, msr.data)).collect::<Vec<_>>());
    bench.vcpu.power_on.restore(&bench.vcpu.fd).unwrap();
    assert_eq!(read(), guest.iter().map(|msr| (msr.index, 0)).collect::<Vec<_>>());
}
