//! Whatever a guest sends, the host's queue is not asked for more than it takes.

use vm_memory::GuestAddress;

use super::*;
use crate::mem::{Dma, GuestRam};
use crate::scsi::{Cdb, DataBuffers, Residual, ScsiRequest, Status, Tag, TaskAttribute};
use crate::testing::conformance::Random;
use crate::testing::on_io_thread;

const BLOCK: usize = 512;
const BLOCKS: usize = 4096;

fn small() -> HostLimits {
    HostLimits { max_bytes: 64 << 10, max_segments: 4, ..HostLimits::default() }
}

/// A disk that has its data in memory, and notes what `limits` would not take.
fn disk(limits: HostLimits, refused: Arc<AtomicUsize>) -> Fake {
    let medium = Mutex::new((0..BLOCK * BLOCKS).map(|at| (at / BLOCK) as u8 ^ at as u8).collect::<Vec<u8>>());
    Fake::new(move |command| {
        if !limits.admit(&command.data) {
            refused.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let cdb = command.cdb.padded();
        let (lba, blocks) = match cdb[0] {
            0x25 => return give(command, &[0, 0, 0x0f, 0xff, 0, 0, 2, 0]),
            0x28 | 0x2a => {
                (u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]), u16::from_be_bytes([cdb[7], cdb[8]]))
            }
            _ => return Ok(check(command, &[0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0])),
        };
        let mut medium = medium.lock().unwrap();
        let (at, len) = (lba as usize * BLOCK, usize::from(blocks) * BLOCK);
        assert_eq!(command.data.len(), len as u64, "the memory is what the command is about");
        let place = &mut medium[at..at + len];
        if cdb[0] == 0x28 {
            return give(command, place);
        }
        place.copy_from_slice(&taken(command));
        Ok(Answer::good())
    })
}

/// Guest memory of 4 MiB.
fn memory() -> Dma {
    let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()));
    dma.set_bus_master(true);
    dma
}

fn cdb(opcode: u8, lba: u32, blocks: u16) -> Cdb {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    Cdb::new(&[opcode, 0, a, b, c, d, 0, e, f, 0])
}

fn request(cdb: Cdb, data: DataBuffers) -> ScsiRequest {
    ScsiRequest { tag: Tag(1), lun: Lun::default(), cdb, attribute: TaskAttribute::Simple, priority: 0, data }
}

/// Scattered memory of `len` bytes: parts of odd lengths at odd places, none twice.
fn scatter(random: &mut Random, len: u32) -> Vec<(u64, u32)> {
    let (mut parts, mut left, mut at) = (Vec::new(), len, random.below(3000));
    while left > 0 {
        let most = [64, 5000, 100_000][random.below(3) as usize];
        let part = (1 + random.below(most) as u32).min(left);
        parts.push((at, part));
        at += u64::from(part) + random.below(300);
        left -= part;
    }
    parts
}

#[test]
fn any_size_at_any_place_arrives() {
    for (lists, bounce) in [(true, false), (false, false), (true, true)] {
        on_io_thread(move |io| async move {
            let refused = Arc::new(AtomicUsize::new(0));
            let limits = HostLimits { lists, ..small() };
            let fake = Arc::new(disk(limits, refused.clone()));
            let nexus = nexus_with(&io, &fake, GenericConfig { limits, bounce, ..config() }).await;
            let (dma, mut random) = (memory(), Random::new(11));
            for round in 0..40 {
                let blocks = 1 + random.below(if round % 4 == 0 { 600 } else { 40 }) as u16;
                let lba = random.below((BLOCKS - usize::from(blocks)) as u64) as u32;
                let len = u32::from(blocks) * BLOCK as u32;
                let parts = scatter(&mut random, len);
                let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8 ^ round as u8).collect();
                dma.to_guest(parts.clone()).unwrap().write_at(0, &bytes);
                let write = DataBuffers::from_initiator(dma.from_guest(parts).unwrap());
                let reply = nexus.execute(&io, request(cdb(0x2a, lba, blocks), write)).await.unwrap();
                assert_eq!((reply.status, reply.residual_out), (Status::Good, Residual::Exact), "{reply:?}");
                let parts = scatter(&mut random, len);
                let read = DataBuffers::to_initiator(dma.to_guest(parts.clone()).unwrap());
                let reply = nexus.execute(&io, request(cdb(0x28, lba, blocks), read)).await.unwrap();
                assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Exact), "{reply:?}");
                let mut got = vec![0; len as usize];
                dma.from_guest(parts).unwrap().read_at(0, &mut got);
                assert!(got == bytes, "round {round}: {blocks} blocks at {lba}");
            }
            assert_eq!(refused.load(Ordering::Relaxed), 0, "the host refused some");
            let seen = fake.take_seen();
            assert!(seen.iter().all(|seen| seen.private || !bounce), "with bounce nothing of the guest's");
            assert_eq!(
                seen.iter().filter(|seen| seen.cdb[0] == 0x25).count(),
                1,
                "the length of a block is asked for once"
            );
        });
    }
}

#[test]
fn what_the_kernel_takes_goes_without_a_copy() {
    on_io_thread(|io| async move {
        let fake = Arc::new(disk(small(), Arc::default()));
        let nexus = nexus_with(&io, &fake, GenericConfig { limits: small(), ..config() }).await;
        let dma = memory();
        let read = |parts: &[(u64, u32)]| DataBuffers::to_initiator(dma.to_guest(parts.to_vec()).unwrap());
        // Four pages; off by two bytes they are five, which are copied.
        for (parts, private) in [
            (&[(0x1000, 0x4000)][..], false),
            (&[(0x1002, 0x4000)], true),
            (&[(0x1ffc, 8), (0x5ffc, 0x1f8)], false),
        ] {
            let blocks = parts.iter().map(|(_, len)| len).sum::<u32>() / 512;
            let reply = nexus.execute(&io, request(cdb(0x28, 0, blocks as u16), read(parts))).await.unwrap();
            assert_eq!(reply.status, Status::Good);
            let seen: Vec<_> = fake.take_seen().into_iter().map(|seen| seen.private).collect();
            assert_eq!(seen, [private], "{parts:x?}");
        }
    });
}

#[test]
fn the_first_piece_that_fails_is_the_last() {
    on_io_thread(|io| async move {
        let sense = [0xf0, 0, 3, 0, 0, 0, 70, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
        let fake = Arc::new(Fake::new(move |command| {
            let cdb = command.cdb.padded();
            let mut answer = check(command, &sense);
            answer.residual = 512 * 20;
            Ok(if cdb[5] == 64 { answer } else { Answer::good() })
        }));
        let config = GenericConfig { limits: small(), block: Some(512), ..config() };
        let nexus = nexus_with(&io, &fake, config).await;
        let (reply, _) = send(&io, &nexus, &[0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0], &[], 128 * 512).await;
        let reply = reply.unwrap();
        assert_eq!(reply.sense.unwrap().as_bytes(), sense, "as the device said it: the LBA is whole");
        assert_eq!(reply.residual_in, Residual::Under((128 - 32 - 32 - 12) * 512));
        let places: Vec<_> = fake.cdbs().into_iter().map(|cdb| (cdb[5], cdb[8])).collect();
        assert_eq!(places, [(0, 32), (32, 32), (64, 32)]);
    });
}

#[test]
fn what_cannot_be_divided_is_refused_before_it_begins() {
    on_io_thread(|io| async move {
        let fake = Arc::new(disk(small(), Arc::default()));
        let nexus =
            nexus_with(&io, &fake, GenericConfig { limits: small(), block: Some(512), ..config() }).await;
        for cdb in [
            &[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0][..], // WRITE ATOMIC(16)
            &[0x2a, 0x20, 0, 0, 0, 0, 0, 0, 64, 0],                    // WRPROTECT
            &[0x2a, 0, 0, 0, 0, 0, 0, 0, 80, 0],                       // more than is sent
            &[0x3b, 2, 0, 0, 0, 0, 0, 0x80, 0, 0],                     // WRITE BUFFER
        ] {
            let (reply, _) = send(&io, &nexus, cdb, &[7; 64 * 512], 0).await;
            let reply = reply.unwrap();
            assert_eq!(
                (codes(&reply), reply.residual_out),
                ((0x5, 0x24, 0), Residual::Under(64 * 512)),
                "{cdb:02x?}"
            );
        }
        assert_eq!(fake.take_seen(), []);
    });
}

/// Raw sectors of a CD are longer than its blocks: pieces of them would be other data at other places.
#[test]
fn data_that_is_not_its_blocks_has_no_pieces() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| Ok(Answer::good())).of_type(5));
        let limits = HostLimits { max_bytes: 32 << 10, ..HostLimits::default() };
        let nexus = nexus_with(&io, &fake, GenericConfig { limits, block: Some(2048), ..config() }).await;
        let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 27, 0];
        let (reply, _) = send(&io, &nexus, &write, &[7; 27 * 2352], 0).await;
        let reply = reply.unwrap();
        assert_eq!((codes(&reply), reply.residual_out), ((5, 0x24, 0), Residual::Under(27 * 2352)));
        assert_eq!(fake.take_seen(), []);
        let (reply, _) = send(&io, &nexus, &write, &[7; 27 * 2048], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        let lens: Vec<_> = fake.take_seen().into_iter().map(|seen| seen.len).collect();
        assert_eq!(lens, [32 << 10, 22 << 10]);
    });
}

/// Memory that nothing of the command is for does not count.
#[test]
fn the_command_says_how_much_there_is() {
    on_io_thread(|io| async move {
        let fake = Arc::new(disk(small(), Arc::default()));
        let nexus =
            nexus_with(&io, &fake, GenericConfig { limits: small(), block: Some(512), ..config() }).await;
        for (blocks, moved) in [(0, 0), (1, 512), (40, 40 * 512)] {
            let (reply, _) = send(&io, &nexus, cdb(0x28, 0, blocks).as_bytes(), &[], 64 * 512).await;
            let reply = reply.unwrap();
            assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Under(64 * 512 - moved)));
        }
        let lens: Vec<_> = fake.take_seen().into_iter().map(|seen| seen.len).collect();
        assert_eq!(lens, [0, 512, 16384, 4096]);
    });
}

/// More of them at a time than there is memory for wait for each other.
#[test]
fn many_that_are_copied_wait_and_hear_no_busy() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| {
            std::thread::sleep(Duration::from_millis(2));
            Ok(Answer::good())
        }));
        let limits = HostLimits { max_bytes: 1 << 20, max_segments: 256, ..HostLimits::default() };
        let nexus = nexus_with(&io, &fake, GenericConfig { limits, bounce: true, ..config() }).await;
        let dma = memory();
        let left = std::rc::Rc::new(std::cell::Cell::new(40));
        for tag in 0..40 {
            let (nexus, here, left) = (nexus.clone(), io.clone(), left.clone());
            let data = DataBuffers::from_initiator(dma.from_guest([(0, 1 << 20)]).unwrap());
            let mut write = request(cdb(0x2a, 0, 2048), data);
            write.tag = Tag(tag);
            io.spawn(async move {
                assert_eq!(nexus.execute(&here, write).await.unwrap().status, Status::Good);
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(fake.take_seen().len(), 40);
    });
}

/// The device says something else when it is asked for the length of its blocks: that is the command's end.
#[test]
fn a_unit_attention_is_not_lost_to_a_question_of_ours() {
    on_io_thread(|io| async move {
        let attention = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0];
        let fake = Arc::new(Fake::new(move |command| Ok(check(command, &attention))));
        let nexus = nexus_with(&io, &fake, GenericConfig { limits: small(), ..config() }).await;
        let (reply, _) = send(&io, &nexus, &[0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0], &[], 128 * 512).await;
        let reply = reply.unwrap();
        assert_eq!((codes(&reply), reply.residual_in), ((6, 0x2a, 9), Residual::Under(128 * 512)));
        assert_eq!(fake.cdbs(), [[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]]);
    });
}
