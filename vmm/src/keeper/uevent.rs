//! Events of the kernel about its devices: a message begins with what happened and to what, and has a line for each property.

/// What has happened to something that may be a SCSI device, or a node of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// Where it is in sysfs.
    pub(super) path: &'a str,
    /// It goes, or else it has come or changed.
    pub(super) goes: bool,
    /// The number of its node, if it has one, as udev keeps it: `b8:32`.
    pub(super) node: Option<String>,
}

/// What SCSI devices and their nodes are of.
const SUBSYSTEMS: [&str; 6] = ["scsi", BLOCK, "scsi_generic", "bsg", "scsi_tape", "scsi_changer"];
const BLOCK: &str = "block";

/// What a message says; `None` if it is about something else, or is none. Only the kernel sends them, but a driver may have put
/// anything into one.
pub(super) fn parse(message: &[u8]) -> Option<Event<'_>> {
    let mut lines = message.split(|byte| *byte == 0);
    // Those of udev begin with its name.
    lines.next().filter(|head| head.contains(&b'@'))?;
    let (mut action, mut path, mut subsystem, mut major, mut minor) = (None, None, None, None, None);
    for line in lines {
        let Some(place) = line.iter().position(|byte| *byte == b'=') else { continue };
        let Some((key, [_, value @ ..])) = line.split_at_checked(place) else { continue };
        // The kernel's own are first.
        let property = match key {
            b"ACTION" => &mut action,
            b"DEVPATH" => &mut path,
            b"SUBSYSTEM" => &mut subsystem,
            b"MAJOR" => &mut major,
            b"MINOR" => &mut minor,
            _ => continue,
        };
        if property.is_none() {
            *property = Some(std::str::from_utf8(value).ok()?);
        }
    }
    let subsystem = subsystem.filter(|name| SUBSYSTEMS.contains(name))?;
    let kind = if subsystem == BLOCK { 'b' } else { 'c' };
    let number = |text: Option<&str>| text?.parse::<u32>().ok();
    let node = number(major).zip(number(minor)).map(|(major, minor)| format!("{kind}{major}:{minor}"));
    Some(Event { path: path?, goes: action? == "remove", node })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/devices/pci0000:00/host2/target2:0:0/2:0:0:5/block/sdc";

    fn message(lines: &[&str]) -> Vec<u8> {
        lines.iter().flat_map(|line| [line.as_bytes(), b"\0"].concat()).collect()
    }

    fn usual(action: &str, subsystem: &str) -> Vec<u8> {
        message(&[
            &format!("{action}@{PATH}"),
            &format!("ACTION={action}"),
            &format!("DEVPATH={PATH}"),
            &format!("SUBSYSTEM={subsystem}"),
            "MAJOR=8",
            "MINOR=32",
            "DEVNAME=sdc",
            "SEQNUM=4711",
        ])
    }

    #[test]
    fn what_happens_to_scsi_devices_is_read() {
        for subsystem in SUBSYSTEMS {
            for (action, goes) in [("add", false), ("change", false), ("bind", false), ("remove", true)] {
                let message = usual(action, subsystem);
                let node = Some(if subsystem == "block" { "b8:32" } else { "c8:32" }.to_owned());
                assert_eq!(parse(&message), Some(Event { path: PATH, goes, node }), "{action} {subsystem}");
            }
        }
        let no_node = |line: &str| {
            let head = ["remove@x", "ACTION=remove", "DEVPATH=x", "SUBSYSTEM=scsi", "MAJOR=8", line];
            parse(&message(&head)) == Some(Event { path: "x", goes: true, node: None })
        };
        assert!(["", "MINOR=", "MINOR=-1", "MINOR=../1", "MINOR=4294967296"].into_iter().all(no_node));
        assert_eq!(parse(&usual("add", "net")), None);
        assert_eq!(parse(&usual("add", "")), None);
    }

    #[test]
    fn what_is_no_such_message_is_none() {
        let whole = usual("add", "block");
        // What is cut off has lost its last property, and not more.
        for len in 0..whole.len() {
            let parsed = parse(&whole[..len]);
            assert!(parsed.is_none_or(|event| event.path == PATH), "{len}");
        }
        assert_eq!(parse(&[0; 64]), None);
        assert_eq!(parse(&[0xff; 64]), None);
        assert_eq!(parse(&[&b"libudev\0"[..], &whole].concat()), None, "of udev, which is not asked");
        let mut broken = whole.clone();
        let place = broken.windows(4).position(|part| part == b"2:0:").unwrap();
        broken[place..].iter_mut().take(3).for_each(|byte| *byte = 0xff);
        assert!(parse(&broken).is_some(), "in the head, which says nothing that the properties do not");
        let place = broken.windows(8).position(|part| part == b"DEVPATH=").unwrap() + 12;
        broken[place] = 0xc3;
        assert_eq!(parse(&broken), None);
        // The first of a kind is the kernel's.
        let twice = [
            &whole[..],
            &message(&["DEVPATH=/devices/x", "ACTION=remove", "SUBSYSTEM=net", "MINOR=33", "=", "="]),
        ];
        let twice = twice.concat();
        let event = parse(&twice).unwrap();
        assert_eq!((event.path, event.goes, event.node.as_deref()), (PATH, false, Some("b8:32")));
    }
}
