//! Writes seeds into the folder given: what the conformance suite sends, each test a file.

use std::path::Path;
use std::sync::Arc;

use devices::scsi::suite::{FILL, Initiator, Outcome, Request, config, image, tests};
use devices::scsi::{Disk, Image, LogicalUnit, Lun, Nexus, Target};
use fuzz::{Command, on_io_thread};

/// Sends commands and keeps them.
struct Recorder {
    nexus: Arc<Nexus>,
    seed: Vec<u8>,
}

impl Initiator for Recorder {
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome {
        let command = Command { cdb: cdb.to_vec(), data_out: data_out.to_vec(), data_in_len };
        command.write(&mut self.seed);
        let nexus = self.nexus.clone();
        on_io_thread(move |io| async move {
            let request = Request::new(&command.cdb, &command.data_out, data_in_len);
            let (reply, data_in) = request.send(&nexus, &io).await;
            let reply = reply.expect("nothing ends commands here");
            let sense = reply.sense.map(|sense| sense.as_bytes().to_vec()).unwrap_or_default();
            let data_in = if data_in.is_empty() { vec![FILL; data_in_len] } else { data_in };
            Outcome { status: reply.status as u8, sense, data_in, residual: None }
        })
    }
}

// Brings in what instrumented code calls.
#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|_input: &[u8]| {});

fn main() {
    let dir = std::env::args().nth(1).expect("a folder");
    std::fs::create_dir_all(&dir).expect("the folder");
    for (name, test) in tests() {
        let target = Target::new();
        let disk = Disk::new(Arc::new(Image::Recording(image())), config()).expect("a disk");
        target.attach(Lun::default(), LogicalUnit::Disk(disk)).expect("a free LUN");
        let mut recorder = Recorder { nexus: Nexus::new(target, None), seed: Vec::new() };
        test(&mut recorder);
        std::fs::write(Path::new(&dir).join(name.replace(' ', "-")), recorder.seed).expect("a seed");
    }
}
