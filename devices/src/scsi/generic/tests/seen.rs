//! What a guest sees otherwise than the device says it, and what it does not.

use super::*;
use crate::scsi::Residual;
use crate::testing::on_io_thread;

/// A page of block limits that promises the most there is.
fn page() -> Vec<u8> {
    let mut page = vec![0xff; 64];
    page[..4].copy_from_slice(&[0, 0xb0, 0, 60]);
    page
}

#[test]
fn block_limits_are_the_hosts() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|command| match command.cdb.opcode() {
            0x12 => give(command, &page()),
            _ => give(command, &[0, 0, 0xff, 0xff, 0, 0, 0x10, 0]),
        }));
        let nexus = nexus_with(&io, &fake, GenericConfig { block: Some(512), ..config() }).await;
        let cdb = [0x12, 1, 0xb0, 0, 64, 0];
        let (reply, data) = send(&io, &nexus, &cdb, &[], 64).await;
        assert_eq!(reply.unwrap().residual_in, Residual::Exact);
        let mut wanted = page();
        wanted[5] = 64;
        for at in [8, 12, 44] {
            wanted[at..at + 4].copy_from_slice(&[0, 0, 0, 128]);
        }
        assert_eq!(data, wanted, "and nothing else");
        // Blocks are of 4096 bytes now.
        let (reply, data) = send(&io, &nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8).await;
        reply.unwrap();
        assert_eq!(data, [0, 0, 0xff, 0xff, 0, 0, 0x10, 0]);
        let (reply, data) = send(&io, &nexus, &cdb, &[], 10).await;
        assert_eq!(reply.unwrap().residual_in, Residual::Exact);
        assert_eq!(data, [0, 0xb0, 0, 60, 0xff, 8, 0xff, 0xff, 0xff, 0xff], "half of a field is not touched");
        let (_, data) = send(&io, &nexus, &cdb, &[], 64).await;
        assert_eq!(data[8..12], [0, 0, 0, 16]);
        assert!(fake.cdbs().contains(&cdb.to_vec()), "as it was sent");
    });
}

#[test]
fn a_disk_without_the_page_has_one() {
    on_io_thread(|io| async move {
        let mut fake = Fake::new(|_| Err(io::Error::other("not to be asked")));
        fake.pages = vec![0, 0, 0, 4, 0, 0x80, 0x83, 0xb1];
        let fake = Arc::new(fake);
        let nexus = nexus_with(&io, &fake, GenericConfig { block: Some(512), ..config() }).await;
        let (reply, data) = send(&io, &nexus, &[0x12, 1, 0, 0, 255, 0], &[], 255).await;
        assert_eq!(reply.unwrap().residual_in, Residual::Under(255 - 9));
        assert_eq!(data[..10], [0, 0, 0, 5, 0, 0x80, 0x83, 0xb0, 0xb1, 0xee]);
        // The length is that of the whole list, whatever is wanted of it.
        let (reply, data) = send(&io, &nexus, &[0x12, 1, 0, 0, 5, 0], &[], 8).await;
        assert_eq!(reply.unwrap().residual_in, Residual::Under(3));
        assert_eq!(data, [0, 0, 0, 5, 0, 0xee, 0xee, 0xee]);
        fake.take_seen();
        let (reply, data) = send(&io, &nexus, &[0x12, 1, 0xb0, 0, 255, 0], &[], 255).await;
        assert_eq!(reply.unwrap().residual_in, Residual::Under(255 - 64));
        assert_eq!(data[..13], [0, 0xb0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 128, 0]);
        let (_, data) = send(&io, &nexus, &[0x12, 1, 0xb0, 0, 4, 0], &[], 255).await;
        assert_eq!(data[..5], [0, 0xb0, 0, 60, 0xee]);
        assert_eq!(fake.take_seen(), []);
    });
}

#[test]
fn luns_are_those_of_the_guests_target() {
    on_io_thread(|io| async move {
        let fake = Arc::new(Fake::new(|_| Err(io::Error::other("not to be asked"))));
        let nexus = nexus_with(&io, &fake, config()).await;
        let (reply, data) = send(&io, &nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16).await;
        assert!(reply.unwrap().sense.is_none());
        assert_eq!(data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn what_is_no_unit_is_none_of_ours() {
    let make = |fake: Fake| Generic::new(Arc::new(fake), config()).map(|unit| unit.device_type());
    let quiet = || Fake::new(|_| Ok(Answer::good()));
    assert_eq!(make(quiet().of_type(0x0d)).unwrap(), 0x0d);
    let said = make(quiet().of_type(0x3f)).unwrap_err().to_string();
    assert!(
        said.starts_with("/dev/sg0: there is no logical unit behind it (peripheral qualifier 1)"),
        "{said}"
    );
    // It gives nothing, and says GOOD.
    let mut mute = quiet();
    mute.inquiry.clear();
    assert!(make(mute).is_err());
    struct Broken(i32, u16);
    impl Host for Broken {
        fn execute(&self, _: &Command) -> io::Result<Answer> {
            if self.0 != 0 {
                Err(io::Error::from_raw_os_error(self.0))
            } else {
                Ok(Answer { host: self.1, ..Answer::good() })
            }
        }
        fn reset(&self) -> io::Result<()> {
            Ok(())
        }
    }
    for (host, wanted) in [(Broken(libc::EPERM, 0), "Operation not permitted"), (Broken(0, 3), "adapter 03h")]
    {
        let said = Generic::new(Arc::new(host), config()).unwrap_err().to_string();
        assert!(
            said.starts_with("/dev/sg0: the device does not answer INQUIRY") && said.contains(wanted),
            "{said}"
        );
    }
}
