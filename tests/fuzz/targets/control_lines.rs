//! What comes on a control connection: lines of any length, in pieces, with descriptors. Each is answered by one line with
//! its `id`.
#![cfg_attr(fuzzing, no_main)]

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use devices::iothread::IoThread;
use fuzz::{Bytes, QCOW2, harmless};
use serde_json::Value;
use vmm::machine::testing::ControlBench;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Longest line, as docs/control.md says.
const LINE_MAX: usize = 64 << 10;
/// An answer takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(15);

struct Rig {
    bench: ControlBench,
    directory: PathBuf,
    _thread: IoThread,
}

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory").keep();
        let thread = IoThread::start("fuzz").expect("an I/O thread");
        let bench = ControlBench::new(&directory, &thread.remote()).expect("descriptors");
        Rig { bench, directory, _thread: thread }
    })
}

/// The images, as they were.
fn make(directory: &Path) {
    for (name, len) in [("a.img", 1 << 20), ("b.img", 2 << 20)] {
        File::create(directory.join(name)).and_then(|file| file.set_len(len)).expect("space in memory");
    }
    std::fs::write(directory.join("d.qcow2"), QCOW2).expect("space in memory");
}

/// A piece of what is sent, and so many descriptors with it.
struct Piece(Vec<u8>, usize);

/// Bytes that no text has stand for something: the end of a piece, one byte many times, descriptors.
fn pieces(input: &[u8]) -> Option<Vec<Piece>> {
    let (mut bytes, mut pieces, mut now) = (Bytes(input), Vec::new(), Vec::new());
    let mut all = 0;
    while !bytes.is_empty() {
        match bytes.u8() {
            0xfd => pieces.push(Piece(std::mem::take(&mut now), 0)),
            0xfc => {
                let count = usize::from(bytes.u8() % 20);
                pieces.push(Piece(std::mem::take(&mut now), count));
            }
            0xff => {
                let (byte, count) = (bytes.u8(), usize::from(bytes.u8()));
                let count = if byte == b'\n' { 1 } else { count * count * 2 };
                now.extend(std::iter::repeat_n(byte, count.min((1 << 18) - all.min(1 << 18))));
                all += count;
            }
            byte => now.push(byte),
        }
    }
    pieces.push(Piece(now, 0));
    // No path leads out of the folder.
    let text: Vec<u8> = pieces.iter().flat_map(|piece| piece.0.clone()).collect();
    let clean = harmless(&text)?;
    (clean.as_bytes() == text
        || std::str::from_utf8(&text).is_err() && clean == String::from_utf8_lossy(&text))
    .then_some(pieces)
}

/// The `id` that each answer has.
fn expected(text: &[u8]) -> Vec<Option<Value>> {
    let mut ids = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
        let (line, cut) =
            (&rest[..end.min(LINE_MAX)], end > LINE_MAX || end == LINE_MAX && rest[end - 1] != b'\n');
        if cut || !line.iter().all(u8::is_ascii_whitespace) {
            ids.push(serde_json::from_slice::<Value>(line).ok().and_then(|value| value.get("id").cloned()));
        }
        if cut {
            break;
        }
        rest = &rest[end..];
    }
    ids
}

fuzz::target!(|input: &[u8]| {
    let Some(pieces) = pieces(input) else { return };
    let Rig { bench, directory, .. } = rig();
    make(directory);
    let (client, server) = UnixStream::pair().expect("descriptors");
    client.set_read_timeout(Some(Duration::from_micros(200))).expect("a timeout");
    let text: Vec<u8> = pieces.iter().flat_map(|piece| piece.0.clone()).collect();
    let mut said = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = bench.serve(&server);
        });
        let sender = &client;
        scope.spawn(move || {
            let file = File::open(directory.join("a.img")).expect("an image");
            for Piece(bytes, descriptors) in &pieces {
                let numbers = vec![file.as_raw_fd(); if bytes.is_empty() { 0 } else { *descriptors }];
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let numbers = if rest.len() == bytes.len() { &numbers[..] } else { &[] };
                    let Ok(sent) = sender.send_with_fds(&[rest], numbers) else { return };
                    rest = &rest[sent..];
                }
            }
            let _ = sender.shutdown(std::net::Shutdown::Write);
        });
        let (mut piece, mut last) = ([0; 4096], Instant::now());
        loop {
            match (&client).read(&mut piece) {
                Ok(0) => break,
                Ok(len) => {
                    said.extend_from_slice(&piece[..len]);
                    last = Instant::now();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
            bench.turn();
            assert!(last.elapsed() < PATIENCE, "no answer after {:?}", String::from_utf8_lossy(&said));
        }
    });
    bench.clear().expect("what came goes");
    let said = String::from_utf8(said).expect("text");
    let ids = expected(&text);
    assert_eq!(
        said.lines().count(),
        ids.len(),
        "{:?} is answered with {said:?}",
        String::from_utf8_lossy(&text)
    );
    assert!(said.is_empty() || said.ends_with('\n'), "half an answer");
    for (line, id) in said.lines().zip(ids) {
        let answer: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(answer.get("id"), id.as_ref(), "{line}");
        let members = answer.as_object().expect("an object");
        assert_eq!(members.len(), 1 + usize::from(id.is_some()), "{line}");
        let desc = answer.pointer("/error/desc").and_then(Value::as_str);
        assert!(members.contains_key("return") || desc.is_some_and(|desc| !desc.is_empty()), "{line}");
    }
});
