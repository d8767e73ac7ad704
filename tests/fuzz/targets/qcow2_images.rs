//! Files that claim to be qcow2 images. What can be opened must not end the process, must not tie it up, and must give
//! back what was written to it.
#![cfg_attr(fuzzing, no_main)]

use std::io::Write;
use std::path::Path;

use devices::mem::{FromGuest, SgList, ToGuest};
use devices::storage::{
    BlockBackend, ByteOffset, CacheMode, Durability, Qcow2Image, Qcow2Options, Sharing, Span, Unmap,
};
use fuzz::on_io_thread;

const PART: usize = 5120;

fn buffer(byte: u8) -> SgList {
    let list = SgList::host(PART, 512).expect("host memory");
    let len = list.len();
    ToGuest::new(list.window(0, len)).write_at(0, &[byte; PART]);
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

fuzz::target!(|input: &[u8]| {
    // The last byte chooses: read only or not, and where to write. Images stay images with one more.
    let Some((&choice, bytes)) = input.split_last() else { return };
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(bytes).expect("space in memory");
    let Some(image) = open(file.path(), choice & 1 == 1) else { return };
    let image = on_io_thread(move |io| async move {
        let len = image.geometry().len;
        let places = [0, 60 << 10, 1 << 19, (u64::from(choice) >> 1) * 512, len.saturating_sub(PART as u64)];
        for at in places {
            let _ = image.read(&io, ByteOffset(at), ToGuest::new(buffer(0))).await;
            let span = Span { at: ByteOffset(at), len: 16384 };
            let _ = image.extent(&io, Span { len: 1, ..span }).await;
            let _ = image.zero(&io, span, Unmap::Allowed).await;
            let (at, from) = (ByteOffset(at), FromGuest::new(buffer(9)));
            if image.write(&io, at, from, Durability::Cached).await.is_ok() {
                let back = buffer(0);
                let seen = FromGuest::new(back.window(0, PART as u64));
                if image.read(&io, at, ToGuest::new(back)).await.is_ok() {
                    let mut got = [0; PART];
                    seen.read_at(0, &mut got);
                    assert!(got == [9; PART], "read something else than was written at {}", at.0);
                }
            }
            let _ = image.flush(&io).await;
        }
        let _ = image.close(&io).await;
        image
    });
    drop(image);
    drop(open(file.path(), true));
});
