//! The bed a test lies in: everything prepared, and a place where 64-bit guests run.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::firmware;
use crate::grub::Grub;
use crate::guest::Guest;
use crate::host::Host;
use crate::images::{ROOT_SIZE, RootImage, quick_initramfs, scratch};
use crate::kernel::{Debian, Kernel};
use crate::level1::{Level1, Parts};
use crate::tools::Tools;
use crate::{paths, report};

/// Everything tests need that is built once and kept in the cache.
pub struct Prepared {
    tools: Tools,
    releases: Vec<Release>,
    scratch: PathBuf,
}

struct Release {
    debian: Debian,
    kernel: Kernel,
    quick: PathBuf,
    root: RootImage,
    grub: Grub,
    seabios: PathBuf,
}

impl Prepared {
    /// Fetches and builds what guests of these releases need and is not in the cache yet.
    pub fn new(wanted: &[Debian]) -> Result<Self> {
        let tools = Tools::prepare()?;
        let mut releases = Vec::new();
        for &debian in wanted {
            let kernel = Kernel::prepare(debian, &tools)?;
            let quick = quick_initramfs(debian, &kernel, &tools)?;
            let root = RootImage::prepare(debian, &tools)?;
            let (grub, seabios) = (Grub::prepare(debian, ROOT_SIZE)?, firmware::seabios_of(debian, &tools)?);
            releases.push(Release { debian, kernel, quick, root, grub, seabios });
        }
        let images: Vec<_> =
            releases.iter().map(|release| (base_name(release.debian), release.root.image())).collect();
        let scratch = scratch(&images, &tools)?;
        Ok(Self { tools, releases, scratch })
    }

    fn release(&self, debian: Debian) -> Result<&Release> {
        self.releases.iter().find(|release| release.debian == debian).context("a release is not prepared")
    }

    /// The pinned tools.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// A release's kernel as its package ships it.
    pub fn kernel(&self, debian: Debian) -> Result<&Kernel> {
        Ok(&self.release(debian)?.kernel)
    }

    /// A release's quick initramfs.
    pub fn quick(&self, debian: Debian) -> Result<&PathBuf> {
        Ok(&self.release(debian)?.quick)
    }

    /// A release's root file system.
    pub fn root(&self, debian: Debian) -> Result<&RootImage> {
        Ok(&self.release(debian)?.root)
    }

    /// A release's boot loader for disks.
    pub fn grub(&self, debian: Debian) -> Result<&Grub> {
        Ok(&self.release(debian)?.grub)
    }

    /// A release's SeaBIOS.
    pub fn seabios(&self, debian: Debian) -> Result<&PathBuf> {
        Ok(&self.release(debian)?.seabios)
    }

    /// Starts level 1.
    pub fn level1(&self, stay: bool) -> Result<(Level1, Host)> {
        let kernel = self.kernel(Debian::Trixie)?;
        let parts = Parts { tools: &self.tools, kernel, scratch: &self.scratch };
        Level1::start(&parts, stay)
    }
}

fn base_name(debian: Debian) -> &'static str {
    match debian {
        Debian::Bookworm => "debian12",
        Debian::Trixie => "debian13",
    }
}

/// The prepared bed. Only one exists at a time on a machine; others wait.
pub struct Bed {
    prepared: Prepared,
    host: Host,
    dir: String,
    base: Option<String>,
    counter: AtomicU32,
    vmm: Mutex<Option<PathBuf>>,
    start: Duration,
    diagnostics: Mutex<Vec<String>>,
    // Dropped in this order: level 1 ends before the lock is free.
    level1: Option<Level1>,
    _lock: File,
}

impl Bed {
    /// Whether guests run on an emulated processor, within level 1.
    pub fn is_emulated(&self) -> bool {
        self.base.is_some()
    }

    /// Prepares everything and starts level 1, unless one runs already or the processor needs none.
    pub fn new() -> Result<Self> {
        Self::with(report::step("preparing the test bed", || Prepared::new(&Debian::ALL))?)
    }

    /// Starts level 1 with what is prepared. It runs Debian 13.
    pub fn with(prepared: Prepared) -> Result<Self> {
        let lock = lock()?;
        let begin = Instant::now();
        let (level1, host, dir, base) = if has_virtualization() {
            let dir = paths::runs()?.join("scratch");
            paths::make_dir(&dir)?;
            (None, local_agent()?, dir.to_string_lossy().into_owned(), None)
        } else {
            let (level1, host) = match Level1::find()? {
                Some(found) => found,
                None => report::step("starting level 1", || prepared.level1(false))?,
            };
            let base = "/run/testbed/scratch".to_string();
            (Some(level1), host, format!("{base}/run"), Some(base))
        };
        empty(&host, &dir)?;
        Ok(Self {
            prepared,
            host,
            dir,
            base,
            counter: AtomicU32::new(0),
            vmm: Mutex::new(None),
            start: begin.elapsed(),
            diagnostics: Mutex::default(),
            level1,
            _lock: lock,
        })
    }

    /// Starts level 1 anew if it is gone; returns how it ended.
    pub fn revive(&mut self) -> Result<Option<String>> {
        if self.host.is_there() {
            return Ok(None);
        }
        let Some(mut dead) = self.level1.take() else { bail!("the agent on this machine ended") };
        let obituary = dead.obituary();
        self.replace(dead)?;
        Ok(Some(obituary))
    }

    /// Starts level 1 anew although it runs, unless it was started to stay. What made a guest crash on an
    /// emulated processor may have left its mark on level 1 as well.
    pub fn renew(&mut self) -> Result<()> {
        match self.level1.take_if(|level1| !level1.stays()) {
            Some(level1) => self.replace(level1),
            None => Ok(()),
        }
    }

    fn replace(&mut self, level1: Level1) -> Result<()> {
        level1.stop()?;
        let (level1, host) = report::step("starting level 1 again", || self.prepared.level1(false))?;
        empty(&host, &self.dir)?;
        self.level1 = Some(level1);
        self.host = host;
        Ok(())
    }

    /// A guest to describe and start.
    pub fn guest(&self) -> Guest<'_> {
        Guest::new(self)
    }

    /// What was prepared.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// The place where guests run.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// How long level 1 took to start.
    pub fn start_time(&self) -> Duration {
        self.start
    }

    /// A new, empty folder where guests run, on storage that can do direct I/O.
    pub fn new_dir(&self) -> Result<String> {
        let dir = format!("{}/{}", self.dir, self.counter.fetch_add(1, Ordering::Relaxed));
        self.host.shell(&format!("mkdir {dir}"), 30)?;
        Ok(dir)
    }

    /// Removes all files of guests that are gone.
    pub fn clear(&self) -> Result<()> {
        self.host.shell(&format!("rm -rf {0}/*", self.dir), 120).map(|_| ())
    }

    /// A release's root image where guests run.
    fn root_image(&self, debian: Debian) -> Result<String> {
        Ok(match &self.base {
            Some(base) => format!("{base}/{}.img", base_name(debian)),
            None => self.prepared.root(debian)?.image().to_string_lossy().into_owned(),
        })
    }

    /// Makes a disk at `path` where guests run that boots a release's root image, with this menu.
    pub fn bootable_disk(&self, debian: Debian, menu: &str, path: &str) -> Result<()> {
        let file = format!("{path}.menu");
        self.host.put(&file, menu.as_bytes())?;
        let grub = self.prepared.grub(debian)?;
        let script = grub.script(self.prepared.tools(), &self.root_image(debian)?, &file, path)?;
        self.host.shell(&script, 600).map(|_| ()).context("making a disk with GRUB")
    }

    /// Copies a release's root image to `path` where guests run. Copies share blocks where that is possible.
    pub fn copy_root(&self, debian: Debian, path: &str) -> Result<()> {
        let from = self.root_image(debian)?;
        self.host.shell(&format!("cp --reflink=auto --sparse=always {from} {path}"), 300).map(|_| ())
    }

    /// Our VMM: the file `VMM_BIN` names, or the workspace's release build, which is built first.
    pub fn vmm(&self) -> Result<PathBuf> {
        let mut known = self.vmm.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = Some(build_vmm()?);
        }
        known.clone().context("there is no VMM")
    }

    pub(crate) fn add_diagnostics(&self, text: String) {
        self.diagnostics.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// What guests that did not end well since the last call left to say.
    pub fn take_diagnostics(&self) -> Vec<String> {
        std::mem::take(&mut *self.diagnostics.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn empty(host: &Host, dir: &str) -> Result<()> {
    host.shell(&format!("rm -rf {dir}; mkdir -p {dir}"), 120).map(|_| ())
}

/// Builds our VMM, unless `VMM_BIN` names one.
pub fn build_vmm() -> Result<PathBuf> {
    if let Some(file) = std::env::var_os("VMM_BIN") {
        let file = PathBuf::from(file);
        return file.canonicalize().with_context(|| format!("VMM_BIN: {}", file.display()));
    }
    build_release("the release vmm", "vmm", &[], paths::target()?)
}

/// Builds a VMM whose host misbehaves: see the feature `mischief` of the package.
pub fn build_mischievous_vmm() -> Result<PathBuf> {
    build_release(
        "a vmm whose host misbehaves",
        "vmm",
        &["--features", "mischief"],
        paths::target()?.join("mischief"),
    )
}

/// Builds the Fibre Channel fabric.
pub fn build_fabric() -> Result<PathBuf> {
    build_release("the fabric", "fabric", &[], paths::target()?)
}

fn build_release(name: &str, package: &str, options: &[&str], target: PathBuf) -> Result<PathBuf> {
    report::step(&format!("building {name}"), || {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(paths::workspace()).args(["build", "--quiet", "--release", "--package", package]);
        let status = build.args(options).arg("--target-dir").arg(&target).status()?;
        ensure!(status.success(), "{name} does not build");
        Ok(())
    })?;
    Ok(target.join("release").join(package))
}

/// Builds the tests of the target `name`, as `cargo test --workspace` does, and returns their program.
pub fn build_tests(name: &str) -> Result<PathBuf> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(paths::workspace()).args(["test", "--quiet", "--workspace", "--no-run"]);
    build.args(["--message-format=json", "--test", name, "--target-dir"]).arg(paths::target()?);
    let output = build.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the tests called {name} do not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let ours = format!("\"name\":\"{name}\"");
    let line = text.lines().find(|line| line.contains(&ours) && line.contains("\"executable\":\""));
    let file = line.and_then(|line| line.split("\"executable\":\"").nth(1)?.split('"').next());
    Ok(PathBuf::from(file.with_context(|| format!("cargo names no program for the tests called {name}"))?))
}

/// Whether KVM here can run 64-bit guests by itself.
pub fn has_virtualization() -> bool {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx")
}

/// Waits until nothing else on this machine uses a bed with this cache.
pub fn lock() -> Result<File> {
    let file = File::create(paths::cache()?.join("bed.lock"))?;
    if file.try_lock().is_err() {
        report::note("waiting for another run of the test bed to end");
        file.lock()?;
    }
    Ok(file)
}

/// An agent on this machine itself, for processors with virtualization.
fn local_agent() -> Result<Host> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let mut agent = Command::new(paths::program()?);
    agent.arg("agent").stdin(Stdio::from(theirs)).stdout(Stdio::null());
    agent.spawn().context("starting the agent")?;
    Host::connect(ours, Duration::from_secs(10))
}
