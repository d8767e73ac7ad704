//! Whether a process is still there: that one, not another with its number. What cannot be seen is not taken for gone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::sysfs::{self, Roots, text};

/// Whether a process is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is.
    Lives,
    /// It is not.
    Ended,
    /// Nor is anything else of that time: the host has started anew since.
    OtherStart,
    /// That cannot be seen from here: proc is not mounted, or is that of a container other than its own.
    Unknown,
}

/// A process, for as long as the host runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// When it started, in ticks since the start of the host: together with its number it is one process for good (proc(5)).
    pub(crate) start: u64,
    /// The start of the host that these count from.
    pub(crate) boot: String,
    /// The PID namespace that has its number.
    pub(crate) namespace: Option<u64>,
}

impl Process {
    /// A process that lives; `None` if it cannot be seen, or told from others.
    pub(crate) fn read(roots: &Roots, pid: u32) -> Option<Self> {
        let Seen::There { start, .. } = seen(roots, pid) else { return None };
        Some(Self { pid, start, boot: boot(roots)?, namespace: namespace(roots) })
    }

    pub(crate) fn life(&self, roots: &Roots) -> Life {
        match boot(roots) {
            None => return Life::Unknown,
            Some(_) if self.boot.is_empty() => return Life::Unknown,
            Some(boot) if boot != self.boot => return Life::OtherStart,
            Some(_) => {}
        }
        // Its number is another process's here. What an older version wrote has none.
        if self.namespace.is_some() && self.namespace != namespace(roots) {
            return Life::Unknown;
        }
        match seen(roots, self.pid) {
            Seen::There { start, over: false } if start == self.start => Life::Lives,
            Seen::There { .. } => Life::Ended,
            // The first process is always there, unless others are hidden (hidepid), or this is no proc.
            Seen::Gone if matches!(seen(roots, 1), Seen::There { .. }) => Life::Ended,
            Seen::Gone | Seen::Unknown => Life::Unknown,
        }
    }
}

/// What proc says of a number.
enum Seen {
    /// There is a process.
    There {
        /// When it started.
        start: u64,
        /// It has ended, and only waits for who started it to hear of that.
        over: bool,
    },
    /// There is none.
    Gone,
    /// It cannot be read.
    Unknown,
}

fn seen(roots: &Roots, pid: u32) -> Seen {
    match sysfs::read(&roots.proc.join(pid.to_string()).join("stat")) {
        Ok(stat) => parse(&stat).unwrap_or(Seen::Unknown),
        Err(error) if sysfs::is_gone(&error) => Seen::Gone,
        Err(_) => Seen::Unknown,
    }
}

fn parse(stat: &str) -> Option<Seen> {
    // Its name, in parentheses, may have any of these characters.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    // 20: threads, 22: start. The first thread may have ended before others.
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Seen::There { start, over: matches!(state, "Z" | "X") && threads <= 1 })
}

/// Which start of the host this is.
fn boot(roots: &Roots) -> Option<String> {
    text(&roots.proc.join("sys/kernel/random/boot_id"))
}

/// The PID namespace that proc shows.
fn namespace(roots: &Roots) -> Option<u64> {
    fs::metadata(roots.proc.join("self/ns/pid")).ok().map(|namespace| namespace.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tree;

    fn stat(state: char, threads: u32, start: u64) -> String {
        format!("77 (a) b (c) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18 {start} 20\n")
    }

    #[test]
    fn a_process_lives_or_has_ended_or_nobody_knows() {
        let tree = Tree::new();
        let roots = tree.roots();
        tree.file("proc/1/stat", &stat('S', 1, 0));
        tree.file("proc/77/stat", &stat('S', 2, 987_654));
        assert_eq!(
            Process::read(&roots, 77),
            None,
            "without the start of the host it is no process for good"
        );
        tree.file("proc/sys/kernel/random/boot_id", "first\n");
        tree.file("proc/self/ns/pid", "");
        let process = Process::read(&roots, 77).unwrap();
        assert_eq!((process.pid, process.start, &*process.boot), (77, 987_654, "first"));
        assert_eq!(Process::read(&roots, 78), None);
        let life = || process.life(&roots);
        assert_eq!(life(), Life::Lives);
        for (state, threads, wanted) in
            [('D', 1, Life::Lives), ('Z', 2, Life::Lives), ('Z', 1, Life::Ended), ('X', 0, Life::Ended)]
        {
            tree.file("proc/77/stat", &stat(state, threads, 987_654));
            assert_eq!(life(), wanted, "{state} {threads}");
        }
        tree.file("proc/77/stat", &stat('S', 1, 987_655));
        assert_eq!(life(), Life::Ended, "another process has its number");
        tree.file("proc/77/stat", "nonsense");
        assert_eq!(life(), Life::Unknown);
        fs::remove_dir_all(tree.path("proc/77")).unwrap();
        assert_eq!(life(), Life::Ended);
        fs::remove_dir_all(tree.path("proc/1")).unwrap();
        assert_eq!(life(), Life::Unknown, "others are hidden");
        tree.file("proc/1/stat", &stat('S', 1, 0));
        assert_eq!(Process { boot: String::new(), ..process.clone() }.life(&roots), Life::Unknown);
        assert_eq!(Process { namespace: Some(1), ..process.clone() }.life(&roots), Life::Unknown);
        assert_eq!(Process { namespace: None, ..process.clone() }.life(&roots), Life::Ended);
        fs::remove_file(tree.path("proc/self/ns/pid")).unwrap();
        assert_eq!(life(), Life::Unknown);
        tree.file("proc/sys/kernel/random/boot_id", "second\n");
        assert_eq!(life(), Life::OtherStart);
        fs::remove_file(tree.path("proc/sys/kernel/random/boot_id")).unwrap();
        assert_eq!(life(), Life::Unknown);
        fs::remove_dir_all(tree.path("proc")).unwrap();
        assert_eq!(life(), Life::Unknown);
    }
}
