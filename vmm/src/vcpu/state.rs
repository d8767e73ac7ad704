//! The register state of a vCPU: as KVM made it, as a direct boot wants it, and back again at a system reset.

use std::io;

use boot::Entry;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};

/// Time stamp counter: never set back, guests compare it across processors.
const MSR_TSC: u32 = 0x10;
/// IA32_FEATURE_CONTROL (Intel SDM volume 4, table 2-2).
const MSR_FEATURE_CONTROL: u32 = 0x3a;

/// Ends VMX operation of the guest (Intel SDM volume 3, chapter 25), if it is in it: KVM does so when the host sets
/// IA32_FEATURE_CONTROL to 0.
///
/// Without this KVM refuses control registers as they are after power-on, for they are none of VMX operation. Where there
/// is no such register it takes no entry, which is right: SVM ends with EFER.SVME, which the control registers bring.
fn leave_vmx(vcpu: &VcpuFd) -> io::Result<()> {
    vcpu.set_msrs(&collect(&[kvm_msr_entry { index: MSR_FEATURE_CONTROL, ..Default::default() }])?)?;
    Ok(())
}

// KVM on AMD clears the control block of a processor that shut down (a triple fault), and with it two things that it only
// writes again when they change: the two functions below make it.

/// Writes the processor's time stamp counter as it is, for KVM to write its offset.
///
/// Without this the clocks of a restarted guest disagree. KVM takes values that are less than a second apart for the
/// same, so that the processors stay in step.
fn refresh_tsc(vcpu: &VcpuFd) -> io::Result<()> {
    let mut tsc = collect(&[kvm_msr_entry { index: MSR_TSC, ..Default::default() }])?;
    if vcpu.get_msrs(&mut tsc)? == 1 {
        vcpu.set_msrs(&tsc)?;
    }
    Ok(())
}

/// Changes CR3 while paging is off, for KVM to load the root of its own page tables again.
///
/// Without this a guest that shut down before it had paging faults on its first instruction for ever. The caller sets the
/// right state afterwards.
fn refresh_root(vcpu: &VcpuFd, sregs: &kvm_sregs) -> io::Result<()> {
    Ok(vcpu.set_sregs(&kvm_sregs { cr3: sregs.cr3 ^ 0x1000, ..*sregs })?)
}

/// Registers that are as after power-on after a reset, and that KVM's list does not name: the memory type ranges (variable,
/// fixed, and the default type; Intel SDM volume 3, 13.11.2), the machine check banks (volume 3, 17.3.2: control, status,
/// address and more of each of 32) and IA32_DEBUGCTL. Firmware may insist on them (OVMF does, on the default type).
fn unlisted() -> impl Iterator<Item = u32> {
    let ranges = (0x200..=0x20f).chain([0x250, 0x258, 0x259]).chain(0x268..=0x26f).chain([0x2ff]);
    ranges.chain(0x400..0x480).chain([0x1d9])
}

/// Most MSRs that one call takes.
const MSRS_A_CALL: usize = 128;

/// The state after power-on, as KVM creates it: what a system reset returns to.
pub struct PowerOnState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
}

impl PowerOnState {
    /// Reads the state of a new vCPU that never ran.
    pub fn capture(kvm: &Kvm, vcpu: &VcpuFd) -> io::Result<Self> {
        let indices = kvm.get_msr_index_list()?;
        let listed = indices.as_slice();
        let others = unlisted().filter(|index| !listed.contains(index));
        let indices: Vec<u32> = listed.iter().copied().chain(others).collect();
        Ok(Self {
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            fpu: vcpu.get_fpu()?,
            // Hosts without XSAVE have no XCR0.
            xcrs: vcpu.get_xcrs().ok(),
            debug: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic()?,
            events: vcpu.get_vcpu_events()?,
            mp_state: vcpu.get_mp_state()?,
            msrs: read_msrs(vcpu, &indices)?,
        })
    }

    /// Puts the vCPU back: an application processor waits for its start-up message again.
    pub fn restore(&self, vcpu: &VcpuFd) -> io::Result<()> {
        leave_vmx(vcpu)?;
        vcpu.set_mp_state(self.mp_state)?;
        refresh_root(vcpu, &self.sregs)?;
        vcpu.set_sregs(&self.sregs)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_fpu(&self.fpu)?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)?;
        }
        vcpu.set_debug_regs(&self.debug)?;
        refresh_tsc(vcpu)?;
        write_msrs(vcpu, &self.msrs)?;
        vcpu.set_lapic(&self.lapic)?;
        vcpu.set_vcpu_events(&self.events)?;
        Ok(())
    }
}

pub(super) fn collect(entries: &[kvm_msr_entry]) -> io::Result<Msrs> {
    Msrs::from_entries(entries).map_err(|e| io::Error::other(format!("{e:?}")))
}

/// Reads every listed MSR that this vCPU has; KVM stops at one it refuses, so that one is left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> io::Result<Vec<kvm_msr_entry>> {
    let mut rest: Vec<_> = indices
        .iter()
        .filter(|&&index| index != MSR_TSC)
        .map(|&index| kvm_msr_entry { index, ..Default::default() })
        .collect();
    let mut known = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let chunk = rest.get(..rest.len().min(MSRS_A_CALL)).unwrap_or(&rest);
        let mut msrs = collect(chunk)?;
        let read = vcpu.get_msrs(&mut msrs)?;
        known.extend(msrs.as_slice().iter().take(read).copied());
        let refused = usize::from(read < chunk.len());
        rest.drain(..(read + refused).min(rest.len()));
    }
    Ok(known)
}

/// Writes MSRs one call at a time as far as KVM takes them; a read-only one among them is passed over.
pub(super) fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> io::Result<()> {
    let mut rest = entries;
    while !rest.is_empty() {
        let chunk = rest.get(..rest.len().min(MSRS_A_CALL)).unwrap_or(rest);
        let written = vcpu.set_msrs(&collect(chunk)?)?;
        let refused = usize::from(written < chunk.len());
        rest = rest.get(written + refused..).unwrap_or_default();
    }
    Ok(())
}

/// Sets what firmware leaves behind on every processor: caching on for RAM, off for the PCI window; LINT0 passes
/// the PIC's interrupts on the first processor, LINT1 is the NMI wire.
pub fn after_firmware(vcpu: &VcpuFd, entry: &Entry, physical_bits: u8, first: bool) -> io::Result<()> {
    const MTRR_PHYS_BASE0: u32 = 0x200;
    const MTRR_PHYS_MASK0: u32 = 0x201;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MISC_ENABLE: u32 = 0x1a0;
    const VALID: u64 = 1 << 11;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let address_mask = (1u64 << physical_bits.clamp(36, 52)) - 1;
    // One range, aligned to its size: everything from the top of low RAM to 4 GiB is not RAM.
    let hole = boot::layout::MAX_LOW_TOP;
    write_msrs(
        vcpu,
        &[
            msr(MTRR_PHYS_BASE0, hole),
            msr(MTRR_PHYS_MASK0, (address_mask & !((1u64 << 32) - hole - 1)) | VALID),
            msr(MTRR_DEF_TYPE, entry.cpu.mtrr_def_type),
            // Fast string operations, as firmware leaves them.
            msr(MISC_ENABLE, 1),
        ],
    )?;
    let mut lapic = vcpu.get_lapic()?;
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const EXTINT: [u8; 4] = 0x700u32.to_le_bytes();
    const NMI: [u8; 4] = 0x400u32.to_le_bytes();
    let mut put = |at: usize, value: [u8; 4]| {
        for (to, from) in lapic.regs.iter_mut().skip(at).zip(value) {
            *to = from as _;
        }
    };
    if first {
        put(LVT_LINT0, EXTINT);
    }
    put(LVT_LINT1, NMI);
    Ok(vcpu.set_lapic(&lapic)?)
}

/// Points the boot processor at the kernel.
pub fn enter(vcpu: &VcpuFd, entry: &Entry) -> io::Result<()> {
    let cpu = &entry.cpu;
    let mut sregs = vcpu.get_sregs()?;
    let data = segment(&cpu.ds);
    sregs.cs = segment(&cpu.cs);
    for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *s = data;
    }
    sregs.tr = segment(&cpu.tr);
    sregs.gdt = table(&cpu.gdt);
    sregs.idt = table(&cpu.idt);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: cpu.rip,
        rsp: cpu.rsp,
        rsi: cpu.rsi,
        rbx: cpu.rbx,
        rflags: cpu.rflags,
        ..Default::default()
    })?;
    Ok(())
}

fn table(t: &boot::DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}

fn segment(s: &boot::Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind,
        present: 1,
        dpl: 0,
        db: u8::from(s.db),
        s: u8::from(s.code_or_data),
        l: u8::from(s.long),
        g: u8::from(s.granularity),
        ..Default::default()
    }
}
