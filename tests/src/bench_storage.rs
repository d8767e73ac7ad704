//! Measures a disk of our VMM against one of QEMU: the same guest, the same memory-backed device of the host,
//! direct I/O, alternating.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::bench_chart;
use crate::bench_plan::{Conditions, Plan, Settings};
use crate::fio::{self, Figures, Fio, Job};
use crate::guest::{Disk, HbaKind, Vmm};
use crate::paths;
use crate::report::{median, note};
use crate::tools::Tools;

const PATIENCE: u64 = 600;
const DEVICE: &str = "/dev/nullb0";
/// Clock ticks of /proc/PID/stat in a second, on every Linux.
const TICKS: f64 = 100.0;

/// One run of one workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// What fio says.
    pub figures: Figures,
    /// Seconds of processor time of the VMM, the guest's own not counted.
    pub cpu: f64,
    /// Times that the guest left its processor.
    pub exits: f64,
    /// Times that a thread of the VMM gave up its processor to wait.
    pub waits: f64,
}

impl Sample {
    /// Microseconds of processor time of the VMM for each operation.
    pub fn cpu_each(&self) -> f64 {
        self.cpu * 1e6 / self.figures.operations.max(1.0)
    }
}

/// The medians of one workload on one VMM, or on the host itself.
#[derive(Clone, Debug)]
pub struct Row {
    /// The workload.
    pub job: Job,
    /// What ran it.
    pub name: &'static str,
    /// Operations in a second.
    pub iops: f64,
    /// MB in a second.
    pub megabytes: f64,
    /// Microseconds of processor time for each operation; none for the host itself.
    pub cpu: Option<f64>,
    /// Exits of the guest for each operation, where the host tells.
    pub exits: Option<f64>,
    /// The operations in a second of each round.
    pub all: Vec<f64>,
}

/// What a measurement gave, and under which conditions.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// For each workload the host itself, if it was measured, and each VMM.
    pub rows: Vec<Row>,
    /// Under these.
    pub conditions: Conditions,
}

/// Measures, prints the medians, and writes `storage.json` and `storage.svg`.
pub fn run(bed: &Bed, plan: &Plan, which: &[Vmm]) -> Result<()> {
    report(&measure(bed, plan, which)?, plan)
}

/// Measures.
pub fn measure(bed: &Bed, plan: &Plan, which: &[Vmm]) -> Result<Outcome> {
    let jobs = plan.jobs();
    ensure!(!jobs.is_empty(), "no workload has such a name");
    let (fio, qemu) = (Fio::prepare()?, plan.qemu.tools(bed)?);
    let archive = fio.archive()?;
    bed.host().shell(
        "[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug
         [ -e /dev/nullb0 ] || modprobe null_blk nr_devices=1 memory_backed=1 gb=1 bs=512 hw_queue_depth=256
         dd if=/dev/urandom of=/dev/nullb0 bs=1M count=512 oflag=direct 2>/dev/null",
        120,
    )?;
    let _settings = Settings::apply(bed, plan)?;
    let conditions = Conditions::of(bed, plan, &qemu)?;
    note(&conditions.line());
    let mut samples: Vec<Vec<Vec<Sample>>> = vec![vec![Vec::new(); jobs.len()]; which.len()];
    let mut limits = vec![Vec::new(); jobs.len()];
    for round in 1..=plan.rounds {
        let host = if plan.host { host_figures(bed, &fio, &jobs, plan)? } else { Vec::new() };
        for (list, figures) in limits.iter_mut().zip(host) {
            list.push(Sample { figures, ..Sample::default() });
        }
        for (vmm, lists) in which.iter().zip(&mut samples) {
            let disk = || Disk::file(DEVICE).cache(&plan.cache).on(plan.hba);
            let mut result = guest_figures(bed, *vmm, disk(), plan, &jobs, &archive, &qemu);
            if bed.is_emulated() && result.is_err() {
                note(&format!("round {round}, {}: failed, once more", vmm.name()));
                bed.clear()?;
                result = guest_figures(bed, *vmm, disk(), plan, &jobs, &archive, &qemu);
            }
            let diagnostics = bed.take_diagnostics().join("\n");
            let result = result.with_context(|| format!("{} failed\n{diagnostics}", vmm.name()))?;
            for ((job, list), sample) in jobs.iter().zip(lists).zip(result) {
                let (figures, each) = (sample.figures, sample.cpu_each());
                note(&format!(
                    "round {round}, {:4} {:20} {:8.0} IOPS {:8.1} MB/s {each:8.1} us CPU",
                    vmm.name(),
                    job.name(),
                    figures.iops,
                    figures.megabytes
                ));
                list.push(sample);
            }
            bed.clear()?;
        }
    }
    let mut rows = Vec::new();
    for (place, job) in jobs.iter().enumerate() {
        let host = limits.get(place).filter(|list| !list.is_empty());
        rows.extend(host.map(|list| row(*job, "host", list, false)));
        for (vmm, lists) in which.iter().zip(&samples) {
            rows.extend(lists.get(place).map(|list| row(*job, vmm.name(), list, true)));
        }
    }
    Ok(Outcome { rows, conditions })
}

fn row(job: Job, name: &'static str, list: &[Sample], cpu: bool) -> Row {
    let of = |value: &dyn Fn(&Sample) -> f64| median(&list.iter().map(value).collect::<Vec<_>>());
    let exits = of(&|sample| sample.exits / sample.figures.operations.max(1.0));
    Row {
        job,
        name,
        iops: of(&|sample| sample.figures.iops),
        megabytes: of(&|sample| sample.figures.megabytes),
        cpu: cpu.then(|| of(&Sample::cpu_each)),
        exits: (cpu && exits > 0.0).then_some(exits),
        all: list.iter().map(|sample| sample.figures.iops).collect(),
    }
}

/// What the device gives without any virtual machine.
fn host_figures(bed: &Bed, fio: &Fio, jobs: &[Job], plan: &Plan) -> Result<Vec<Figures>> {
    let dir = bed.new_dir()?;
    let file = format!("{dir}/jobs.fio");
    bed.host()
        .put(&file, fio::job_file(jobs, DEVICE, plan.engine.name(), plan.seconds(), None).as_bytes())?;
    let command = format!("cd {dir}; {} {} {file}", fio.words().join(" "), fio::OPTIONS.join(" "));
    let output = bed.host().shell(&command, PATIENCE)?;
    jobs.iter().map(|job| fio::parse(&output, job)).collect()
}

/// What a guest gets of this disk. It says on its console when each workload begins and ends, for the processor times.
pub fn guest_figures(
    bed: &Bed,
    vmm: Vmm,
    disk: Disk,
    plan: &Plan,
    jobs: &[Job],
    archive: &Path,
    qemu: &Tools,
) -> Result<Vec<Sample>> {
    let name = match plan.hba {
        HbaKind::Virtio => "/dev/at/0:0:0:0",
        HbaKind::Megasas => "$(ls /dev/at/* | head -n 1)",
    };
    let announce = "sh -c \"echo BENCH @ > /dev/console\"";
    let jobs_file = fio::job_file(jobs, "@DISK@", plan.engine.name(), plan.seconds(), Some(announce));
    let script = format!(
        "cd /tmp\n{}disk=$(readlink -f {name}); [ -b \"$disk\" ] || disk=/dev/vda; sed -i \"s,@DISK@,$disk,\" jobs
         echo none > /sys/block/${{disk##*/}}/queue/scheduler
         fio {} jobs > result 2>&1 || {{ cat result; exit 1; }}
         grep ';' result | cut -d';' -f1-9,47-50 | sed 's/^/RESULT /'",
        fio::here_document(Path::new("jobs"), &jobs_file),
        fio::OPTIONS.join(" ")
    );
    let guest = plan.guest(bed, vmm, qemu)?.archive(archive.to_path_buf());
    let mut vm = guest.disk(disk).script(&script).spawn()?;
    let mut times = Vec::new();
    for job in jobs {
        let mut sample = |what: &str| -> Result<[f64; 3]> {
            vm.wait_for(&format!("BENCH {} {what}", job.name()), PATIENCE)?;
            Ok([processor_time(bed, vm.pid())?, exits(bed), waits(bed, vm.pid())?])
        };
        let begin = sample("begins")?;
        let end = sample("ends")?;
        times.push([end[0] - begin[0], end[1] - begin[1], end[2] - begin[2]]);
    }
    let output = vm.wait_for("TESTBED EXIT ", PATIENCE)?;
    let code = vm.wait_for("\n", 10)?;
    ensure!(code.trim() == "0", "the script in the guest failed with {code}");
    vm.expect_exit(0, 60)?;
    let lines: String = output.lines().filter_map(|line| line.trim().strip_prefix("RESULT ")).fold(
        String::new(),
        |mut text, line| {
            // The fields between reads and writes were left out on the way over the slow console.
            let fields: Vec<&str> = line.split(';').collect();
            let (reads, writes) = fields.split_at_checked(9).unwrap_or((&fields, &[]));
            let _ = writeln!(text, "{}{}{}", reads.join(";"), ";".repeat(38), writes.join(";"));
            text
        },
    );
    let figures = jobs.iter().map(|job| fio::parse(&lines, job));
    // Processor time is counted from before the ramp, operations after it.
    let seconds = f64::from(plan.seconds());
    let scale = seconds / (seconds + 1.0);
    figures
        .zip(times)
        .map(|(figures, counts)| {
            let [cpu, exits, waits] = counts.map(|count| count * scale);
            Ok(Sample { figures: figures?, cpu, exits, waits })
        })
        .collect()
}

/// Exits of all guests so far; 0 where the host does not tell.
pub fn exits(bed: &Bed) -> f64 {
    let count = bed.host().get("/sys/kernel/debug/kvm/exits").unwrap_or_default();
    String::from_utf8_lossy(&count).trim().parse().unwrap_or(0.0)
}

/// Voluntary switches of all threads that a process has (proc_pid_status(5)).
fn waits(bed: &Bed, pid: u32) -> Result<f64> {
    let counts = bed.host().shell(&format!("cat /proc/{pid}/task/*/status"), 60)?;
    let count = |line: &str| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<f64>().ok();
    Ok(counts.lines().filter_map(count).sum())
}

/// Processor time of a process so far in seconds, without what its guest used.
pub fn processor_time(bed: &Bed, pid: u32) -> Result<f64> {
    let stat = bed.host().get(&format!("/proc/{pid}/stat"))?;
    ticks(&String::from_utf8_lossy(&stat)).map(|ticks| ticks / TICKS)
}

/// proc_pid_stat(5): the sum of fields 14 and 15, less field 43, which is in the first.
fn ticks(stat: &str) -> Result<f64> {
    let (_, rest) = stat.rsplit_once(')').context("a process without a name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| -> Result<f64> {
        Ok(fields.get(number - 3).context("too few fields in /proc/PID/stat")?.parse()?)
    };
    Ok(field(14)? + field(15)? - field(43)?)
}

fn report(outcome: &Outcome, plan: &Plan) -> Result<()> {
    let rows = &outcome.rows;
    println!("{}", outcome.conditions.line());
    println!(
        "{:22} {:6} {:>9} {:>9} {:>9} {:>8} {:>7} {:>8}",
        "workload", "where", "IOPS", "MB/s", "us CPU/IO", "exits/IO", "to QEMU", "to cloud"
    );
    for row in rows {
        let cpu = row.cpu.map_or("-".into(), |cpu| format!("{cpu:.1}"));
        let exits = row.exits.map_or("-".into(), |exits| format!("{exits:.2}"));
        let number = |other| ratio(rows, row, other).map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let (qemu, cloud) = (number(Vmm::Qemu), number(Vmm::CloudHypervisor));
        println!(
            "{:22} {:6} {:9.0} {:9.1} {cpu:>9} {exits:>8} {qemu:>7} {cloud:>8}",
            row.job.name(),
            row.name,
            row.iops,
            row.megabytes
        );
    }
    let dir = paths::runs()?;
    let (json, svg) = (dir.join("storage.json"), dir.join("storage.svg"));
    std::fs::write(&json, to_json(outcome, plan)).with_context(|| format!("writing {}", json.display()))?;
    std::fs::write(&svg, bench_chart::svg(rows)).with_context(|| format!("writing {}", svg.display()))?;
    println!("written: {}, {}", json.display(), svg.display());
    Ok(())
}

/// Of our VMM's rows: operations in a second against another's.
pub fn ratio(rows: &[Row], row: &Row, other: Vmm) -> Option<f64> {
    let theirs = rows.iter().find(|theirs| theirs.job == row.job && theirs.name == other.name())?;
    (row.name == Vmm::Ours.name()).then_some(row.iops / theirs.iops)
}

fn to_json(outcome: &Outcome, plan: &Plan) -> String {
    let rows = &outcome.rows;
    let items: Vec<String> = rows
        .iter()
        .map(|row| {
            let all: Vec<String> = row.all.iter().map(|iops| format!("{iops:.1}")).collect();
            let cpu = row.cpu.map_or("null".into(), |cpu| format!("{cpu:.2}"));
            let exits = row.exits.map_or("null".into(), |exits| format!("{exits:.2}"));
            let number = |ratio: Option<f64>| ratio.map_or("null".into(), |ratio| format!("{ratio:.3}"));
            let (qemu, cloud) = (ratio(rows, row, Vmm::Qemu), ratio(rows, row, Vmm::CloudHypervisor));
            let (qemu, cloud): (String, String) = (number(qemu), number(cloud));
            format!(
                "    {{\"workload\": \"{}\", \"where\": \"{}\", \"iops\": {:.1}, \"mb_per_s\": {:.2}, \
                 \"cpu_us_per_io\": {cpu}, \"exits_per_io\": {exits}, \"ratio_to_qemu\": {qemu}, \"ratio_to_cloud_hypervisor\": {cloud}, \"rounds\": [{}]}}",
                row.job.name(),
                row.name,
                row.iops,
                row.megabytes,
                all.join(", ")
            )
        })
        .collect();
    format!(
        "{{\n  \"conditions\": {{{}}},\n  \"rounds\": {},\n  \"seconds\": {},\n  \"results\": [\n{}\n  ]\n}}\n",
        outcome.conditions.json(),
        plan.rounds,
        plan.seconds(),
        items.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_time_does_not_count() {
        let mut fields: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        // Field 3 is the first after the name; number it so that field n is n.
        fields.drain(..3);
        let stat = format!("1 (a (b) c) {}", fields.join(" "));
        assert_eq!(ticks(&stat).unwrap(), 14.0 + 15.0 - 43.0);
        assert!(ticks("1 (a) S 1").is_err());
    }
}
