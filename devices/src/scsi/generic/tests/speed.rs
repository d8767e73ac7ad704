//! What a command costs on its way to a device that answers at once, and back.
//!
//! `cargo test --release -p devices generic::tests::speed -- --ignored --nocapture` prints commands a second of 4 KiB reads, 32 at a time
//! (`SPEED_COMMANDS`, `SPEED_DEPTH`; the device takes `SPEED_MICROSECONDS` for each), processor time and changes of threads for each. What
//! it asks of the kernel tells `strace -c -f`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use vm_memory::GuestAddress;

use super::*;
use crate::mem::{Dma, GuestRam};
use crate::scsi::{Cdb, DataBuffers, ScsiRequest, Status, Tag, TaskAttribute};
use crate::testing::on_io_thread;

struct Quick(Fake, Duration);

impl Host for Quick {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        match command.cdb.opcode() {
            0x28 if self.1.is_zero() => Ok(Answer::good()),
            0x28 => {
                std::thread::sleep(self.1);
                Ok(Answer::good())
            }
            _ => self.0.execute(command),
        }
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Processor time of the process in seconds, and how often its threads have given up the processor.
fn spent() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let switches = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    (ticks as f64 / 100.0, switches.sum())
}

#[test]
#[ignore = "a measurement"]
fn reads_of_4_kib() {
    let (count, depth) = (variable("SPEED_COMMANDS", 300_000), variable("SPEED_DEPTH", 32));
    let takes = Duration::from_micros(variable("SPEED_MICROSECONDS", 0));
    on_io_thread(move |io| async move {
        let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()));
        dma.set_bus_master(true);
        let unit = Generic::new(Arc::new(Quick(Fake::new(|_| Ok(Answer::good())), takes)), config()).unwrap();
        let target = Target::new();
        target.attach(Lun::default(), LogicalUnit::Generic(unit)).unwrap();
        let nexus = Nexus::new(target, None);
        let _ = send(&io, &nexus, &[0; 6], &[], 0).await;
        let (left, ended) = (Rc::new(Cell::new(count)), Rc::new(Cell::new(0)));
        let ((cpu, switches), start) = (spent(), Instant::now());
        for tag in 0..depth {
            let (nexus, io, dma, left, ended) =
                (nexus.clone(), io.clone(), dma.clone(), left.clone(), ended.clone());
            io.clone().spawn(async move {
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    let request = ScsiRequest {
                        tag: Tag(tag),
                        lun: Lun::default(),
                        cdb: Cdb::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
                        attribute: TaskAttribute::Simple,
                        priority: 0,
                        data: DataBuffers::to_initiator(dma.to_guest([(tag << 12, 4096)]).unwrap()),
                    };
                    assert_eq!(nexus.execute(&io, request).await.unwrap().status, Status::Good);
                }
                ended.set(ended.get() + 1);
            });
        }
        while ended.get() < depth {
            io.sleep(Duration::from_millis(1)).await;
        }
        let (seconds, (cpu_after, switches_after)) = (start.elapsed().as_secs_f64(), spent());
        let each = |all: f64| all / count as f64;
        println!(
            "{:.0} commands/s at depth {depth}, {:.2} us of processors and {:.2} changes of threads for each",
            count as f64 / seconds,
            each((cpu_after - cpu) * 1e6),
            each((switches_after - switches) as f64)
        );
    });
}
