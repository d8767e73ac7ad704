//! Measures what a small reader gets beside a greedy one: two vCPUs with a queue each, one I/O thread, and an image that is all
//! in the host's cache, where every read is a copy at once. Under our VMM and under QEMU, alternating.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::fio::{self, Fio};
use crate::guest::{Disk, HbaKind, Vmm};
use crate::paths;
use crate::report::{median, note};

const PATIENCE: u64 = 600;
const DEVICE: &str = "/dev/nullb0";
const SMALL: &str = "small";
const GREEDY: &str = "greedy";
/// How much longer than QEMU's slowest request ours may take, in microseconds.
const SLOWEST_MARGIN: f64 = 100_000.0;

/// What one reader got in one run; times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Reader {
    iops: f64,
    megabytes: f64,
    middle: f64,
    p99: f64,
    slowest: f64,
}

/// Measures, prints what each reader got, and writes `mixed.json`.
pub fn run(bed: &Bed, hba: HbaKind, rounds: u32, seconds: u32, keys: &[String], which: &[Vmm]) -> Result<()> {
    let archive = Fio::prepare()?.archive()?;
    bed.host().shell(
        "[ -e /dev/nullb0 ] || modprobe null_blk nr_devices=1 memory_backed=1 gb=1 bs=512 hw_queue_depth=256
         dd if=/dev/urandom of=/dev/nullb0 bs=1M count=512 oflag=direct 2>/dev/null",
        120,
    )?;
    let mut all: Vec<(Vmm, Vec<(Reader, Reader)>)> = which.iter().map(|vmm| (*vmm, Vec::new())).collect();
    for round in 1..=rounds {
        for (vmm, list) in &mut all {
            let result = readers(bed, *vmm, hba, seconds, keys, &archive);
            let diagnostics = bed.take_diagnostics().join("\n");
            let pair = result.with_context(|| format!("{} failed\n{diagnostics}", vmm.name()))?;
            for (name, reader) in [(SMALL, pair.0), (GREEDY, pair.1)] {
                note(&format!("round {round}, {:4} {name:6} {}", vmm.name(), reader.line()));
            }
            list.push(pair);
            bed.clear()?;
        }
    }
    report(&all)
}

fn jobs(seconds: u32) -> String {
    format!(
        "[global]\nfilename=@DISK@\nioengine=io_uring\ndirect=1\nthread=1\ntime_based=1\nruntime={seconds}\n\
         ramp_time=1\nsize=512m\nrandrepeat=0\nnorandommap=1\nnew_group\ngroup_reporting=1\n\
         [{SMALL}]\nnew_group\nrw=randread\nbs=4k\niodepth=1\ncpus_allowed=0\n\
         [{GREEDY}]\nnew_group\nrw=read\nbs=1m\niodepth=16\ncpus_allowed=1\n"
    )
}

fn readers(
    bed: &Bed,
    vmm: Vmm,
    hba: HbaKind,
    seconds: u32,
    keys: &[String],
    archive: &Path,
) -> Result<(Reader, Reader)> {
    // All of it is in the cache.
    bed.host().shell("cat /dev/nullb0 > /dev/null", 120)?;
    let name = match hba {
        HbaKind::Virtio => "/dev/at/0:0:0:0",
        HbaKind::Megasas => "$(ls /dev/at/* | head -n 1)",
    };
    let script = format!(
        "cd /tmp\n{}disk=$(readlink -f {name}); sed -i \"s,@DISK@,$disk,\" jobs
         echo none > /sys/block/${{disk##*/}}/queue/scheduler
         fio {} jobs > result 2>&1 || {{ cat result; exit 1; }}
         grep ';' result | cut -d';' -f1-39 | sed 's/^/RESULT /'",
        fio::here_document(Path::new("jobs"), &jobs(seconds)),
        fio::OPTIONS.join(" ")
    );
    let guest = bed.guest().vmm(vmm).cpus(2).memory("1GiB").archive(archive.to_path_buf()).keys(hba, keys)?;
    let disk = Disk::file(DEVICE).cache("writeback").on(hba);
    let mut vm = guest.disk(disk).script(&script).spawn()?;
    let output = vm.wait_for("TESTBED EXIT ", PATIENCE)?;
    let code = vm.wait_for("\n", 10)?;
    ensure!(code.trim() == "0", "the script in the guest failed with {code}: {output}");
    vm.expect_exit(0, 60)?;
    Ok((parse(&output, SMALL)?, parse(&output, GREEDY)?))
}

/// The figures of the reader of this name among the lines of fio (its HOWTO, "Terse output", version 3).
fn parse(output: &str, name: &str) -> Result<Reader> {
    let lines = output.lines().filter_map(|line| line.trim().strip_prefix("RESULT "));
    let mut lines = lines.map(|line| line.split(';').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.get(2) == Some(&name));
    let fields = fields.with_context(|| format!("fio said nothing of {name}:\n{output}"))?;
    let number = |text: &str| -> Result<f64> { text.parse().with_context(|| format!("{text} is no number")) };
    let field = |index: usize| number(fields.get(index).context("a short line of fio")?);
    let percentile = |wanted: f64| -> Result<f64> {
        let parts =
            fields.get(17..37).context("a short line of fio")?.iter().filter_map(|f| f.split_once("%="));
        let found = parts.filter(|(percent, _)| percent.parse() == Ok(wanted)).map(|(_, time)| time).next();
        number(found.with_context(|| format!("fio said nothing of the percentile {wanted}"))?)
    };
    ensure!(field(4)? == 0.0, "fio failed: {fields:?}");
    Ok(Reader {
        iops: field(7)?,
        megabytes: field(6)? * 1024.0 / 1e6,
        middle: percentile(50.0)?,
        p99: percentile(99.0)?,
        slowest: field(14)?,
    })
}

impl Reader {
    fn line(&self) -> String {
        format!(
            "{:8.0} IOPS {:8.1} MB/s, p50 {:8.0} us, p99 {:8.0} us, slowest {:9.0} us",
            self.iops, self.megabytes, self.middle, self.p99, self.slowest
        )
    }

    /// The medians of several runs; of the slowest requests the slowest.
    fn of(list: &[Self]) -> Self {
        let middle = |value: fn(&Self) -> f64| median(&list.iter().map(value).collect::<Vec<_>>());
        Self {
            iops: middle(|reader| reader.iops),
            megabytes: middle(|reader| reader.megabytes),
            middle: middle(|reader| reader.middle),
            p99: middle(|reader| reader.p99),
            slowest: list.iter().map(|reader| reader.slowest).fold(0.0, f64::max),
        }
    }

    fn json(&self) -> String {
        format!(
            "{{\"iops\": {:.1}, \"mb_per_s\": {:.2}, \"p50_us\": {:.0}, \"p99_us\": {:.0}, \"slowest_us\": {:.0}}}",
            self.iops, self.megabytes, self.middle, self.p99, self.slowest
        )
    }
}

fn report(all: &[(Vmm, Vec<(Reader, Reader)>)]) -> Result<()> {
    let medians = |list: &[(Reader, Reader)]| {
        let (small, greedy): (Vec<_>, Vec<_>) = list.iter().copied().unzip();
        (Reader::of(&small), Reader::of(&greedy))
    };
    let rows: Vec<(Vmm, (Reader, Reader))> = all.iter().map(|(vmm, list)| (*vmm, medians(list))).collect();
    let mut items = Vec::new();
    for (vmm, (small, greedy)) in &rows {
        for (name, reader) in [(SMALL, small), (GREEDY, greedy)] {
            println!("{:4} {name:6} {}", vmm.name(), reader.line());
            items.push(format!(
                "  {{\"where\": \"{}\", \"reader\": \"{name}\", \"medians\": {}}}",
                vmm.name(),
                reader.json()
            ));
        }
    }
    let of = |wanted| rows.iter().find(|(vmm, _)| *vmm == wanted).map(|(_, pair)| *pair);
    if let (Some((ours, our_greedy)), Some((theirs, their_greedy))) = (of(Vmm::Ours), of(Vmm::Qemu)) {
        println!(
            "to QEMU: small {:.2} of the IOPS, {:.2} of p50, {:.2} of p99, slowest {:+.1} ms; greedy {:.2} of the bandwidth",
            ours.iops / theirs.iops,
            ours.middle / theirs.middle,
            ours.p99 / theirs.p99,
            (ours.slowest - theirs.slowest) / 1000.0,
            our_greedy.megabytes / their_greedy.megabytes
        );
        let fair = ours.p99 <= theirs.p99 && ours.slowest <= theirs.slowest + SLOWEST_MARGIN;
        println!(
            "the small reader is {} beside the greedy one",
            if fair { "served in time" } else { "TOO SLOW" }
        );
    }
    let json = paths::runs()?.join("mixed.json");
    std::fs::write(&json, format!("[\n{}\n]\n", items.join(",\n")))
        .with_context(|| format!("writing {}", json.display()))?;
    println!("written: {}", json.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_percentiles_of_terse_lines() {
        let mut fields: Vec<String> = ["3", "fio-3.39", "small", "0", "0", "4096", "2048", "512", "2000"]
            .iter()
            .map(ToString::to_string)
            .collect();
        fields.extend(["1", "2", "3", "4", "10", "9000", "50", "5"].map(String::from));
        fields.extend((0..20).map(|n| format!("{n}.000000%={n}")));
        fields[20] = "50.000000%=40".into();
        fields[30] = "99.000000%=700".into();
        let text = format!("noise\r\nRESULT {}\r\n", fields.join(";"));
        let reader = parse(&text, "small").unwrap();
        let expected =
            Reader { iops: 512.0, megabytes: 2.097_152, middle: 40.0, p99: 700.0, slowest: 9000.0 };
        assert_eq!(reader, expected);
        assert!(parse(&text, "greedy").is_err());
        assert!(parse(&text.replace("99.0", "98.0"), "small").is_err());
    }
}
