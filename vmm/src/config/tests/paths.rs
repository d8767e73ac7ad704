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
