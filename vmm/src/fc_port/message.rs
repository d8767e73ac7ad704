//! What the two processes tell each other: texts with zeros between them (`crate::keeper::text`). The list goes to the process, once,
//! before the guest runs; after it nothing but that it shall look, what could not be taken, which of its names a port shall have, and that it shall end.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use devices::scsi::generic::Allow;
use fc::Wwn;
use fc::allowed::Allowed;
use fc::choose::Rules;
use hba_virtio_scsi::fc::{Active, LocalPort, Names, PortState, RemotePort, RemoteState, View, VportRefusal};

use super::{HostPort, Lun, News, Origin, Passthrough, Refused, UnitNews, Wanted};
use crate::keeper::text::{self, BOOLS, Reader, Writer, word};

/// Bytes of a message at most.
pub(super) const LENGTH: usize = 64 << 10;
/// Bytes of a line for people at most.
const LINE: usize = 4 << 10;

/// Units that the machine says with one message that it could not take.
pub(super) const REFUSED: usize = 512;

/// What the process hears.
#[derive(Debug)]
pub(super) enum Order {
    /// One more of the list.
    Wanted(Box<Wanted>),
    /// The list is at its end.
    Go,
    /// To look at what is behind the port of this HBA.
    Look(usize, u64),
    /// That units were not taken.
    Refused(usize, Vec<Refused>),
    /// To log in with these of its names: a request with a number.
    Activate(usize, u64, Active),
    /// To create a port of the guest's, with this number and these names.
    Create(usize, u16, Names),
    /// To delete it.
    Delete(usize, u16),
    /// The machine ends.
    End,
}

const PASSTHROUGHS: [(Passthrough, &str); 2] =
    [(Passthrough::Block, "block"), (Passthrough::Generic, "generic")];
const ACTIVES: [(Active, &str); 3] =
    [(Active::None, "none"), (Active::Primary, "primary"), (Active::Secondary, "secondary")];
const REFUSALS: [(VportRefusal, &str); 5] = [
    (VportRefusal::NotAllowed, "not allowed"),
    (VportRefusal::InUse, "in use"),
    (VportRefusal::NoRoom, "no room"),
    (VportRefusal::Failed, "failed"),
    (VportRefusal::Unknown, "unknown"),
];
const STATES: [(PortState, &str); 7] = [
    (PortState::Unknown, "unknown"),
    (PortState::NotPresent, "not present"),
    (PortState::Online, "online"),
    (PortState::Offline, "offline"),
    (PortState::Blocked, "blocked"),
    (PortState::LinkDown, "link down"),
    (PortState::Error, "error"),
];
const REMOTES: [(RemoteState, &str); 3] =
    [(RemoteState::Online, "online"), (RemoteState::Blocked, "blocked"), (RemoteState::Lost, "lost")];

/// One HBA of the list; `None` if there is no room for it.
pub(super) fn wanted(wanted: &Wanted) -> Option<Vec<u8>> {
    let Rules { parent, parent_wwnn, parent_wwpn, parent_fabric } = &wanted.rules;
    let bits = |wwn: &Option<Wwn>| wwn.map(Wwn::bits);
    let names = wanted.vports.iter().flat_map(|allowed| allowed.names.iter());
    let allowed: Vec<_> = names.map(|(from, to)| (from.bits(), to.bits())).collect();
    let writer = Writer::default()
        .text("wanted")
        .text(&wanted.hba)
        .text(&wanted.owner)
        .text(word(&BOOLS, &parent.is_some()))
        .text(parent.as_deref().unwrap_or_default())
        .maybe(bits(parent_wwnn))
        .maybe(bits(parent_wwpn))
        .maybe(bits(parent_fabric))
        .maybe(wanted.names.map(|(wwnn, _)| wwnn.bits()))
        .maybe(wanted.names.map(|(_, wwpn)| wwpn.bits()))
        .text(word(&BOOLS, &wanted.any_oui))
        .text(wanted.secondary.wwnn)
        .text(wanted.secondary.wwpn)
        .maybe(wanted.vports.as_ref().map(|allowed| allowed.most.into()))
        .each(&allowed, |(from, to)| format!("{from}-{to}"))
        .maybe(wanted.dev_loss_tmo.map(u64::from))
        .text(wanted.fast_io_fail_tmo)
        .each(&wanted.luns, |(from, to)| format!("{from}-{to}"))
        .text(word(&PASSTHROUGHS, &wanted.passthrough))
        .text(wanted.allow.name())
        .text(word(&BOOLS, &wanted.bounce))
        .text(word(&BOOLS, &wanted.shared))
        .text(wanted.timeout);
    Some(writer.0).filter(|message| message.len() <= LENGTH)
}

/// The list is at its end.
pub(super) fn go() -> Vec<u8> {
    Writer::default().text("go").0
}

/// To look.
pub(super) fn look(hba: usize, number: u64) -> Vec<u8> {
    Writer::default().text("look").text(hba).text(number).0
}

/// That units were not taken, of [`REFUSED`] at most.
pub(super) fn refused(hba: usize, all: &[Refused]) -> Vec<u8> {
    let one = |refused: &Refused| {
        let Refused { target, lun, offer, knows } = refused;
        format!("{target}-{}-{offer}-{}", u64::from_be_bytes(*lun), word(&BOOLS, knows))
    };
    Writer::default().text("refused").text(hba).each(all, one).0
}

fn read_refused(text: &str) -> Option<Refused> {
    let mut parts = text.split('-');
    let named = |text: &str| BOOLS.iter().find(|(_, word)| *word == text).map(|(value, _)| *value);
    let refused = Refused {
        target: parts.next()?.parse().ok()?,
        lun: parts.next()?.parse::<u64>().ok()?.to_be_bytes(),
        offer: parts.next()?.parse().ok()?,
        knows: parts.next().and_then(named)?,
    };
    parts.next().is_none().then_some(refused)
}

/// To log in with these of its names: a request with a number.
pub(super) fn activate(hba: usize, number: u64, active: Active) -> Vec<u8> {
    Writer::default().text("activate").text(hba).text(number).text(word(&ACTIVES, &active)).0
}

/// To create a port of the guest's.
pub(super) fn create(hba: usize, vport: u16, names: Names) -> Vec<u8> {
    Writer::default().text("create").text(hba).text(vport).text(names.wwnn).text(names.wwpn).0
}

/// To delete it.
pub(super) fn delete(hba: usize, vport: u16) -> Vec<u8> {
    Writer::default().text("delete").text(hba).text(vport).0
}

/// The machine ends.
pub(super) fn end() -> Vec<u8> {
    Writer::default().text("end").0
}

/// What the machine sends, read; `None` of what is no such message.
pub(super) fn read_order(message: &[u8]) -> Option<Order> {
    let mut reader = Reader::new(message)?;
    let order = match reader.text()? {
        "wanted" => Order::Wanted(Box::new(read_wanted(&mut reader)?)),
        "go" => Order::Go,
        "look" => Order::Look(reader.number()?, reader.number()?),
        "refused" => Order::Refused(reader.number()?, reader.each(|reader| read_refused(reader.text()?))?),
        "activate" => Order::Activate(reader.number()?, reader.number()?, reader.one_of(&ACTIVES)?),
        "create" => {
            let (hba, vport) = (reader.number()?, reader.number()?);
            Order::Create(hba, vport, Names { wwnn: reader.number()?, wwpn: reader.number()? })
        }
        "delete" => Order::Delete(reader.number()?, reader.number()?),
        "end" => Order::End,
        _ => return None,
    };
    reader.end().map(|()| order)
}

fn read_wanted(reader: &mut Reader<'_>) -> Option<Wanted> {
    let wwn = |reader: &mut Reader<'_>| Some(reader.maybe::<u64>()?.map(Wwn::new));
    let (hba, owner) = (reader.string()?, reader.string()?);
    let (has_parent, parent) = (reader.one_of(&BOOLS)?, reader.string()?);
    let rules = Rules {
        parent: has_parent.then_some(parent),
        parent_wwnn: wwn(reader)?,
        parent_wwpn: wwn(reader)?,
        parent_fabric: wwn(reader)?,
    };
    let (wwnn, wwpn) = (wwn(reader)?, wwn(reader)?);
    Some(Wanted {
        hba,
        owner,
        rules,
        names: wwnn.zip(wwpn),
        any_oui: reader.one_of(&BOOLS)?,
        secondary: Names { wwnn: reader.number()?, wwpn: reader.number()? },
        vports: {
            let (most, names) = (reader.maybe::<u16>()?, reader.each(read_range)?);
            let names = names.into_iter().map(|(from, to)| (Wwn::new(from), Wwn::new(to))).collect();
            most.map(|most| Allowed { most, names })
        },
        dev_loss_tmo: reader.maybe()?,
        fast_io_fail_tmo: reader.number()?,
        luns: reader.each(read_range)?,
        passthrough: reader.one_of(&PASSTHROUGHS)?,
        allow: Allow::named(reader.text()?)?,
        bounce: reader.one_of(&BOOLS)?,
        shared: reader.one_of(&BOOLS)?,
        timeout: reader.number()?,
    })
}

fn read_range(reader: &mut Reader<'_>) -> Option<(u64, u64)> {
    let (from, to) = reader.text()?.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

/// What the process tells of an HBA, with the files that go with it.
pub(super) fn news(hba: usize, news: News) -> (Vec<u8>, Vec<OwnedFd>) {
    let writer = |kind: &str| Writer::default().text(kind).text(hba);
    let cut = |mut text: String| {
        text.truncate(text.floor_char_boundary(LINE));
        text
    };
    let line = |kind: &str, text: String| writer(kind).text(cut(text)).0;
    let unit = |kind: &str, target: u8, lun: Lun| writer(kind).text(target).text(u64::from_be_bytes(lun));
    let message = match news {
        News::View(view) => self::view(writer("view"), &view).0,
        News::Heard => writer("heard").0,
        News::Looked(number) => writer("looked").text(number).0,
        News::Port(port) => host_port(writer("port"), &port).0,
        News::Waits(text) => line("waits", text),
        News::Closed(wwpn, why) => {
            let (kind, why) = why.map_or(("deleted", String::new()), |why| ("kept", why));
            writer(kind).text(wwpn).text(cut(why)).0
        }
        News::Other(number, port) => host_port(writer("other").text(number), &port).0,
        News::Activated(number, active, why) => {
            let (kind, why) = why.map_or(("activated", String::new()), |why| ("not activated", why));
            writer(kind).text(number).text(word(&ACTIVES, &active)).text(cut(why)).0
        }
        News::NotCreated(refusal, why) => {
            writer("not created").text(word(&REFUSALS, &refusal)).text(cut(why)).0
        }
        // Whose news they are the number of the port says.
        News::Of(_, news) => return self::news(hba, *news),
        News::Warning(text) => line("warning", text),
        News::Failed(text) => line("failed", text),
        News::Unit(target, lun, UnitNews::Doubted) => unit("doubted", target, lun).0,
        News::Unit(target, lun, UnitNews::Trusted) => unit("trusted", target, lun).0,
        News::Unit(target, lun, UnitNews::Lost) => unit("lost", target, lun).0,
        News::Unit(target, lun, UnitNews::Gone) => unit("gone", target, lun).0,
        News::Unit(target, lun, UnitNews::Resized) => unit("resized", target, lun).0,
        News::Unit(target, lun, UnitNews::Back(arrival, offer)) => {
            let (writer, files) = text::arrival(unit("back", target, lun).text(offer), *arrival);
            return (writer.0, files);
        }
        News::Unit(target, lun, UnitNews::Came(wanted, arrival, offer)) => {
            // The kernel's paths are texts.
            let writer = text::wanted(unit("came", target, lun).text(offer), &wanted).unwrap_or_default();
            let (writer, files) = text::arrival(writer, *arrival);
            return (writer.0, files);
        }
    };
    (message, Vec::new())
}

/// The same, read; `None` of what is no such message, or has other files.
pub(super) fn read_news(message: &[u8], files: Vec<OwnedFd>) -> Option<(usize, News)> {
    let mut reader = Reader::new(message)?;
    let (kind, hba) = (reader.text()?, reader.number()?);
    let reader_ref = &mut reader;
    let mut unit = |news: &dyn Fn(&mut Reader<'_>) -> Option<UnitNews>| {
        let (target, lun) = (reader_ref.number()?, reader_ref.number::<u64>()?);
        Some(News::Unit(target, lun.to_be_bytes(), news(reader_ref)?))
    };
    let news = match kind {
        "view" => News::View(read_view(&mut reader)?),
        "heard" => News::Heard,
        "looked" => News::Looked(reader.number()?),
        "other" => News::Other(reader.number()?, Box::new(read_host_port(&mut reader)?)),
        "port" => News::Port(Box::new(read_host_port(&mut reader)?)),
        "waits" => News::Waits(reader.string()?),
        "deleted" | "kept" => {
            let (wwpn, why) = (reader.number()?, reader.string()?);
            News::Closed(wwpn, (kind == "kept").then_some(why))
        }
        "activated" | "not activated" => {
            let (number, active, why) = (reader.number()?, reader.one_of(&ACTIVES)?, reader.string()?);
            News::Activated(number, active, (kind == "not activated").then_some(why))
        }
        "not created" => News::NotCreated(reader.one_of(&REFUSALS)?, reader.string()?),
        "warning" => News::Warning(reader.string()?),
        "failed" => News::Failed(reader.string()?),
        "doubted" => unit(&|_| Some(UnitNews::Doubted))?,
        "trusted" => unit(&|_| Some(UnitNews::Trusted))?,
        "lost" => unit(&|_| Some(UnitNews::Lost))?,
        "gone" => unit(&|_| Some(UnitNews::Gone))?,
        "resized" => unit(&|_| Some(UnitNews::Resized))?,
        "back" | "came" => {
            let (target, lun) = (reader.number()?, reader.number::<u64>()?.to_be_bytes());
            let offer = reader.number()?;
            let wanted = if kind == "came" { Some(text::read_wanted(&mut reader)?) } else { None };
            let arrival = Box::new(text::read_arrival(&mut reader, files)?);
            let news = match wanted {
                Some(wanted) => UnitNews::Came(Box::new(wanted), arrival, offer),
                None => UnitNews::Back(arrival, offer),
            };
            News::Unit(target, lun, news)
        }
        _ => return None,
    };
    reader.end().map(|()| (hba, news))
}

fn host_port(writer: Writer, port: &HostPort) -> Writer {
    let HostPort { vport, host, wwpn, wwnn, parent, driver, device, origin } = port;
    let writer = writer.text(vport).text(host).text(wwpn).text(wwnn);
    writer.text(parent).text(driver).text(device).text(origin.word())
}

fn read_host_port(reader: &mut Reader<'_>) -> Option<HostPort> {
    Some(HostPort {
        vport: reader.string()?,
        host: reader.number()?,
        wwpn: reader.number()?,
        wwnn: reader.number()?,
        parent: reader.string()?,
        driver: reader.string()?,
        device: reader.string()?,
        origin: reader.one_of(&Origin::WORDS)?,
    })
}

/// Of which HBA and unit the news are that cannot be read without their files.
pub(super) fn without_files(message: &[u8]) -> Option<(usize, Refused)> {
    let mut reader = Reader::new(message)?;
    let (kind, hba) = (reader.text()?, reader.number()?);
    let knows = match kind {
        "came" => false,
        "back" => true,
        _ => return None,
    };
    let (target, lun) = (reader.number()?, reader.number::<u64>()?.to_be_bytes());
    Some((hba, Refused { target, lun, offer: reader.number()?, knows }))
}

fn view(writer: Writer, view: &View) -> Writer {
    let local = &view.local;
    let writer = writer
        .text(local.primary.wwnn)
        .text(local.primary.wwpn)
        .text(local.secondary.wwnn)
        .text(local.secondary.wwpn)
        .text(word(&ACTIVES, &local.active))
        .text(word(&STATES, &local.state))
        .text(local.port_id)
        .text(local.fabric)
        .text(local.speed)
        .text(local.classes)
        .text(local.max_frame)
        .text(view.remotes.len());
    view.remotes.iter().fold(writer, |writer, (target, remote)| {
        writer
            .text(target)
            .text(remote.names.wwnn)
            .text(remote.names.wwpn)
            .text(remote.port_id)
            .text(word(&REMOTES, &remote.state))
            .text(remote.transport)
    })
}

fn read_view(reader: &mut Reader<'_>) -> Option<View> {
    let names = |reader: &mut Reader<'_>| Some(Names { wwnn: reader.number()?, wwpn: reader.number()? });
    let local = LocalPort {
        primary: names(reader)?,
        secondary: names(reader)?,
        active: reader.one_of(&ACTIVES)?,
        state: reader.one_of(&STATES)?,
        port_id: reader.number()?,
        fabric: reader.number()?,
        speed: reader.number()?,
        classes: reader.number()?,
        max_frame: reader.number()?,
    };
    let remotes = reader.each(|reader| {
        let target: u8 = reader.number()?;
        let names = Names { wwnn: reader.number()?, wwpn: reader.number()? };
        let (port_id, state) = (reader.number()?, reader.one_of(&REMOTES)?);
        Some((target, RemotePort { names, port_id, state, transport: reader.number()?, vport: 0 }))
    })?;
    Some(View { local, remotes: remotes.into_iter().collect::<BTreeMap<_, _>>(), ..View::default() })
}

#[cfg(test)]
#[path = "message_tests.rs"]
pub(super) mod tests;
