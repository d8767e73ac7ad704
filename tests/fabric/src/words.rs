//! The words of commands: numbers, sizes, and what is known by a name.

use crate::fabric::Login;
use crate::fcp::code;
use crate::inject::Fault;
use crate::outbox::What;
use crate::scsi::luns::{self, Lun};
use crate::scsi::sense::Sense;
use crate::scsi::status;

/// A number, with a unit of bytes if need be.
pub(crate) fn size(word: &str) -> Result<u64, String> {
    let (digits, shift) = match word.trim_end_matches(['K', 'M', 'G', 'T']) {
        digits if digits.len() == word.len() => (digits, 0),
        digits if digits.len() + 1 == word.len() => {
            (digits, 10 * (1 + "KMGT".find(|c| word.ends_with(c)).unwrap_or_default()))
        }
        _ => return Err(format!("{word} is no size")),
    };
    let size: u64 = number(digits)?;
    let most = 1 << 50;
    size.checked_mul(1 << shift).filter(|size| *size <= most).ok_or_else(|| format!("{word} is too much"))
}

pub(crate) fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number that fits"))
}

pub(crate) fn hex(word: &str) -> Result<u8, String> {
    u8::from_str_radix(word, 16).map_err(|_| format!("{word} is no hexadecimal byte"))
}

/// None for `any`.
pub(crate) fn or_any<T>(word: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if word == "any" { Ok(None) } else { read(word).map(Some) }
}

pub(crate) fn one_of<T: Copy>(word: &str, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(name, _)| *name == word);
    let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.map(|(_, value)| *value).ok_or_else(|| format!("{word} is none of {}", names()))
}

pub(crate) const ON: [(&str, bool); 2] = [("on", true), ("off", false)];
pub(crate) const UP: [(&str, bool); 2] = [("up", true), ("down", false)];
pub(crate) const FRAMES: [(&str, What); 9] = [
    ("any", What::Any),
    ("cmnd", What::Command),
    ("data", What::Data),
    ("ready", What::Ready),
    ("rsp", What::Response),
    ("els", What::Els),
    ("ct", What::Services),
    ("abts", What::Abort),
    ("fip", What::Fip),
];
pub(crate) const LOGINS: [(&str, Login); 3] =
    [("flogi", Login::Flogi), ("fdisc", Login::Fdisc), ("plogi", Login::Plogi)];

pub(crate) const OF_MANAGEMENT: [(&str, Fault); 3] =
    [("drop", Fault::Drop), ("reject", Fault::Code(code::REJECTED)), ("fail", Fault::Code(code::FAILED))];

pub(crate) fn fault(word: &str) -> Result<Fault, String> {
    if let Some(time) = word.strip_prefix("delay=") {
        let (least, most) = time.split_once('-').unwrap_or((time, time));
        // A day is long enough.
        let (least, most): (u64, u64) = (number(least)?, number(most)?);
        let fits = least <= most && most <= 86_400_000;
        return if fits {
            Ok(Fault::Delay(least, most))
        } else {
            Err(format!("{word}: delay=MS or delay=MS-MS"))
        };
    }
    if let Some(codes) = word.strip_prefix("sense=") {
        let (codes, is_descriptor) = codes.strip_suffix("+d").map_or((codes, false), |codes| (codes, true));
        let (codes, block) =
            codes.split_once('@').map_or((codes, None), |(codes, block)| (codes, Some(block)));
        let codes: Vec<u8> = codes.split('/').map(hex).collect::<Result<_, _>>()?;
        let [key, asc, ascq] = codes[..] else { return Err(format!("{word}: sense=KEY/ASC/ASCQ[@LBA][+d]")) };
        let mut sense = Sense::new(key, asc, ascq);
        if let Some(block) = block {
            sense = sense.about(number(block)?);
        }
        return Ok(Fault::Sense(if is_descriptor { sense.in_descriptors() } else { sense }));
    }
    one_of(
        word,
        &[
            ("drop", Fault::Drop),
            ("hang", Fault::Hang),
            ("busy", Fault::Status(status::BUSY)),
            ("full", Fault::Status(status::TASK_SET_FULL)),
            ("conflict", Fault::Status(status::RESERVATION_CONFLICT)),
        ],
    )
}

/// The LUN of a command that is to have a fault: as the array reads it.
pub(crate) fn of_command(word: &str) -> Result<Lun, String> {
    match word.parse()? {
        Lun::Other(bytes) => Ok(luns::read(bytes)),
        lun => Ok(lun),
    }
}
