//! What KVM counted for a vCPU (KVM API, 4.133, KVM_GET_STATS_FD), as a line of the log when its thread ends.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Offsets in the header: length of names, number of descriptors, where these and the values begin.
const NAME_LEN: usize = 4;
const COUNT: usize = 8;
const DESCRIPTORS: usize = 16;
const VALUES: usize = 20;
/// Offsets in a descriptor: number of values, and where they are among the values; its name.
const SIZE: usize = 6;
const OFFSET: usize = 8;
const NAME: usize = 16;

/// Logs, at level debug under `vmm::counters`, how often KVM_RUN returned for vCPU `index`, and what KVM counted that
/// is not zero: `exits` of the guest, among them those it answered itself, `insn_emulation` and more.
pub fn log(vcpu: &VcpuFd, index: u32, returns: u64) {
    if !tracing::enabled!(target: "vmm::counters", tracing::Level::DEBUG) {
        return;
    }
    let counters = match read(vcpu) {
        Ok(bytes) => parse(&bytes).unwrap_or_default(),
        // Kernels before 5.14.
        Err(e) => format!(" (no more: {e})"),
    };
    tracing::debug!(target: "vmm::counters", "vCPU {index}: returns={returns}{counters}");
}

fn read(vcpu: &VcpuFd) -> io::Result<Vec<u8>> {
    // SAFETY: the call takes no argument and touches no memory of ours.
    #[allow(unsafe_code)]
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    #[allow(unsafe_code)]
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// ` name=value` of each counter that is one number and not zero.
fn parse(bytes: &[u8]) -> Option<String> {
    let [name_len, count, descriptors, values] =
        [NAME_LEN, COUNT, DESCRIPTORS, VALUES].map(|at| word(bytes, at));
    let (name_len, descriptors, values) = (name_len?, descriptors?, values?);
    let mut text = String::new();
    for number in 0..count? {
        let at = descriptors.checked_add(number.checked_mul(NAME.checked_add(name_len)?)?)?;
        let descriptor = bytes.get(at..)?.get(..NAME + name_len)?;
        let &[low, high] = descriptor.get(SIZE..SIZE + 2)? else { return None };
        let at = values.checked_add(word(descriptor, OFFSET)?)?;
        let value = bytes.get(at..)?.first_chunk().map(|value| u64::from_ne_bytes(*value))?;
        if u16::from_ne_bytes([low, high]) == 1 && value != 0 {
            let name = descriptor.get(NAME..)?.split(|byte| *byte == 0).next()?;
            // Writing into a String does not fail.
            let _ = write!(text, " {}={value}", String::from_utf8_lossy(name));
        }
    }
    Some(text)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*word)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of counters: header, descriptors with names of 16 bytes, values.
    fn file(counters: &[(&str, &[u64])]) -> Vec<u8> {
        let (descriptors, values) = (24, 24 + 32 * counters.len());
        let header = [0, 16, counters.len(), 0, descriptors, values];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| (*word as u32).to_ne_bytes()).collect();
        let mut offset = 0u32;
        for (name, values) in counters {
            bytes.extend([0; 6]);
            bytes.extend((values.len() as u16).to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend([0; 4]);
            let mut field = [0; 16];
            field[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend(field);
            offset += 8 * values.len() as u32;
        }
        bytes.extend(counters.iter().flat_map(|(_, values)| *values).flat_map(|value| value.to_ne_bytes()));
        bytes
    }

    #[test]
    fn counters_have_names() {
        let bytes =
            file(&[("exits", &[1304]), ("zero", &[0]), ("histogram", &[1, 2, 3]), ("insn_emulation", &[7])]);
        assert_eq!(parse(&bytes).unwrap(), " exits=1304 insn_emulation=7");
        assert_eq!(parse(&file(&[])).unwrap(), "");
    }

    #[test]
    fn a_file_that_ends_early_has_none() {
        let bytes = file(&[("exits", &[1304]), ("hist", &[1, 2])]);
        for len in 0..bytes.len() - 8 {
            assert_eq!(parse(&bytes[..len]), None, "{len}");
        }
        let mut far = bytes;
        far[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&far), None);
    }
}
