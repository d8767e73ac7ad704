//! Which files of the host an image may name.

use super::*;
use crate::storage::RawOptions;
use crate::testing::LoopDevice;

/// `vms/top.qcow2` over what `name` says, and `other/base.raw`.
fn overlay(bench: &Bench, name: &str) -> PathBuf {
    for directory in ["vms", "other"] {
        std::fs::create_dir_all(bench.path(directory)).unwrap();
        bench.img(&["create", "-q", "-f", "raw", &format!("{directory}/base.raw"), "1M"]);
    }
    bench.img(&["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "vms/top.qcow2", "1M"]);
    bench.path("vms/top.qcow2")
}

/// Opening and inspecting say the same.
fn verdict(path: &Path, backing: Backing) -> Result<(), String> {
    let options = Qcow2Options { backing, ..options(path) };
    let inspected = Qcow2Image::inspect(&options).map(drop).map_err(|e| e.message);
    let opened = Qcow2Image::open(&options).map(drop).map_err(|e| e.message);
    assert_eq!(inspected, opened);
    opened
}

#[test]
fn an_overlay_next_to_its_base_works_and_the_rest_of_the_host_is_closed() {
    let Some(bench) = Bench::new() else { return };
    let (vms, other) = (bench.path("vms"), bench.path("other"));
    let top = overlay(&bench, "base.raw");
    assert_eq!(verdict(&top, Backing::default()), Ok(()));
    assert_eq!(verdict(&top, Backing::Any), Ok(()));
    assert_eq!(verdict(&top, Backing::Listed(vec![vms.join("base.raw")])), Ok(()));
    assert!(verdict(&top, Backing::None).unwrap_err().contains("backing = \"none\" forbids any"));
    assert!(
        verdict(&top, Backing::Listed(vec![other.clone()])).unwrap_err().contains("the list of `backing`")
    );
    assert!(verdict(&top, Backing::Listed(vec![])).is_err());
    // A link to the image: its base is beside the image, as the name in it says, or beside the link.
    std::os::unix::fs::symlink(&vms, bench.path("link")).unwrap();
    assert_eq!(verdict(&bench.path("link/top.qcow2"), Backing::default()), Ok(()));

    for name in ["/etc/passwd", "../other/base.raw", "./../vms/../other/base.raw"] {
        let top = overlay(&bench, name);
        let said = verdict(&top, Backing::default()).unwrap_err();
        let start =
            format!("{} names the backing file \"{name}\", and backing = \"same-directory\"", top.display());
        assert!(said.starts_with(&start), "{said}");
        let real = std::fs::canonicalize(vms.join(name)).unwrap();
        assert!(said.contains(&format!("set backing = [\"{}\"]", real.display())), "{said}");
        assert_eq!(verdict(&top, Backing::Listed(vec![real.clone()])), Ok(()));
        assert_eq!(verdict(&top, Backing::Listed(vec![real.parent().unwrap().into()])), Ok(()));
        assert_eq!(verdict(&top, Backing::Any), Ok(()));
    }
}

#[test]
fn a_link_leads_nowhere_else_and_no_device_is_beside_an_image() {
    let Some(bench) = Bench::new() else { return };
    let top = overlay(&bench, "link.raw");
    let (vms, other) = (bench.path("vms"), bench.path("other"));
    std::os::unix::fs::symlink("../other/base.raw", vms.join("link.raw")).unwrap();
    assert!(verdict(&top, Backing::default()).unwrap_err().contains("other/base.raw"));
    assert!(
        verdict(&top, Backing::Listed(vec![vms.clone()])).is_err(),
        "the link is in the list, the file is not"
    );
    assert_eq!(verdict(&top, Backing::Listed(vec![other])), Ok(()));
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let top = overlay(&bench, device.path().to_str().unwrap());
    assert!(verdict(&top, Backing::default()).is_err());
    assert_eq!(verdict(&top, Backing::Listed(vec![device.path().into()])), Ok(()));
    // An image that is a device of the host has all the others beside it.
    let inner = device.path().to_str().unwrap();
    let Some(image) = LoopDevice::new(1 << 20, 512) else { return };
    bench.img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        inner,
        "-F",
        "raw",
        image.path().to_str().unwrap(),
        "1M",
    ]);
    assert!(verdict(image.path(), Backing::default()).unwrap_err().contains("same-directory"));
    assert_eq!(verdict(image.path(), Backing::Listed(vec![device.path().into()])), Ok(()));
}

/// Whoever can write to the image's directory swaps what is there at any moment.
#[test]
fn what_was_allowed_is_what_is_opened() {
    use super::super::{header::Header, open::Walk};
    use std::os::unix::fs::{MetadataExt, symlink};
    let Some(bench) = Bench::new() else { return };
    let top = overlay(&bench, "link.raw");
    let link = bench.path("vms/link.raw");
    let header = Header::parse(&std::fs::read(&top).unwrap()).unwrap();
    let options = options(&top);
    for (then, same) in [("base.raw", true), ("../other/base.raw", false)] {
        let _ = std::fs::remove_file(&link);
        symlink("base.raw", &link).unwrap();
        let mut walk = Walk::new(&options);
        walk.step().unwrap();
        walk.below(&top, &header).unwrap();
        std::fs::remove_file(&link).unwrap();
        symlink(then, &link).unwrap();
        let next = walk.step().unwrap().unwrap();
        let found = std::fs::metadata(&next.path).unwrap();
        let opened = walk.opened(&next.path, (found.dev(), found.ino()));
        assert_eq!(opened.is_ok(), same, "{then}");
        assert!(opened.err().is_none_or(|e| e.message.contains("was replaced while it was opened")));
    }
}

#[test]
fn a_refused_device_is_called_as_the_image_calls_it() {
    let Some(bench) = Bench::new() else { return };
    let top = overlay(&bench, "volume");
    // As /dev/vg/base leads to /dev/dm-3.
    std::os::unix::fs::symlink("/dev/null", bench.path("vms/volume")).unwrap();
    let said = verdict(&top, Backing::default()).unwrap_err();
    let name = bench.path("vms/volume");
    assert!(
        said.contains(&format!("set backing = [\"{}\"] there; only the list counts", name.display())),
        "{said}"
    );
    let said = verdict(&top, Backing::Listed(vec![bench.path("other")])).unwrap_err();
    assert!(said.contains(&format!("add \"{}\" to that list", name.display())), "{said}");
}

#[test]
fn names_that_are_no_text_of_one_line_are_refused() {
    let Some(bench) = Bench::new() else { return };
    for name in ["base\n.raw", "\u{1b}[2Jbase.raw"] {
        let said = verdict(&overlay(&bench, name), Backing::Any).unwrap_err();
        assert!(said.contains("control characters") && !said.contains(char::is_control), "{said:?}");
    }
}

#[test]
fn names_that_are_no_files_are_refused_whatever_is_allowed() {
    let Some(bench) = Bench::new() else { return };
    for name in ["json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "nbd://host/disk", "fat:rw:/etc"]
    {
        let top = overlay(&bench, name);
        let said = verdict(&top, Backing::Any).unwrap_err();
        assert!(said.contains("only files are supported"), "{name}: {said}");
    }
    let top = overlay(&bench, "/dev/zero");
    assert!(verdict(&top, Backing::Any).unwrap_err().contains("neither a regular file nor a block device"));
}

/// QEMU takes such a name from its working directory, and so another file, or none.
#[test]
fn names_that_mean_something_else_to_qemu_are_refused_with_the_remedy() {
    let Some(bench) = Bench::new() else { return };
    let top = overlay(&bench, "file:base.raw");
    let said = verdict(&top, Backing::default()).unwrap_err();
    let remedy = format!("record it with qemu-img rebase -u -b \"base.raw\" -F raw \"{}\"", top.display());
    assert!(said.contains("\"file:base.raw\"") && said.ends_with(&remedy), "{said}");
    bench.img(&["rebase", "-u", "-b", "base.raw", "-F", "raw", "vms/top.qcow2"]);
    assert_eq!(verdict(&top, Backing::default()), Ok(()));
    for slashes in ["", "//"] {
        let top = overlay(&bench, &format!("file:{slashes}{}", bench.path("vms/base.raw").display()));
        assert_eq!(verdict(&top, Backing::default()), Ok(()));
    }
}

/// The image that is configured is the one that the operator knows.
#[test]
fn what_is_wrong_below_the_top_is_told_with_the_image_that_wants_it() {
    let Some(bench) = Bench::new() else { return };
    let top = overlay(&bench, "middle.qcow2");
    bench.img(&["rebase", "-u", "-b", "middle.qcow2", "-F", "qcow2", "vms/top.qcow2"]);
    let start = format!("{} cannot use a backing file: ", top.display());
    let said = || verdict(&top, Backing::default()).unwrap_err();
    bench.img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "gone.raw",
        "-F",
        "raw",
        "vms/middle.qcow2",
        "1M",
    ]);
    assert!(said().starts_with(&start) && said().contains("gone.raw"), "{}", said());
    std::fs::write(bench.path("vms/middle.qcow2"), [0; 512]).unwrap();
    assert!(said().starts_with(&start) && said().contains("it is no qcow2 image"), "{}", said());
    // Another has it for writing.
    let top = overlay(&bench, "base.raw");
    let path = bench.path("vms/base.raw");
    let (cache, sharing) = (CacheMode::Writeback, Sharing::Exclusive);
    let writer = RawImage::open(&RawOptions { path, read_only: false, cache, sharing }).unwrap();
    let said = refusal(&options(&top));
    assert!(said.starts_with(&format!("{} cannot use a backing file: ", top.display())), "{said}");
    assert!(said.contains("base.raw"), "{said}");
    drop(writer);
}

#[test]
fn looking_at_an_image_changes_and_locks_nothing() {
    use std::os::unix::fs::MetadataExt;
    let Some(bench) = Bench::new() else { return };
    let top = overlay(&bench, "base.raw");
    // Autoclear features, which writing would clear.
    let mut bytes = std::fs::read(&top).unwrap();
    bytes[95] |= 4;
    std::fs::write(&top, &bytes).unwrap();
    let times = || {
        let found = std::fs::metadata(&top).unwrap();
        (found.atime(), found.atime_nsec(), found.mtime_nsec(), found.ctime_nsec())
    };
    let before = times();
    let running = Qcow2Image::open(&Qcow2Options { read_only: true, ..options(&top) }).unwrap();
    let after_opening = times();
    Qcow2Image::inspect(&options(&top)).unwrap();
    assert_eq!(times(), after_opening);
    drop(running);
    assert_eq!(std::fs::read(&top).unwrap(), bytes);
    assert_eq!((before.2, before.3), (times().2, times().3));
    // Nor is it in the way of who opens it.
    drop(open(&top));
}
