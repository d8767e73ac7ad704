//! Target ports that go, fall silent, reject and change.

use super::*;

#[test]
fn target_ports_go_and_come() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("port 1 down");
    bed.take();
    let header = bed.command(one, to, 0, &[0], 0, 0);
    assert!(bed.answer(header).is_none());
    assert_eq!(bed.els(one, to, &[&[3][..], &[0; 115]].concat()), []);
    bed.tell("port 1 up");
    assert_eq!(bed.target(1), to);
    // Who does not log in anew is told that it is logged out.
    bed.take();
    let header = bed.command(one, to, 0, &[0], 0, 0);
    let frames = bed.take();
    assert!(frames.iter().any(|frame| frame.header.r_ctl == 0x22 && frame.payload[0] == 5), "{header:?}");
    bed.session(one, to);
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 7)));
    // LOGO by the target, of one name.
    bed.take();
    bed.tell(&format!("logo {ONE:016x} 1"));
    let frames = bed.take();
    assert_eq!((frames.len(), frames[0].header.d_id, frames[0].header.s_id), (1, one, to));
    assert_eq!(
        frames[0].payload,
        [&[5, 0, 0, 0, 0, 1, 0xf0, 0][..], &0x502f_cf00_0000_0001_u64.to_be_bytes()].concat()
    );
    assert!(!bed.tell("info").contains("session"));
}

#[test]
fn target_ports_fall_silent() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.register(one);
    bed.take();
    bed.tell("inject 0 any 1 delay=500");
    let late = bed.command(one, to, 0, &[0], 0, 0);
    bed.tell("port 1 silent");
    // Nobody is told, and the directory has it still.
    assert_eq!(bed.take().len(), 0);
    assert_eq!(bed.ct(one, 0x112, &[0, 1, 0xf0, 0]).0, 0x8002);
    // No command, task management, ABTS or link service is answered, and no answer comes that was still to come.
    let lost = bed.command(one, to, 0, &[0], 0, 0);
    assert!(bed.answer(lost).is_none());
    let abort = Header { r_ctl: 0x81, kind: 0, ..lost };
    bed.send(abort, &[]);
    let mut reset = vec![0; 32];
    reset[10] = 0x10;
    let header = bed.request(6, 8, one, to);
    bed.send(header, &reset);
    assert_eq!(bed.els(one, to, &[0x52; 28]), []);
    assert_eq!(bed.els(one, to, &[&[3][..], &[0; 115]].concat()), []);
    bed.tell(&format!("logo {ONE:016x} 1"));
    bed.now += 500;
    bed.san.tick(bed.now, &mut bed.out);
    assert!(bed.answer(late).is_none());
    assert_eq!(bed.take().len(), 0);
    let info = bed.tell("info");
    assert!(info.contains("target 1 502fcf0000000001 silent") && info.contains("5 not heard"), "{info}");
    // The other port goes on. This one does when it is heard again, with the logins that it had.
    let other = bed.target(2);
    bed.session(one, other);
    bed.tell("port 1 heard");
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).status, 0);
    assert!(bed.tell("info").contains("target 1 502fcf0000000001 up"));
}

#[test]
fn who_is_not_logged_in_as_a_process_hears_so() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    // PLOGI without PRLI: PRLO. Without both: LOGO.
    assert_eq!(bed.els(one, to, &[&[3][..], &[0; 115]].concat())[0], 2);
    let said = |bed: &mut Bed| {
        bed.take();
        bed.command(one, to, 0, &[0], 0, 0);
        let mut frames = bed.take();
        assert_eq!((frames.len(), frames[0].header.r_ctl, frames[0].header.d_id), (1, 0x22, one));
        frames.remove(0).payload
    };
    assert_eq!(said(&mut bed), [&[0x21, 16, 0, 20, 8][..], &[0; 15]].concat());
    bed.els(one, to, &[5, 0, 0, 0]);
    assert_eq!(said(&mut bed)[0], 5);
}

#[test]
fn addresses_change() {
    let mut bed = Bed::new();
    bed.ready();
    // The next login alone has the one that is wanted, if it is free and of its link.
    let again = |bed: &mut Bed| bed.log_in(0, ONE, true).unwrap().0;
    bed.tell(&format!("address {ONE:016x} 010177"));
    assert_eq!(again(&mut bed), 0x01_0177);
    assert_eq!(again(&mut bed), 0x01_0177);
    for id in ["010101", "010277"] {
        bed.tell(&format!("address {ONE:016x} {id}"));
        assert_eq!(again(&mut bed), 0x01_0177, "{id}");
    }
    // Two target ports have each other's.
    bed.tell("port 1 down");
    bed.tell("port 2 down");
    bed.tell("address 502fcf0000000002 01f000");
    bed.tell("port 2 up");
    bed.tell("port 1 up");
    assert_eq!((bed.target(1), bed.target(2)), (PortId(0x01_f001), PortId(0x01_f000)));
    // Each login has another one, and what was one's becomes another's.
    bed.tell("addresses fresh");
    assert_eq!(again(&mut bed), 0x01_0102);
    assert_eq!(bed.log_in(0, TWO, true), Ok(PortId(0x01_0103)));
    assert_eq!(again(&mut bed), 0x01_0104);
    assert_eq!(bed.log_in(0, TWO, true), Ok(PortId(0x01_0102)));
    bed.tell("port 1 down");
    bed.tell("port 1 up");
    assert_eq!(bed.target(1), PortId(0x01_f002));
    bed.tell("addresses sticky");
    assert_eq!(again(&mut bed), 0x01_0104);
}

#[test]
fn target_ports_reject_logins() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let other = bed.target(2);
    let plogi = [&[3][..], &[0; 115]].concat();
    let prli = [0x20, 16, 0, 20, 8, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x22];
    bed.tell(&format!("reject target-plogi {ONE:016x} 9 29 1"));
    // The login that was there ends with it. Not at the other port, nor at the directory.
    assert_eq!(bed.els(one, to, &plogi), [1, 0, 0, 0, 0, 9, 0x29, 0]);
    assert!(!bed.tell("info").contains("session"));
    bed.session(one, other);
    assert_eq!(bed.els(one, PortId::DIRECTORY, &plogi)[0], 2);
    bed.tell("reject target-plogi off");
    // PRLI: the ports are logged in to each other, the processes are not.
    bed.tell("reject prli any 3 0");
    assert_eq!((bed.els(one, to, &plogi)[0], bed.els(one, to, &prli)), (2, vec![1, 0, 0, 0, 0, 3, 0, 0]));
    assert_eq!(bed.els(one, other, &prli)[0], 1);
    assert!(bed.tell("info").contains("target 1 PLOGI") && bed.tell("info").contains("target 2 PRLI"));
    bed.tell("reject prli off");
    assert_eq!(bed.els(one, to, &prli)[0], 2);
    // Of another name.
    bed.tell(&format!("reject prli {TWO:016x} 3 0"));
    bed.session(one, to);
}

#[test]
fn power_goes_and_comes() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("power off");
    let info = bed.tell("info");
    assert!(info.contains("target 1 502fcf0000000001 down") && !info.contains("session"), "{info}");
    assert_eq!(bed.ct(one, 0x172, &[0, 0, 0, 8]).3, []);
    bed.tell("power on");
    bed.session(one, to);
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, None);
    // A port that was taken down before stays so.
    bed.tell("port 2 down");
    bed.tell("power");
    assert!(bed.tell("info").contains("target 2 502fcf0000000002 down"));
}

#[test]
fn rec_is_answered_or_not() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let [a, b, c] = one.bytes();
    let rec = [0x13, 0, 0, 0, 0, a, b, c, 0x77, 0x77, 0xff, 0xff];
    assert_eq!(bed.els(one, to, &rec), [1, 0, 0, 0, 0, 3, 0x17, 0]);
    bed.tell("rec off");
    assert_eq!(bed.els(one, to, &rec), [1, 0, 0, 0, 0, 0x0b, 0, 0]);
    bed.tell("rec on");
    assert_eq!(bed.els(one, to, &rec), [1, 0, 0, 0, 0, 3, 0x17, 0]);
}
