//! Images that lie.

use proptest::prelude::*;

use super::*;

/// A small image with data, zero and compressed clusters, made once.
fn sample() -> Option<Vec<u8>> {
    let bench = Bench::new()?;
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "sample.qcow2", "1M"]);
    bench.io("sample.qcow2", "qcow2", &["write -P 1 0 64k", "write -z 64k 16k", "write -c -P 2 128k 4k"]);
    std::fs::read(bench.path("sample.qcow2")).ok()
}

/// Opens mangled bytes and does a bit of everything. Errors are fine; nothing else is.
fn try_all(bytes: &[u8], read_only: bool) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let options = Qcow2Options { read_only, ..options(file.path()) };
    let Ok(image) = Qcow2Image::open(&options) else { return };
    on_io_thread(move |io| async move {
        let len = image.geometry().len;
        for at in [0, 60 << 10, 128 << 10, 1 << 19, len.saturating_sub(8192)] {
            let mem = ToGuest::new(SgList::host(8192, 512).unwrap());
            let _ = image.read(&io, ByteOffset(at), mem).await;
            let _ = image.write(&io, ByteOffset(at), filled(5120, 9), Durability::Cached).await;
            let span = Span { at: ByteOffset(at), len: 16384 };
            let _ = image.zero(&io, span, Unmap::Allowed).await;
            let _ = image.flush(&io).await;
        }
    });
}

#[test]
fn mangled_images_never_panic() {
    let Some(sample) = sample() else { return };
    let small = prop_oneof![any::<u64>(), 0..64u64, Just(u64::MAX), (0..40u64).prop_map(|n| n << 12)];
    // Mostly the header and the tables, which are in the first clusters.
    let place = prop_oneof![0..13usize, 0..20usize, 0..6 * 512usize, 0..sample.len() / 8];
    let changes = proptest::collection::vec((place, small), 1..5);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&(changes, any::<bool>()), |(changes, read_only)| {
        let mut bytes = sample.clone();
        for (place, value) in changes {
            if let Some(part) = bytes.get_mut(place * 8..place * 8 + 8) {
                part.copy_from_slice(&value.to_be_bytes());
            }
        }
        try_all(&bytes, read_only);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn headers_of_any_bytes_never_panic() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let bytes = proptest::collection::vec(any::<u8>(), 0..600);
    let result = runner.run(&(bytes, 2..4u8, 9..22u8), |(mut bytes, version, bits)| {
        let start = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, version];
        bytes.iter_mut().zip(start).for_each(|(to, from)| *to = from);
        if let Some(field) = bytes.get_mut(20..24) {
            field.copy_from_slice(&[0, 0, 0, bits]);
        }
        if let Some(field) = bytes.get_mut(32..36) {
            field.fill(0);
        }
        if let Some(field) = bytes.get_mut(72..79) {
            field.fill(0);
        }
        let _ = header::Header::parse(&bytes);
        Ok(())
    });
    result.unwrap();
}

/// The guest's data must not land in the image's own tables.
#[test]
fn an_entry_that_points_to_tables_is_not_written_through() {
    let Some(mut sample) = sample() else { return };
    let be = |at: usize| u64::from_be_bytes(sample[at..at + 8].try_into().unwrap());
    let l1_at = be(40);
    let l2_at = be(l1_at as usize) & 0x00ff_ffff_ffff_fe00;
    for target in [0x1000, l1_at, l2_at] {
        let entry = (1u64 << 63) | target;
        sample[l2_at as usize..l2_at as usize + 8].copy_from_slice(&entry.to_be_bytes());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &sample).unwrap();
        let image = open(file.path());
        let error = on_io_thread(move |io| async move {
            image.write(&io, ByteOffset(0), filled(512, 9), Durability::Stable).await.unwrap_err()
        });
        assert!(error.context.contains("qemu-img check"), "{error}");
        assert_eq!(std::fs::read(file.path()).unwrap()[..sample.len()], sample);
    }
}

/// One write would look at such a block as often as the table names it.
#[test]
fn a_refcount_table_that_names_a_block_twice_is_not_written_through() {
    let Some(mut sample) = sample() else { return };
    let table = u64::from_be_bytes(sample[48..56].try_into().unwrap()) as usize;
    sample.copy_within(table..table + 8, table + 8);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &sample).unwrap();
    let why = refusal(&options(file.path()));
    assert!(why.contains("twice") && why.contains("qemu-img check"), "{why}");
    assert_eq!(std::fs::read(file.path()).unwrap(), sample);
    let read_only = Qcow2Options { read_only: true, ..options(file.path()) };
    assert!(Qcow2Image::open(&read_only).is_ok(), "reading needs no refcounts");
}

/// Where the numbers of clusters end, their offsets begin at zero again: at the header.
#[test]
fn clusters_that_the_format_cannot_name_are_not_taken() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M,refcount_bits=1", "far.qcow2", "16M"]);
    let image = open(&bench.path("far.qcow2"));
    for hint in [1 << 43, 1 << 35] {
        image.inner.layers[0].meta().hint = hint;
        let own = image.inner.clone();
        let result = on_io_thread(move |io| async move {
            own.put(&io, 0, filled(512, 9), false).await.map_err(|e| e.context)
        });
        assert!(result.is_err_and(|why| why.contains("no cluster")), "from {hint} on");
    }
    drop(image);
    bench.check_clean("far.qcow2");
}
