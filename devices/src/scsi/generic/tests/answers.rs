//! Commands go as they are, and what the device says comes back word for word.

use super::*;
use crate::scsi::{Residual, Status};
use crate::testing::conformance::Random;
use crate::testing::on_io_thread;

/// Vendor specific sense data, longer than any that this layer makes.
fn sense() -> Vec<u8> {
    let mut sense: Vec<u8> = (0..96).map(|byte| byte ^ 0x5a).collect();
    (sense[0], sense[2], sense[7]) = (0xf0, 0x69, 88);
    sense
}

#[test]
fn status_and_sense_are_the_devices() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|command| {
            let mut answer = check(command, &sense());
            // ILI of a tape: a record of 100 bytes less than asked for.
            answer.residual = 100;
            Ok(answer)
        }));
        let nexus = nexus_with(&io, &fake, config()).await;
        let (reply, _) = send(&io, &nexus, &[0x88; 16], &[], 512).await;
        let reply = reply.unwrap();
        assert_eq!(reply.status, Status::CheckCondition);
        assert_eq!(reply.sense.unwrap().as_bytes(), sense());
        assert_eq!((reply.residual_in, reply.residual_out), (Residual::Under(100), Residual::Exact));
        let wanted = Seen {
            cdb: vec![0x88; 16],
            direction: Direction::In,
            len: 512,
            timeout: Duration::from_secs(60),
            private: true,
        };
        assert_eq!(fake.take_seen(), [wanted]);
    });
}

#[test]
fn residuals_are_exact_both_ways() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| Ok(Answer { residual: 3, ..Answer::good() })));
        let nexus = nexus_with(&io, &fake, config()).await;
        let (reply, _) = send(&io, &nexus, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; 512], 0).await;
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.residual_out), (Status::Good, Residual::Under(3)));
        let (reply, _) = send(&io, &nexus, &[0x4d, 0, 0, 0, 0, 0, 0, 0, 64, 0], &[], 64).await;
        assert_eq!(reply.unwrap().residual_in, Residual::Under(3));
        assert_eq!(fake.take_seen()[0].direction, Direction::Out);
        // Without data there is nothing that could be left.
        let (reply, _) = send(&io, &nexus, &[0; 6], &[], 0).await;
        let reply = reply.unwrap();
        assert_eq!((reply.residual_in, reply.residual_out), (Residual::Exact, Residual::Exact));
        assert_eq!(fake.take_seen()[0].direction, Direction::None);
    });
}

#[test]
fn without_a_word_of_the_device_the_adapter_has_one() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|command| match command.cdb.padded()[2] {
            0 => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            host => Ok(Answer { host: u16::from(host), residual: 512, ..Answer::good() }),
        }));
        let nexus = nexus_with(&io, &fake, config()).await;
        for (host, fault) in [
            (0x01, TransportFault::NoTarget),
            (0x0e, TransportFault::PathLost),
            (0x0d, TransportFault::Busy),
            (0x11, TransportFault::NexusFailure),
        ] {
            let (reply, data) = send(&io, &nexus, &[0x4d, 0, host, 0, 0, 0, 0, 2, 0, 0], &[], 512).await;
            assert_eq!(reply.unwrap_err(), fault, "{host:02x}h");
            assert_eq!(data, [0xee; 512]);
        }
        let (reply, _) = send(&io, &nexus, &[0x4d, 0, 3, 0, 0, 0, 0, 2, 0, 0], &[], 512).await;
        assert_eq!(reply.unwrap_err(), TransportFault::Reset, "the host gave up: initiators repeat that");
        let (reply, _) = send(&io, &nexus, &[0; 6], &[], 0).await;
        assert_eq!(codes(&reply.unwrap()).1, 0x29, "and may have reset it");
        let (reply, _) = send(&io, &nexus, &[0x4d, 0, 0, 0, 0, 0, 0, 2, 0, 0], &[], 512).await;
        assert_eq!(codes(&reply.unwrap()), (0x5, 0x25, 0x00), "gone");
        // The next is sent all the same: the device may be back under this node.
        fake.take_seen();
        let _ = send(&io, &nexus, &[0; 6], &[], 0).await;
        assert_eq!(fake.cdbs(), [vec![0; 6]]);
    });
}

/// Linux takes some sense data of ABORTED COMMAND for the end of a command's own time, which it does not repeat.
#[test]
fn what_a_tape_may_have_done_is_not_done_again() {
    on_io_thread(|io| async move {
        let write: (u8, &[u8], &[u8]) = (1, &[0x0a, 0, 0, 2, 0, 0], &[7; 512]);
        // EXCHANGE MEDIUM: a second one would undo the first.
        let exchange: (u8, &[u8], &[u8]) = (8, &[0xa6, 0, 0, 0, 0, 1, 0, 2, 0, 1, 0, 0], &[]);
        let hosts = [1, 2, 3, 5, 7, 8, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f];
        for ((kind, cdb, data), host) in hosts.into_iter().flat_map(|host| [(write, host), (exchange, host)])
        {
            let opcode = cdb[0];
            let fake = Fake::new(move |command| match command.cdb.opcode() == opcode {
                true => Ok(Answer { host, ..Answer::good() }),
                false => Ok(Answer::good()),
            });
            let fake = Arc::new(fake.of_type(kind));
            let nexus = nexus_with(&io, &fake, config()).await;
            let (reply, _) = send(&io, &nexus, cdb, data, 0).await;
            assert_eq!(reply.map(|reply| codes(&reply)), Ok((0xb, 0, 0)), "{host:02x}h");
            let (reply, _) = send(&io, &nexus, &[0; 6], &[], 0).await;
            assert_eq!(codes(&reply.unwrap()).1, 0x29, "{host:02x}h: it may be elsewhere");
        }
    });
}

/// Linux repeats what hears BUSY when others have ended, and what the adapter was busy for five times at once.
#[test]
fn what_the_host_has_no_room_for_waits_for_it() {
    on_io_thread(|io| async move {
        for error in [libc::ENOMEM, libc::EDOM, libc::EAGAIN, libc::EBUSY] {
            let fake = Arc::new(Fake::new(move |_| Err(io::Error::from_raw_os_error(error))));
            let nexus = nexus_with(&io, &fake, config()).await;
            let (reply, _) = send(&io, &nexus, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512).await;
            let reply = reply.unwrap();
            assert_eq!((reply.status, reply.residual_in), (Status::Busy, Residual::Under(512)), "{error}");
        }
    });
}

/// As a board does whose frames do not say which way data goes.
#[test]
fn where_memory_is_offered_both_ways_the_command_decides() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| Ok(Answer::good())));
        let nexus = nexus_with(&io, &fake, config()).await;
        let _ = send(&io, &nexus, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[1; 24], 24).await;
        let _ = send(&io, &nexus, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[1; 24], 24).await;
        let ways: Vec<_> = fake.take_seen().into_iter().map(|seen| seen.direction).collect();
        assert_eq!(ways, [Direction::Out, Direction::In]);
    });
}

/// QEMU ends them with an overrun. Hardware gets as far as it gets.
#[test]
fn data_that_does_not_fit_its_command_never_gets_there() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| Ok(Answer::good())));
        let nexus = nexus_with(&io, &fake, config()).await;
        let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        for (cdb, out, room) in [
            (&write[..], 1023, 0),
            (&write, 0, 0),
            (&write, 0, 1024),
            (&[0x0a, 0, 0, 0, 0, 0], 512, 0),
            (&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, 0),
            (&[0x12, 0, 0, 0, 36, 0], 36, 0),
            (&[0x2a, 0x20, 0, 0, 0, 0, 0, 0, 2, 0], 1023, 0),
            (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], 512, 0),
            (&[0x41, 0, 0, 0, 0, 0, 0, 0, 8, 0], 511, 0),
        ] {
            let (reply, _) = send(&io, &nexus, cdb, &vec![7; out], room).await;
            assert_eq!(codes(&reply.unwrap()), (5, 0x24, 0), "{cdb:02x?} with {out} and {room}");
        }
        let (reply, _) = send(&io, &nexus, &[0x53, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; 512], 512).await;
        assert_eq!(codes(&reply.unwrap()), (5, 0x20, 0), "both ways at once");
        assert_eq!(fake.cdbs(), Vec::<Vec<u8>>::new());
        let (reply, _) = send(&io, &nexus, &write, &[7; 1024], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        let (reply, _) = send(&io, &nexus, &[0xc2, 0, 0, 0, 0, 0], &[7; 16], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good, "what vendors have is theirs");
        assert_eq!(fake.take_seen().len(), 2);
        // A length of blocks that is known counts.
        let large = nexus_with(&io, &fake, GenericConfig { block: Some(4096), ..config() }).await;
        let (reply, _) = send(&io, &large, &write, &[7; 1024], 0).await;
        assert_eq!((codes(&reply.unwrap()), fake.take_seen().len()), ((5, 0x24, 0), 0));
    });
}

#[test]
fn what_the_guest_may_not_do_never_gets_there() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| Ok(Answer::good())));
        let nexus = nexus_with(&io, &fake, GenericConfig { allow: Allow::NoManagement, ..config() }).await;
        let (reply, _) = send(&io, &nexus, &[0x3b, 5, 0, 0, 0, 0, 0, 2, 0, 0], &[7; 512], 0).await;
        let reply = reply.unwrap();
        assert_eq!((codes(&reply), reply.residual_out), ((0x5, 0x20, 0x00), Residual::Under(512)));
        let fake_only_reads = Arc::new(Fake::new(|command| give(command, &[3, 0, 0, 0])));
        let reads = GenericConfig { allow: Allow::ReadOnly, ..config() };
        let reader = nexus_with(&io, &fake_only_reads, reads).await;
        let (reply, _) = send(&io, &reader, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; 512], 0).await;
        assert_eq!(codes(&reply.unwrap()), (0x7, 0x27, 0x00));
        // NACA; nobody else of the host shall find an ACA.
        let (reply, _) = send(&io, &nexus, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4], &[], 512).await;
        assert_eq!(reply.unwrap().sense.unwrap().as_bytes()[12..18], [0x24, 0, 0, 0xca, 0, 9]);
        assert_eq!((fake.take_seen(), fake_only_reads.take_seen()), (vec![], vec![]));
        // Who may only read is told so before he mounts it.
        let (_, data) = send(&io, &reader, &[0x1a, 0, 0x3f, 0, 4, 0], &[], 4).await;
        assert_eq!(data, [3, 0, 0x80, 0]);
        let (_, data) = send(&io, &reader, &[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 4, 0], &[], 4).await;
        assert_eq!(data, [3, 0, 0, 0x80]);
    });
}

#[test]
fn answers_that_cannot_be_cost_their_command_only() {
    on_io_thread(|io| async move {
        let random = Mutex::new(Random::new(7));
        let fake = Arc::new(Fake::new(move |command| {
            let mut random = random.lock().unwrap();
            let mut number = || random.below(1 << 32) as u32;
            let mut sense = [0; MAX_SENSE];
            sense.iter_mut().for_each(|byte| *byte = number() as u8);
            // Nothing of it need be true: also not that data came.
            ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &sense);
            let choose = |from: &[u32], number: u32| from[number as usize % from.len()];
            Ok(Answer {
                status: choose(&[0, 0, 2, 4, 8, 0x18, 0x28, 0x30, 0x40, 0x55, 0xff], number()) as u8,
                host: choose(&[0, 0, 0, 3, 7, 0x10, 0x13, 0xffff], number()) as u16,
                driver: choose(&[0, 8, 6, 0x28, 0xffff], number()) as u16,
                residual: choose(&[0, 1, 600, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff], number()) as i32,
                sense,
                sense_len: choose(&[0, 1, 8, 18, 96, 252, 255], number()) as u8,
            })
        }));
        let nexus = nexus_with(&io, &fake, config()).await;
        let cdbs: [&[u8]; 6] = [
            &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0x12, 1, 0xb0, 0, 64, 0],
            &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
            &[0x1a, 0, 0x3f, 0, 255, 0],
            &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
        ];
        for round in 0..2000 {
            let room = [0, 1, 3, 512, 513][round % 5];
            let out = vec![1; [0, 0, 512][round % 3]];
            let (reply, data) = send(&io, &nexus, cdbs[round % cdbs.len()], &out, room).await;
            assert_eq!(data.len(), room);
            let Ok(reply) = reply else { continue };
            let fits = |residual, offered| match residual {
                Residual::Exact => true,
                Residual::Under(rest) => rest <= offered,
                Residual::Over(_) => false,
            };
            assert!(
                fits(reply.residual_in, room as u64) && fits(reply.residual_out, out.len() as u64),
                "{reply:?}"
            );
            assert!(reply.sense.is_none_or(|sense| sense.as_bytes().len() <= MAX_SENSE));
        }
    });
}

/// Some adapters of hosts say that all has come where it has not: the rest is nothing, as on the host, and not what the memory had before.
#[test]
fn what_did_not_come_is_nothing() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|command| {
            if command.direction == Direction::In {
                ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &[7; 36]);
            }
            Ok(Answer::good())
        }));
        let nexus = nexus_with(&io, &fake, GenericConfig { bounce: true, ..config() }).await;
        let (reply, _) = send(&io, &nexus, &[0xc5, 0, 0, 0, 0, 0], &[0xaa; 252], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        let (reply, data) = send(&io, &nexus, &[0x4d, 0, 0, 0, 0, 0, 0, 0, 252, 0], &[], 252).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        assert_eq!((&data[..36], &data[36..]), (&[7; 36][..], &[0; 216][..]));
    });
}
