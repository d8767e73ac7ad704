//! fio, in the same version where guests run and within them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cpio::Archive;
use crate::packages::{capture, extract};
use crate::{cache, tools};

/// Folders of the libraries fio needs, in the root of its packages.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

/// One workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// fio's `rw`.
    pub pattern: &'static str,
    /// Block size in KiB.
    pub block_kib: u32,
    /// Requests in flight of each job.
    pub depth: u32,
    /// Processes that do it at once.
    pub jobs: u32,
    /// What makes each write stable: fio's `fdatasync` after it, `sync` for it, or nothing.
    pub forced: &'static str,
}

impl Job {
    /// One that forces nothing.
    pub fn new(pattern: &'static str, block_kib: u32, depth: u32, jobs: u32) -> Self {
        Self { pattern, block_kib, depth, jobs, forced: "" }
    }

    /// Its name: pattern, block size, depth and jobs, and what it forces.
    pub fn name(&self) -> String {
        let Self { pattern, block_kib, depth, jobs, forced } = self;
        let dash = if forced.is_empty() { "" } else { "-" };
        format!("{pattern}-{block_kib}k-d{depth}-j{jobs}{dash}{forced}")
    }
}

/// What a workload came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Operations in a second.
    pub iops: f64,
    /// Bytes in a second, in MB.
    pub megabytes: f64,
    /// Operations in all.
    pub operations: f64,
}

/// The job file: every workload for `seconds`, one after the other, on `device`, with one of fio's engines. `announce` is a shell
/// command whose `@` stands for what begins and ends.
pub fn job_file(jobs: &[Job], device: &str, engine: &str, seconds: u32, announce: Option<&str>) -> String {
    let mut text = format!(
        "[global]\nfilename={device}\nioengine={engine}\ndirect=1\nthread=1\ntime_based=1\nruntime={seconds}\n\
         ramp_time=1\nsize=512m\nrandrepeat=0\nnorandommap=1\ngroup_reporting=1\n"
    );
    for job in jobs {
        let name = job.name();
        text.push_str(&format!(
            "[{name}]\nstonewall\nnew_group\nrw={}\nbs={}k\niodepth={}\nnumjobs={}\n",
            job.pattern, job.block_kib, job.depth, job.jobs
        ));
        if !job.forced.is_empty() {
            text.push_str(&format!("{}=1\n", job.forced));
        }
        if let Some(announce) = announce {
            for (key, what) in [("exec_prerun", "begins"), ("exec_postrun", "ends")] {
                text.push_str(&format!("{key}={}\n", announce.replace('@', &format!("{name} {what}"))));
            }
        }
    }
    text
}

/// The options that make fio print what [`parse`] reads.
pub const OPTIONS: [&str; 2] = ["--output-format=terse", "--terse-version=3"];

/// The figures of a workload among fio's output.
pub fn parse(output: &str, job: &Job) -> Result<Figures> {
    let name = job.name();
    let line = output.lines().find(|line| line.split(';').nth(2) == Some(&name));
    let line = line.with_context(|| format!("fio said nothing of {name}:\n{output}"))?;
    let fields: Vec<&str> = line.trim().split(';').collect();
    let field = |index: usize| -> Result<f64> {
        let text = fields.get(index).with_context(|| format!("a short line of fio: {line}"))?;
        text.parse().with_context(|| format!("{text} is no number in a line of fio"))
    };
    ensure!(field(4)? == 0.0, "fio failed: {line}");
    // fio's HOWTO, "Terse output": KiB in all, KiB/s, IOPS, ms; reads from the sixth field, writes 41 later.
    let from = if job.pattern.ends_with("read") { 5 } else { 46 };
    let kib = field(from)?;
    let (rate, iops) = (field(from + 1)?, field(from + 2)?);
    Ok(Figures { iops, megabytes: rate * 1024.0 / 1e6, operations: kib / f64::from(job.block_kib) })
}

/// fio as its package ships it, with the libraries it needs.
#[derive(Clone, Debug)]
pub struct Fio {
    dir: PathBuf,
}

impl Fio {
    /// Finds it in the cache or fetches it.
    pub fn prepare() -> Result<Self> {
        Ok(Self { dir: extract("fio", "trixie", &["fio"])? })
    }

    fn path(&self) -> String {
        LIBRARIES.map(|dir| self.dir.join(dir).to_string_lossy().into_owned()).join(":")
    }

    /// The words that start it in the place where guests run.
    pub fn words(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let program = text(self.dir.join("usr/bin/fio"));
        vec![text(self.dir.join(LOADER)), "--library-path".into(), self.path(), program]
    }

    /// The archive that, appended to a quick initramfs, adds the command `fio` to it.
    pub fn archive(&self) -> Result<PathBuf> {
        let recipe = format!("fio archive 1 {}", self.dir.display());
        let dir = cache::build("fio-archive", &recipe, |dir| {
            let mut list = std::process::Command::new(self.dir.join(LOADER));
            list.args(["--library-path", &self.path(), "--list"]).arg(self.dir.join("usr/bin/fio"));
            let mut archive = Archive::default();
            archive.copy("bin/fio", 0o755, &self.dir.join("usr/bin/fio"))?;
            archive.copy("lib64/ld-linux-x86-64.so.2", 0o755, &self.dir.join(LOADER))?;
            for library in tools::listed(&capture(&mut list)?, &self.dir) {
                let name = library.file_name().context("a library without a name")?.to_string_lossy();
                archive.copy(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &library)?;
            }
            Ok(std::fs::write(dir.join("archive"), archive.finish())?)
        })?;
        Ok(dir.join("archive"))
    }
}

/// What the guest does to read a job file from its command line's script: see [`job_file`].
pub fn here_document(path: &Path, text: &str) -> String {
    format!("cat > {} <<'END OF JOBS'\n{text}END OF JOBS\n", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_terse_lines() {
        let mut fields = vec!["0".to_string(); 60];
        fields[..9].clone_from_slice(
            &["3", "fio-3.39", "randread-4k-d8-j1", "0", "0", "4096", "2048", "512", "2000"]
                .map(String::from),
        );
        let job = Job::new("randread", 4, 8, 1);
        let figures = parse(&format!("noise\n{}\n", fields.join(";")), &job).unwrap();
        assert_eq!(figures, Figures { iops: 512.0, megabytes: 2.097_152, operations: 1024.0 });
        let write = Job { pattern: "randwrite", ..job };
        fields[2] = write.name();
        fields[46..50].clone_from_slice(&["800", "400", "100", "2000"].map(String::from));
        assert_eq!(parse(&fields.join(";"), &write).unwrap().operations, 200.0);
        fields[4] = "5".into();
        assert!(parse(&fields.join(";"), &write).is_err());
        assert!(parse("", &job).is_err());
    }
}
