//! Images in memory, and what is done to them.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::drive::{self, Driven};
use crate::iothread::record::{Change, Event, FileId, Recorder};
use crate::storage::raw::Forcing;
use crate::storage::{Backing, CacheMode, Image, Qcow2Image, Qcow2Options, RawImage, RawOptions, Sharing};
use crate::testing::conformance::Random;
use crate::testing::power::{Replay, SECTOR, State, Without, qcow2, stamped};

/// Of so many losses of power, one is looked at by opening the image again.
const OPENED: u64 = 64;
/// And one by qemu-img.
const CHECKED: u64 = 256;
/// Losses of power in one recording.
const EACH: u64 = 400;

/// What lies below an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// Nothing.
    Nothing,
    /// A raw image, longer than the disk.
    Raw,
    /// A qcow2 image over a raw one, both shorter than the disk.
    Qcow2,
    /// Nothing, but all clusters are compressed.
    Packed,
    /// Nothing, but an internal snapshot has all clusters too.
    Snapshot,
}

/// An image and how it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    /// Options of qemu-img; `None` for a raw image.
    pub(super) shape: Option<&'static str>,
    pub(super) cache: CacheMode,
    pub(super) below: Below,
    /// Length of the disk in sectors.
    pub(super) len: u64,
    /// Where the client writes: first sectors.
    pub(super) spots: &'static [u64],
    /// How long each of these places is, in sectors.
    pub(super) spot: u64,
    pub(super) grows: bool,
    /// All places are written first, which takes a larger refcount table.
    pub(super) fills: bool,
    pub(super) discard: bool,
    /// What makes a forced write stable.
    pub(super) forcing: Forcing,
    /// It has a dirty bitmap, which nobody keeps here.
    pub(super) bitmap: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            shape: None,
            cache: CacheMode::Writeback,
            below: Below::Nothing,
            len: 1 << 12,
            spots: &[0, 333, 700],
            spot: 300,
            grows: true,
            fills: false,
            discard: true,
            forcing: Forcing::Flag,
            bitmap: false,
        }
    }
}

const PLAIN: Scenario = Scenario {
    shape: Some("cluster_size=4k"),
    cache: CacheMode::Writeback,
    below: Below::Nothing,
    len: 3 << 13,
    // Around the end of the first L2 table, which spans 2 MiB.
    spots: &[3, 4000, 4200],
    spot: 190,
    grows: true,
    fills: false,
    discard: true,
    forcing: Forcing::Flag,
    bitmap: false,
};

/// All cluster sizes and cache modes.
pub(super) const SHAPES: [Scenario; 10] = [
    PLAIN,
    Scenario { cache: CacheMode::None, discard: false, ..PLAIN },
    Scenario { cache: CacheMode::Writethrough, ..PLAIN },
    Scenario { shape: Some("compat=0.10,cluster_size=4k"), ..PLAIN },
    SMALL,
    Scenario { shape: Some("cluster_size=512"), cache: CacheMode::Directsync, spot: 150, ..SMALL },
    Scenario {
        shape: Some("cluster_size=64k"),
        // L2 tables span 512 MiB.
        len: 2 << 21,
        spots: &[100, (1 << 20) - 300, (2 << 20) + 77],
        spot: 700,
        ..PLAIN
    },
    Scenario {
        shape: Some("cluster_size=64k,refcount_bits=1"),
        len: 2 << 21,
        spots: &[100, (1 << 20) - 300, (2 << 20) + 77],
        spot: 700,
        cache: CacheMode::None,
        ..PLAIN
    },
    Scenario {
        shape: Some("cluster_size=2M"),
        // L2 tables span 512 GiB.
        len: 3 << 30,
        spots: &[4000, (1 << 30) - 100, 2 << 30],
        spot: 200,
        ..PLAIN
    },
    BITMAP,
];

/// All that is written goes in place, without a barrier.
pub(super) const BITMAP: Scenario =
    Scenario { shape: Some("cluster_size=4k,preallocation=metadata"), bitmap: true, ..PLAIN };

/// Refcount blocks that count little, so that the refcount table must move.
pub(super) const SMALL: Scenario = Scenario {
    shape: Some("cluster_size=512,refcount_bits=64"),
    len: 3 << 11,
    spots: &[1, 1600, 3300],
    spot: 1500,
    fills: true,
    ..PLAIN
};

/// All that can lie below, or beside.
pub(super) const CHAINS: [Scenario; 6] = [
    Scenario { below: Below::Raw, ..PLAIN },
    Scenario { below: Below::Qcow2, cache: CacheMode::None, ..PLAIN },
    Scenario { below: Below::Packed, ..PLAIN },
    Scenario { below: Below::Snapshot, grows: false, ..PLAIN },
    Scenario {
        below: Below::Raw,
        shape: Some("compat=0.10,cluster_size=512"),
        len: 2500,
        spots: &[0, 901, 1850],
        spot: 500,
        ..PLAIN
    },
    Scenario {
        below: Below::Qcow2,
        shape: Some("cluster_size=64k"),
        cache: CacheMode::Writethrough,
        ..PLAIN
    },
];

/// A folder in memory.
pub(super) struct Bench {
    dir: tempfile::TempDir,
}

/// Stamps of sectors as they were at first, and of what is below.
struct Before {
    start: Vec<(u64, u64)>,
    below: Vec<u64>,
    nothing: bool,
}

impl Before {
    fn of(&self, found: qcow2::Found, sector: u64) -> u64 {
        match found {
            qcow2::Found::Stamp(stamp) => stamp,
            qcow2::Found::Below if self.nothing => 0,
            _ => self.below.get(sector as usize).copied().unwrap_or(0),
        }
    }

    fn at_start(&self, sector: u64) -> u64 {
        self.start.binary_search_by_key(&sector, |(at, _)| *at).map_or(0, |place| self.start[place].1)
    }
}

impl Bench {
    /// `None`, with a message, where qemu-img is missing.
    pub(super) fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            crate::testing::skipped("qemu-img is not installed");
            return None;
        }
        let memory = Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory).unwrap_or_else(|_| crate::testing::temp_dir());
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn img(&self, args: &[&str]) -> (i32, String) {
        let out = Command::new("qemu-img").args(args).current_dir(self.dir.path()).output().unwrap();
        let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (out.status.code().unwrap_or(-1), text.concat())
    }

    fn make(&self, args: &[&str]) {
        let (code, text) = self.img(args);
        assert_eq!(code, 0, "qemu-img {args:?}: {text}");
    }

    /// Makes the image of a scenario; gives back the stamps of what lies below.
    fn prepare(&self, scenario: &Scenario) -> Vec<u64> {
        let len = (scenario.len * SECTOR as u64).to_string();
        let Some(shape) = scenario.shape else {
            std::fs::File::create(self.path("disk")).unwrap().set_len(scenario.len * SECTOR as u64).unwrap();
            return Vec::new();
        };
        let create = ["create", "-q", "-f", "qcow2", "-o", shape];
        let sectors = match scenario.below {
            Below::Nothing => {
                self.make(&[&create[..], &["disk", &len]].concat());
                if scenario.bitmap {
                    self.make(&["bitmap", "--add", "disk", "bitmap"]);
                }
                return Vec::new();
            }
            Below::Raw => scenario.len + 3000,
            Below::Qcow2 => scenario.len - 1000,
            Below::Packed | Below::Snapshot => scenario.len,
        };
        let bytes: Vec<u8> = (0..sectors).flat_map(|sector| stamped(sector, 7)).collect();
        std::fs::write(self.path("base"), bytes).unwrap();
        let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", shape];
        match scenario.below {
            Below::Raw => self.make(&[&create[..], &["-b", "base", "-F", "raw", "disk", &len]].concat()),
            Below::Qcow2 => {
                self.make(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "middle"]);
                self.make(&[&create[..], &["-b", "middle", "-F", "qcow2", "disk", &len]].concat());
            }
            Below::Packed => self.make(&[&convert[..], &["-c", "base", "disk"]].concat()),
            _ => {
                self.make(&[&convert[..], &["base", "disk"]].concat());
                self.make(&["snapshot", "-c", "one", "disk"]);
            }
        }
        vec![7; sectors as usize]
    }

    /// Models `count` losses of power, or until one loses something. Each recording begins with what the one before left.
    pub(super) fn run(
        &self,
        scenario: &Scenario,
        seed: u64,
        count: u64,
        without: Without,
    ) -> Result<u64, String> {
        let below = self.prepare(scenario);
        let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut done = 0;
        let mut sectors = scenario.len;
        while done < count {
            let (driven, start, file) = self.record(scenario, &mut random, sectors);
            let want = EACH.min(count - done);
            let left = self.replay(scenario, &driven, start, file, &below, &mut random, want, without)?;
            done += want;
            sectors = match scenario.shape {
                None => left.len() / SECTOR as u64,
                Some(_) => qcow2::Image::check(&left)?.sectors(),
            };
            self.write("disk", &left);
            if without != Without::Nothing || (done % 4000 < want && done < count) {
                // Leaks add up, and disks that grow become large.
                self.prepare(scenario);
                sectors = scenario.len;
            }
        }
        Ok(done)
    }

    /// Writes a state to a file.
    fn write(&self, name: &str, state: &State) {
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(state.len()).unwrap();
        for (sector, bytes) in state.used(0, u64::MAX) {
            let at = sector * SECTOR as u64;
            let len = (state.len() - at).min(SECTOR as u64) as usize;
            file.write_all_at(&bytes[..len], at).unwrap();
        }
    }

    fn open(&self, scenario: &Scenario, name: &str, read_only: bool) -> Image {
        let (path, cache) = (self.path(name), scenario.cache);
        // A process that another test is about to start has our open files for a moment, but nobody else uses these.
        let sharing = Sharing::Unlocked;
        if scenario.shape.is_none() {
            let mut image = RawImage::open(&RawOptions { path, read_only, cache, sharing }).unwrap();
            image.force_by(scenario.forcing);
            return Image::Raw(image);
        }
        let backing = Backing::SameDirectory;
        let options = Qcow2Options { path, read_only, cache, sharing, backing, discard: scenario.discard };
        Image::Qcow2(Qcow2Image::open(&options).unwrap_or_else(|e| panic!("{e}: {:?}", e.source)))
    }

    /// Uses the image, and records what that does to the file.
    fn record(&self, scenario: &Scenario, random: &mut Random, sectors: u64) -> (Driven, State, FileId) {
        let path = self.path("disk");
        let bytes = std::fs::read(&path).unwrap();
        let image = self.open(scenario, "disk", false);
        let meta = std::fs::metadata(&path).unwrap();
        let file = (meta.dev(), meta.ino());
        // Opening makes a file end with a whole cluster.
        let grown = [
            Event::Begin { id: u64::MAX, file, change: Change::Resize(meta.len()) },
            Event::End { id: u64::MAX, good: true },
        ];
        let recorder = Recorder::starting_with(grown);
        let driven = drive::drive(image, *scenario, recorder, random.below(u64::MAX), sectors);
        (driven, State::of(&bytes), file)
    }

    /// Models losses of power and looks at what they leave; gives back the last one.
    #[allow(clippy::too_many_arguments)]
    fn replay(
        &self,
        scenario: &Scenario,
        driven: &Driven,
        start: State,
        file: FileId,
        below: &[u64],
        random: &mut Random,
        count: u64,
        without: Without,
    ) -> Result<State, String> {
        let nothing = matches!(scenario.below, Below::Nothing | Below::Packed | Below::Snapshot);
        let mut before = Before { start: Vec::new(), below: below.to_vec(), nothing };
        let mut touched: Vec<u64> = driven.ledger.touched().collect();
        touched.sort_unstable();
        before.start = self.stamps(scenario, &start, &before, &touched)?.0;
        // What lies below the end of the disk is not of the disk.
        before.start.retain(|(sector, _)| *sector < driven.sectors);
        let mut replay = Replay::new(file, start, without);
        let (mut done, total) = (0, driven.events.len() as u64);
        let mut last = replay.crash(random);
        for (moment, event) in (1..).zip(&driven.events) {
            replay.step(event);
            // All the same number, but for those that look for something.
            let seeking = without != Without::Nothing;
            let due = match moment as u64 * count / total {
                _ if seeking => done + replay.attempts(),
                due => due,
            };
            while done < due {
                done += 1;
                let state = replay.crash(random);
                let told = |fault| format!("after {moment} of {total} events: {fault}");
                let (stamps, sectors) = self.stamps(scenario, &state, &before, &touched).map_err(told)?;
                driven.ledger.check_length(moment, sectors).map_err(told)?;
                if scenario.bitmap && qcow2::has_valid_bitmaps(&state) {
                    let changed = |(sector, stamp): &&(u64, u64)| *stamp != before.at_start(*sector);
                    if let Some((sector, stamp)) = stamps.iter().find(changed) {
                        return Err(told(format!(
                            "sector {sector} holds {stamp}, which the valid bitmap lacks"
                        )));
                    }
                }
                for (sector, stamp) in &stamps {
                    driven.ledger.check(moment, *sector, *stamp, before.at_start(*sector)).map_err(told)?;
                }
                if random.below(OPENED) == 0 {
                    self.look(scenario, &state, &stamps).map_err(told)?;
                }
                if scenario.shape.is_some() && random.below(CHECKED) == 0 {
                    self.write("left", &state);
                    let (code, text) = self.img(&["check", "-f", "qcow2", "left"]);
                    if !matches!(code, 0 | 3) {
                        return Err(told(format!("qemu-img check: {text}")));
                    }
                }
                last = state;
            }
        }
        Ok(last)
    }

    /// The stamps of `sectors` in a state, and the length of the disk in sectors.
    fn stamps(
        &self,
        scenario: &Scenario,
        state: &State,
        before: &Before,
        sectors: &[u64],
    ) -> Result<(Vec<(u64, u64)>, u64), String> {
        if scenario.shape.is_none() {
            let stamps = sectors.iter().map(|sector| Ok((*sector, qcow2::raw_stamp(state, *sector)?)));
            return Ok((stamps.collect::<Result<_, String>>()?, state.len() / SECTOR as u64));
        }
        let image = qcow2::Image::check(state)?;
        let stamp = |sector: &u64| {
            if *sector >= image.sectors() {
                return Ok((*sector, 0));
            }
            Ok((*sector, before.of(image.stamp(*sector)?, *sector)))
        };
        Ok((sectors.iter().map(stamp).collect::<Result<_, String>>()?, image.sectors()))
    }

    /// Opens a state as an image and reads it.
    fn look(&self, scenario: &Scenario, state: &State, stamps: &[(u64, u64)]) -> Result<(), String> {
        self.write("left", state);
        let image = self.open(scenario, "left", false);
        drive::read(image, stamps.to_vec())
    }
}
