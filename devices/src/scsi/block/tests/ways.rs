//! Which way commands go, and that the bytes are the same on both.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::*;
use crate::iothread::PieceLimits;
use crate::scsi::generic::{GenericOptions, Place, open_blocks};
use crate::scsi::{Cdb, DataBuffers, Residual, ScsiRequest, Status, Tag, TaskAttribute};
use crate::storage::BlockBackend;
use crate::testing::conformance::Random;
use crate::testing::{LoopDevice, allocations, on_io_thread};

#[test]
fn plain_reads_and_writes_go_by_the_ring() {
    on_io_thread(|io| async move {
        for bounce in [false, true] {
            let bench = Bench::new(&io, Setup { bounce, ..Setup::new() }).await;
            let reads: [(&[u8], usize, usize); 5] = [
                (&[0x08, 0, 1, 2, 3, 0], 0x102, 3),
                // No blocks are 256.
                (&[0x08, 0, 0, 5, 0, 0], 5, 256),
                (&[0x28, 0, 0, 0, 7, 0xff, 0, 0, 1, 0], BLOCKS - 1, 1),
                (&[0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0], 9, 2),
                (&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 2, 0, 0, 0], 4, 512),
            ];
            for (cdb, lba, count) in reads {
                let (reply, data) = bench.send(&io, cdb, &[], count * BLOCK).await;
                let reply = reply.unwrap();
                assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Exact), "{cdb:02x?}");
                assert!(data == bench.blocks(lba, count), "{cdb:02x?}");
            }
            // Memory that nothing of the command is for stays as it is.
            let (reply, data) = bench.send(&io, &ten(0x28, 3, 1), &[], 3 * BLOCK).await;
            assert_eq!(reply.unwrap().residual_in, Residual::Under(2 * BLOCK as u64));
            assert_eq!((&data[..BLOCK], &data[BLOCK..]), (&pattern(3)[..], &[0xee; 2 * BLOCK][..]));
            let writes: [(&[u8], usize, usize); 5] = [
                (&[0x0a, 0, 1, 2, 3, 0], 0x102, 3),
                (&[0x0a, 0, 0, 5, 0, 0], 5, 256),
                (&[0x2a, 0, 0, 0, 7, 0xff, 0, 0, 1, 0], BLOCKS - 1, 1),
                (&[0xaa, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0], 9, 2),
                (&[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 2, 0, 0, 0], 4, 512),
            ];
            for (cdb, lba, count) in writes {
                let bytes: Vec<u8> =
                    (0..count * BLOCK).map(|at| at as u8 ^ cdb[0] ^ (at >> 9) as u8).collect();
                let (reply, _) = bench.send(&io, cdb, &bytes, 0).await;
                let reply = reply.unwrap();
                assert_eq!((reply.status, reply.residual_out), (Status::Good, Residual::Exact), "{cdb:02x?}");
                assert!(bench.blocks(lba, count) == bytes, "{cdb:02x?}");
            }
            assert_eq!(bench.cdbs(), Vec::<Vec<u8>>::new(), "nothing came as a command");
        }
    });
}

#[test]
fn what_asks_for_more_than_blocks_goes_to_the_device_as_it_is() {
    on_io_thread(|io| async move {
        // What the ring would do is done to nobody: it fails the test.
        io.plot(|victim| panic!("{victim:?} on the ring"));
        let bench = Bench::new(&io, Setup::new()).await;
        let with = |mut cdb: [u8; 10], at: usize, bits: u8| {
            cdb[at] |= bits;
            cdb.to_vec()
        };
        let (read, write) = (ten(0x28, 3, 1), ten(0x2a, 4, 1));
        let reads = [
            with(read, 1, 0x08), // FUA
            with(read, 1, 0x10), // DPO
            with(read, 1, 0x20), // RDPROTECT
            with(read, 1, 0x01), // once RELADR
            with(read, 6, 0x05), // GROUP NUMBER
            with(read, 9, 0xc0), // vendor specific bits of CONTROL
            vec![0x08, 0x20, 0, 3, 1, 0],
            vec![0x08, 0, 0, 3, 1, 0x80],
            vec![0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0x80, 0],
            vec![0x88, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0], // DLD2
            vec![0x88, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0xc0, 0], // DLD1, DLD0
            vec![0x37, 0, 0x10, 0, 0, 0, 0, 2, 0, 0],                // READ DEFECT DATA
            vec![0x5e, 0, 0, 0, 0, 0, 0, 2, 0, 0],                   // PERSISTENT RESERVE IN
            ten(0x28, 3, 0).to_vec(),
        ];
        for cdb in reads {
            let (reply, _) = bench.send(&io, &cdb, &[], BLOCK).await;
            assert_eq!(reply.unwrap().status, Status::Good, "{cdb:02x?}");
            assert_eq!(bench.cdbs(), [cdb]);
        }
        let bytes = vec![0x77; BLOCK];
        let writes = [
            with(write, 1, 0x08), // FUA
            with(write, 1, 0x20), // WRPROTECT
            with(write, 6, 0x1f),
            vec![0x41, 0, 0, 0, 0, 4, 0, 0, 1, 0], // WRITE SAME
            vec![0x89, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0], // COMPARE AND WRITE
            vec![0x2e, 0, 0, 0, 0, 4, 0, 0, 1, 0], // WRITE AND VERIFY
            vec![0x8a, 0x08, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0], // FUA
        ];
        for cdb in writes {
            // COMPARE AND WRITE brings what is compared as well.
            let brought = bytes.repeat(if cdb[0] == 0x89 { 2 } else { 1 });
            let (reply, _) = bench.send(&io, &cdb, &brought, 0).await;
            assert_eq!(reply.unwrap().status, Status::Good, "{cdb:02x?}");
            assert_eq!(bench.seen(), [(cdb, brought)]);
        }
        assert_eq!(bench.blocks(4, 1), bytes);
        // Less memory than the command is about is as at the other unit: refused when written, the initiator's loss when read.
        let (reply, _) = bench.send(&io, &ten(0x2a, 8, 2), &bytes, 0).await;
        assert_eq!((codes(&reply.unwrap()), bench.seen().len()), ((5, 0x24, 0), 0));
        let (reply, _) = bench.send(&io, &ten(0x28, 8, 2), &[], BLOCK).await;
        assert_eq!((reply.unwrap().status, bench.cdbs()), (Status::Good, vec![ten(0x28, 8, 2).to_vec()]));
        // NACA is refused, as at all units.
        let (reply, _) = bench.send(&io, &with(read, 9, 0x04), &[], BLOCK).await;
        assert_eq!((codes(&reply.unwrap()), bench.seen().len()), ((5, 0x24, 0), 0));
    });
}

/// Parts of odd lengths at odd places, as no queue takes them.
#[test]
fn memory_may_be_anywhere() {
    for bounce in [false, true] {
        on_io_thread(move |io| async move {
            let bench = Bench::new(&io, Setup { bounce, ..Setup::new() }).await;
            let (dma, mut random) = (memory(), Random::new(5));
            let scatter = |random: &mut Random, len: u32| {
                let (mut parts, mut left, mut at) = (Vec::new(), len, random.below(3000));
                while left > 0 {
                    let most = [64, 5000, 100_000][random.below(3) as usize];
                    let part = (1 + random.below(most) as u32).min(left);
                    parts.push((at, part));
                    at += u64::from(part) + random.below(300);
                    left -= part;
                }
                parts
            };
            let request = |cdb: [u8; 10], data| ScsiRequest {
                tag: Tag(1),
                lun: Lun::default(),
                cdb: Cdb::new(&cdb),
                attribute: TaskAttribute::Simple,
                priority: 0,
                data,
            };
            for round in 0..24 {
                let blocks = 1 + random.below(if round % 4 == 0 { 1500 } else { 40 }) as u16;
                let lba = random.below((BLOCKS - usize::from(blocks)) as u64) as u32;
                let len = u32::from(blocks) * BLOCK as u32;
                let parts = scatter(&mut random, len);
                let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8 ^ round as u8).collect();
                dma.to_guest(parts.clone()).unwrap().write_at(0, &bytes);
                let write = DataBuffers::from_initiator(dma.from_guest(parts).unwrap());
                let reply = bench.nexus.execute(&io, request(ten(0x2a, lba, blocks), write)).await.unwrap();
                assert_eq!((reply.status, reply.residual_out), (Status::Good, Residual::Exact));
                assert!(bench.blocks(lba as usize, usize::from(blocks)) == bytes, "{round}");
                let parts = scatter(&mut random, len);
                let read = DataBuffers::to_initiator(dma.to_guest(parts.clone()).unwrap());
                let reply = bench.nexus.execute(&io, request(ten(0x28, lba, blocks), read)).await.unwrap();
                assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Exact));
                let mut got = vec![0; len as usize];
                dma.from_guest(parts).unwrap().read_at(0, &mut got);
                assert!(got == bytes, "{round}");
            }
            assert_eq!(bench.seen(), [], "no length and no place is too much for the ring");
        });
    }
}

#[test]
fn blocks_that_the_kernel_does_not_know_go_to_the_device() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        let last = ten(0x28, BLOCKS as u32 - 1, 2);
        let bytes = [pattern(7), pattern(8)].concat();
        // The device has grown: READ CAPACITY says so, the kernel does not.
        bench.device.file.write_all_at(&bytes, (BLOCKS * BLOCK) as u64).unwrap();
        let (reply, data) = bench.send(&io, &last, &[], 2 * BLOCK).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        assert_eq!((&data[BLOCK..], bench.cdbs()), (&bytes[..BLOCK], vec![last.to_vec()]));
        let write = ten(0x2a, BLOCKS as u32, 1);
        let (reply, _) = bench.send(&io, &write, &pattern(9), 0).await;
        assert_eq!((reply.unwrap().status, bench.cdbs()), (Status::Good, vec![write.to_vec()]));
        // Once the guest asks, the kernel is looked at.
        let (reply, _) = bench.send(&io, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8).await;
        assert_eq!((reply.unwrap().status, bench.seen().len()), (Status::Good, 1));
        let (_, data) = bench.send(&io, &last, &[], 2 * BLOCK).await;
        assert_eq!((&data[BLOCK..], bench.seen().len()), (&pattern(9)[..], 0));
    });
}

#[test]
fn where_the_device_counts_other_blocks_the_ring_has_none() {
    on_io_thread(|io| async move {
        for block in [None, Some(4096)] {
            let bench = Bench::new(&io, Setup { block, ..Setup::new() }).await;
            let read = ten(0x28, 3, 1);
            let _ = bench.send(&io, &read, &[], 4096).await;
            assert_eq!(bench.cdbs(), [read.to_vec()]);
            // It says 512.
            let _ = bench.send(&io, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8).await;
            bench.seen();
            let (_, data) = bench.send(&io, &read, &[], BLOCK).await;
            assert_eq!((data, bench.seen().len()), (pattern(3), 0));
        }
    });
}

#[test]
fn who_may_only_read_writes_nothing() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup { allow: Allow::ReadOnly, ..Setup::new() }).await;
        for cdb in [ten(0x2a, 3, 1), ten(0x41, 3, 1), ten(0x35, 0, 0)] {
            let (reply, _) = bench.send(&io, &cdb, &[9; BLOCK], 0).await;
            let reply = reply.unwrap();
            assert_eq!((codes(&reply), reply.residual_out), ((7, 0x27, 0), Residual::Under(BLOCK as u64)));
        }
        let (reply, data) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
        assert_eq!((reply.unwrap().status, data, bench.blocks(3, 1)), (Status::Good, pattern(3), pattern(3)));
        bench.target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
        assert_eq!(bench.seen(), [], "nor is its cache written");
        // What manages a disk is refused as at the other unit.
        let bench = Bench::new(&io, Setup { allow: Allow::NoManagement, ..Setup::new() }).await;
        let (reply, _) = bench.send(&io, &[0x04, 0, 0, 0, 0, 0], &[], 0).await;
        assert_eq!((codes(&reply.unwrap()), bench.seen().len()), ((5, 0x20, 0), 0));
    });
}

/// A write moves the place for the next one: it is not sent twice.
#[test]
fn zoned_disks_are_written_by_commands() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup { device_type: 0x14, ..Setup::new() }).await;
        let write = ten(0x2a, 3, 1);
        let (reply, _) = bench.send(&io, &write, &pattern(4), 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        assert_eq!(bench.seen(), [(write.to_vec(), pattern(4))]);
        let (_, data) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
        assert_eq!((data, bench.seen().len()), (pattern(4), 0));
    });
}

#[test]
fn what_is_no_disk_is_refused() {
    for (device_type, removable) in
        [(0x01, true), (0x05, true), (0x07, false), (0x0d, false), (0x0e, false), (0, true), (0x14, true)]
    {
        let device = Device {
            file: temp_file().into_file(),
            device_type,
            removable,
            script: Box::new(|_| None),
            seen: Mutex::default(),
        };
        let config = GenericConfig {
            name: "/dev/sr0".into(),
            allow: Allow::All,
            bounce: false,
            shared: false,
            depth: 1,
            limits: HostLimits::default(),
            block: None,
            size: None,
            wanted: None,
        };
        let image = Arc::new(Image::Ram(crate::testing::RamDisk::new(4096)));
        let said =
            Block::new(Generic::new(Arc::new(device), config).unwrap(), image).unwrap_err().to_string();
        let what = match device_type {
            0 | 0x14 => "whose medium can be exchanged".into(),
            other => format!("of type {other:02x}h"),
        };
        let wanted = format!(
            "/dev/sr0 is a device {what}, and type = \"block\" takes disks, by their block nodes; set type = \"generic\""
        );
        assert_eq!(said, wanted);
    }
}

/// As the other images of this layer: what is asked of a disk again and again costs no allocation.
#[test]
fn warm_commands_allocate_nothing() {
    on_io_thread(|io| async move {
        let dma = memory();
        for bounce in [false, true] {
            let bench = Bench::new(&io, Setup { bounce, ..Setup::new() }).await;
            for opcode in [0x28, 0x2a] {
                let mut count = 0;
                for round in 0..250 {
                    let parts = [(0x1000, 4096)];
                    let data = match opcode {
                        0x28 => DataBuffers::to_initiator(dma.to_guest(parts).unwrap()),
                        _ => DataBuffers::from_initiator(dma.from_guest(parts).unwrap()),
                    };
                    let request = ScsiRequest {
                        tag: Tag(1),
                        lun: Lun::default(),
                        cdb: Cdb::new(&ten(opcode, 8, 8)),
                        attribute: TaskAttribute::Simple,
                        priority: 0,
                        data,
                    };
                    let before = allocations();
                    let reply = bench.nexus.execute(&io, request).await;
                    if round >= 50 {
                        count += allocations() - before;
                    }
                    assert_eq!(reply.unwrap().status, Status::Good);
                }
                assert_eq!(count, 0, "{opcode:02x}h, bounce: {bounce}");
            }
            assert_eq!(bench.seen(), []);
        }
    });
}

/// The unit has taken the device by one open file, and reads and writes by another.
#[test]
fn a_device_that_the_unit_has_taken_is_opened_once_more() {
    let Some(device) = LoopDevice::new(1 << 20, 4096) else { return };
    let mut options = GenericOptions {
        place: Place::Path(device.path().into()),
        shared: false,
        allow: Allow::NoManagement,
        bounce: false,
    };
    let exclusive = || OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path());
    let _taken = exclusive().unwrap();
    let number = std::fs::metadata(device.path()).unwrap().rdev();
    let open = |options: &GenericOptions| open_blocks(device.path(), number, options);
    let said = open_blocks(device.path(), number + 1, &options).err().unwrap().to_string();
    assert!(said.ends_with("another device came to its name meanwhile; try again"), "{said}");
    let image = open(&options).unwrap();
    assert_eq!(image.device().unwrap(), number);
    assert_eq!(image.ending().unit, 4096);
    assert!(exclusive().is_err(), "nobody else has it");
    // Others are kept away by the node that commands go by.
    drop(open(&options).unwrap());
    // As it is passed on to another process, which opens nothing: it is the same.
    let (before, file) = (image.geometry(), image.into_file().unwrap());
    let passed = RawImage::of_device(file, "/dev/sdz", PieceLimits::NONE).unwrap();
    let after = passed.geometry();
    assert_eq!((after.len, after.dma_align, after.read_only), (before.len, before.dma_align, false));
    assert_eq!((passed.ending().unit, passed.device().unwrap()), (4096, number));
    drop(passed);
    options.shared = true;
    let both = [(); 2].map(|()| open(&options).unwrap());
    drop(both);
    options.allow = Allow::ReadOnly;
    let passed = open(&options).unwrap().into_file().unwrap();
    assert!(RawImage::of_device(passed, "/dev/sdz", PieceLimits::NONE).unwrap().geometry().read_only);
    let cached = OpenOptions::new().read(true).open(device.path()).unwrap();
    assert!(
        RawImage::of_device(cached, "/dev/sdz", PieceLimits::NONE).is_err(),
        "by way of the host's cache"
    );
}

/// Neither way leads to a disk that may be another one.
#[test]
fn a_disk_that_may_be_another_one_is_neither_read_nor_written() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        (bench.doubter)(true);
        for cdb in [ten(0x2a, 3, 1), ten(0x28, 3, 1), ten(0x35, 0, 0)] {
            let out = if cdb[0] == 0x2a { pattern(8) } else { vec![] };
            let (reply, _) = bench.send(&io, &cdb, &out, BLOCK - out.len()).await;
            assert_eq!(reply.unwrap().status, Status::Busy);
        }
        assert_eq!((bench.seen(), bench.blocks(3, 1)), (vec![], pattern(3)));
        (bench.doubter)(false);
        let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &pattern(8), 0).await;
        assert_eq!((codes(&reply.unwrap()), bench.blocks(3, 1)), ((6, 0x3f, 3), pattern(3)));
        let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &pattern(8), 0).await;
        assert_eq!(
            (reply.unwrap().status, bench.blocks(3, 1), bench.seen()),
            (Status::Good, pattern(8), vec![])
        );
    });
}

/// A transfer that the ring had taken, and the kernel had not, when it was said that the disk may be another one, or was taken away: it
/// waits in the process, for the turn of its file, or for memory.
#[test]
fn what_waits_for_the_ring_does_not_reach_another_disk() {
    for (bounce, is_lost, opcode) in [false, true].into_iter().flat_map(|bounce| {
        [(bounce, false, 0x2a), (bounce, false, 0x28), (bounce, true, 0x2a), (bounce, true, 0x28)]
    }) {
        on_io_thread(move |io| async move {
            let bench = Bench::new(&io, Setup { bounce, ..Setup::new() }).await;
            let (out, room) = if opcode == 0x2a { (pattern(8), 0) } else { (vec![], BLOCK) };
            let cdb = ten(opcode, 3, 1);
            let mut sent = Box::pin(bench.send(&io, &cdb, &out, room));
            assert!(poll_once(sent.as_mut()).await.is_none(), "it was not begun");
            if is_lost {
                (bench.successor)(None, None, &bench.config);
            } else {
                (bench.doubter)(true);
            }
            let (reply, into) = sent.await;
            let case = format!("bounce {bounce}, lost {is_lost}, {opcode:02x}h");
            match reply {
                Ok(reply) if !is_lost => assert_eq!(reply.status, Status::Busy, "{case}"),
                // ABORTED COMMAND: it is tried again, and hears then that there is no device.
                Ok(reply) => assert_eq!(codes(&reply), (0x0b, 0, 0), "{case}"),
                Err(fault) => panic!("{case}: {fault:?}"),
            }
            assert_eq!(bench.blocks(3, 1), pattern(3), "{case}");
            assert_ne!(into, pattern(3), "{case}: it was read");
            assert_eq!(bench.seen(), vec![], "{case}");
        });
    }
}

/// Those that wait because the ring is full of others: they end as well, and what comes after the doubt goes on.
#[test]
fn none_of_many_reaches_another_disk() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        let (out, cdb) = (pattern(8), ten(0x2a, 3, 1));
        let mut sent: Vec<_> = (0..700).map(|_| Box::pin(bench.send(&io, &cdb, &out, 0))).collect();
        for one in &mut sent {
            assert!(poll_once(one.as_mut()).await.is_none());
        }
        (bench.doubter)(true);
        for one in sent {
            assert_eq!(one.await.0.unwrap().status, Status::Busy);
        }
        assert_eq!(bench.blocks(3, 1), pattern(3));
        (bench.doubter)(false);
        bench.send(&io, &cdb, &out, 0).await.0.unwrap();
        assert_eq!(bench.send(&io, &cdb, &out, 0).await.0.unwrap().status, Status::Good);
        assert_eq!(bench.blocks(3, 1), pattern(8));
    });
}

/// What a future has after one look.
async fn poll_once<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}
