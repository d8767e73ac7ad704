//! A disk that is passed to a machine that runs, and that no process could open by a name: the next boot is from it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::machine::{Plan, image};
use super::megasas::int13;
use super::sector::Sector;

/// Asks at the control socket, and returns the answer.
fn ask(control: &UnixStream, line: &str, descriptors: &[&File]) -> String {
    let numbers: Vec<RawFd> = descriptors.iter().map(|file| file.as_raw_fd()).collect();
    control.send_with_fds(&[line.as_bytes(), b"\n"], &numbers).unwrap();
    let mut answer = String::new();
    BufReader::new(control).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn the_bios_boots_from_a_file_without_a_name() {
    let Some(image) = image() else { return };
    for (hba, cache) in [
        ("[control]\npath = \"control\"\n[[hba]]\nid = \"hba0\"\n", "none"),
        ("[control]\npath = \"control\"\n[[hba]]\nid = \"hba0\"\ntype = \"megasas\"\n", "writethrough"),
    ] {
        let mut disk = int13(int13(Sector::new(), 0x02, 2), 0x03, 3).print("copied").finish();
        let text: Vec<u8> = (0..512_u32).map(|at| (at * 5 + 1) as u8).collect();
        disk.extend(&text);
        let mut machine = Plan { boot: hba, ..Plan::new(&image) }.start();
        machine.expect("serial", "No bootable device.");
        let file = tempfile::tempfile_in(machine.path("")).unwrap();
        file.write_all_at(&disk, 0).unwrap();
        file.set_len(1 << 20).unwrap();
        let control = UnixStream::connect(machine.path("control")).unwrap();
        let added = ask(&control, r#"{"execute": "add-fd", "arguments": {"fdset-id": 3}}"#, &[&file]);
        assert!(added.starts_with("{\"return\":{\"fd\":"), "{added}");
        let attach = format!(
            r#"{{"execute": "attach", "arguments": {{"image": "/dev/fdset/3", "cache": "{cache}"}}}}"#
        );
        let attached = ask(&control, &attach, &[]);
        assert!(attached.contains("\"state\":\"attached\""), "{attached}");
        let removed = ask(&control, r#"{"execute": "remove-fd", "arguments": {"fdset-id": 3}}"#, &[]);
        assert_eq!(removed, "{\"return\":{}}\n");
        ask(&control, r#"{"execute": "reset"}"#, &[]);
        machine.expect("serial", "copied");
        let mut copy = [0; 512];
        file.read_exact_at(&mut copy, 1024).unwrap();
        assert!(copy[..] == text[..]);
        assert_eq!(machine.text("log"), "");
    }
}
