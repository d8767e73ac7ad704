//! Against qemu-img: it makes the images, checks them after our writes, and says what they hold.

mod backing;
mod crash;
mod cves;
mod device;
mod full;
mod grow;
mod guard;
mod hostile;
mod hung;
mod images;
mod lost;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::*;
use crate::mem::SgList;
use crate::testing::conformance::{Random, check, check_neighbours, contents};
use crate::testing::{on_io_thread, temp_dir};

/// A directory for images where qemu-img is installed.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// `None`, with a message, where the tools are missing.
    fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            crate::testing::skipped("qemu-img is not installed");
            return None;
        }
        Some(Self { dir: temp_dir() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, tool: &str, args: &[&str]) -> (i32, String) {
        // As in `open`: the locks may be those of a child that another test is about to start.
        let patience = Instant::now() + Duration::from_secs(5);
        loop {
            let out = Command::new(tool).args(args).current_dir(self.dir.path()).output().unwrap();
            let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let (code, text) = (out.status.code().unwrap_or(-1), text.concat());
            if code == 0 || !text.contains("\" lock") || Instant::now() > patience {
                return (code, text);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As [`Bench::run`], and again while a process that another test is about to start has our locks, see [`open`].
    fn run_unlocked(&self, tool: &str, args: &[&str]) -> (i32, String) {
        let patience = Instant::now() + Duration::from_secs(5);
        loop {
            let (code, text) = self.run(tool, args);
            if code == 0 || !text.contains("\" lock") || Instant::now() > patience {
                return (code, text);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs qemu-img.
    fn img(&self, args: &[&str]) {
        let (code, text) = self.run_unlocked("qemu-img", args);
        assert_eq!(code, 0, "qemu-img {args:?}: {text}");
    }

    /// Runs commands of qemu-io.
    fn io(&self, name: &str, format: &str, commands: &[&str]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<&str> = ["-f", format].into_iter().chain(commands).chain([name]).collect();
        let (code, text) = self.run_unlocked("qemu-io", &args);
        assert_eq!(code, 0, "qemu-io {args:?}: {text}");
    }

    /// qemu-img finds nothing wrong, not even leaks.
    fn check_clean(&self, name: &str) {
        let (code, text) = self.run_unlocked("qemu-img", &["check", "-f", "qcow2", name]);
        assert_eq!(code, 0, "{name}: {text}");
    }

    /// What QEMU reads from the image.
    fn oracle(&self, name: &str) -> Vec<u8> {
        self.img(&["convert", "-f", "qcow2", "-O", "raw", name, "oracle"]);
        std::fs::read(self.path("oracle")).unwrap()
    }
}

fn options(path: &Path) -> Qcow2Options {
    Qcow2Options {
        path: path.into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Exclusive,
        backing: Backing::SameDirectory,
        discard: true,
    }
}

fn open(path: &Path) -> Qcow2Image {
    Qcow2Image::open(&options(path)).unwrap_or_else(|e| panic!("{e}: {:?}", e.source))
}

/// Why it cannot be opened.
fn refusal(options: &Qcow2Options) -> String {
    Qcow2Image::open(options).err().expect("it opened").message
}

/// Everything in an image, by us.
fn read_all(image: Qcow2Image) -> Vec<u8> {
    on_io_thread(move |io| async move { contents(&io, &image).await })
}

fn filled(len: u64, value: u8) -> FromGuest {
    let mem = ToGuest::new(SgList::host(len as usize, 4096).unwrap());
    mem.write_at(0, &vec![value; len as usize]);
    FromGuest::new(mem.into_inner())
}

/// Runs the conformance suite on an image; afterwards QEMU finds it clean and reads what we read.
fn conforms(bench: &Bench, name: &str, options: Qcow2Options, seed: u64, rounds: u32) {
    let before = bench.oracle(name);
    let image = Qcow2Image::open(&options).unwrap_or_else(|e| panic!("{name}: {e}: {:?}", e.source));
    let after = on_io_thread(move |io| async move {
        assert!(contents(&io, &image).await == before, "read something else than QEMU");
        check(&io, &image, seed, rounds).await;
        let image = Rc::new(image);
        check_neighbours(&io, image.clone(), 5).await;
        image.close(&io).await.unwrap();
        contents(&io, &*image).await
    });
    bench.check_clean(name);
    assert!(bench.oracle(name) == after, "{name}: QEMU reads something else");
    assert!(read_all(Qcow2Image::open(&options).unwrap()) == after, "{name}: a second opening differs");
}
