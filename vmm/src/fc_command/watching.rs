//! `vmm fc watch`: a line for each change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fc::Roots;
use fc::model::San;
use fc::watch::{Action, Change, Code, Node, Sockets, Source, States, Thing, Turn, Watch};
use serde_json::{Value, json};

use crate::exit::{complain, tell};

/// How often the states of remote ports are looked at, of which no event tells.
const LOOK: Duration = Duration::from_secs(1);

/// A line to be.
pub(super) struct Line {
    host: Option<u32>,
    text: String,
    value: Value,
}

pub(super) fn watch(
    roots: &Roots,
    host: Option<u32>,
    count: Option<u64>,
    timeout: Option<u64>,
    json: bool,
) -> Result<()> {
    let (sockets, missing) = Sockets::open().context("listening to the kernel (netlink)")?;
    if let Some(error) = missing {
        let remedy = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "that takes root, or CAP_NET_ADMIN, in the host's own network"
            }
            Some(libc::EPROTONOSUPPORT) => {
                "this kernel has none (CONFIG_SCSI_NETLINK), or no driver of an adapter is loaded"
            }
            _ => "of devices alone",
        };
        complain(format!("no events of ports, such as link_down and rscn: {error}; {remedy}"));
    }
    let tell =
        |line: &Line| tell(&if json { format!("{}\n", line.value) } else { format!("{}\n", line.text) });
    follow(roots, sockets, host, count, timeout.map(Duration::from_secs), tell)
}

/// Gives out lines, of one host or all, until there were so many, or so much time has passed.
pub(super) fn follow(
    roots: &Roots,
    source: impl Source,
    host: Option<u32>,
    count: Option<u64>,
    time: Option<Duration>,
    mut tell: impl FnMut(&Line),
) -> Result<()> {
    let begin = Instant::now();
    let mut watch = Watch::new(source);
    let mut states = States::of(&San::read(roots));
    let mut told = 0;
    loop {
        let left = time.map(|time| time.saturating_sub(begin.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        let changes =
            watch.next(Some(left.map_or(LOOK, |left| left.min(LOOK)))).context("listening to the kernel")?;
        let san = San::read(roots);
        let turns = states.turn(&san);
        let lines = changes
            .iter()
            .map(|change| describe(&san, change))
            .chain(turns.iter().map(|turn| turned(&san, turn)));
        for line in lines.filter(|line| host.is_none() || line.host.is_none() || line.host == host) {
            tell(&line);
            told += 1;
            if Some(told) == count {
                return Ok(());
            }
        }
    }
}

fn remote_wwpn(san: &San, name: &str) -> Option<String> {
    san.remotes.iter().find(|remote| remote.name == name)?.wwpn.map(|wwpn| wwpn.to_string())
}

fn in_brackets(text: Option<String>) -> String {
    text.map(|text| format!(" ({text})")).unwrap_or_default()
}

fn turned(san: &San, turn: &Turn) -> Line {
    let wwpn = remote_wwpn(san, &turn.remote);
    Line {
        host: Thing::Remote(turn.remote.clone()).host(),
        value: json!({
            "event": "state", "kind": "remote_port", "name": turn.remote, "wwpn": wwpn, "before": turn.before, "state": turn.now,
        }),
        text: format!("remote port {}{}: {}, was {}", turn.remote, in_brackets(wwpn), turn.now, turn.before),
    }
}

fn describe(san: &San, change: &Change) -> Line {
    let host = change.host();
    let event = match change {
        Change::Lost => {
            let text = "some events were lost: look again (vmm fc list)".to_owned();
            return Line { host, text, value: json!({ "event": "lost" }) };
        }
        Change::Transport(event) => {
            let page = (event.code == Code::Rscn).then(|| format!(" {:06x}", event.data & 0xff_ffff));
            let code = match event.code {
                Code::Other(number) => format!("event {number:#x}"),
                code => code.word().to_owned(),
            };
            return Line {
                host,
                text: format!("port host{}: {code}{}", event.host, page.unwrap_or_default()),
                value: json!({
                    "event": event.code.word(), "kind": "port", "name": format!("host{}", event.host), "number": event.number,
                    "seconds": event.seconds, "data": event.data,
                }),
            };
        }
        Change::Device(event) => event,
    };
    let word = match event.action {
        Action::Came => "came",
        Action::Gone => "gone",
        Action::Changed => "changed",
    };
    let (kind, name, shown, more) = match &event.thing {
        Thing::Host(number) => ("port", format!("host{number}"), "port", None),
        Thing::Vport(name) => ("vport", name.clone(), "virtual port", None),
        Thing::Remote(name) => ("remote_port", name.clone(), "remote port", remote_wwpn(san, name)),
        Thing::Unit(address) => ("lun", address.to_string(), "unit", None),
        Thing::Node(address, node, name) => {
            let name = match node {
                Node::Bsg => format!("/dev/bsg/{name}"),
                Node::Block | Node::Sg | Node::Tape => format!("/dev/{name}"),
            };
            ("node", name, "node", Some(address.to_string()))
        }
    };
    let reason = event.reason.map(|reason| reason.word());
    Line {
        host,
        text: format!(
            "{shown} {name}{}: {word}{}",
            in_brackets(more.clone()),
            reason.map(|r| format!(", {r}")).unwrap_or_default()
        ),
        value: json!({
            "event": word, "kind": kind, "name": name, "reason": reason,
            "wwpn": if kind == "remote_port" { more.clone() } else { None },
            "address": if kind == "node" { more } else { None },
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;

    use fc::watch::Heard;

    use super::*;

    /// Messages as they were heard, and then nothing.
    struct Recording(VecDeque<(Heard, Vec<u8>)>);

    impl Source for Recording {
        fn next(&mut self, into: &mut Vec<u8>, _: Option<Duration>) -> io::Result<Heard> {
            let Some((heard, bytes)) = self.0.pop_front() else { return Ok(Heard::Nothing) };
            into.extend(bytes);
            Ok(heard)
        }
    }

    fn event(action: &str, path: &str, properties: &str) -> (Heard, Vec<u8>) {
        let text = format!("{action}@{path}\0ACTION={action}\0DEVPATH={path}\0{properties}\0");
        (Heard::Device, text.replace(',', "\0").into_bytes())
    }

    fn lines(
        messages: impl IntoIterator<Item = (Heard, Vec<u8>)>,
        host: Option<u32>,
        count: u64,
    ) -> Vec<(String, Value)> {
        let root = tempfile::TempDir::new().unwrap();
        let mut lines = Vec::new();
        let source = Recording(messages.into_iter().collect());
        let tell = |line: &Line| lines.push((line.text.clone(), line.value.clone()));
        follow(&Roots::below(root.path()), source, host, Some(count), Some(Duration::from_secs(60)), tell)
            .unwrap();
        lines
    }

    #[test]
    fn each_change_is_a_line() {
        let mut rscn =
            vec![56, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0xb2, 0xa1, 0, 1, 40, 0];
        rscn.extend([
            1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 4, 0, 7, 0, 0, 0, 5, 0, 0, 0, 1, 2, 1, 0,
        ]);
        let unit = "/devices/x/host5/rport-5:0-2/target5:0:0/5:0:0:27";
        let remote = "/devices/x/host6/rport-6:0-1/fc_remote_ports/rport-6:0-1";
        let messages = [
            (Heard::Transport, rscn),
            event("remove", remote, "SUBSYSTEM=fc_remote_ports"),
            event("change", unit, "SUBSYSTEM=scsi,DEVTYPE=scsi_device,SDEV_UA=CAPACITY_DATA_HAS_CHANGED"),
            event("add", &format!("{unit}/scsi_generic/sg3"), "SUBSYSTEM=scsi_generic"),
            (Heard::Lost, vec![]),
        ];
        let all = lines(messages.clone(), None, 5);
        let texts: Vec<&str> = all.iter().map(|(text, _)| &**text).collect();
        assert_eq!(
            texts,
            [
                "port host5: rscn 010201",
                "remote port rport-6:0-1: gone",
                "unit 5:0:0:27: changed, CAPACITY_DATA_HAS_CHANGED",
                "node /dev/sg3 (5:0:0:27): came",
                "some events were lost: look again (vmm fc list)"
            ]
        );
        assert_eq!(
            all[0].1,
            json!({ "event": "rscn", "kind": "port", "name": "host5", "number": 7, "seconds": 1, "data": 0x01_0201 })
        );
        assert_eq!(
            all[3].1,
            json!({ "event": "came", "kind": "node", "name": "/dev/sg3", "reason": null, "wwpn": null, "address": "5:0:0:27" })
        );
        // Of one port alone, and what may be of any.
        let own = lines(messages, Some(6), 2);
        assert_eq!(own.iter().map(|(text, _)| &text[..8]).collect::<Vec<_>>(), ["remote p", "some eve"]);
    }
}
