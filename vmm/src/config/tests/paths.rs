//! Paths that mean two things.

use super::bad::after_smallest;
use super::*;

/// What the machine writes or makes is nothing else that it uses.
#[test]
fn one_path_is_not_two_things() {
    let serial = |path: &str, expected: &str| {
        let expected = format!("vm.toml:10: `path` in [serial]: {expected}; expected a file of its own");
        after_smallest(&format!("[serial]\nmode = \"file\"\npath = \"{path}\""), &[&expected]);
    };
    serial("a.img", "a.img is the `image` in [[hba.lun]] of line 7");
    serial("directory/../a.img", "directory/../a.img is the `image` in [[hba.lun]] of line 7");
    serial("vmlinuz", "vmlinuz is the `kernel` in [boot] of line 4");
    let fixture = Fixture::new();
    std::os::unix::fs::symlink("a.img", fixture.path("link")).unwrap();
    fs::write(fixture.path("vm.toml"), SMALLEST).unwrap();
    for (more, expected) in [
        (
            "[serial]\nmode = \"file\"\npath = \"link\"\n",
            "vm.toml:10: `path` in [serial]: link is the `image` in [[hba.lun]] of line 7; \
             expected a file of its own",
        ),
        (
            "[control]\npath = \"gone\"\n[serial]\nmode = \"socket\"\npath = \"directory/../gone\"\n",
            "vm.toml:12: `path` in [serial]: directory/../gone is the `path` in [control] of line 9; \
             expected a file of its own",
        ),
        (
            "protection = 1\nprotection_image = \"b.img\"\n[[hba.lun]]\nimage = \"b.img\"\n",
            "vm.toml:11: `image` in [[hba.lun]]: b.img is the `protection_image` in [[hba.lun]] of line 9; \
             expected a file of its own",
        ),
        (
            "protection = 1\n[serial]\nmode = \"file\"\npath = \"a.img.pi\"\n",
            "vm.toml:11: `path` in [serial]: a.img.pi is the `protection` in [[hba.lun]] of line 8; \
             expected a file of its own",
        ),
        (
            "[[hba]]\ntype = \"megasas\"\nevent_log = \"e\"\n[[hba]]\ntype = \"megasas\"\nevent_log = \"e\"\n",
            "vm.toml:13: `event_log` in [[hba]]: e is the `event_log` in [[hba]] of line 10; \
             expected a file of its own",
        ),
    ] {
        assert_eq!(fixture.lines(&format!("{SMALLEST}{more}"), &[]), [expected], "{more}");
    }
    let debug = |file: &str, line: &str| {
        let set = [format!("boot.debug_log={file}")];
        let lines = fixture.lines(SMALLEST, &[&set[0]]);
        assert_eq!(lines, [format!("--set boot.debug_log={file}: `debug_log` in [boot]: {line}")]);
    };
    debug("vm.toml", "vm.toml is the configuration file; expected a file of its own");
    debug("vmlinuz", "vmlinuz is the `kernel` in [boot] of line 4; expected a file of its own");
    // A device that takes output is for everybody, and what is only read is as well.
    let null = "[serial]\nmode = \"file\"\npath = \"/dev/null\"\n";
    let text = format!("{SMALLEST}{null}").replacen("[boot]\n", "[boot]\ndebug_log = \"/dev/null\"\n", 1);
    assert!(fixture.parse(&text, &[]).is_ok());
}

/// Backing files are images, whoever names them.
#[test]
fn backing_files_are_no_outputs() {
    let fixture = Fixture::new();
    fs::write(fixture.path("top.qcow2"), images::qcow2("b.img")).unwrap();
    let text = SMALLEST.replace("a.img", "top.qcow2");
    let serial = |file: &str| format!("{text}[serial]\nmode = \"file\"\npath = \"{file}\"\n");
    let line = "vm.toml:10: `path` in [serial]: b.img is the backing file of `image` in [[hba.lun]] of line 7; \
                expected a file of its own";
    assert_eq!(fixture.lines(&serial("b.img"), &[]), [line]);
    assert!(fixture.parse(&serial("other"), &[]).is_ok());
}

#[test]
fn the_log_file_is_nothing_else() {
    let fixture = Fixture::new();
    let path = fixture.path("vm.toml");
    fs::write(&path, SMALLEST).unwrap();
    let lines = |log: &str| match load(Source::read(&path, &[]), Some(&fixture.path(log))) {
        Ok(_) => Vec::new(),
        Err(errors) => fixture.shorten(&errors),
    };
    let line = |log: &str, what: &str| {
        vec![format!("--log-file {log}: {log} is the {what}; expected a file of its own")]
    };
    assert_eq!(lines("a.img"), line("a.img", "`image` in [[hba.lun]] of line 7"));
    assert_eq!(lines("vmlinuz"), line("vmlinuz", "`kernel` in [boot] of line 4"));
    assert_eq!(lines("vm.toml"), line("vm.toml", "configuration file"));
    assert_eq!((lines("log"), lines("initrd")), (vec![], vec![]));
}

/// Disks that come later, while the machine runs.
#[test]
fn new_disks_are_nothing_that_the_machine_uses() {
    let text = format!("{SMALLEST}[serial]\nmode = \"file\"\npath = \"b.img\"\n");
    let (fixture, config) = good(&text, &[]);
    let refused = |lun: &str| {
        let text = format!("[[hba]]\n[[hba.lun]]\n{lun}\n");
        match parse_new_hba(&text, &config.directory, &config.own) {
            Ok(_) => Vec::new(),
            Err(errors) => fixture.shorten(&errors),
        }
    };
    let line = "request:3: `image` in [[hba.lun]]: b.img is the `path` in [serial] of line 10; expected a file of its own";
    assert_eq!(refused("image = \"b.img\""), [line]);
    let line = "request:3: `protection_image` in [[hba.lun]]: vmlinuz is the `kernel` in [boot] of line 4; \
                expected a file of its own";
    assert_eq!(refused("protection_image = \"vmlinuz\"\nprotection = 1\nimage = \"c.img\""), [line]);
    assert!(refused("image = \"c.img\"").is_empty());
}
