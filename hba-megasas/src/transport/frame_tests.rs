use std::sync::Arc;

use devices::mem::GuestRam;
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use super::*;

const RAM: usize = 0x1_0000;

/// In place of a proof: every count of elements in every format, at both ends of memory. What is fetched is what the elements say.
#[test]
fn lists_of_every_length_are_fetched_or_refused() {
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
    let dma = Dma::new(ram);
    dma.set_bus_master(true);
    let mut fetcher = Fetcher::default();
    let commands = [command::LD_READ, command::LD_SCSI, command::DCMD, command::INIT, 0xff];
    let step = if cfg!(miri) { 51 } else { 1 };
    for (cmd, flags) in commands
        .into_iter()
        .flat_map(|cmd| [0, flag::SGL64, flag::IEEE, flag::SGL64 | flag::IEEE].map(|flags| (cmd, flags)))
    {
        for count in (0..=255_u8).step_by(step) {
            let mut frame = vec![0; MAX_FRAME];
            let mut header = FrameHeader { cmd, ..FrameHeader::default() };
            (header.sge_count, header.flags, header.cdb_len) = (count, flags.into(), 6);
            frame[..size_of::<FrameHeader>()].copy_from_slice(header.as_bytes());
            let offset = if cmd == command::LD_SCSI { SGL_OFFSET_SCSI } else { SGL_OFFSET_IO };
            let size = element_size(flags);
            for n in 0..usize::from(count) {
                // Each is one byte longer than the one before.
                let at = offset + n * size + if size == 8 { 4 } else { 8 };
                if let Some(place) = frame.get_mut(at..at + 4) {
                    place.copy_from_slice(&(n as u32).to_le_bytes());
                }
            }
            for max in [0, 1, 80, 128, 255_u8] {
                let whole = FRAME_SIZE.max(offset + usize::from(count.min(max)) * size);
                // All of it in memory, its last byte just in it, and just not.
                for (room, there) in [(RAM, true), (whole, true), (whole - 1, false)] {
                    let address = RAM - room;
                    let bytes = frame.get(..whole.min(room).min(MAX_FRAME)).unwrap();
                    dma.write(address as u64, bytes).unwrap();
                    let fetched = fetcher.fetch(&dma, address as u64, max);
                    if whole > MAX_FRAME {
                        assert!(fetched.is_none(), "{cmd:#x} {flags:#x} {count} {max}");
                        continue;
                    }
                    assert_eq!(fetched.is_some(), there, "{cmd:#x} {flags:#x} {count} {max} in {room}");
                    let Some(frame) = fetched else { continue };
                    let sum = u64::from(count) * u64::from(count.max(1) - 1) / 2;
                    match (&frame.body, frame.data) {
                        (Body::Init(_) | Body::Refused(_) | Body::Abort { .. }, data) => {
                            assert_eq!(data.unwrap().len(), 0);
                        }
                        (_, Ok(data)) => {
                            assert!(count <= max);
                            assert_eq!(data.len(), sum, "{cmd:#x} {flags:#x} {count}");
                        }
                        (_, Err(_)) => assert!(count > max, "{cmd:#x} {flags:#x} {count} {max}"),
                    }
                }
            }
        }
    }
}
