//! What former lives of the machine have left of its ports, or are about to delete. That is seen to before the process confines itself: in
//! its sandbox it cannot see any more who has a unit open, nor, where proc hides the processes of others, whether one runs.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::threads::{self, Kind};
use fc::names::Names;
use fc::state::{Life, Record, Store};
use fc::vport::{CreateError, Kernel, Live, Pause, Ports};
use fc::{Roots, Wwn};

use super::Wanted;
use super::message::{self, LENGTH, Order};
use super::process::interruptible;

/// How often a process that is about to end is looked at.
const STEP: Duration = Duration::from_millis(100);

/// What came of it, for each HBA: nothing is in the way any more, or what is and why.
pub(super) type Settled = Vec<Result<(), String>>;

/// Sees to what is left of all HBAs, each by itself. `say` is told what takes time. `None` if the machine has ended meanwhile. No thread
/// of it is left then.
pub(super) fn settle(
    list: &[Wanted],
    machine: &mut UnixStream,
    roots: &Roots,
    store: &Store,
    say: impl Fn(usize, String) + Clone + Send + 'static,
) -> io::Result<Option<Settled>> {
    let ending = Arc::<AtomicBool>::default();
    // One for each port: each has all its time.
    let begin =
        |hba: usize, wanted: &Wanted, record: Record| -> Result<JoinHandle<Result<(), String>>, String> {
            let (wanted, roots, store) = (wanted.clone(), roots.clone(), store.clone());
            let (say, ending) = (say.clone(), ending.clone());
            let work = move || {
                let kernel = || Live::new(interruptible(ending.clone()));
                leave(&wanted, &record, &roots, &store, kernel, |line| say(hba, line))
            };
            threads::spawn(Kind::Returns, "fc-former", work)
                .map_err(|error| format!("there is no thread for what is left of its port: {error}"))
        };
    let begin_all = |(hba, wanted): (usize, &Wanted)| -> Vec<_> {
        records(wanted, store).into_iter().map(|record| begin(hba, wanted, record)).collect()
    };
    let begun: Vec<_> = list.iter().enumerate().map(begin_all).collect();
    let mut ended = false;
    machine.set_read_timeout(Some(STEP))?;
    while begun.iter().flatten().any(|one| one.as_ref().is_ok_and(|thread| !thread.is_finished())) && !ended {
        ended = has_ended(machine);
    }
    machine.set_read_timeout(None)?;
    // What is being deleted goes on, within its own time: the next one needs it gone.
    ending.store(ended, Ordering::Relaxed);
    let end = |thread: JoinHandle<Result<(), String>>| {
        thread.join().unwrap_or_else(|_| Err("what is left of its port could not be looked at".into()))
    };
    // All of them are waited for, whatever becomes of one.
    let end_all = |all: Vec<Result<_, String>>| {
        let ends: Vec<_> = all.into_iter().map(|one| one.and_then(end)).collect();
        ends.into_iter().collect()
    };
    let settled = begun.into_iter().map(end_all).collect();
    Ok((!ended).then_some(settled))
}

/// Whether the machine has ended, after a moment. It wants nothing yet but that.
fn has_ended(machine: &mut UnixStream) -> bool {
    let mut bytes = vec![0; LENGTH];
    match machine.read(&mut bytes) {
        Ok(0) => true,
        Ok(len) => matches!(bytes.get(..len).and_then(message::read_order), Some(Order::End)),
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

/// Whose the ports with the names of an HBA are, of those that are somebody's. What cannot be read is said when the port is made. Those with
/// other names are looked at if they are of this machine: it may have ended with its second names, and with ports that its guest had created.
fn records(wanted: &Wanted, store: &Store) -> Vec<Record> {
    let own = wwpn(wanted, store).and_then(|wwpn| store.record_of(wwpn).ok().flatten());
    let first = own.as_ref().map(|record| record.wwpn);
    let all = store.records().unwrap_or_default().into_iter().flatten();
    let others = all.filter(|record| record.owner == wanted.owner && Some(record.wwpn) != first);
    own.into_iter().chain(others).collect()
}

fn wwpn(wanted: &Wanted, store: &Store) -> Option<Wwn> {
    let stored = || store.definition(&wanted.owner).ok().map(|definition| definition.wwpn);
    wanted.names.map(|(_, wwpn)| wwpn).or_else(stored)
}

/// Waits for a process of the same machine, which may have ended a moment ago and delete the port still, and deletes what an ended one has
/// left.
fn leave<K: Kernel>(
    wanted: &Wanted,
    record: &Record,
    roots: &Roots,
    store: &Store,
    mut kernel: impl FnMut() -> K,
    say: impl Fn(String),
) -> Result<(), String> {
    let Names { wwpn, .. } = record.names();
    wait_for_former(wanted, wwpn, roots, store, kernel(), &say)?;
    let left = store.record_of(wwpn).map_err(|error| error.to_string())?;
    if left.is_some_and(|left| left.life(roots) == Life::Ended) {
        say(format!(
            "deletes the virtual port {wwpn} first, which an ended process has left; the driver logs out at the fabric, and may take a \
             minute"
        ));
    }
    let cleaned = Ports::new(roots, store, kernel()).clean_name(wwpn);
    cleaned.map_err(|error| CreateError::Clean(error).to_string())
}

fn wait_for_former(
    wanted: &Wanted,
    wwpn: Wwn,
    roots: &Roots,
    store: &Store,
    mut kernel: impl Kernel,
    say: &impl Fn(String),
) -> Result<(), String> {
    let begin = kernel.now();
    let mut said = false;
    loop {
        let record = store.record_of(wwpn).map_err(|error| error.to_string())?;
        let is_former = |record: &Record| record.owner == wanted.owner && record.life(roots) == Life::Lives;
        let Some(former) = record.filter(is_former) else { return Ok(()) };
        if kernel.now().saturating_sub(begin) >= Duration::from_secs(wanted.timeout.into()) {
            return Ok(());
        }
        if !std::mem::replace(&mut said, true) {
            say(format!(
                "waits for process {} (vmm-fcport), which has its virtual port {wwpn} still and deletes it when its machine has ended",
                former.pid
            ));
        }
        if kernel.pause(STEP) == Pause::Interrupted {
            return Err(CreateError::Interrupted { wwpn }.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use fc::testing::Tree;

    use super::super::owned::tests::{Fake, owned, tree, wanted};
    use super::*;

    const STAT: &str = "1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 6 20\n";

    /// What was said on the way, and what came of it.
    fn left(tree: &Tree, store: &Store, wanted: &Wanted) -> (Vec<String>, Result<(), String>) {
        let said = RefCell::new(Vec::new());
        let kernel = || Fake(tree, Duration::ZERO);
        let result = records(wanted, store).iter().try_for_each(|record| {
            leave(wanted, record, &tree.roots(), store, kernel, |line| said.borrow_mut().push(line))
        });
        (said.into_inner(), result)
    }

    fn ends(tree: &Tree) {
        // Another process has its number.
        tree.file(&format!("proc/{}/stat", std::process::id()), STAT);
        tree.file("proc/1/stat", STAT);
    }

    #[test]
    fn what_an_ended_process_has_left_goes_unless_somebody_has_it() {
        let (tree, store) = tree();
        assert_eq!(left(&tree, &store, &wanted()), (vec![], Ok(())));
        let port = owned(&tree, &store, &wanted()).unwrap();
        ends(&tree);
        let host = format!("{}/vport-3:0-7/host9", super::super::owned::tests::HOST)
            .replace("00.0/host3", "00.1/host4");
        let remote =
            tree.remote(&host, "rport-9:0-0", ("0x5006016044602198", "0x50060160c4602198"), "FCP Target", 0);
        tree.unit(&remote, "9:0:0:0", 0, &[("block", "sdz")]);
        tree.file("proc/4711/comm", "qemu\n");
        tree.link("proc/4711/fd/7", "/dev/sdz");
        let (said, result) = left(&tree, &store, &wanted());
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(
            result.unwrap_err(),
            "what an ended process has left is still there: vport-3:0-7 has units that are in use: sdz is open by qemu (4711); free \
             it, or vmm fc delete --force vport-3:0-7"
        );
        assert_eq!(store.records().unwrap().len(), 1);
        std::fs::remove_dir_all(tree.path("proc/4711")).unwrap();
        let (said, result) = left(&tree, &store, &wanted());
        assert_eq!(result, Ok(()));
        assert!(
            said[0].starts_with(&format!("deletes the virtual port {} first", port.names.wwpn)),
            "{said:?}"
        );
        assert!(store.records().unwrap().is_empty() && fc::San::read(&tree.roots()).vports.is_empty());
    }

    /// The machine may have ended with its other names, or in the middle of a change.
    #[test]
    fn ports_with_either_names_are_cleaned() {
        let (tree, store) = tree();
        let second = hba_virtio_scsi::fc::Names { wwnn: 0x2001_0212_3456_789a, wwpn: 0x2101_0212_3456_789a };
        let wanted = || Wanted { secondary: second, ..wanted() };
        let names = (Wwn::new(second.wwnn), Wwn::new(second.wwpn));
        owned(&tree, &store, &Wanted { names: Some(names), ..wanted() }).unwrap();
        ends(&tree);
        // What is another's with that name is not this machine's business.
        let stranger = Wanted { owner: "vm2.hba0".into(), ..wanted() };
        assert_eq!(left(&tree, &store, &stranger), (vec![], Ok(())));
        assert_eq!(store.records().unwrap().len(), 1);
        let (said, result) = left(&tree, &store, &wanted());
        assert_eq!((said.len(), result), (1, Ok(())));
        assert!(store.records().unwrap().is_empty() && fc::San::read(&tree.roots()).vports.is_empty());
    }

    /// The guest had created them.
    #[test]
    fn ports_of_the_guest_are_cleaned_by_their_owner() {
        let (tree, store) = tree();
        let nested = (Wwn::new(0x2000_0212_3456_7800), Wwn::new(0x2101_0212_3456_7801));
        owned(&tree, &store, &Wanted { names: Some(nested), ..wanted() }).unwrap();
        ends(&tree);
        let names = |wanted: &Wanted| -> Vec<Wwn> {
            records(wanted, &store).iter().map(|record| record.wwpn).collect()
        };
        assert_eq!(names(&Wanted { owner: "vm1.hba1".into(), ..wanted() }), []);
        assert_eq!(names(&wanted()), [nested.1]);
        assert_eq!(left(&tree, &store, &wanted()).1, Ok(()));
        assert!(store.records().unwrap().is_empty() && fc::San::read(&tree.roots()).vports.is_empty());
    }

    #[test]
    fn a_process_that_is_about_to_end_has_its_time() {
        let (tree, store) = tree();
        owned(&tree, &store, &wanted()).unwrap();
        // It does not end, which is said when the port is wanted.
        let (said, result) = left(&tree, &store, &wanted());
        assert_eq!(result, Ok(()));
        let waits =
            format!("waits for process {} (vmm-fcport), which has its virtual port ", std::process::id());
        assert!(said.len() == 1 && said[0].starts_with(&waits), "{said:?}");
        assert_eq!(store.records().unwrap().len(), 1);
        // Another machine's is not waited for.
        let other = Wanted { owner: "vm2.hba0".into(), ..wanted() };
        assert_eq!(left(&tree, &store, &other), (vec![], Ok(())));
    }

    /// The start has time for one after the other of nothing.
    #[test]
    fn ports_with_either_names_are_waited_for_at_a_time() {
        let (tree, store) = tree();
        let second = hba_virtio_scsi::fc::Names { wwnn: 0x2001_0212_3456_789a, wwpn: 0x2101_0212_3456_789a };
        let wanted = Wanted { secondary: second, timeout: 2, ..wanted() };
        owned(&tree, &store, &wanted).unwrap();
        let path = store.record_path(wanted.names.unwrap().1);
        let record = std::fs::read_to_string(path).unwrap();
        let other = record.replace("210002123456789a", "210102123456789a");
        std::fs::write(store.record_path(Wwn::new(second.wwpn)), other).unwrap();
        let (_ours, mut theirs) = crate::keeper::sys::pair().unwrap();
        let begin = std::time::Instant::now();
        settle(&[wanted], &mut theirs, &tree.roots(), &store, |_, _| {}).unwrap();
        let took = begin.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_millis(3800)).contains(&took), "{took:?}");
    }

    #[test]
    fn a_machine_that_ends_meanwhile_is_heard() {
        let (tree, store) = tree();
        let roots = tree.roots();
        let (ours, mut theirs) = crate::keeper::sys::pair().unwrap();
        let settled = settle(&[wanted()], &mut theirs, &roots, &store, |_, _| {}).unwrap();
        assert_eq!(settled, Some(vec![Ok(())]), "nothing is left, and nobody waits");
        owned(&tree, &store, &wanted()).unwrap();
        drop(ours);
        let begin = std::time::Instant::now();
        let settled = settle(&[wanted()], &mut theirs, &roots, &store, |_, _| {}).unwrap();
        assert_eq!(settled, None);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
}
