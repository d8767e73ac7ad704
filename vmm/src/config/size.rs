//! Sizes: bytes, or a number with a binary unit.

/// The units of a size and their lengths in bytes.
const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// The bytes that `text` means: a number and one of KiB, MiB, GiB and TiB, with or without a space between.
///
/// # Errors
/// The reason as the end of a sentence, with the right spelling where it can be guessed.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start_matches(' ');
    let Ok(number) = number.parse::<u64>() else {
        return Err(if digits == 0 { expected() } else { "which is more than 64 bits hold".into() });
    };
    if let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) {
        return number.checked_mul(*bytes).ok_or_else(|| "which is more than 64 bits hold".into());
    }
    Err(match guess(unit) {
        Some(unit) => format!("did you mean \"{number}{unit}\"?"),
        None if unit.is_empty() => format!("did you mean {number} without quotes, or \"{number}MiB\"?"),
        None => expected(),
    })
}

/// What a size looks like.
pub(super) fn expected() -> String {
    "expected bytes as an integer, or a string with KiB, MiB, GiB or TiB such as \"512MiB\"".into()
}

/// The unit that `unit` was meant to be: `G`, `gb`, `Gib`.
fn guess(unit: &str) -> Option<&'static str> {
    let letter = unit.chars().next()?.to_ascii_uppercase();
    let rest = unit.get(1..)?.to_ascii_lowercase();
    let known = matches!(rest.as_str(), "" | "b" | "ib");
    known.then(|| UNITS.iter().map(|(name, _)| *name).find(|name| name.starts_with(letter))).flatten()
}

/// `bytes` as a person reads it: in the largest unit that divides it, else with one decimal.
pub(super) fn show(bytes: u64) -> String {
    let unit = |exact: bool| {
        UNITS.iter().rev().find(|(_, unit)| bytes >= *unit && (!exact || bytes.is_multiple_of(*unit)))
    };
    match (unit(true), unit(false)) {
        (Some((name, unit)), Some((_, largest))) if bytes / largest < 10 || unit == largest => {
            format!("{}{name}", bytes / unit)
        }
        (_, Some((name, unit))) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        }
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_units() {
        for (text, bytes) in [
            ("0KiB", 0),
            ("1KiB", 1024),
            ("512MiB", 536_870_912),
            ("3 GiB", 3_221_225_472),
            ("16TiB", 17_592_186_044_416),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_would_be() {
        for (text, hint) in [
            ("1GB", "did you mean \"1GiB\"?"),
            ("2g", "did you mean \"2GiB\"?"),
            ("64 Mib", "did you mean \"64MiB\"?"),
            ("4096", "did you mean 4096 without quotes, or \"4096MiB\"?"),
            ("99999999999999999999KiB", "which is more than 64 bits hold"),
            ("16777216TiB", "which is more than 64 bits hold"),
        ] {
            assert_eq!(parse(text), Err(hint.to_owned()), "{text}");
        }
        for text in ["", "GiB", "-1GiB", "1.5GiB", "1 potato", "1GiBs", "1Gé"] {
            assert_eq!(parse(text), Err(expected()), "{text}");
        }
    }

    #[test]
    fn shown_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (100, "100 bytes"),
            (4096, "4KiB"),
            (1 << 30, "1GiB"),
            (1536 << 20, "1536MiB"),
            (33_512_345_600, "31.2GiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }
}
