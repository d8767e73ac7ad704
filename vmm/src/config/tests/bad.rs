//! Everything that can be wrong with a file: exact error lines.

use super::*;

/// Asserts the errors of [`SMALLEST`] with `more` after it, which begins on line 8 within [[hba.lun]].
#[track_caller]
pub(super) fn after_smallest(more: &str, expected: &[&str]) {
    assert_eq!(Fixture::new().lines(&format!("{SMALLEST}{more}\n"), &[]), expected, "{more}");
}

/// Asserts the errors of [`SMALLEST`] with `line` after `[vm]`, as line 2.
#[track_caller]
fn in_vm(line: &str, expected: &[&str]) {
    let text = SMALLEST.replacen("[vm]\n", &format!("[vm]\n{line}\n"), 1);
    let text = if line.starts_with("memory") { text.replacen("memory = \"1GiB\"\n", "", 1) } else { text };
    assert_eq!(Fixture::new().lines(&text, &[]), expected, "{line}");
}

#[test]
fn unknown_names_are_refused_with_a_guess() {
    in_vm("memroy = 1", &["vm.toml:2: unknown key `memroy` in [vm], did you mean `memory`?"]);
    in_vm("kernel = \"x\"", &["vm.toml:2: unknown key `kernel` in [vm], it belongs in [boot]"]);
    in_vm("image = \"x\"", &["vm.toml:2: unknown key `image` in [vm], it belongs in [[hba.lun]]"]);
    in_vm(
        "potato = 1",
        &[
            "vm.toml:2: unknown key `potato` in [vm], expected `name`, `cpus`, `memory`, `uuid`, `hugepages`, \
           `shared_memory`, `hyperv`, `rtc`, `smbios`, `on_reset`, `on_crash` or `shutdown_timeout`",
        ],
    );
    after_smallest(
        "chache = \"none\"",
        &["vm.toml:8: unknown key `chache` in [[hba.lun]], did you mean `cache`?"],
    );
    after_smallest("[vmm]", &["vm.toml:8: unknown table `vmm`, did you mean [vm]?"]);
    after_smallest("[[hbas]]", &["vm.toml:8: unknown tables `hbas`, did you mean [[hba]]?"]);
    after_smallest(
        "[sound]",
        &["vm.toml:8: unknown table `sound`, expected tables named `vm`, `boot`, `serial`, `hba`, `net`, \
           `display`, `control` or `security`"],
    );
    let fixture = Fixture::new();
    assert_eq!(
        fixture.lines(&format!("cpus = 2\n{SMALLEST}"), &[]),
        ["vm.toml:1: unknown key `cpus`, did you mean `cpus` in [vm]?"]
    );
}

#[test]
fn more_interrupt_vectors_than_the_hypervisor_has_are_refused() {
    let more = |count: usize| "[[hba]]\nqueues = 255\n".repeat(count);
    good(&format!("{SMALLEST}{}", more(15)), &[]);
    // One queue, and 16 times 255; three more for each adapter. The last one is on the lines 38 and 39.
    after_smallest(
        &more(16),
        &[
            "vm.toml:39: `queues` in [[hba]]: with this adapter the machine has 4132 interrupt vectors, 3 and one for each \
           request queue of each virtio-scsi adapter, but KVM has 4057; expected fewer queues or adapters",
        ],
    );
}

#[test]
fn what_this_version_does_not_build_is_refused_never_ignored() {
    in_vm("hyperv = true", &["vm.toml:2: `hyperv` in [vm] is not supported yet"]);
    for (more, expected) in [
        ("[[net]]\nmac = 1", "vm.toml:8: `[[net]]` is not supported yet"),
        ("[display]\nx = 1", "vm.toml:8: `[display]` is not supported yet"),
    ] {
        after_smallest(more, &[expected]);
    }
    let text = "[vm]\nmemory = \"1GiB\"\n[boot]\nfirmware = \"vmlinuz\"\nvars = \"initrd\"\norder = [\"s:0\"]\n\
                [[hba]]\nid = \"s\"\n[[hba.lun]]\nimage = \"a.img\"\n";
    assert_eq!(Fixture::new().lines(text, &[]), ["vm.toml:5: `vars` in [boot] is not supported yet",]);
}

#[test]
fn values_of_the_wrong_type_or_out_of_bounds() {
    for (line, expected) in [
        ("cpus = 0", "`cpus` in [vm] is 0, expected an integer from 1 to 255"),
        ("cpus = 300", "`cpus` in [vm] is 300, expected an integer from 1 to 255"),
        ("cpus = -1", "`cpus` in [vm] is -1, expected an integer from 1 to 255"),
        ("cpus = \"2\"", "`cpus` in [vm] is \"2\", expected an integer from 1 to 255"),
        ("cpus = 2.5", "`cpus` in [vm] is 2.5, expected an integer from 1 to 255"),
        (
            "cpus = 999999999999999999999999999999999999999999",
            "`cpus` in [vm] is 999999999999999999999999999999999999999999, expected an integer from 1 to 255",
        ),
        ("name = 7", "`name` in [vm] is 7, expected text without control characters"),
        ("name = \"\"", "`name` in [vm] is \"\", expected text without control characters"),
        ("rtc = \"local\"", "`rtc` in [vm] is \"local\", expected \"utc\" or \"localtime\""),
        ("rtc = \"localtim\"", "`rtc` in [vm] is \"localtim\", did you mean \"localtime\"?"),
        ("on_reset = true", "`on_reset` in [vm] is true, expected \"restart\" or \"exit\""),
        (
            "uuid = \"123\"",
            "`uuid` in [vm] is \"123\", expected a UUID such as \"123e4567-e89b-12d3-a456-426614174000\"",
        ),
        (
            "uuid = \"+23e4567-e89b-12d3-a456-426614174000\"",
            "`uuid` in [vm] is \"+23e4567-e89b-12d3-a456-426614174000\", \
             expected a UUID such as \"123e4567-e89b-12d3-a456-426614174000\"",
        ),
        ("memory = 0", "`memory` in [vm] is 0, expected a multiple of 4KiB, at least 4MiB"),
        ("memory = \"3MiB\"", "`memory` in [vm] is \"3MiB\", expected a multiple of 4KiB, at least 4MiB"),
        ("memory = 1073741825", "`memory` in [vm] is 1073741825, expected a multiple of 4KiB, at least 4MiB"),
        ("memory = \"1GB\"", "`memory` in [vm] is \"1GB\", did you mean \"1GiB\"?"),
        (
            "memory = \"lots\"",
            "`memory` in [vm] is \"lots\", \
             expected bytes as an integer, or a string with KiB, MiB, GiB or TiB such as \"512MiB\"",
        ),
        (
            "memory = true",
            "`memory` in [vm] is true, \
             expected bytes as an integer, or a string with KiB, MiB, GiB or TiB such as \"512MiB\"",
        ),
        (
            "memory = \"33GiB\"",
            "`memory` in [vm] is \"33GiB\", expected at most the 32GiB of memory and swap that this host has",
        ),
        (
            "hugepages = \"4MiB\"",
            "`hugepages` in [vm] is \"4MiB\", expected a size of this host: \"2MiB\" or \"1GiB\"",
        ),
        (
            "hugepages = \"1GiB\"",
            "`hugepages` in [vm] is \"1GiB\", but this host has free pages of 1GiB: 0, needed: 1; \
             raise /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
        ),
        (
            "hugepages = []",
            "`hugepages` in [vm] is an array, expected true, false or a page size such as \"2MiB\"",
        ),
    ] {
        in_vm(line, &[&format!("vm.toml:2: {expected}")]);
    }
    in_vm(
        "memory = \"1025MiB\"\nhugepages = true",
        &["vm.toml:2: `memory` in [vm] is \"1025MiB\", expected a multiple of 2MiB, at least 4MiB"],
    );
}

#[test]
fn values_of_a_logical_unit() {
    for (line, expected) in [
        ("target = 256", "`target` in [[hba.lun]] is 256, expected an integer from 0 to 255"),
        ("lun = 16384", "`lun` in [[hba.lun]] is 16384, expected an integer from 0 to 16383"),
        ("type = \"disc\"", "`type` in [[hba.lun]] is \"disc\", did you mean \"disk\"?"),
        ("format = \"vmdk\"", "`format` in [[hba.lun]] is \"vmdk\", expected \"raw\" or \"qcow2\""),
        ("cache = \"writebak\"", "`cache` in [[hba.lun]] is \"writebak\", did you mean \"writeback\"?"),
        (
            "cache = \"fast\"",
            "`cache` in [[hba.lun]] is \"fast\", \
             expected \"none\", \"writeback\", \"writethrough\", \"directsync\" or \"unsafe\"",
        ),
        ("protection = 2", "`protection` in [[hba.lun]] is 2, expected 0 or 1 or 3"),
        (
            "protection_image = \"x.pi\"",
            "`protection_image` in [[hba.lun]] has no meaning without protection = 1 or 3",
        ),
        (
            "throttle = { iops = 0 }",
            "`iops` in [hba.lun.throttle] is 0, expected an integer from 1 to 1000000000000000",
        ),
        (
            "throttle = { bps = 0 }",
            "`bps` in [hba.lun.throttle] is 0, expected at least 1; leave it out for no limit",
        ),
        ("throttle = 5", "`hba.lun.throttle` is 5, expected a table [hba.lun.throttle]"),
        ("readonly = 1", "`readonly` in [[hba.lun]] is 1, expected true or false"),
        (
            "vendor = \"NINECHARS\"",
            "`vendor` in [[hba.lun]] is \"NINECHARS\", expected 1 to 8 printable ASCII characters",
        ),
        ("vendor = \"Bü\"", "`vendor` in [[hba.lun]] is \"Bü\", expected 1 to 8 printable ASCII characters"),
        (
            "product = \"SEVENTEEN LETTERS\"",
            "`product` in [[hba.lun]] is \"SEVENTEEN LETTERS\", expected 1 to 16 printable ASCII characters",
        ),
        (
            "revision = \"1.0.0\"",
            "`revision` in [[hba.lun]] is \"1.0.0\", expected 1 to 4 printable ASCII characters",
        ),
        (
            "serial = \"a\\tb\"",
            "`serial` in [[hba.lun]] is \"a b\", expected 1 to 36 printable ASCII characters",
        ),
        (
            "wwn = \"5000c500a1b2c3\"",
            "`wwn` in [[hba.lun]] is \"5000c500a1b2c3\", expected 16 hexadecimal digits such as \"5000c500a1b2c3d4\", or 32 of a device of the host",
        ),
        (
            "wwn = \"+000c500a1b2c3d4\"",
            "`wwn` in [[hba.lun]] is \"+000c500a1b2c3d4\", expected 16 hexadecimal digits such as \"5000c500a1b2c3d4\", or 32 of a device of the host",
        ),
        (
            "wwn = \"0000000000000000\"",
            "`wwn` in [[hba.lun]] is \"0000000000000000\", expected a name that begins with 5 (IEEE registered), 3 (locally assigned) or 2 (IEEE extended)",
        ),
        (
            "wwn = \"5000000000000000\"",
            "`wwn` in [[hba.lun]] is \"5000000000000000\", expected a name that begins with 5 (IEEE registered), 3 (locally assigned) or 2 (IEEE extended)",
        ),
        (
            "wwn = \"6000c500a1b2c3d4\"",
            "`wwn` in [[hba.lun]] is \"6000c500a1b2c3d4\", expected a name that begins with 5 (IEEE registered), 3 (locally assigned) or 2 (IEEE extended)",
        ),
        ("block_size = 1024", "`block_size` in [[hba.lun]] is 1024, expected 512 or 4096"),
        (
            "physical_block_size = 5000",
            "`physical_block_size` in [[hba.lun]] is 5000, \
             expected a power of two, at least the logical block size 512",
        ),
        (
            "rotation_rate = 1024",
            "`rotation_rate` in [[hba.lun]] is 1024, \
             expected 0 (not reported), 1 (solid state) or 1025 to 65534 revolutions per minute",
        ),
        (
            "rotation_rate = 65535",
            "`rotation_rate` in [[hba.lun]] is 65535, expected an integer from 0 to 65534",
        ),
        (
            "discard = \"on\"",
            "`discard` in [[hba.lun]] is \"on\", expected true, false, \"ignore\" or \"unmap\"",
        ),
        ("image = 3", "not TOML: duplicate key"),
    ] {
        after_smallest(line, &[&format!("vm.toml:8: {expected}")]);
    }
    after_smallest(
        "physical_block_size = 512\nblock_size = 4096",
        &["vm.toml:8: `physical_block_size` in [[hba.lun]] is 512, \
           expected a power of two, at least the logical block size 4096"],
    );
}

#[test]
fn files_that_cannot_be_used() {
    let image = |image: &str, more: &str, expected: &str| {
        let more = format!("[[hba.lun]]\nimage = \"{image}\"\n{more}");
        after_smallest(&more, &[&format!("vm.toml:9: `image` in [[hba.lun]]: {expected}")]);
    };
    image("gone.img", "", "cannot open gone.img: No such file or directory");
    image("a.img/b", "", "cannot open a.img/b: Not a directory");
    image("loop", "", "cannot open loop: Too many levels of symbolic links");
    image("directory", "", "directory is a directory, expected an image file or a block device");
    image("/dev/null", "", "/dev/null is a character device, expected an image file or a block device");
    image("empty.img", "", "empty.img is empty, expected an image of the disk's size");
    image(
        "/sys/kernel/uevent_seqnum",
        "readonly = true\ncache = \"none\"",
        "the file system of /sys/kernel/uevent_seqnum has no direct I/O, \
         expected `cache` to be \"writeback\" or \"writethrough\"",
    );
    let boot = |key: &str, file: &str, expected: &str| {
        let text = SMALLEST.replacen("kernel = \"vmlinuz\"\n", "", 1);
        let other = if key == "initrd" { "\nkernel = \"vmlinuz\"" } else { "" };
        let text = text.replacen("[boot]\n", &format!("[boot]\n{key} = \"{file}\"{other}\n"), 1);
        let expected = format!("vm.toml:4: `{key}` in [boot]: {expected}");
        assert_eq!(Fixture::new().lines(&text, &[]), [expected], "{text}");
    };
    boot("kernel", "vmlinux", "cannot open vmlinux: No such file or directory");
    boot("kernel", "directory", "directory is a directory, expected a file");
    boot("initrd", "loop", "cannot open loop: Too many levels of symbolic links");
    boot("initrd", "/dev/null", "/dev/null is a character device, expected a file");
}

#[test]
fn relations_between_keys() {
    for (more, expected) in [
        (
            "[[hba.lun]]",
            "vm.toml:8: `image` is missing in [[hba.lun]], expected an image file or a block device",
        ),
        (
            "[[hba.lun]]\ntarget = 0\nimage = \"b.img\"\n[[hba.lun]]\ntarget = 0\nimage = \"c.img\"",
            "vm.toml:11: target 0 lun 0 is already the [[hba.lun]] of line 8",
        ),
        (
            "[[hba]]\nid = \"s\"\n[[hba]]\nid = \"s\"",
            "vm.toml:11: `id` in [[hba]] is \"s\", which the [[hba]] of line 9 has already",
        ),
        (
            "[[hba]]\nid = \"0\"",
            "vm.toml:9: `id` in [[hba]] is \"0\", expected a letter followed by letters, digits, `-` and `_`",
        ),
        (
            "[[hba]]\nid = \"a:b\"",
            "vm.toml:9: `id` in [[hba]] is \"a:b\", expected a letter followed by letters, digits, `-` and `_`",
        ),
        (
            "[[hba]]\nmodel = \"gen2\"",
            "vm.toml:9: `model` in [[hba]] has no meaning for type = \"virtio-scsi\"",
        ),
        (
            "[[hba]]\nqueues = 2\nio_threads = 3",
            "vm.toml:10: `io_threads` in [[hba]] is 3, expected at most one for each of its 2 queues",
        ),
        (
            "[[hba]]\nio_cpus = \"3-1\"",
            "vm.toml:9: `io_cpus` in [[hba]] is \"3-1\", expected CPU numbers up to 1023 such as \"0-3,8\"",
        ),
        (
            "[[hba]]\nqueue_size = 100",
            "vm.toml:9: `queue_size` in [[hba]] is 100, expected 4 or 8 or 16 or 32 or 64 or 128 or 256 or 512 or 1024",
        ),
        (
            "[[hba]]\ntype = \"megasas\"\ninterface = \"legacy\"",
            "vm.toml:10: `interface` in [[hba]] has no meaning for type = \"megasas\"",
        ),
        ("[[hba]]\nqueues = 0", "vm.toml:9: `queues` in [[hba]] is 0, expected an integer from 1 to 255"),
        (
            "[serial]\nmode = \"stdio\"\npath = \"x\"",
            "vm.toml:10: `path` in [serial] has no meaning with mode = \"stdio\"",
        ),
        (
            "[serial]\nmode = \"file\"",
            "vm.toml:8: `path` is missing in [serial], expected the file that takes the output",
        ),
        (
            "[serial]\nmode = \"socket\"",
            "vm.toml:8: `path` is missing in [serial], expected the UNIX socket to listen on",
        ),
        (
            "[serial]\nmode = \"file\"\npath = \"gone/x\"",
            "vm.toml:10: `path` in [serial]: cannot create gone/x: no directory gone",
        ),
        (
            "[serial]\nmode = \"file\"\npath = \"directory\"",
            "vm.toml:10: `path` in [serial]: directory is a directory, expected a file or nothing",
        ),
        (
            "[serial]\nmode = \"socket\"\npath = \"a.img\"",
            "vm.toml:10: `path` in [serial]: a.img is a file, expected a socket or nothing",
        ),
        ("[serial]\nmode = \"tty\"", "vm.toml:9: `mode` in [serial] is \"tty\", did you mean \"pty\"?"),
    ] {
        after_smallest(more, &[expected]);
    }
    let fixture = Fixture::new();
    assert_eq!(
        fixture.lines("", &[]),
        [
            "vm.toml: `memory` is missing in [vm], expected the size of guest memory such as \"1GiB\"",
            "vm.toml: `kernel` is missing in [boot], expected the Linux kernel to boot",
        ]
    );
    assert_eq!(
        fixture.lines("[boot]\ninitrd = \"initrd\"\n\n[vm]", &[]),
        [
            "vm.toml:1: `kernel` is missing in [boot], expected the Linux kernel to boot",
            "vm.toml:4: `memory` is missing in [vm], expected the size of guest memory such as \"1GiB\"",
        ]
    );
    let long = format!("{SMALLEST}[serial]\nmode = \"socket\"\npath = \"/tmp/{}\"", "x".repeat(103));
    assert_eq!(
        fixture.lines(&long, &[]),
        ["vm.toml:10: `path` in [serial]: expected at most 107 bytes for a socket"]
    );
}

#[test]
fn tables_of_the_wrong_shape() {
    let fixture = Fixture::new();
    for (text, expected) in [
        ("hba = 3", "vm.toml:1: `hba` is 3, expected a table [[hba]]"),
        ("hba = [3]", "vm.toml:1: `hba` holds 3, expected tables [[hba]]"),
        ("[hba]\nid = \"s\"", "vm.toml:1: [hba] is one table, expected [[hba]]"),
        ("[[serial]]", "vm.toml:1: `serial` is an array, expected one table [serial]"),
        ("serial = \"off\"", "vm.toml:1: `serial` is \"off\", expected a table [serial]"),
        ("[[hba]]\n[hba.lun]\nimage = \"a.img\"", "vm.toml:2: [hba.lun] is one table, expected [[hba.lun]]"),
    ] {
        let text = format!("{text}\n[vm]\nmemory = \"1GiB\"\n[boot]\nkernel = \"vmlinuz\"\n");
        assert_eq!(fixture.lines(&text, &[]), [expected], "{text}");
    }
}

#[test]
fn what_is_not_toml() {
    let fixture = Fixture::new();
    for (text, expected) in [
        (
            "[vm]\nmemory = 1GiB\n",
            vec!["vm.toml:2: not TOML: string values must be quoted, expected literal string"],
        ),
        ("[vm]\ncpus = 1\ncpus = 2\n", vec!["vm.toml:3: not TOML: duplicate key"]),
        ("[vm\n", vec!["vm.toml:1: not TOML: unclosed table, expected `]`"]),
        (
            "[vm]\nname = \"x\ncpus = = 3\n",
            vec![
                "vm.toml:2: not TOML: invalid basic string, expected `\"`",
                "vm.toml:3: not TOML: extra `=`, expected nothing",
            ],
        ),
    ] {
        assert_eq!(fixture.lines(text, &[]), expected, "{text}");
    }
}

#[test]
fn two_disks_with_one_name_are_refused() {
    let name = "wwn = \"5000c500a1b2c3d4\"";
    after_smallest(
        &format!("serial = \"S\"\n{name}\n[[hba.lun]]\nimage = \"b.img\"\nserial = \"S\"\n{name}"),
        &[
            "vm.toml:12: `serial` in [[hba.lun]] is \"S\", which the [[hba.lun]] of line 8 has already",
            "vm.toml:13: `wwn` in [[hba.lun]] is \"5000c500a1b2c3d4\", which the [[hba.lun]] of line 9 has already",
        ],
    );
    // Written in another way, and on another HBA.
    after_smallest(
        &format!("{name}\n[[hba]]\n[[hba.lun]]\nimage = \"b.img\"\nwwn = \"0x5000C500A1B2C3D4\""),
        &[
            "vm.toml:12: `wwn` in [[hba.lun]] is \"0x5000C500A1B2C3D4\", which the [[hba.lun]] of line 8 has already",
        ],
    );
    after_smallest(
        "[[hba]]\ntype = \"megasas\"\nsas_address = \"0000000000000000\"",
        &[
            "vm.toml:10: `sas_address` in [[hba]] is \"0000000000000000\", expected a name that begins with 5 and says \
           more than that",
        ],
    );
    // One image on two paths is one disk.
    let path = format!("readonly = true\nserial = \"S\"\n{name}\n");
    let text = format!("{SMALLEST}{path}[[hba]]\n[[hba.lun]]\nimage = \"directory/../a.img\"\n{path}");
    assert!(Fixture::new().parse(&text, &[]).is_ok());
}

#[test]
fn all_errors_are_reported_in_the_order_of_the_file() {
    let text = "[vm]\ncpus = 0\nmemory = 5\nnam = 1\n[boot]\nkernel = \"gone\"\n[[hba]]\n[[hba.lun]]\n\
                image = \"gone\"\nblock_size = 7\n[serial]\nmode = 1\n";
    assert_eq!(
        Fixture::new().lines(text, &["hba.0.id=7"]),
        [
            "vm.toml:2: `cpus` in [vm] is 0, expected an integer from 1 to 255",
            "vm.toml:3: `memory` in [vm] is 5, expected a multiple of 4KiB, at least 4MiB",
            "vm.toml:4: unknown key `nam` in [vm], did you mean `name`?",
            "vm.toml:6: `kernel` in [boot]: cannot open gone: No such file or directory",
            "vm.toml:9: `image` in [[hba.lun]]: cannot open gone: No such file or directory",
            "vm.toml:10: `block_size` in [[hba.lun]] is 7, expected 512 or 4096",
            "vm.toml:12: `mode` in [serial] is 1, \
             expected \"stdio\", \"file\", \"pty\", \"socket\" or \"off\"",
            "--set hba.0.id=7: `id` in [[hba]] is 7, \
             expected a letter followed by letters, digits, `-` and `_`",
        ]
    );
}

#[test]
fn the_file_itself_is_at_fault() {
    let fixture = Fixture::new();
    let lines = |name: &str| {
        let path = fixture.path(name);
        let errors = load(Source::read(&path, &[]), None).unwrap_err();
        errors
            .iter()
            .map(|error| error.to_string().replace(&*path.to_string_lossy(), name))
            .collect::<Vec<_>>()
    };
    assert_eq!(lines("gone.toml"), ["gone.toml: cannot read: No such file or directory"]);
    assert_eq!(lines("directory"), ["directory: cannot read: Is a directory"]);
    fs::write(fixture.path("latin1.toml"), b"[vm]\nname = \"B\xfcro\"\n").unwrap();
    assert_eq!(lines("latin1.toml"), ["latin1.toml:2: not TOML: not UTF-8"]);
    // An image by mistake.
    fs::write(fixture.path("image"), "[vm]\n\0".repeat(100)).unwrap();
    assert_eq!(lines("image"), ["image: not text, expected a configuration in TOML"]);
    let large = fs::File::create(fixture.path("large")).unwrap();
    std::io::Write::write_all(&mut &large, &[b'#'; 8192]).unwrap();
    large.set_len(17 << 20).unwrap();
    assert_eq!(lines("large"), ["large: has more than 16MiB, expected a configuration in TOML"]);
    assert_eq!(lines("/dev/zero"), ["/dev/zero: not text, expected a configuration in TOML"]);
}

#[test]
fn errors_without_end_are_counted() {
    let wrong: String = (0..1000).map(|n| format!("k{n} = 1\n")).collect();
    let lines = Fixture::new().lines(&format!("{wrong}{SMALLEST}"), &[]);
    assert_eq!(lines.len(), 51);
    assert_eq!(lines.last().unwrap(), "vm.toml: and 950 more errors");
    assert!(lines[49].starts_with("vm.toml:50: "), "{}", lines[49]);
}

#[test]
fn files_of_fw_cfg_have_names_and_text() {
    let check = |line: &str| {
        let text = format!("[vm]\nmemory = \"1GiB\"\n[boot]\nfirmware = \"vmlinuz\"\n{line}\n");
        Fixture::new().lines(&text, &[])
    };
    let long = format!("opt/{}", "x".repeat(52));
    for name in ["etc/e820", "opt/", "opt", "opt/a b", "opt/\u{e9}", &long] {
        let expected = format!(
            "vm.toml:5: `fw_cfg` in [boot]: \"{name}\" is no name, expected \"opt/\" and up to 55 characters in all"
        );
        assert_eq!(check(&format!("fw_cfg = {{ \"{name}\" = \"\" }}")), [expected]);
    }
    for wrong in ["1", "[\"a\"]", "{ \"opt/a\" = 1 }"] {
        let errors = check(&format!("fw_cfg = {wrong}"));
        assert!(errors.len() == 1 && errors[0].ends_with(", expected a table of strings"), "{errors:?}");
    }
    assert_eq!(
        check("debug_log = \"gone/log\""),
        ["vm.toml:5: `debug_log` in [boot]: cannot create gone/log: no directory gone"]
    );
    let kernel = SMALLEST.replace("[boot]\n", "[boot]\nfw_cfg = {}\n");
    assert_eq!(
        Fixture::new().lines(&kernel, &[]),
        ["vm.toml:4: `fw_cfg` in [boot] has no meaning without `firmware`"]
    );
}

/// The relations between keys that this version refuses in any case.
#[test]
fn unsupported_parts_are_checked() {
    let relations = |text: &str| -> Vec<String> {
        let (_fixture, errors, _) = parsed(text);
        errors.into_iter().filter(|error| !error.ends_with("is not supported yet")).collect()
    };
    let order = |order: &str| {
        let text = "[vm]\nmemory = \"1GiB\"\n[boot]\nfirmware = \"vmlinuz\"\norder = [ORDER]\n\
                    [[hba]]\nid = \"s\"\n[[hba.lun]]\nimage = \"a.img\"\n";
        relations(&text.replace("ORDER", order))
    };
    assert_eq!(order("\"s:0:0\", \"s:0\""), [""; 0]);
    assert_eq!(order("\"s:1\""), ["vm.toml:5: `order` in [boot]: \"s:1\" names no [[hba.lun]] of `s`"]);
    assert_eq!(order("\"t:0\""), ["vm.toml:5: `order` in [boot]: \"t:0\" names no [[hba]], expected `s`"]);
    for wrong in ["s", "s:0:0:0", "s:x"] {
        let expected = format!(
            "vm.toml:5: `order` in [boot]: \"{wrong}\" is no device, expected \"hba:target\" or \"hba:target:lun\""
        );
        assert_eq!(order(&format!("\"{wrong}\"")), [expected]);
    }
    assert_eq!(order("1"), ["vm.toml:5: `order` in [boot] is an array, expected a list of strings"]);
    assert_eq!(
        relations(&SMALLEST.replace("[boot]\n", "[boot]\nfirmware = \"initrd\"\n")),
        ["vm.toml:5: `kernel` in [boot] has no meaning with `firmware`, which finds them itself"]
    );
    assert_eq!(
        relations(&SMALLEST.replace("[boot]\n", "[boot]\nvars = \"initrd\"\n")),
        ["vm.toml:4: `vars` in [boot] has no meaning without `firmware`"]
    );
    for (more, expected) in [
        (
            "type = \"block\"\ncache = \"none\"",
            vec![
                "vm.toml:7: `image` in [[hba.lun]]: a.img is a file, expected a device; type = \"disk\" and \"cd\" take images",
                "vm.toml:9: `cache` in [[hba.lun]] has no meaning for type = \"block\"",
            ],
        ),
        (
            "type = \"cd\"\nreadonly = false\nblock_size = 512",
            vec![
                "vm.toml:9: `readonly` in [[hba.lun]] is false, a disc is never written: leave it out, or set true",
                "vm.toml:10: `block_size` in [[hba.lun]] has no meaning for type = \"cd\"",
            ],
        ),
        (
            "[[hba.lun]]\ntype = \"cd\"\ncache = \"none\"\nthrottle = { iops = 1 }",
            vec![
                "vm.toml:10: `cache` in [[hba.lun]] has no meaning without `image`, which is the disc in the drive",
                "vm.toml:11: `throttle` in [[hba.lun]] has no meaning for type = \"cd\"",
            ],
        ),
        (
            "[[hba.lun]]\ntype = \"cd\"\nimage = \"d.qcow2\"",
            vec![
                "vm.toml:10: `image` in [[hba.lun]]: d.qcow2 is too short: it has not one whole block of 2048 bytes",
            ],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\n[[hba.lun]]\ntype = \"cd\"",
            vec![
                "vm.toml:11: `type` in [[hba.lun]] is \"cd\", expected a board with mode = \"jbod\", or a virtio-scsi adapter: \
                 no volume is made of a CD drive",
            ],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\n[[hba.lun]]\ntype = \"generic\"\nimage = \"/dev/null\"",
            vec![
                "vm.toml:11: `type` in [[hba.lun]] is \"generic\", expected a board with mode = \"jbod\", or a virtio-scsi \
                 adapter: no volume is made of a device of the host",
            ],
        ),
        (
            "[[hba.lun]]\ntype = \"generic\"",
            vec![
                "vm.toml:8: `image` is missing in [[hba.lun]], expected a device of the host (or `wwn`, its name)",
            ],
        ),
        (
            "[[hba.lun]]\ntype = \"generic\"\nimage = \"/dev/null\"\nwwn = \"5000c500a1b2c3d4\"\nserial = \"a\"",
            vec![
                "vm.toml:11: `wwn` in [[hba.lun]]: is a second way to find the device; expected it or `image`",
                "vm.toml:12: `serial` in [[hba.lun]] has no meaning for type = \"generic\"",
            ],
        ),
        (
            "[[hba.lun]]\ntype = \"generic\"\nimage = \"/dev/fdset/1\"",
            vec![
                "vm.toml:10: `image` in [[hba.lun]]: a device of the host is not passed as a descriptor; expected its node, or `wwn`",
            ],
        ),
        (
            "[security]\nhost_devices = false\n[[hba]]\n[[hba.lun]]\ntype = \"generic\"\nimage = \"/dev/null\"",
            vec![
                "vm.toml:9: `host_devices` in [security] is false, but there is a [[hba.lun]] with a device of the host",
            ],
        ),
        (
            "[[hba.lun]]\nimage = \"b.img\"\nallow = \"all\"\nshared = true\nwwn = \"600140512345678900000000000abcde\"",
            vec![
                "vm.toml:10: `allow` in [[hba.lun]] has no meaning for type = \"disk\"",
                "vm.toml:11: `shared` in [[hba.lun]] has no meaning for type = \"disk\"",
                "vm.toml:12: `wwn` in [[hba.lun]] is \"600140512345678900000000000abcde\", expected a name that begins with 5 (IEEE registered), 3 (locally assigned) or 2 (IEEE extended)",
            ],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\nqueues = 1",
            vec!["vm.toml:10: `queues` in [[hba]] has no meaning for type = \"megasas\""],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\n[[hba.lun]]\nlun = 1\nimage = \"b.img\"",
            vec!["vm.toml:11: `lun` in [[hba.lun]] is 1, expected 0: each disk of a megasas HBA is a target"],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\n[[hba.lun]]\ntarget = 64\nimage = \"b.img\"",
            vec!["vm.toml:11: `target` in [[hba.lun]] is 64, expected 0 to 63 and no more units than that"],
        ),
        (
            "[[hba]]\nserial = \"1\"\nevent_log = \"e\"\nwrite_policy = \"write-back\"",
            vec![
                "vm.toml:9: `serial` in [[hba]] has no meaning for type = \"virtio-scsi\"",
                "vm.toml:10: `event_log` in [[hba]] has no meaning for type = \"virtio-scsi\"",
                "vm.toml:11: `write_policy` in [[hba]] has no meaning for type = \"virtio-scsi\"",
            ],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\nmode = \"jbod\"\nwrite_policy = \"write-back\"\nevent_log = \"none/e\"",
            vec!["vm.toml:12: `event_log` in [[hba]]: cannot create none/e: no directory none"],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\nqemu_answers = [\"init-twice\", \"all\"]",
            vec![
                "vm.toml:10: `qemu_answers` in [[hba]]: \"all\" is none of \"unknown-dcmd\", \"init-twice\", \"ready-in-fault\", \
                 \"scratch-pad-1\", \"doorbell-clear\", \"masked-completions\", \"after-shutdown\"",
            ],
        ),
        (
            "[[hba]]\ntype = \"megasas\"\nwrite_policy = \"write-back\"\n[[hba.lun]]\nimage = \"d.qcow2\"",
            vec![
                "vm.toml:10: `write_policy` in [[hba]] is \"write-back\", expected \"write-through\" with qcow2 images",
            ],
        ),
    ] {
        assert_eq!(relations(&format!("{SMALLEST}{more}\n")), expected, "{more}");
    }
}

#[test]
fn texts_of_smbios_fit_their_structure() {
    let (long, shown) = ("x".repeat(65), "x".repeat(40));
    for (line, expected) in [
        (
            "smbios = { bios = { date = \"2026-01-01\" } }".to_owned(),
            "vm.toml:2: `date` in [vm.smbios.bios] is \"2026-01-01\", expected month, day and year: \"mm/dd/yyyy\""
                .to_owned(),
        ),
        (
            format!("smbios = {{ system = {{ serial = \"{long}\" }} }}"),
            format!(
                "vm.toml:2: `serial` in [vm.smbios.system] is \"{shown}...\", expected 1 to 64 printable ASCII characters"
            ),
        ),
        (
            "smbios = { memory = { verison = \"1\" } }".to_owned(),
            "vm.toml:2: unknown key `verison` in [vm.smbios.memory], expected `manufacturer`, `serial`, `asset` or `part`"
                .to_owned(),
        ),
    ] {
        in_vm(&line, &[&expected]);
    }
}

#[test]
fn option_roms_have_names_and_files() {
    let check = |roms: &str| {
        let text =
            format!("[vm]\nmemory = \"64MiB\"\n[boot]\nfirmware = \"vmlinuz\"\noption_roms = {roms}\n");
        Fixture::new().lines(&text, &[])
    };
    for name in ["x", "opt/x", "genroms/", "pci1af4,1048", "pci1AF4,1048.rom", "pci1af4,48.rom"] {
        let expected = format!(
            "vm.toml:5: `option_roms` in [boot]: \"{name}\" is no name, expected \"genroms/...\", \"vgaroms/...\" or \
             \"pciVVVV,DDDD.rom\" with hexadecimal digits in lower case, and up to 55 characters"
        );
        assert_eq!(check(&format!("{{ \"{name}\" = \"initrd\" }}")), [expected]);
    }
    assert_eq!(
        check("{ \"genroms/x\" = \"gone\" }"),
        ["vm.toml:5: `option_roms` in [boot]: cannot open gone: No such file or directory"]
    );
}

/// A target of the host's kernel has its own units, and nobody of ours serves it.
#[test]
fn keys_that_a_vhost_scsi_adapter_has_not() {
    let said = |keys: &str| Fixture::new().lines(&format!("{SMALLEST}[[hba]]\n{keys}\n"), &[]);
    assert_eq!(
        said("type = \"vhost-scsi\"\ninterface = \"legacy\"\npolling = \"off\"\nmodel = \"1078\""),
        [
            "vm.toml:8: `wwpn` is missing in [[hba]], expected the name of a target in /sys/kernel/config/target/vhost",
            "vm.toml:10: `interface` in [[hba]] has no meaning for type = \"vhost-scsi\"",
            "vm.toml:11: `polling` in [[hba]] has no meaning for type = \"vhost-scsi\"",
            "vm.toml:12: `model` in [[hba]] has no meaning for type = \"vhost-scsi\"",
        ]
    );
    for name in ["5001405a1b2c3d4e", "naa.", "naa./etc", "naa.5 6"] {
        assert_eq!(
            said(&format!("type = \"vhost-scsi\"\nwwpn = \"{name}\"")),
            [format!(
                "vm.toml:10: `wwpn` in [[hba]] is \"{name}\", expected the name of a target such as \"naa.5001405a1b2c3d4e\""
            )]
        );
    }
    let target = "type = \"vhost-scsi\"\nwwpn = \"naa.5001405a1b2c3d4e\"";
    assert_eq!(
        said(&format!("{target}\n[[hba.lun]]\nimage = \"a.img\"")),
        [
            "vm.toml:11: [[hba.lun]] at an [[hba]] with type = \"vhost-scsi\", which has the units of the kernel's target; expected them at \
          another [[hba]]"
        ]
    );
    assert_eq!(
        said(&format!("{target}\n[hba.fc]\nemulated = true")),
        [
            "vm.toml:11: `fc` in [[hba]]: what the kernel's target has the guest sees as its own; expected type = \"virtio-scsi\""
        ]
    );
    for kind in ["virtio-scsi", "megasas"] {
        assert_eq!(
            said(&format!("type = \"{kind}\"\nwwpn = \"naa.5001405a1b2c3d4e\"")),
            [format!("vm.toml:10: `wwpn` in [[hba]] has no meaning for type = \"{kind}\"")]
        );
    }
}
