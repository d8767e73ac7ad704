//! Files that claim to be qcow2 images. What can be opened must not end the process and must not tie it up. What is an image
//! by the format's definition is a disk: everything that was done to it, and nothing else, is there afterwards, and after it
//! was opened again, and the file still is an image.
#![cfg_attr(fuzzing, no_main)]

use std::io::Write;
use std::path::Path;

use devices::iothread::Io;
use devices::mem::{FromGuest, SgList, ToGuest};
use devices::storage::{
    BlockBackend, BlockError, ByteOffset, CacheMode, Durability, Qcow2Image, Qcow2Options, Sharing, Span,
    Unmap,
};
use devices::testing::power::{State, qcow2};
use fuzz::on_io_thread;

const PART: usize = 5120;
const SECTOR: usize = 512;
/// Longer disks are not looked at as a whole.
const DISK_MAX: u64 = 1 << 20;
/// Longer files, larger tables and more snapshots are not looked at.
const FILE_MAX: usize = 4 << 20;
const L1_MAX: u32 = 16;
const REFTABLE_MAX: u32 = 4;

fn buffer(len: usize, byte: u8) -> SgList {
    let list = SgList::host(len, SECTOR).expect("host memory");
    ToGuest::new(list.window(0, len as u64)).write_at(0, &vec![byte; len]);
    list
}

fn open(path: &Path, read_only: bool) -> Option<Qcow2Image> {
    let cache = CacheMode::Writeback;
    let sharing = Sharing::Exclusive;
    Qcow2Image::open(&Qcow2Options {
        path: path.to_owned(),
        read_only,
        cache,
        sharing,
        discard: true,
        backing: Default::default(),
    })
    .ok()
}

async fn read(io: &Io, image: &Qcow2Image, at: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let list = buffer(len, 0xee);
    let seen = FromGuest::new(list.window(0, len as u64));
    image.read(io, ByteOffset(at), ToGuest::new(list)).await?;
    let mut bytes = vec![0; len];
    seen.read_at(0, &mut bytes);
    Ok(bytes)
}

/// Why the file is no image, by the format's definition; `None` also where nobody looks.
fn fault(bytes: &[u8]) -> Option<String> {
    is_small(bytes).then(|| qcow2::Image::check(&State::of(bytes)).err())?
}

/// Whether looking at the file takes little.
fn is_small(bytes: &[u8]) -> bool {
    let field = |at: usize| {
        bytes.get(at..at + 4).map_or(u32::MAX, |it| u32::from_be_bytes(it.try_into().expect("4")))
    };
    bytes.len() <= FILE_MAX && field(36) <= L1_MAX && field(56) <= REFTABLE_MAX && field(60) == 0
}

/// What a disk holds: sectors, as far as it is known.
struct Model {
    sectors: Vec<Option<[u8; SECTOR]>>,
    /// All could be read at first, so there is no reason for anything to fail.
    is_whole: bool,
}

impl Model {
    async fn of(io: &Io, image: &Qcow2Image) -> Self {
        let mut sectors = Vec::new();
        for at in (0..image.geometry().len).step_by(SECTOR) {
            sectors.push(read(io, image, at, SECTOR).await.ok().map(|it| it.try_into().expect("a sector")));
        }
        let is_whole = sectors.iter().all(Option::is_some);
        Self { sectors, is_whole }
    }

    /// What came of writing `byte` to a range: of an error nobody knows how far it got.
    fn wrote(&mut self, what: &str, span: Span, byte: u8, result: Result<(), BlockError>) {
        let (from, to) = (span.at.0 as usize / SECTOR, (span.at.0 + span.len) as usize / SECTOR);
        let Some(range) = self.sectors.get_mut(from..to) else {
            assert!(result.is_err(), "{what} beyond the end of the disk");
            return;
        };
        match result {
            Ok(()) => range.fill(Some([byte; SECTOR])),
            Err(error) => {
                assert!(!self.is_whole, "{what} {span:?} of a sound image: {error}");
                range.fill(None);
            }
        }
    }

    async fn check(&self, when: &str, io: &Io, image: &Qcow2Image) {
        assert_eq!(image.geometry().len, (self.sectors.len() * SECTOR) as u64, "its length {when}");
        for (number, known) in self.sectors.iter().enumerate() {
            let result = read(io, image, (number * SECTOR) as u64, SECTOR).await;
            match (result, known) {
                (Ok(bytes), Some(known)) => {
                    assert!(bytes == known, "sector {number} {when}: {:x?} and not {:x?}", bytes[0], known[0])
                }
                (Err(error), Some(_)) => panic!("sector {number} {when}: {error}"),
                _ => {}
            }
        }
    }
}

/// A number for the next step.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Does a few things to an image that is one, and returns what is on it.
async fn change(io: &Io, image: &Qcow2Image, choice: u8) -> Model {
    let mut model = Model::of(io, image).await;
    let mut seed = u64::from(choice);
    for step in 0..12_u8 {
        let sectors = model.sectors.len() as u64;
        let at = next(&mut seed) % (sectors + 1);
        let count = 1 + next(&mut seed) % if step % 3 == 0 { sectors.max(1) } else { 24 };
        let span = Span { at: ByteOffset(at * SECTOR as u64), len: count * SECTOR as u64 };
        match next(&mut seed) % 8 {
            0 => assert!(image.flush(io).await.is_ok() || !model.is_whole, "a flush of a sound image"),
            1 => {
                let len = sectors * SECTOR as u64 + (next(&mut seed) % 200) * SECTOR as u64;
                match image.grow(io, len).await {
                    Ok(()) => model.sectors.resize(len as usize / SECTOR, Some([0; SECTOR])),
                    Err(error) => assert!(!model.is_whole, "a sound image does not grow: {error}"),
                }
            }
            2 => model.wrote("zeros", span, 0, image.zero(io, span, Unmap::Allowed).await),
            3 => model.wrote("zeros", span, 0, image.zero(io, span, Unmap::Keep).await),
            4 => {
                let _ = image.extent(io, Span { len: 1, ..span }).await;
            }
            _ => {
                let (byte, len) = (step + 1, span.len as usize);
                let durability = if step % 2 == 0 { Durability::Stable } else { Durability::Cached };
                let result = image.write(io, span.at, FromGuest::new(buffer(len, byte)), durability).await;
                model.wrote("a write", span, byte, result);
            }
        }
    }
    model.check("after changes", io, image).await;
    assert!(image.close(io).await.is_ok() || !model.is_whole, "a sound image is not closed");
    model
}

/// Does a few things to what can be opened and is no image.
async fn try_all(io: &Io, image: &Qcow2Image, choice: u8) {
    let len = image.geometry().len;
    let places = [0, 60 << 10, 1 << 19, (u64::from(choice) >> 1) * 512, len.saturating_sub(PART as u64)];
    for at in places {
        let _ = read(io, image, at, PART).await;
        let span = Span { at: ByteOffset(at), len: 16384 };
        let _ = image.extent(io, Span { len: 1, ..span }).await;
        let _ = image.zero(io, span, Unmap::Allowed).await;
        if image.write(io, span.at, FromGuest::new(buffer(PART, 9)), Durability::Cached).await.is_ok()
            && let Ok(got) = read(io, image, at, PART).await
        {
            assert!(got == [9; PART], "read something else than was written at {at}");
        }
        let _ = image.flush(io).await;
    }
    if choice & 0x40 != 0 {
        let _ = image.grow(io, len.saturating_add(1 << (choice & 0x3f))).await;
    }
    let _ = image.close(io).await;
}

fuzz::target!(|input: &[u8]| {
    // The last byte chooses: read only or not, and what to do. Images stay images with one more.
    let Some((&choice, bytes)) = input.split_last() else { return };
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(bytes).expect("space in memory");
    let read_only = choice & 1 == 1;
    let Some(image) = open(file.path(), read_only) else { return };
    // What has a backing file has more than one file.
    let is_sound = !read_only
        && image.geometry().len <= DISK_MAX
        && is_small(bytes)
        && bytes.get(8..16) == Some(&[0; 8])
        && fault(bytes).is_none();
    let (image, model) = on_io_thread(move |io| async move {
        let model = match is_sound {
            true => Some(change(&io, &image, choice).await),
            false => {
                try_all(&io, &image, choice).await;
                None
            }
        };
        (image, model)
    });
    drop(image);
    let again = open(file.path(), true);
    let Some(model) = model else { return };
    let image = again.expect("a sound image opens again");
    let image = on_io_thread(move |io| async move {
        model.check("when it was opened again", &io, &image).await;
        image
    });
    drop(image);
    let bytes = std::fs::read(file.path()).expect("the file");
    if let Some(fault) = fault(&bytes) {
        panic!("the image is none any more: {fault}");
    }
});
