//! What images did elsewhere, each by its number. They are put together here, byte by byte, and need no tools.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::storage::RawOptions;

const CLUSTER: usize = 4096;
/// Where an image has its L1 table, its refcount table, and the table of its snapshots if it has any.
const L1: usize = CLUSTER;
const REFTABLE: usize = 2 * CLUSTER;
const SNAPSHOTS: usize = 3 * CLUSTER;

/// An image of 1 MiB with nothing in it (QEMU, docs/interop/qcow2.rst), changed at these places.
fn image(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 5 * CLUSTER];
    let fields: [(usize, &[u8]); 8] = [
        (0, b"QFI\xfb\0\0\0\x03"),
        (20, &12_u32.to_be_bytes()),
        (24, &(1_u64 << 20).to_be_bytes()),
        (36, &1_u32.to_be_bytes()),
        (40, &(L1 as u64).to_be_bytes()),
        (48, &(REFTABLE as u64).to_be_bytes()),
        (56, &1_u32.to_be_bytes()),
        (96, &[0, 0, 0, 4, 0, 0, 0, 104]),
    ];
    for (at, field) in fields.iter().chain(changes) {
        bytes[*at..*at + field.len()].copy_from_slice(field);
    }
    bytes
}

/// Why it cannot be opened: for reading, and for writing too. Afterwards nobody holds the file.
fn refused(changes: &[(usize, &[u8])]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(changes)).unwrap();
    let why = refusal(&options(file.path()));
    let Err(looked) = Qcow2Image::inspect(&options(file.path())) else { panic!("it opened") };
    assert_eq!(looked.message, why);
    let raw = RawOptions {
        path: file.path().into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Exclusive,
    };
    drop(RawImage::open(&raw).expect("nobody holds it"));
    assert_eq!(std::fs::read(file.path()).unwrap(), image(changes), "and it is as it was");
    why.replace(&file.path().display().to_string(), "FILE")
}

fn be32(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn be64(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

#[test]
fn the_image_itself_is_fine() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(&[])).unwrap();
    assert_eq!(read_all(open(file.path())), vec![0; 1 << 20]);
}

#[test]
fn cve_2014_0143_and_0146_tables_larger_than_anything() {
    for entries in [0x40_0001_u32, 0x1fff_ffff, 0x2000_0000, 0x8000_0000, u32::MAX] {
        let why = refused(&[(36, &be32(entries))]);
        assert!(why.contains("its L1 table is too large"), "{entries:#x}: {why}");
    }
    assert!(refused(&[(36, &be32(0))]).contains("its L1 table is too small"));
    for len in [1_u64 << 22, 1 << 40, i64::MAX as u64 - 4096] {
        assert!(refused(&[(24, &be64(len))]).contains("its L1 table is too small"), "{len:#x}");
    }
    for len in [i64::MAX as u64, 1 << 63, u64::MAX] {
        assert!(refused(&[(24, &be64(len))]).contains("its disk is impossibly large"), "{len:#x}");
    }
}

#[test]
fn cve_2014_0144_headers_that_lead_elsewhere() {
    for length in [0_u32, 71, 103, 4097, 0x7fff_ffff, u32::MAX] {
        assert!(refused(&[(100, &be32(length))]).contains("its header has an impossible length"), "{length}");
    }
    for (at, len) in [(4096_u64, 1_u32), (4095, 2), (104, 1024), (u64::MAX, 1), (u64::MAX - 1, 1023)] {
        let why = refused(&[(8, &be64(at)), (16, &be32(len))]);
        assert!(why.contains("the name of its backing file is not within the header"), "{at:#x}: {why}");
    }
    for clusters in [2049_u32, 0x10_0000, 0x8000_0000, u32::MAX] {
        assert!(
            refused(&[(56, &be32(clusters))]).contains("its refcount table is too large"),
            "{clusters:#x}"
        );
    }
    assert!(refused(&[(56, &be32(0))]).contains("it has no refcount table"));
    for (field, what) in [(40, "L1"), (48, "refcount")] {
        for at in [0_u64, 1, 4095, 4097, 1 << 56, u64::MAX] {
            let why = refused(&[(field, &be64(at))]);
            assert!(why.contains(&format!("its {what} table is not at a cluster")), "{at:#x}: {why}");
        }
        for at in [1_u64 << 40, (1 << 56) - 4096] {
            let why = refused(&[(field, &be64(at))]);
            assert!(why.contains(&format!("cannot read the {what} table")), "{at:#x}: {why}");
        }
    }
    for bits in [0_u32, 8, 22, 31, 32, 63, 64, u32::MAX] {
        assert!(refused(&[(20, &be32(bits))]).contains("its cluster size"), "{bits}");
    }
    for order in [7_u32, 31, 32, 63, u32::MAX] {
        assert!(refused(&[(96, &be32(order))]).contains("too wide"), "{order}");
    }
    for count in [1_u32, 65_537, u32::MAX] {
        for at in [1_u64, 1 << 40, u64::MAX - 4095] {
            let why = refused(&[(60, &be32(count)), (64, &be64(at))]);
            assert!(why.contains("its snapshot table is damaged"), "{count} at {at:#x}: {why}");
        }
    }
}

/// The header with one snapshot, whose L1 table has another length than the disk's own.
fn with_snapshot(l1_at: u64, entries: u32) -> Vec<(usize, Vec<u8>)> {
    [
        (60, be32(1).to_vec()),
        (64, be64(SNAPSHOTS as u64).to_vec()),
        (SNAPSHOTS, be64(l1_at).to_vec()),
        (SNAPSHOTS + 8, be32(entries).to_vec()),
    ]
    .into()
}

#[test]
fn cve_2014_0145_snapshots_with_longer_tables() {
    let last = 4 * CLUSTER as u64;
    for (at, entries) in [(last, 513), (last, 0x40_0001), (last, u32::MAX), (1, 1), (u64::MAX - 4095, 1)] {
        let changes = with_snapshot(at, entries);
        let changes: Vec<(usize, &[u8])> = changes.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        let why = refused(&changes);
        assert!(why.contains("its snapshot table is damaged"), "{entries:#x} at {at:#x}: {why}");
    }
    // 512 entries are more than the one of the disk's own table, and no fault.
    let changes = with_snapshot(last, 512);
    let changes: Vec<(usize, &[u8])> = changes.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(&changes)).unwrap();
    assert_eq!(read_all(open(file.path())), vec![0; 1 << 20]);
}

/// The disk's first cluster is far behind everything that is counted.
#[test]
fn cve_2014_0147_clusters_beyond_the_refcount_table() {
    const L2: usize = SNAPSHOTS;
    const BLOCK: usize = 4 * CLUSTER;
    // What is in the file is counted, once each.
    let counted = [0, 1].repeat(5);
    for at in [1_u64 << 30, 1 << 44, 1 << 50, (1 << 56) - 4096] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let changes: [(usize, &[u8]); 4] = [
            (L1, &be64(1 << 63 | L2 as u64)),
            (L2, &be64(1 << 63 | at)),
            (REFTABLE, &be64(BLOCK as u64)),
            (BLOCK, &counted),
        ];
        std::fs::write(file.path(), image(&changes)).unwrap();
        let image = open(file.path());
        on_io_thread(move |io| async move {
            // Behind the end of the file there are zeros, or there is nothing.
            let mem = ToGuest::new(SgList::host(512, 512).unwrap());
            let _ = image.read(&io, ByteOffset(0), mem).await;
            // What is done with the cluster itself may fail: a host's file has no such place.
            let first = Span { at: ByteOffset(0), len: CLUSTER as u64 };
            let _ = image.zero(&io, first, Unmap::Allowed).await;
            let _ = image.write(&io, ByteOffset(0), filled(512, 9), Durability::Stable).await;
            // The table is looked at for another one, and does not become longer than the file.
            image.write(&io, ByteOffset(CLUSTER as u64), filled(512, 7), Durability::Stable).await.unwrap();
            image.close(&io).await.unwrap();
        });
        assert!(file.as_file().metadata().unwrap().blocks() * 512 < 1 << 20, "{at:#x}");
        let all = read_all(open(file.path()));
        assert_eq!(all[CLUSTER..CLUSTER + 512], [7; 512], "{at:#x}");
        assert!(all[CLUSTER + 512..].iter().all(|byte| *byte == 0), "{at:#x}");
    }
}

#[test]
fn cve_2014_0222_and_0223_version_1_is_not_read() {
    for version in [0_u32, 1, 4, u32::MAX] {
        let why = refused(&[(4, &be32(version))]);
        assert!(why.contains("and only 2 and 3 are known"), "{version}: {why}");
    }
}

#[test]
fn cve_2024_32498_no_image_names_a_file_for_its_data() {
    // The feature, and the extension with the name.
    let name = b"/etc/passwd";
    let extension = [&be32(0x4441_5441)[..], &be32(name.len() as u32), name].concat();
    let why = refused(&[(72, &be64(1 << 2)), (104, &extension)]);
    assert!(why.contains("it keeps its data in another file, which is not supported"), "{why}");
    // Without the feature the extension means nothing: the data is the image's own.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(&[(104, &extension)])).unwrap();
    assert_eq!(read_all(open(file.path())), vec![0; 1 << 20]);
}

#[test]
fn cve_2024_4467_and_2026_27211_names_that_are_more_than_a_file_beside_the_image() {
    for (name, said) in [
        (&b"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}"[..], "only files are supported"),
        (b"nbd://host/disk", "only files are supported"),
        (b"/etc/passwd", "backing = \"same-directory\""),
        (b"../../../../../../../../etc/passwd", "backing = \"same-directory\""),
    ] {
        // A header extension with the format "raw".
        let format = [&be32(0xe279_2aca)[..], &be32(3), b"raw\0\0\0\0\0"].concat();
        let changes: [(usize, &[u8]); 4] =
            [(8, &be64(512)), (16, &be32(name.len() as u32)), (104, &format), (512, name)];
        let why = refused(&changes);
        assert!(why.contains(said), "{}: {why}", name.escape_ascii());
        // What the image does not say is not guessed.
        let why = refused(&[(8, &be64(512)), (16, &be32(name.len() as u32)), (512, name)]);
        assert!(why.contains("does not say which format"), "{why}");
    }
}
