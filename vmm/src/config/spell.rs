//! Guesses at what a misspelt name was meant to be.

/// Names that are guessed have no more bytes.
const LONGEST: usize = 100;

/// The name among `known` that `wrong` is most likely a misspelling of.
pub(crate) fn closest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody misspells so much, and comparing takes time for each letter of both.
    if wrong.len() > LONGEST {
        return None;
    }
    let wrong = wrong.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wrong, &name.replace('-', "_")), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `names` as the end of a sentence: `a`, `b` or `c`, each between `quote`s.
pub(crate) fn any_of(names: &[&str], quote: char) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{quote}{name}{quote}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_guessed() {
        let known = ["name", "cpus", "memory", "on_reset", "block_size"];
        for (wrong, right) in [
            ("memroy", Some("memory")),
            ("Memory", Some("memory")),
            ("cpu", Some("cpus")),
            ("on-reset", Some("on_reset")),
            ("blocksize", Some("block_size")),
            ("potato", None),
            ("", None),
        ] {
            assert_eq!(closest(wrong, known), right, "{wrong}");
        }
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(any_of(&["a"], '`'), "`a`");
        assert_eq!(any_of(&["a", "b", "c"], '"'), "\"a\", \"b\" or \"c\"");
    }
}
