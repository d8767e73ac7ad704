//! What the machine tells the process while it runs.

use std::io::Read;

use super::*;
use crate::fc_port::message::{Order, read_order};

/// The machine's end of it, and what the process reads.
fn link() -> (Link, UnixStream) {
    let (ours, theirs) = sys::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let asked = Mutex::new(vec![Asked::default(); 2]);
    let socket = File::from(OwnedFd::from(ours));
    (Link { socket, asked, known: Default::default(), names: vec!["hba0".into(), "hba1".into()] }, theirs)
}

fn told(theirs: &mut UnixStream) -> Option<(usize, Vec<Refused>)> {
    let mut bytes = vec![0; LENGTH];
    let len = theirs.read(&mut bytes).ok()?;
    match read_order(&bytes[..len]) {
        Some(Order::Refused(hba, all)) => Some((hba, all)),
        other => panic!("{other:?}"),
    }
}

/// It waits for nobody: whoever refuses many says so as often as the process hears it.
#[test]
fn what_is_refused_is_told_one_message_at_a_time() {
    let (link, mut theirs) = link();
    let refused = |offer| Refused { target: 0, lun: [0; 8], offer, knows: true };
    for offer in 0..2000 {
        link.refuse(1, refused(offer));
    }
    link.refuse(7, refused(0));
    assert_eq!(told(&mut theirs), Some((1, vec![refused(0)])));
    assert_eq!(told(&mut theirs), None);
    let mut all = Vec::new();
    for _ in 0..4 {
        link.heard(1);
        let (hba, some) = told(&mut theirs).unwrap();
        assert_eq!((hba, told(&mut theirs)), (1, None));
        assert!(some.len() <= REFUSED);
        all.extend(some);
    }
    assert_eq!(all, (1..2000).map(refused).collect::<Vec<_>>());
    link.heard(1);
    link.heard(0);
    assert_eq!(told(&mut theirs), None);
    link.refuse(0, refused(5));
    assert_eq!(told(&mut theirs), Some((0, vec![refused(5)])));
}
