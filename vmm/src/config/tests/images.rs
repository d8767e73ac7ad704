//! Images under a wrong name, and chains that are broken: found by looking, before anything is opened.

use super::*;

/// A qcow2 image of one cluster of 512 bytes with nothing in it (QEMU, docs/interop/qcow2.rst).
pub(super) fn qcow2(backing: &str) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &9u32.to_be_bytes());
    put(24, &512u64.to_be_bytes());
    // An L1 table of one entry, a refcount table of one cluster.
    put(36, &1u32.to_be_bytes());
    put(40, &512u64.to_be_bytes());
    put(48, &1024u64.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &[0, 0, 0, 4, 0, 0, 0, 104]);
    if !backing.is_empty() {
        put(8, &200u64.to_be_bytes());
        put(16, &(backing.len() as u32).to_be_bytes());
        // Header extension: the format of the backing file.
        put(104, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
        put(112, b"raw");
        put(200, backing.as_bytes());
    }
    bytes
}

const START: &str = "[vm]\nmemory = \"1GiB\"\n[boot]\nkernel = \"vmlinuz\"\n[[hba]]\n[[hba.lun]]\n";

fn image(name: &str, more: &str) -> String {
    format!("{START}image = \"{name}\"\n{more}")
}

#[test]
fn images_under_a_wrong_name_are_refused_with_the_remedy() {
    let fixture = Fixture::new();
    let or = ", or set format = \"raw\" if the guest shall have its bytes as they are";
    let convert =
        |name: &str| format!("convert it with qemu-img convert -f {name} -O qcow2 \"x.img\" NEW.qcow2");
    let mut fixed_vhd = vec![0; 4096];
    fixed_vhd[4096 - 512..4096 - 504].copy_from_slice(b"conectix");
    for (bytes, what, remedy) in [
        (qcow2(""), "a qcow2 image", "set format = \"qcow2\"".to_owned()),
        (b"KDMV\x01\0\0\0".repeat(100), "a VMDK image", convert("vmdk")),
        (b"# Disk DescriptorFile\n".repeat(40), "a VMDK descriptor", convert("vmdk")),
        (b"vhdxfile".repeat(100), "a VHDX image", convert("vhdx")),
        (fixed_vhd, "a VHD image of fixed size", convert("vpc")),
        ([0x1f, 0x8b, 8, 0].repeat(200), "packed with gzip", "unpack it first with gunzip".to_owned()),
    ] {
        std::fs::write(fixture.path("x.img"), bytes).unwrap();
        let line = format!("vm.toml:7: `image` in [[hba.lun]]: x.img is {what}; {remedy}{or}");
        assert_eq!(fixture.lines(&image("x.img", ""), &[]), [line]);
        fixture.parse(&image("x.img", "format = \"raw\""), &[]).expect("taken at its word");
    }
    // As it comes over the control socket.
    let request = format!("[[hba]]\n[[hba.lun]]\nimage = \"{}\"", fixture.path("x.img").display());
    assert!(parse_hba(&request, fixture.0.path()).unwrap_err()[0].to_string().contains("gunzip"));
    // The other way round.
    std::fs::write(fixture.path("x.qcow2"), [0; 512]).unwrap();
    let line = "vm.toml:7: `image` in [[hba.lun]]: cannot use x.qcow2: it is no qcow2 image; for its bytes as they \
                are, set format = \"raw\"";
    assert_eq!(fixture.lines(&image("x.qcow2", ""), &[]), [line]);
    std::fs::write(fixture.path("x.qcow2"), b"vhdxfile".repeat(100)).unwrap();
    let lines = fixture.lines(&image("x.qcow2", ""), &[]);
    assert!(lines[0].contains("it is no qcow2 image, but a VHDX image; convert it with"), "{lines:?}");
}

#[test]
fn broken_chains_are_found() {
    let fixture = Fixture::new();
    let line = |backing: &str, more: &str| {
        std::fs::write(fixture.path("top.qcow2"), qcow2(backing)).unwrap();
        fixture
            .parse(&image("top.qcow2", more), &[])
            .map(drop)
            .map_err(|errors| fixture.shorten(&errors).join("\n"))
    };
    assert_eq!(line("a.img", ""), Ok(()));
    assert_eq!(
        line("missing.img", ""),
        Err("vm.toml:7: `image` in [[hba.lun]]: top.qcow2: cannot open its backing file \"missing.img\": No such \
             file or directory"
            .into())
    );
    assert!(line("nbd://host/disk", "").unwrap_err().contains("only files are supported"));
    std::fs::write(fixture.path("directory/base.img"), [0; 512]).unwrap();
    let elsewhere = line("directory/base.img", "").unwrap_err();
    let said = "top.qcow2 names the backing file \"directory/base.img\", and backing = \"same-directory\" allows only \
                files in the directory of the image; if it shall be read, set backing = [\"directory/base.img\"]";
    assert!(elsewhere.contains(said), "{elsewhere}");
    for backing in ["\"any\"", "[\"directory\"]", "[\"directory/base.img\", \"a.img\"]"] {
        assert_eq!(line("directory/base.img", &format!("backing = {backing}")), Ok(()), "{backing}");
    }
    for backing in ["\"none\"", "[]", "[\"a.img\"]", "\"same-directory\""] {
        assert!(line("directory/base.img", &format!("backing = {backing}")).is_err(), "{backing}");
    }
    assert!(line("a.img", "backing = \"none\"").unwrap_err().contains("forbids any"));
}

#[test]
fn the_files_that_an_image_may_name_are_names_or_a_list() {
    let fixture = Fixture::new();
    let refused = |more: &str| fixture.lines(&image("d.qcow2", more), &[]).join("\n");
    assert_eq!(
        refused("backing = \"some\""),
        "vm.toml:8: `backing` in [[hba.lun]] is \"some\", expected a list of paths, \"same-directory\", \"any\" or \
         \"none\""
    );
    assert!(refused("backing = [\"nowhere\"]").contains("`backing` in [[hba.lun]]: cannot open nowhere"));
    assert!(refused("backing = \"any\"\nformat = \"raw\"").contains("has no meaning with format = \"raw\""));
}

/// The protection information of a device lasts as long as the device, or is somewhere else.
#[test]
fn protection_information_is_not_kept_in_memory() {
    let is_device = |path: &PathBuf| matches!(host::medium(path), Some(host::Medium::Device(_)));
    let nodes = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let Some(device) = nodes.map(|node| node.path()).find(is_device) else {
        devices::testing::skipped("there is no block device");
        return;
    };
    let fixture = Fixture::new();
    std::os::unix::fs::symlink(&device, fixture.path("volume")).unwrap();
    let protection = |name: &str, more: &str| {
        // It may be in use or not be ours to open, which are errors of other keys.
        let text = image(name, &format!("protection = 1\n{more}"));
        let lines = fixture.parse(&text, &[]).err().unwrap_or_default();
        let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        lines.into_iter().filter(|line| line.contains("`protection")).collect::<Vec<_>>()
    };
    let device = device.display().to_string();
    let said = protection(&device, "");
    assert_eq!(said.len(), 1, "{said:?}");
    for part in
        ["`protection` in [[hba.lun]]", ".pi would be lost when the host restarts", "set `protection_image`"]
    {
        assert!(said[0].contains(part), "{}", said[0]);
    }
    let elsewhere = format!("protection_image = \"{}\"", fixture.path("volume.pi").display());
    assert_eq!(protection(&device, &elsewhere), Vec::<String>::new());
    // Under a name of its own, beside which a file lasts; an image in memory needs nothing that lasts longer.
    if host::check_lasting(&fixture.path("volume.pi")).is_ok() {
        assert_eq!(protection("volume", ""), Vec::<String>::new());
    }
    if let Ok(memory) = tempfile::tempdir_in("/dev/shm") {
        std::fs::write(memory.path().join("a.img"), [0; 512]).unwrap();
        assert!(host::check_lasting(&memory.path().join("a.img.pi")).is_err());
        assert_eq!(protection(&memory.path().join("a.img").display().to_string(), ""), Vec::<String>::new());
    }
}
