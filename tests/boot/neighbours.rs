//! Disks whose guest asks for more than its share: what is left for the others.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::fio::Fio;
use testbed::guest::{Disk, Vmm};
use testbed::report::note;

/// Seconds the small reads go on.
const SECONDS: u32 = 8;
/// What is asked of the small reads on a machine that may be busy with other work: far less than they get, far more than none.
const LEAST_IOPS: f64 = 3.0;
/// The slowest read may take this long, in seconds. Without bounds it takes as long as the greedy one goes on.
const SLOWEST: f64 = 3.0;

/// One vCPU reads 1 MiB at depth 16 from an image that the host has in its cache; the other reads 4 KiB on its own queue.
pub(crate) fn greedy_queue(bed: &Bed, vmm: Vmm) -> Result<()> {
    let dir = bed.new_dir()?;
    let image = format!("{dir}/cached.img");
    bed.host().shell(&format!("head -c 134217728 /dev/zero | tr '\\0' C > {image}"), 120)?;
    let fio = "fio --filename=$d --ioengine=libaio --direct=1 --time_based --rw=randread --size=128m --randrepeat=0 --norandommap";
    let script = format!(
        "d=$(readlink -f /dev/at/0:0:0:0); name=${{d##*/}}
         echo \"QUEUES $(ls -d /sys/block/$name/mq/* | wc -l)\"
         {fio} --name=warm --bs=1m --iodepth=1 --runtime=2 >/dev/null
         {fio} --name=greedy --bs=1m --iodepth=16 --cpus_allowed=0 --runtime={} --output-format=terse --terse-version=3 > /tmp/greedy &
         sleep 2
         {fio} --name=small --bs=4k --iodepth=1 --cpus_allowed=1 --runtime={SECONDS} --output-format=terse --terse-version=3
         wait
         cat /tmp/greedy",
        SECONDS + 6
    );
    let guest = bed.guest().vmm(vmm).cpus(2).disk(Disk::file(&image).cache("writeback"));
    let output = guest.archive(Fio::prepare()?.archive()?).script(&script).spawn()?.finish_script(300)?;
    ensure!(output.contains("QUEUES 2"), "not two queues:\n{output}");
    // fio's HOWTO, "Terse output": the eighth field is the IOPS of reads, the 39th their slowest, in microseconds.
    let field = |name: &str, index: usize| -> Result<f64> {
        let line = output.lines().find(|line| line.split(';').nth(2) == Some(name));
        let field = line.and_then(|line| line.trim().split(';').nth(index));
        field
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("no field {index} of {name}:\n{output}"))
    };
    let (iops, slowest) = (field("small", 7)?, field("small", 38)? / 1e6);
    let greedy = field("greedy", 7)?;
    note(&format!("small reads: {iops} IOPS, slowest {slowest:.3} s; beside {greedy} IOPS of 1 MiB"));
    ensure!(greedy > 0.0, "the greedy reader read nothing");
    ensure!(
        iops >= LEAST_IOPS,
        "the small reads got {iops} IOPS in {SECONDS} s, the slowest took {slowest:.3} s"
    );
    ensure!(slowest <= SLOWEST, "the slowest small read took {slowest:.3} s ({iops} IOPS)");
    Ok(())
}
