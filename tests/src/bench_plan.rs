//! What a measurement of a disk is made of: the workloads, and the conditions under which they run.

use std::path::PathBuf;

use anyhow::Result;

use crate::bed::Bed;
use crate::fio::Job;
use crate::guest::{Guest, HbaKind, Vmm};
use crate::kernel::Debian;
use crate::tools::Tools;

const HALT_POLL: &str = "/sys/module/kvm/parameters/halt_poll_ns";
const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
/// What Linux has on x86 where nobody sets it (KVM_HALT_POLL_NS_DEFAULT).
pub const HALT_POLL_DEFAULT: u32 = 200_000;

/// Where the QEMU comes from that is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum QemuSuite {
    /// Debian 13: QEMU 10.
    #[default]
    Trixie,
    /// Debian's newest, whatever that is on the day it is fetched.
    Sid,
}

impl QemuSuite {
    /// The tools with this QEMU.
    pub fn tools(self, bed: &Bed) -> Result<Tools> {
        match self {
            Self::Trixie => Ok(bed.prepared().tools().clone()),
            Self::Sid => Tools::of_suite("qemu-sid", "sid", &["qemu-system-x86", "seabios"]),
        }
    }
}

/// With what fio in the guest asks for I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The system calls of AIO.
    Libaio,
    /// A ring.
    #[default]
    #[value(name = "io_uring")]
    IoUring,
}

impl Engine {
    /// fio's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Libaio => "libaio",
            Self::IoUring => "io_uring",
        }
    }
}

/// What to measure, and under which conditions.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The HBA the disk is on.
    pub hba: HbaKind,
    /// How often each VMM is started.
    pub rounds: u32,
    /// Only the most telling workloads, and short ones.
    pub quick: bool,
    /// Seconds of each workload; as many as fit `quick` where none are given.
    pub seconds: Option<u32>,
    /// vCPUs of the guest, each with a queue.
    pub cpus: u32,
    /// Each workload on every vCPU at once, and not on one of them.
    pub spread: bool,
    /// What the device gives without a virtual machine is measured too.
    pub host: bool,
    /// Only workloads whose name holds one of these; all if there is none.
    pub only: Vec<String>,
    /// Writes that are to be stable, one after the other and eight at a time, instead of the usual workloads.
    pub forced: bool,
    /// Cache mode of the disk.
    pub cache: String,
    /// With what fio asks.
    pub engine: Engine,
    /// The guest's kernel.
    pub debian: Debian,
    /// KVM's `halt_poll_ns`; what it is when none is given.
    pub halt_poll: Option<u32>,
    /// The clock of the place where guests run; what it is when none is given.
    pub clock: Option<String>,
    /// The QEMU it is measured against.
    pub qemu: QemuSuite,
    /// Keys of our `[[hba]]`, `KEY=VALUE`.
    pub keys: Vec<String>,
    /// The program of Cloud Hypervisor, for [`Vmm::CloudHypervisor`].
    pub cloud_hypervisor: Option<PathBuf>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            hba: HbaKind::Virtio,
            rounds: 3,
            quick: false,
            seconds: None,
            cpus: 1,
            spread: false,
            host: true,
            only: Vec::new(),
            forced: false,
            cache: "none".into(),
            engine: Engine::default(),
            debian: Debian::Trixie,
            halt_poll: None,
            clock: None,
            qemu: QemuSuite::default(),
            keys: Vec::new(),
            cloud_hypervisor: None,
        }
    }
}

impl Plan {
    /// The workloads, in their order.
    pub fn jobs(&self) -> Vec<Job> {
        let mut jobs = if self.forced { forced() } else { self.usual() };
        if !self.only.is_empty() {
            jobs.retain(|job| self.only.iter().any(|word| job.name().contains(word)));
        }
        jobs
    }

    fn usual(&self) -> Vec<Job> {
        let (depths, counts): (&[u32], &[u32]) = match (self.quick, self.spread) {
            (true, false) => (&[1, 32], &[1]),
            (true, true) => (&[1, 32], &[self.cpus]),
            (false, _) => (&[1, 8, 32], &[1, 4]),
        };
        let mut jobs = Vec::new();
        for pattern in ["randread", "randwrite"] {
            for &count in counts {
                jobs.extend(depths.iter().map(|&depth| Job::new(pattern, 4, depth, count)));
            }
        }
        let sizes: &[u32] = if self.quick { &[128] } else { &[128, 1024] };
        for pattern in ["read", "write"] {
            let count = if self.spread { self.cpus } else { 1 };
            jobs.extend(sizes.iter().map(|&block_kib| Job::new(pattern, block_kib, 8, count)));
        }
        jobs
    }

    /// Seconds of each workload, after a second that does not count.
    pub fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(if self.quick { 3 } else { 5 })
    }

    /// A guest under these conditions, without its disk.
    pub fn guest<'a>(&self, bed: &'a Bed, vmm: Vmm, qemu: &Tools) -> Result<Guest<'a>> {
        let mut guest = bed.guest().vmm(vmm).kernel(self.debian).cpus(self.cpus).memory("1GiB").qemu(qemu);
        if let Some(program) = &self.cloud_hypervisor {
            guest = guest.program(program.clone());
        }
        guest.keys(self.hba, &self.keys)
    }
}

fn forced() -> Vec<Job> {
    let with = |forced, depth| Job { forced, ..Job::new("randwrite", 4, depth, 1) };
    vec![with("fdatasync", 1), with("fdatasync", 8), with("sync", 1), with("sync", 8)]
}

/// The conditions of a measurement as they are, in the words of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Name and value of each.
    pub list: Vec<(&'static str, String)>,
}

impl Conditions {
    /// Those of `plan`, and what the place where guests run says of itself.
    pub fn of(bed: &Bed, plan: &Plan, qemu: &Tools) -> Result<Self> {
        let words = qemu.words("qemu-system-x86_64", "qemu-system-x86_64", None)?;
        let version = bed.host().shell(&format!("{} --version", words.join(" ")), 120)?;
        let version = version.lines().next().unwrap_or_default();
        let hba = if plan.hba == HbaKind::Virtio { "virtio-scsi" } else { "megasas" };
        Ok(Self {
            list: vec![
                ("hba", hba.into()),
                ("cpus", plan.cpus.to_string()),
                ("guest", format!("Debian {}", plan.debian.number())),
                ("engine", plan.engine.name().into()),
                ("cache", plan.cache.clone()),
                ("halt_poll_ns", text(bed, HALT_POLL)?),
                ("clock", text(bed, CLOCK)?),
                ("qemu", version.trim_start_matches("QEMU emulator version ").into()),
            ],
        })
    }

    /// All in one line.
    pub fn line(&self) -> String {
        let items: Vec<String> = self.list.iter().map(|(name, value)| format!("{name} {value}")).collect();
        items.join(", ")
    }

    /// The members of an object of JSON.
    pub fn json(&self) -> String {
        let items: Vec<String> =
            self.list.iter().map(|(name, value)| format!("\"{name}\": \"{value}\"")).collect();
        items.join(", ")
    }
}

fn text(bed: &Bed, file: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&bed.host().get(file)?).trim().to_string())
}

/// What a measurement changed where guests run; as it was before when this is dropped.
pub struct Settings<'a> {
    bed: &'a Bed,
    before: Vec<(&'static str, String)>,
}

impl<'a> Settings<'a> {
    /// Sets what `plan` asks for.
    pub fn apply(bed: &'a Bed, plan: &Plan) -> Result<Self> {
        let mut settings = Self { bed, before: Vec::new() };
        if let Some(time) = plan.halt_poll {
            settings.set(HALT_POLL, &time.to_string())?;
        }
        if let Some(clock) = &plan.clock {
            settings.set(CLOCK, clock)?;
        }
        Ok(settings)
    }

    fn set(&mut self, file: &'static str, value: &str) -> Result<()> {
        let before = text(self.bed, file)?;
        if before == value {
            return Ok(());
        }
        self.before.push((file, before));
        write(self.bed, file, value)?;
        let now = text(self.bed, file)?;
        anyhow::ensure!(now == value, "{file} is {now} and does not become {value}");
        Ok(())
    }
}

fn write(bed: &Bed, file: &str, value: &str) -> Result<()> {
    bed.host().shell(&format!("echo {value} > {file}"), 60).map(|_| ())
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        for (file, value) in self.before.drain(..) {
            if let Err(error) = write(self.bed, file, &value) {
                crate::report::note(&format!("{file} does not become {value} again: {error:#}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_and_full_plans() {
        let plan = Plan { quick: true, ..Plan::default() };
        assert_eq!(plan.jobs().len(), 6);
        assert_eq!(Plan::default().jobs().len(), 16);
        let one = Plan { only: vec!["randread-4k-d32".into()], ..plan.clone() };
        assert_eq!(one.jobs().len(), 1);
        let two = Plan { cpus: 2, spread: true, ..plan.clone() };
        assert!(two.jobs().iter().all(|job| job.jobs == 2) && two.jobs().len() == 6);
        let names: Vec<_> = Plan { forced: true, ..plan }.jobs().iter().map(Job::name).collect();
        assert_eq!(names.first().map(String::as_str), Some("randwrite-4k-d1-j1-fdatasync"));
    }

    #[test]
    fn conditions_in_words() {
        let conditions = Conditions { list: vec![("cpus", "2".into()), ("clock", "hpet".into())] };
        assert_eq!(conditions.line(), "cpus 2, clock hpet");
        assert_eq!(conditions.json(), "\"cpus\": \"2\", \"clock\": \"hpet\"");
    }
}
