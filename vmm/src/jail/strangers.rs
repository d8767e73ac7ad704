//! Threads of the process that were not started by it: those of a library that somebody had loaded into it.

use std::collections::HashSet;
use std::fs;

use devices::threads::{self, Attention};

/// Flags (linux/sched.h) of threads that never come back to user space: those that the kernel runs for io_uring and KVM
/// (PF_IO_WORKER, PF_USER_WORKER), and those that end (PF_EXITING).
const IN_KERNEL: u64 = 0x10 | 0x4000 | 0x4;

/// Their names, while no other is started.
pub(super) fn find(attention: &Attention) -> Vec<String> {
    // The first thread's number is that of the process. One of ours that has done its work may be there still.
    let own = [threads::number(), std::process::id().cast_signed()];
    let living = attention.living.iter().map(|living| living.number);
    others(&living.chain(attention.ended.iter().copied()).chain(own).collect())
}

fn others(known: &HashSet<i32>) -> Vec<String> {
    // Without /proc nobody can be found.
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let numbers = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let unknown = numbers.filter(|number: &i32| !known.contains(number));
    unknown
        .filter_map(|number| fs::read(format!("/proc/self/task/{number}/stat")).ok())
        .filter_map(|stat| stranger(&String::from_utf8_lossy(&stat)))
        .collect()
}

/// The name of a thread of user space that has not ended, by what the kernel says of it (proc_pid_stat(5)).
fn stranger(stat: &str) -> Option<String> {
    // A name may have any bytes in it.
    let (begin, rest) = stat.rsplit_once(") ")?;
    let (_, name) = begin.split_once('(')?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // From the state, the third field, to the flags, the ninth.
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    let gone = matches!(state, "Z" | "X" | "x");
    (!gone && flags & IN_KERNEL == 0).then(|| format!("\"{}\"", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_kernel_and_those_that_have_ended_are_none() {
        let stat = |name: &str, state: &str, flags: u64| {
            stranger(&format!("77 ({name}) {state} 1 77 77 0 -1 {flags} 12 0 0 0 0 0 0 0 20 0 3 0 99 0 0"))
        };
        assert_eq!(stat("agent", "S", 0x40_0040).as_deref(), Some("\"agent\""));
        assert_eq!(stat("a) R 1 (\n", "D", 0x40_0040).as_deref(), Some("\"a) R 1 (\\n\""));
        assert_eq!(stat("iou-wrk-77", "S", 0x40_4010), None);
        assert_eq!(stat("kvm-nx-lpage-re", "S", 0x40_4000), None);
        assert_eq!(stat("old", "Z", 0x40_0040), None);
        assert_eq!(stat("old", "X", 0x40_0040), None);
        assert_eq!(stat("old", "R", 0x40_0044), None);
        assert_eq!(stranger(""), None);
        assert_eq!(stranger("77 (x) S 1"), None);
    }

    #[test]
    fn a_thread_that_was_not_started_by_us_is_found_by_its_name() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let builder = std::thread::Builder::new().name("agent".into());
        let (begin, begun) = std::sync::mpsc::channel();
        let work = move || {
            begin.send(()).unwrap();
            let _ = ended.recv();
        };
        let thread = builder.spawn(work).unwrap();
        begun.recv().unwrap();
        let found = others(&HashSet::from([threads::number()]));
        assert!(found.iter().any(|name| name == "\"agent\""), "{found:?}");
        drop(end);
        thread.join().unwrap();
    }
}
