//! Measures a device of the host: as an image, passed through whole, and passed through by QEMU, in one run, alternating.

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::bench_plan::{Conditions, Plan, Settings};
use crate::bench_storage::{Sample, guest_figures};
use crate::fio::{Fio, Job};
use crate::guest::{Disk, HbaKind, Vmm};
use crate::report::{median, note};

/// A SCSI disk in memory, which answers at once.
const MAKE: &str = "[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug
    modprobe -a sd_mod sg
    for turn in $(seq 50); do
        [ ! -e /sys/module/scsi_debug ] || modprobe -r scsi_debug 2>/dev/null
        [ -e /sys/module/scsi_debug ] || break
        sleep 0.2
    done
    modprobe scsi_debug dev_size_mb=576 delay=0 max_queue=192 || exit 1
    for turn in $(seq 50); do
        for host in /sys/class/scsi_host/host*; do
            device=/sys/class/scsi_device/${host##*host}:0:0:0/device
            if [ $(cat $host/proc_name) = scsi_debug ] && [ -e $device/block ] && [ -e $device/scsi_generic ]; then
                node=$(ls $device/block)
                echo none > /sys/block/$node/queue/scheduler
                dd if=/dev/urandom of=/dev/$node bs=1M count=512 oflag=direct 2>/dev/null
                echo NODES /dev/$node /dev/$(ls $device/scsi_generic)
                exit 0
            fi
        done
        sleep 0.1
    done
    exit 1";

/// A way to give the guest the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// What the table calls it.
    name: &'static str,
    /// What runs it.
    vmm: Vmm,
    /// `type` of the unit: `disk` is the device as a raw image.
    kind: &'static str,
}

const WAYS: [Way; 5] = [
    Way { name: "raw", vmm: Vmm::Ours, kind: "disk" },
    Way { name: "block", vmm: Vmm::Ours, kind: "block" },
    Way { name: "generic", vmm: Vmm::Ours, kind: "generic" },
    Way { name: "scsi-block", vmm: Vmm::Qemu, kind: "block" },
    Way { name: "scsi-generic", vmm: Vmm::Qemu, kind: "generic" },
];

/// What is compared with what: the first with the second.
const PAIRS: [(&str, &str); 3] = [("block", "raw"), ("generic", "scsi-generic"), ("block", "scsi-block")];

impl Way {
    fn disk(self, plan: &Plan, block: &str, sg: &str) -> Disk {
        let disk = match self.kind {
            "disk" => Disk::file(block).cache(&plan.cache),
            "block" => Disk::passed("block", block),
            _ => Disk::passed("generic", sg),
        };
        disk.on(plan.hba)
    }
}

/// Measures each way in each round, and prints the medians and what the rounds' ratios come to.
pub fn run(bed: &Bed, plan: &Plan) -> Result<()> {
    let jobs = plan.jobs();
    ensure!(!jobs.is_empty(), "no workload has such a name");
    let (fio, qemu) = (Fio::prepare()?, plan.qemu.tools(bed)?);
    let archive = fio.archive()?;
    let made = bed.host().shell(MAKE, 300)?;
    let nodes = made.lines().find_map(|line| line.strip_prefix("NODES ")?.split_once(' '));
    let (block, sg) = nodes.with_context(|| format!("there is no disk of scsi_debug: {made}"))?;
    let _settings = Settings::apply(bed, plan)?;
    note(&Conditions::of(bed, plan, &qemu)?.line());
    let mut plan = plan.clone();
    if plan.hba == HbaKind::Megasas {
        plan.keys.push("mode=jbod".into());
    }
    let mut samples = vec![vec![Vec::new(); jobs.len()]; WAYS.len()];
    for round in 1..=plan.rounds {
        for (way, lists) in WAYS.iter().zip(&mut samples) {
            let measure =
                || guest_figures(bed, way.vmm, way.disk(&plan, block, sg), &plan, &jobs, &archive, &qemu);
            let mut result = measure();
            if bed.is_emulated() && result.is_err() {
                note(&format!("round {round}, {}: failed, once more", way.name));
                bed.clear()?;
                result = measure();
            }
            let diagnostics = bed.take_diagnostics().join("\n");
            let result = result.with_context(|| format!("{} failed\n{diagnostics}", way.name))?;
            for ((job, list), sample) in jobs.iter().zip(lists).zip(result) {
                note(&format!("round {round}, {}", line(way.name, *job, sample)));
                list.push(sample);
            }
            bed.clear()?;
        }
    }
    for (place, job) in jobs.iter().enumerate() {
        let of = |way: usize| samples.get(way).and_then(|lists| lists.get(place));
        for (number, way) in WAYS.iter().enumerate() {
            println!("{}", line(way.name, *job, middle(of(number).context("no sample")?)));
        }
        for (ours, theirs) in PAIRS {
            let find = |name| WAYS.iter().position(|way| way.name == name).and_then(of);
            let (Some(ours_list), Some(their_list)) = (find(ours), find(theirs)) else { continue };
            let ratio = |value: &dyn Fn(&Sample) -> f64| {
                median(
                    &ours_list.iter().zip(their_list).map(|(a, b)| value(a) / value(b)).collect::<Vec<_>>(),
                )
            };
            println!(
                "{:20} {ours} to {theirs}: {:.3} of the operations, {:.3} of the CPU time of each",
                job.name(),
                ratio(&|sample| sample.figures.iops),
                ratio(&Sample::cpu_each)
            );
        }
    }
    Ok(())
}

fn line(name: &str, job: Job, sample: Sample) -> String {
    format!(
        "{:20} {name:12} {:8.0} IOPS {:8.1} MB/s {:8.1} us CPU {:6.2} exits {:6.2} waits",
        job.name(),
        sample.figures.iops,
        sample.figures.megabytes,
        sample.cpu_each(),
        sample.exits / sample.figures.operations.max(1.0),
        sample.waits / sample.figures.operations.max(1.0)
    )
}

/// The median of each figure.
fn middle(list: &[Sample]) -> Sample {
    let of = |value: &dyn Fn(&Sample) -> f64| median(&list.iter().map(value).collect::<Vec<_>>());
    Sample {
        figures: crate::fio::Figures {
            iops: of(&|sample| sample.figures.iops),
            megabytes: of(&|sample| sample.figures.megabytes),
            operations: of(&|sample| sample.figures.operations),
        },
        cpu: of(&|sample| sample.cpu),
        exits: of(&|sample| sample.exits),
        waits: of(&|sample| sample.waits),
    }
}
