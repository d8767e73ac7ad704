//! What CPUID says in the guest: what KVM supports on this host, with the topology of this machine.
//!
//! One package, one thread a core, APIC ids 0 to n-1. Leaf numbers and fields: Intel SDM volume 2A, CPUID; AMD
//! APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::kvm::{KvmError, call};

/// CPUID of every vCPU before its own ids are filled in.
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
}

impl CpuidTemplate {
    /// Asks KVM what this host supports and arranges it for `cpus` vCPUs (1 to 255).
    pub fn new(kvm: &Kvm, cpus: u32) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("asking for supported CPUID leaves"))?;
        let tsc_deadline = kvm.check_extension(kvm_ioctls::Cap::TscDeadlineTimer);
        Ok(Self { entries: arrange(supported.as_slice().to_vec(), cpus, tsc_deadline) })
    }

    /// Width of guest physical addresses in bits, as the guest is told.
    pub fn physical_bits(&self) -> u8 {
        self.entries.iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax as u8)
    }

    /// How many of them KVM can map: nested paging with four levels ends at 48 bits (AMD64 Architecture Programmer's Manual
    /// volume 3, E.4.7: GuestPhysAddrSize). Older kernels do not say.
    pub fn mapped_bits(&self) -> u8 {
        let told = self.entries.iter().find(|e| e.function == 0x8000_0008).map_or(0, |e| (e.eax >> 16) as u8);
        self.physical_bits().min(if told == 0 { 48 } else { told })
    }

    /// What SMBIOS calls the processor's ID: EAX of leaf 1 in the lower half, EDX in the upper one.
    pub fn processor_id(&self) -> u64 {
        let leaf = self.entries.iter().find(|e| e.function == 1);
        leaf.map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
    }

    /// The leaves of the vCPU with this APIC id.
    pub fn for_vcpu(&self, apic_id: u32) -> Result<CpuId, KvmError> {
        let entries: Vec<_> = self.entries.iter().map(|e| personalize(*e, apic_id)).collect();
        CpuId::from_entries(&entries).map_err(|e| KvmError::Call {
            what: "collecting CPUID leaves",
            source: std::io::Error::other(e.to_string()),
        })
    }
}

/// Bits needed to number `count` things: the width of an APIC id field.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn arrange(mut entries: Vec<kvm_cpuid_entry2>, cpus: u32, tsc_deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let amd = entries.iter().any(|e| e.function == 0 && is_amd(e));
    // The topology leaves are written anew, whatever the host has.
    entries.retain(|e| !matches!(e.function, 0xb | 0x1f));
    let highest = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    if highest >= 0xb {
        topology_leaf(&mut entries, 0xb, cpus);
    }
    if highest >= 0x1f && !amd {
        topology_leaf(&mut entries, 0x1f, cpus);
    }
    for e in &mut entries {
        match e.function {
            0x1 => feature_leaf(e, cpus, tsc_deadline),
            // Deterministic caches. Levels 1 and 2 belong to a core, level 3 to the package.
            0x4 if e.eax & 0x1f != 0 => {
                let sharing = if (e.eax >> 5) & 7 >= 3 { cpus - 1 } else { 0 };
                let cores = (1 << id_bits(cpus)) - 1;
                e.eax = (e.eax & 0x3fff) | (sharing.min(0xfff) << 14) | (cores.min(0x3f) << 26);
            }
            0x8000_0001 if amd => {
                // CmpLegacy (bit 1) goes with several cores; TopologyExtensions (bit 22) with leaves 1Dh and 1Eh.
                e.ecx = (e.ecx & !(1 << 1)) | (u32::from(cpus > 1) << 1);
            }
            0x8000_0008 => {
                let fields = if amd { ((cpus - 1) & 0xff) | (id_bits(cpus) << 12) } else { 0 };
                e.ecx = fields;
            }
            0x8000_001d if e.eax & 0x1f != 0 => {
                let sharing = if (e.eax >> 5) & 7 >= 3 { cpus - 1 } else { 0 };
                e.eax = (e.eax & 0x3fff) | (sharing.min(0xfff) << 14);
            }
            // One thread a core, one node a package; the ids follow for each vCPU.
            0x8000_001e => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
    entries
}

fn is_amd(leaf0: &kvm_cpuid_entry2) -> bool {
    let vendor = [leaf0.ebx, leaf0.edx, leaf0.ecx].map(u32::to_le_bytes).concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}

fn feature_leaf(e: &mut kvm_cpuid_entry2, cpus: u32, tsc_deadline: bool) {
    // EBX: CLFLUSH size stays; number of addressable ids in the package; the APIC id follows for each vCPU.
    e.ebx = (e.ebx & 0xff00) | (cpus.min(255) << 16);
    // HTT (EDX bit 28) says that the number of ids is meaningful.
    e.edx = (e.edx & !(1 << 28)) | (u32::from(cpus > 1) << 28);
    // The in-kernel APIC can run from the TSC and in x2APIC mode; and this is a hypervisor (bit 31).
    e.ecx = (e.ecx & !(1 << 24)) | (u32::from(tsc_deadline) << 24) | (1 << 21) | (1 << 31);
}

/// Leaf Bh or 1Fh: the levels thread and core, then an invalid level that ends the list.
fn topology_leaf(entries: &mut Vec<kvm_cpuid_entry2>, function: u32, cpus: u32) {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | (kind << 8),
        edx: 0,
        ..Default::default()
    };
    entries.push(level(0, 0, 1, THREAD));
    entries.push(level(1, id_bits(cpus), cpus, CORE));
    entries.push(level(2, 0, 0, 0));
}

fn personalize(mut e: kvm_cpuid_entry2, apic_id: u32) -> kvm_cpuid_entry2 {
    match e.function {
        0x1 => e.ebx = (e.ebx & 0x00ff_ffff) | (apic_id << 24),
        0xb | 0x1f => e.edx = apic_id,
        0x8000_001e => {
            e.eax = apic_id;
            e.ebx = apic_id & 0xff;
        }
        _ => {}
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn host(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        let word = |i: usize| u32::from_le_bytes(vendor[i..i + 4].try_into().unwrap());
        vec![
            leaf(0, 0, [0x1f, word(0), word(8), word(4)]),
            leaf(1, 0, [0x0008_0f10, 0x0710_0800, 0, 0]),
            leaf(4, 0, [0x0400_0121, 0, 0, 0]),
            leaf(4, 3, [0x0400_0163, 0, 0, 0]),
            leaf(0xb, 0, [1, 2, 0x100, 7]),
            leaf(0x8000_0001, 0, [0, 0, 1 << 22, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x7007, 0]),
            leaf(0x8000_001d, 3, [0x0001_c163, 0, 0, 0]),
            leaf(0x8000_001e, 0, [7, 0x103, 1, 0]),
        ]
    }

    fn at(cpus: u32, apic_id: u32, vendor: &[u8; 12], function: u32, index: u32) -> [u32; 4] {
        let t = CpuidTemplate { entries: arrange(host(vendor), cpus, true) };
        let all = t.for_vcpu(apic_id).unwrap();
        let e = all.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap();
        [e.eax, e.ebx, e.ecx, e.edx]
    }

    #[test]
    fn intel_topology_of_six() {
        let v = b"GenuineIntel";
        // Six ids need three bits; the package has six logical processors.
        assert_eq!(at(6, 5, v, 0xb, 0), [0, 1, 0x100, 5]);
        assert_eq!(at(6, 5, v, 0xb, 1), [3, 6, 0x201, 5]);
        assert_eq!(at(6, 5, v, 0xb, 2), [0, 0, 2, 5]);
        assert_eq!(at(6, 5, v, 0x1f, 1), [3, 6, 0x201, 5]);
        let one = at(6, 5, v, 1, 0);
        assert_eq!((one[1], one[3] >> 28 & 1), (0x0506_0800, 1));
        assert_eq!(one[2] & (1 << 31 | 1 << 24 | 1 << 21), 1 << 31 | 1 << 24 | 1 << 21);
        // L1: private to a core, 8 core ids; L3: shared by six.
        assert_eq!(at(6, 0, v, 4, 0)[0], 0x1c00_0121);
        assert_eq!(at(6, 0, v, 4, 3)[0], 0x1c01_4163);
        assert_eq!(at(6, 0, v, 0x8000_0008, 0)[2], 0);
    }

    #[test]
    fn addresses_that_nested_paging_does_not_reach_are_nobodys() {
        let bits = |eax| {
            let t = CpuidTemplate { entries: vec![leaf(0x8000_0008, 0, [eax, 0, 0, 0])] };
            (t.physical_bits(), t.mapped_bits())
        };
        assert_eq!(bits(0x0030_3034), (52, 48));
        assert_eq!(bits(0x0034_3934), (52, 52));
        assert_eq!(bits(0x3034), (52, 48));
        assert_eq!(bits(0x3027), (39, 39));
        assert_eq!(bits(0x0030_302e), (46, 46));
    }

    #[test]
    fn amd_topology() {
        let v = b"AuthenticAMD";
        assert_eq!(at(4, 3, v, 0x8000_0008, 0)[2], 0x2003);
        assert_eq!(at(4, 3, v, 0x8000_001e, 0), [3, 3, 0, 0]);
        assert_eq!(at(4, 3, v, 0x8000_0001, 0)[2], 1 << 22 | 1 << 1);
        assert_eq!(at(4, 3, v, 0x8000_001d, 3)[0], 0x0000_c163);
        assert_eq!(at(1, 0, v, 0x8000_0001, 0)[2], 1 << 22);
        assert_eq!(at(255, 254, v, 0x8000_0008, 0)[2], 0x80fe);
        assert_eq!(at(255, 254, v, 1, 0)[1], 0xfeff_0800);
    }

    #[test]
    fn a_single_cpu_has_no_siblings() {
        let one = at(1, 0, b"GenuineIntel", 1, 0);
        assert_eq!((one[1] >> 16 & 0xff, one[3] >> 28 & 1), (1, 0));
        assert_eq!(at(1, 0, b"GenuineIntel", 0xb, 1), [0, 1, 0x201, 0]);
    }
}
