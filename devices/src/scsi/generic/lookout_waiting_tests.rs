//! Devices that are waited for: udev, their nodes, and those that cannot be opened.

use super::*;
use crate::scsi::generic::opening::MOST;
use crate::scsi::generic::seat::RETRY;

/// Whoever tries to open a disk for writing has the kernel say that it has changed when he closes it.
#[test]
fn events_that_trying_causes_do_not_have_it_tried_for_ever() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let begin = Instant::now();
    remove(&tree, &old);
    lookout.removed(&old, None, begin);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    door.shut(true);
    lookout.changed(&new, begin);
    let (mut now, mut last) = (begin, said(work(&mut lookout, begin)));
    while lookout.next().is_some() {
        now += PAUSE_MAX;
        lookout.changed(&new, now);
        last = said(work(&mut lookout, now));
        assert!(now - begin <= PATIENCE + 2 * PAUSE_MAX, "for ever");
    }
    assert!(last[0].starts_with("failed 0 "), "{last:?}");
    // The last one, too: it is tried once in a minute, and that it still fails is no news.
    for _ in 0..2 {
        door.tried();
        lookout.changed(&new, now);
        assert_eq!((said(work(&mut lookout, now)), lookout.next()), (vec![], Some(now + RETRY)));
        lookout.changed(&new, now + PATIENCE);
        assert_eq!((said(work(&mut lookout, now + PATIENCE)), door.tried()), (vec![], vec![]));
        now += RETRY;
        let begin = now;
        assert_eq!(said(work(&mut lookout, now)), [""; 0]);
        // For a moment, in which udev may change its nodes.
        while let Some(next) = lookout.next() {
            now = next;
            assert_eq!(said(work(&mut lookout, now)), [""; 0]);
        }
        assert!(now - begin >= GRACE && now - begin <= GRACE + 2 * PAUSE_MAX, "{:?}", now - begin);
        assert!(door.tried().len() > 1);
    }
    // It has no node any more, which is.
    fs::remove_dir_all(tree.path().join(&new[1..]).join("block")).unwrap();
    now += 2 * RETRY;
    lookout.changed(&new, now);
    let mut last = said(work(&mut lookout, now));
    while let Some(next) = lookout.next() {
        last = said(work(&mut lookout, next));
    }
    assert!(last[0].starts_with("failed 0 "), "{last:?}");
}

/// The kernel tells the keeper of a change at the moment at which it tells udev, which changes the node then.
#[test]
fn what_udev_is_about_to_change_is_tried_again() {
    let tree = Tree::new();
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let (mut now, old) = (Instant::now(), format!("{RPORT}/target2:0:0/2:0:0:5"));
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    door.shut(true);
    lookout.changed(&new, now);
    said(work(&mut lookout, now));
    while let Some(next) = lookout.next() {
        now = next;
        said(work(&mut lookout, now));
    }
    now += 2 * RETRY;
    lookout.changed(&new, now);
    assert_eq!(said(work(&mut lookout, now)), [""; 0]);
    door.shut(false);
    now = lookout.next().expect("it is tried again");
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdk 7:0:0:1"]);
}

/// It can be opened at last, and later no more.
#[test]
fn what_could_not_be_opened_once_is_told_anew_after_it_was_there() {
    let tree = Tree::new();
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let (mut now, mut last) = (Instant::now(), Vec::new());
    disk(&tree, "7:0:0:1", "sdk", NAME);
    door.shut(true);
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    said(work(&mut lookout, now));
    let wait = |lookout: &mut Lookout, now: &mut Instant, last: &mut Vec<String>| {
        while let Some(next) = lookout.next() {
            *now = next;
            *last = said(work(lookout, next));
        }
    };
    wait(&mut lookout, &mut now, &mut last);
    assert!(last[0].starts_with("failed 0 "), "{last:?}");
    door.shut(false);
    let other = disk(&tree, "8:0:0:0", "sdn", NAME);
    lookout.changed(&other, now);
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdn 8:0:0:0"]);
    door.shut(true);
    remove(&tree, &other);
    lookout.removed(&other, None, now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 0"]);
    wait(&mut lookout, &mut now, &mut last);
    assert!(last[0].starts_with("failed 0 "), "{last:?}");
}

#[test]
fn a_node_is_waited_for_and_not_for_ever() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let mut now = Instant::now();
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    door.shut(true);
    lookout.changed(&new, now);
    let (begin, mut last) = (now, Vec::new());
    said(work(&mut lookout, now));
    while let Some(next) = lookout.next() {
        assert!(last.is_empty() && next > now, "nothing but waits");
        now = next;
        last = said(work(&mut lookout, now));
    }
    assert_eq!(
        last,
        [
            "failed 0 /dev/sdk: there is no such device on the host; look for it with `lsscsi -g`, or call it by its wwn, which stays the same"
        ]
    );
    let took = now - begin;
    assert!(took >= PATIENCE && took <= PATIENCE + PAUSE_MAX, "{took:?}");
    assert!(door.tried().len() < 25);
    // Somebody has put it right, and has the kernel say so.
    door.shut(false);
    lookout.changed(&new, now);
    now = lookout.next().unwrap();
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdk 7:0:0:1"]);
}

/// Too many others hang.
#[test]
fn what_cannot_even_be_tried_is_told_once() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let mut now = Instant::now();
    let begin = now;
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    lookout.openings.hang(MOST);
    lookout.changed(&disk(&tree, "7:0:0:1", "sdk", NAME), now);
    let mut all = said(work(&mut lookout, now));
    while now - begin < 2 * PATIENCE {
        now = lookout.next().unwrap();
        all.extend(said(work(&mut lookout, now)));
    }
    assert_eq!((all, door.tried()), (vec!["lost 0".into(), "queued 0 7:0:0:1".into()], vec![]));
    lookout.openings.hang(0);
    now = lookout.next().unwrap();
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdk 7:0:0:1"]);
}

/// It has been there, and udev has known it, since long before the first one went.
#[test]
fn another_path_is_taken_without_waiting_for_udev() {
    let tree = Tree::new();
    let (mut lookout, _door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    disk(&tree, "7:0:0:1", "sdk", NAME);
    tree.file("run/udev/control", "");
    tree.file("run/udev/data/b8:160", "I:1\n");
    std::thread::sleep(Duration::from_millis(50));
    let (now, old) = (Instant::now(), format!("{RPORT}/target2:0:0/2:0:0:5"));
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 0", "back 0 /dev/sdk 7:0:0:1"]);
}

/// The keeper hears late that a device goes: it is there again, with its number, and udev has not even heard that either.
#[test]
fn what_udev_knew_of_what_went_is_of_nothing_that_comes() {
    const OTHER: &str = "naa.5000000000000018\n";
    for (case, waits) in [("itself", true), ("another", true), ("missed", true), ("some other", false)] {
        let tree = Tree::new();
        let first = disk(&tree, "7:0:0:1", "sdk", OTHER);
        if case != "itself" {
            tree.file(&format!("{}/block/sdk/dev", &first[1..]), "8:176\n");
        }
        let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "7:0:0:1", Driver::Block)]);
        tree.file("run/udev/control", "");
        tree.file("run/udev/data/b8:160", "I:1\n");
        std::thread::sleep(Duration::from_millis(50));
        let now = Instant::now();
        // Its inode is nobody else's.
        fs::rename(tree.path().join(&first[1..]), tree.path().join("aside")).unwrap();
        let new = disk(&tree, "7:0:0:1", "sdl", OTHER);
        match case {
            // It has no event of its own for its node.
            "itself" => lookout.removed(&first, None, now),
            "another" => {
                lookout.removed("/devices/pci0/host9/9:0:0:0/block/sdm", Some("b8:160".into()), now);
                lookout.changed(&new, now);
            }
            "missed" => lookout.missed(now),
            _ => {
                lookout.removed("/devices/pci0/host9/9:0:0:0/block/sdm", Some("b8:192".into()), now);
                lookout.removed(&first, None, now);
            }
        }
        let mut said = said(work(&mut lookout, now));
        if waits {
            assert_eq!((said, door.tried()), (vec!["lost 0".to_owned()], vec![]), "{case}");
            tree.file("run/udev/data/b8:160", "I:2\n");
            said = self::said(work(&mut lookout, now + PAUSE));
        } else {
            assert_eq!(said.remove(0), "lost 0");
        }
        assert_eq!(said, ["back 0 /dev/sdl 7:0:0:1"], "{case}");
    }
}

/// Who opens a node first has it alone: udev would find it busy.
#[test]
fn udev_is_waited_for_and_not_for_ever() {
    let tree = Tree::new();
    let old = format!("{RPORT}/target2:0:0/2:0:0:5");
    let (mut lookout, door) = lookout(&tree, vec![wanted(&tree, "2:0:0:5", Driver::Block)]);
    let mut now = Instant::now();
    tree.file("run/udev/control", "");
    // That which was there before had the same number.
    tree.file("run/udev/data/b8:160", "I:1\n");
    std::thread::sleep(Duration::from_millis(50));
    remove(&tree, &old);
    lookout.removed(&format!("{old}/block/sdc"), Some("b8:160".into()), now);
    lookout.removed(&old, None, now);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    lookout.changed(&new, now);
    assert_eq!((said(work(&mut lookout, now)), door.tried()), (vec!["lost 0".into()], vec![]));
    tree.file("run/udev/data/b8:160", "I:2\n");
    now = lookout.next().unwrap();
    assert_eq!(said(work(&mut lookout, now)), ["back 0 /dev/sdk 7:0:0:1"]);
    // One that never has done.
    remove(&tree, &new);
    fs::remove_file(tree.path().join("run/udev/data/b8:160")).unwrap();
    lookout.removed(&new, None, now);
    let third = disk(&tree, "8:0:0:0", "sdm", NAME);
    lookout.changed(&third, now);
    let begin = now;
    assert_eq!(said(work(&mut lookout, now)), ["lost 0"]);
    door.tried();
    let mut last = Vec::new();
    while let Some(next) = lookout.next() {
        now = next;
        last = said(work(&mut lookout, now));
    }
    assert_eq!(last, ["back 0 /dev/sdm 8:0:0:0"]);
    assert!(now - begin >= PATIENCE && now - begin <= PATIENCE + PAUSE_MAX, "{:?}", now - begin);
}

/// Its node of sg is there before its block device.
#[test]
fn all_nodes_that_it_had_are_waited_for() {
    let tree = Tree::new();
    let mut wanted = wanted(&tree, "2:0:0:5", Driver::Sg);
    wanted.parts = vec![Part::Block, Part::Sg];
    let (mut lookout, _door) = lookout(&tree, vec![wanted]);
    let (now, old) = (Instant::now(), format!("{RPORT}/target2:0:0/2:0:0:5"));
    remove(&tree, &old);
    lookout.removed(&old, None, now);
    let new = disk(&tree, "7:0:0:1", "sdk", NAME);
    tree.file(&format!("{}/scsi_generic/sg7/dev", &new[1..]), "21:7\n");
    lookout.changed(&new, now);
    assert_eq!(said(work(&mut lookout, now)), ["lost 0"]);
    // What there is in the end is better than nothing.
    assert_eq!(said(work(&mut lookout, now + PATIENCE)), ["back 0 /dev/sg7 7:0:0:1"]);
}
