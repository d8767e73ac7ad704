//! Killed at any moment, an image has at most leaks, and everything that was flushed.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::*;

/// Where the child finds the image.
const IMAGE: &str = "VMM_TEST_QCOW2_IMAGE";
/// The number of the child's first write.
const FROM: &str = "VMM_TEST_QCOW2_FROM";
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4000;

/// What write number `n` does: the block, and whether it zeroes it.
fn step(n: u64) -> (u64, bool) {
    let mut random = Random::new(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (random.below(BLOCKS), random.below(8) == 0)
}

fn block(n: u64) -> FromGuest {
    let mem = ToGuest::new(SgList::host(BLOCK as usize, 4096).unwrap());
    mem.write_at(0, &n.to_le_bytes().repeat(BLOCK as usize / 8));
    FromGuest::new(mem.into_inner())
}

/// Not a test of its own: writes and flushes until it is killed, telling what is flushed.
#[test]
#[ignore = "runs as a child of the test below"]
fn victim() {
    let (Ok(path), Ok(from)) = (std::env::var(IMAGE), std::env::var(FROM)) else { return };
    let from: u64 = from.parse().unwrap();
    let image = open(Path::new(&path));
    on_io_thread(move |io| async move {
        for n in from.. {
            let (place, zero) = step(n);
            let at = ByteOffset(place * BLOCK);
            if zero {
                image.zero(&io, Span { at, len: BLOCK }, Unmap::Allowed).await.unwrap();
            } else {
                image.write(&io, at, block(n), Durability::Cached).await.unwrap();
            }
            if n % 37 == 0 {
                image.flush(&io).await.unwrap();
                println!("flushed {n}");
            }
        }
    });
}

/// The state of every block: the numbers of its writes, the last flushed one and all later ones. A write under way at the
/// kill may be there in part, in pieces of `unit` bytes, which lie in one cluster.
fn verify(path: &Path, flushed: u64, reach: u64, unit: usize) {
    let all = read_all(open(path));
    let mut allowed: Vec<Vec<u64>> = vec![vec![0]; BLOCKS as usize];
    for n in 1..=reach {
        let (place, zero) = step(n);
        let states = &mut allowed[place as usize];
        if n <= flushed {
            states.clear();
        }
        states.push(if zero { 0 } else { n });
    }
    for (place, bytes) in all.chunks(BLOCK as usize).take(BLOCKS as usize).enumerate() {
        for bytes in bytes.chunks(unit) {
            let (got, states) = (u64::from_le_bytes(bytes[..8].try_into().unwrap()), &allowed[place]);
            assert!(
                bytes.chunks(8).all(|part| part == got.to_le_bytes()),
                "block {place} is torn: {got}, flushed {flushed}"
            );
            assert!(
                states.contains(&got),
                "block {place} has {got}, not one of {states:?}, flushed {flushed}"
            );
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_flushed() {
    let Some(bench) = Bench::new() else { return };
    for (seed, shape, unit) in
        [(1, "cluster_size=4k", 4096), (2, "cluster_size=512", 512), (3, "compat=0.10,cluster_size=4k", 4096)]
    {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "kill.qcow2", "16M"]);
        let path = bench.path("kill.qcow2");
        let mut random = Random::new(seed);
        let mut from = 1;
        for round in 0..6 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "storage::qcow2::tests::crash::victim", "--ignored", "--nocapture"])
                .envs([(IMAGE, path.as_os_str()), (FROM, from.to_string().as_ref())])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            let pid = child.id();
            let wait = std::time::Duration::from_micros(300_000 + random.below(300_000));
            let killer = std::thread::spawn(move || {
                std::thread::sleep(wait);
                child.kill().unwrap();
                child.wait().unwrap()
            });
            let flushed = lines.lines().map_while(Result::ok);
            let flushed = flushed.filter_map(|line| line.split("flushed ").nth(1)?.parse().ok()).last();
            assert!(!killer.join().unwrap().success(), "process {pid} ended by itself");
            let Some(flushed) = flushed else { continue };
            // The kernel closes the dead process's ring, and with it the locked files, a little later.
            let check = || bench.run("qemu-img", &["check", "-f", "qcow2", "kill.qcow2"]);
            let locked = |text: &str| text.contains("\" lock");
            let (code, text) = (0..100)
                .map(|_| check())
                .find(|(_, text)| {
                    let busy = locked(text);
                    busy.then(|| std::thread::sleep(std::time::Duration::from_millis(50)));
                    !busy
                })
                .expect("the lock goes with the process");
            assert!(matches!(code, 0 | 3), "{shape} round {round}: {text}");
            // Before the next flush, 36 writes follow at most; one may be under way when it is killed.
            verify(&path, flushed, flushed + 37, unit);
            // Writes that may or may not be in the image must not be taken for flushed ones of the next round.
            let image = open(&path);
            on_io_thread(move |io| async move {
                for n in 1..=flushed + 37 {
                    let (place, zero) = step(n);
                    let at = ByteOffset(place * BLOCK);
                    if n > flushed && zero {
                        image.zero(&io, Span { at, len: BLOCK }, Unmap::Allowed).await.unwrap();
                    } else if n > flushed {
                        image.write(&io, at, block(n), Durability::Cached).await.unwrap();
                    }
                }
                image.close(&io).await.unwrap();
            });
            from = flushed + 38;
        }
        assert!(from > 100, "{shape}: nothing was flushed");
    }
}
