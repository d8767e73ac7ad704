//! Measures our VMM against QEMU with the same guest, in the same place, alternating.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::Bed;
use crate::guest::{Disk, Vmm};
use crate::kernel::Debian;
use crate::report::{median, note};

const PATIENCE: u64 = 1200;
/// Mappings of at least this size are guest memory.
const GUEST_MEMORY: u64 = 128 << 20;

/// Time from starting the process to Debian 13's login prompt.
pub fn boot(bed: &Bed, rounds: u32, which: &[Vmm]) -> Result<()> {
    let measure = |vmm| -> Result<f64> {
        let disk = Disk::debian_root(Debian::Trixie);
        let mut vm = bed.guest().vmm(vmm).cpus(2).memory("1GiB").disk(disk).spawn()?;
        vm.wait_for_boot("login: ")?;
        let time = vm.age().as_secs_f64();
        vm.kill()?;
        Ok(time)
    };
    compare(bed, "boot to login, s", rounds, which, measure)
}

/// Memory that the process of an idle 1 GiB guest takes beyond the guest's own, in KiB.
pub fn memory(bed: &Bed, rounds: u32, which: &[Vmm]) -> Result<()> {
    let measure = |vmm| -> Result<f64> {
        let guest = bed.guest().vmm(vmm).memory("1GiB").disk(Disk::empty("1G")).quick_shell();
        let mut vm = guest.spawn()?;
        vm.wait_for("TESTBED READY", PATIENCE)?;
        std::thread::sleep(Duration::from_secs(3));
        let kib = own_memory(bed, vm.pid())?;
        vm.kill()?;
        Ok(kib as f64)
    };
    compare(bed, "memory beyond the guest's, KiB", rounds, which, measure)
}

fn compare(
    bed: &Bed,
    what: &str,
    rounds: u32,
    which: &[Vmm],
    measure: impl Fn(Vmm) -> Result<f64>,
) -> Result<()> {
    let mut results = vec![Vec::new(); which.len()];
    for round in 1..=rounds {
        for (vmm, values) in which.iter().zip(&mut results) {
            let mut value = measure(*vmm);
            if bed.is_emulated() && value.is_err() {
                note(&format!("{what}, round {round}, {}: failed, once more", vmm.name()));
                bed.clear()?;
                value = measure(*vmm);
            }
            let diagnostics = bed.take_diagnostics().join("\n");
            let value = value.with_context(|| format!("{} failed\n{diagnostics}", vmm.name()))?;
            note(&format!("{what}, round {round}, {}: {value:.2}", vmm.name()));
            values.push(value);
            bed.clear()?;
        }
    }
    let medians: Vec<f64> = results.iter().map(|values| median(values)).collect();
    for (vmm, median) in which.iter().zip(&medians) {
        println!("{what}: {} median {median:.2}", vmm.name());
    }
    if let [ours, qemu] = medians.as_slice() {
        println!("{what}: ratio {:.3}", ours / qemu);
    }
    Ok(())
}

/// The memory of a VMM's process in KiB, without that of its guest.
pub fn own_memory(bed: &Bed, pid: u32) -> Result<u64> {
    let smaps = bed.host().get(&format!("/proc/{pid}/smaps"))?;
    anonymous(&String::from_utf8_lossy(&smaps))
}

/// The sum, in KiB, of the anonymous memory of all mappings but the guest's own memory.
fn anonymous(smaps: &str) -> Result<u64> {
    let (mut sum, mut guest) = (0, false);
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        match key.strip_suffix(':') {
            None => {
                let (from, to) = key.split_once('-').context("a mapping without an end")?;
                let size = u64::from_str_radix(to, 16)? - u64::from_str_radix(from, 16)?;
                guest = size >= GUEST_MEMORY;
            }
            Some("Anonymous") if !guest => {
                let kib = value.split_whitespace().next().context("a line without a value")?;
                sum += kib.parse::<u64>()?;
            }
            Some(_) => (),
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::anonymous;

    #[test]
    fn sums_all_but_guest_memory() {
        let smaps = "00400000-00500000 rw-p 00000000 00:00 0 [heap]\nAnonymous:   12 kB\n\
                     7f0000000000-7f0040000000 rw-p 00000000 00:00 0\nAnonymous:  5000 kB\n\
                     7f0050000000-7f0050001000 rw-p 00000000 00:00 0\nAnonymous:   4 kB\n";
        assert_eq!(anonymous(smaps).ok(), Some(16));
    }
}
