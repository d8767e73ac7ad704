//! The suite for disks, over a device that is one of ours: commands and blocks come to the same image.

use super::*;
use crate::scsi::suite::{Initiator, Outcome, block_on, config as disk_config, image, tests};
use crate::scsi::{Cdb, DataBuffers, Disk, Residual, ScsiRequest, Tag, TaskAttribute};

/// A device that is a disk of this layer.
struct Emulated(Arc<Nexus>);

impl Host for Emulated {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let data = || command.data.window(0, u64::MAX);
        let data = match command.direction {
            Direction::None => DataBuffers::none(),
            Direction::In => DataBuffers::to_initiator(ToGuest::new(data())),
            Direction::Out => DataBuffers::from_initiator(FromGuest::new(data())),
        };
        let request = ScsiRequest {
            tag: Tag(0),
            lun: Lun::default(),
            cdb: Cdb::new(command.cdb.as_bytes()),
            attribute: TaskAttribute::Simple,
            priority: 0,
            data,
        };
        let reply = block_on(self.0.execute(&Io::for_test(), request)).unwrap();
        let residual =
            if command.direction == Direction::Out { reply.residual_out } else { reply.residual_in };
        let mut sense = [0; MAX_SENSE];
        let said = reply.sense.map(|sense| sense.as_bytes().to_vec()).unwrap_or_default();
        sense[..said.len()].copy_from_slice(&said);
        Ok(Answer {
            status: reply.status as u8,
            residual: match residual {
                Residual::Under(rest) => rest as i32,
                Residual::Exact | Residual::Over(_) => 0,
            },
            sense,
            sense_len: said.len() as u8,
            ..Answer::good()
        })
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Local(Arc<Nexus>, Io);

impl Initiator for Local {
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome {
        let (reply, data_in) = block_on(Request::new(cdb, data_out, data_in_len).send(&self.0, &self.1));
        let reply = reply.expect("a reply");
        let residual = if data_out.is_empty() { reply.residual_in } else { reply.residual_out };
        Outcome {
            status: reply.status as u8,
            sense: reply.sense.map(|sense| sense.as_bytes().to_vec()).unwrap_or_default(),
            data_in,
            residual: Some(residual),
        }
    }
}

fn initiator() -> Local {
    let image = Arc::new(Image::Recording(image()));
    let target = Target::new();
    target
        .attach(Lun::default(), LogicalUnit::Disk(Disk::new(image.clone(), disk_config()).unwrap()))
        .unwrap();
    // Its own POWER ON is the host's to hear.
    let mut host = Local(Nexus::new(target, None), Io::for_test());
    assert_eq!(host.command(&[0; 6], &[], 0).status, 2);
    let host = Arc::new(Emulated(host.0));
    let config = GenericConfig {
        name: "/dev/sdz".into(),
        allow: Allow::All,
        bounce: false,
        shared: false,
        depth: 1,
        limits: HostLimits {
            max_bytes: 64 << 20,
            preferred_bytes: 64 << 20,
            max_segments: 1 << 20,
            ..HostLimits::default()
        },
        block: Some(BLOCK as u32),
        size: None,
        wanted: None,
    };
    let block = Block::new(Generic::new(host, config).unwrap(), image).unwrap();
    let target = Target::new();
    target.attach(Lun::default(), LogicalUnit::Block(block)).unwrap();
    Local(Nexus::new(target, None), Io::for_test())
}

#[test]
fn suite_passes() {
    /// What is no business of the unit's: REQUEST SENSE is the device's, which knows nothing of this layer's attentions; data that
    /// does not fit its command is not sent, and kernels do not tell of data that there was no room for; and three are about a
    /// state in which a device takes neither reads nor writes, or leaves no token valid, whoever sends them. The ring of this
    /// test leads past that.
    const OTHERS: [&str; 7] = [
        "request sense reports the attention as data",
        "over the maximum transfer length",
        "buffers shorter and longer than the transfer",
        "compare and write",
        "start and stop",
        "software write protect",
        "token of what changed",
    ];
    let mut failed = Vec::new();
    for (name, test) in tests() {
        let mut initiator = initiator();
        let run = std::panic::AssertUnwindSafe(|| test(&mut initiator));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(name);
        }
    }
    assert_eq!(failed, OTHERS);
}
