//! What threads of each kind may do.

use devices::threads::Kind;

use super::Extras;
use super::list::List;

/// Whether threads of the kind open files.
pub(in crate::jail) fn opens(kind: Kind) -> bool {
    matches!(kind, Kind::Main | Kind::Control | Kind::Client | Kind::Load | Kind::Loops)
}

/// One for all kinds that may do the same, so that their filter is made once.
pub(in crate::jail) fn like(kind: Kind) -> Kind {
    match kind {
        Kind::IoEcho | Kind::DebugLog | Kind::Signals | Kind::Space | Kind::Network => Kind::Log,
        Kind::EventLog => Kind::IoHelper,
        Kind::End => Kind::Waits,
        other => other,
    }
}

/// The calls of a kind; of one that starts others, theirs too.
pub(super) fn list(kind: Kind, extras: Extras) -> List {
    let mut list = of_kind(kind);
    if extras.terminal {
        list = list.terminal();
    }
    // Virtual CPUs have queues begun, I/O threads and who takes adapters out of service have them end.
    if extras.vhost && matches!(kind, Kind::Main | Kind::Vcpu | Kind::Io | Kind::Waits | Kind::End) {
        list = list.vhost();
    }
    // Helpers send commands; who serves a client opens what comes.
    match kind {
        Kind::Io | Kind::IoHelper | Kind::EventLog if extras.host_devices => list.commands(),
        Kind::Returns if extras.host_devices => list.commands(),
        Kind::Control | Kind::Client if extras.host_devices => list.commands().host_devices(),
        _ => list,
    }
}

fn of_kind(kind: Kind) -> List {
    let common = List::common();
    match kind {
        // It reads the kernel again at a reset, removes its sockets, closes images; `Load` and `End` are its threads.
        Kind::Main => common.files().reads().names().devices().windows().machine().events().starts(),
        // KVM_RUN first.
        Kind::Vcpu => List::default().vcpu().and_common().devices().windows(),
        Kind::Io => common.files().devices().ring().starts(),
        Kind::IoHelper => common.files(),
        Kind::IoEcho | Kind::Log | Kind::DebugLog | Kind::Signals | Kind::Space | Kind::Network => common,
        Kind::EventLog => common.files(),
        Kind::Control => common.files().paths().devices().starts().connections().accepts(),
        // What it starts: `Space`, `Loops`.
        Kind::Client => common.files().paths().devices().starts().connections(),
        Kind::Console => common.devices().connections().accepts(),
        Kind::Waits | Kind::End => common.files().devices().windows(),
        Kind::Returns => common.files().receives().starts(),
        Kind::Load => common.reads(),
        Kind::Loops => common.files().paths(),
    }
}
