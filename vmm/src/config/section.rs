//! A table of the file read by its schema: what is unknown, unsupported or of the wrong type is noted,
//! and what remains is typed.

use super::error::{Errors, Origin};
use super::schema::{Choices, Key, Kind, ROOT, Status};
use super::tree::{Entry, Node, Table, Value};
use super::types::{Uuid, hex};
use super::{size, spell};

/// A table whose keys have been read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// As the user writes it: `[vm]`, `[[hba.lun]]`.
    pub(super) title: String,
    /// Where it begins.
    pub(super) origin: Origin,
    keys: &'static [Key],
    table: Option<&'a Table>,
    values: Vec<(&'static str, Typed<'a>)>,
}

/// A value of the type that its key takes.
#[derive(Debug)]
enum Typed<'a> {
    Bool(bool),
    Integer(u64),
    Wide(u128),
    Text(String),
    Strings(Vec<String>),
    Texts(Vec<(String, String)>),
    Sections(Vec<Section<'a>>),
}

impl<'a> Section<'a> {
    /// Reads the whole file.
    pub(super) fn root(table: &'a Table, errors: &mut Errors) -> Self {
        let mut section = Self::empty(String::new());
        section.read(table, ROOT, "", errors);
        section
    }

    fn empty(title: String) -> Self {
        Self { title, origin: Origin::File, keys: &[], table: None, values: Vec::new() }
    }

    /// Reads `table` by `keys`; `path` is its dotted name, empty for the whole file.
    fn read(&mut self, table: &'a Table, keys: &'static [Key], path: &str, errors: &mut Errors) {
        self.table = Some(table);
        self.keys = keys;
        for entry in &table.0 {
            let Some(key) = keys.iter().find(|key| key.name == entry.name) else {
                errors.add(&entry.origin, self.unknown(entry, keys));
                continue;
            };
            if key.status == Status::NotYet {
                let place = self.place(key, path);
                errors.add(&entry.origin, format!("{place} is not supported yet"));
            }
            let value = match key.kind {
                Kind::Table(keys) => tables(entry, keys, path, false, errors),
                Kind::Tables(keys) => tables(entry, keys, path, true, errors),
                _ => self.scalar(key, &entry.node, errors),
            };
            if let Some(value) = value {
                self.values.push((key.name, value));
            }
        }
    }

    /// How errors call a key of this section: `kernel` in [boot], or [[net]].
    fn place(&self, key: &Key, path: &str) -> String {
        match key.kind {
            Kind::Later if path.is_empty() && key.name == "net" => "`[[net]]`".into(),
            Kind::Later if path.is_empty() => format!("`[{}]`", key.name),
            _ => format!("`{}` in {}", key.name, self.title),
        }
    }

    fn unknown(&self, entry: &Entry, keys: &'static [Key]) -> String {
        let name = &entry.name;
        let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
        let guess = spell::closest(name, names.iter().copied());
        if self.title.is_empty() {
            let (what, right) = match entry.node.value {
                Value::Table(_) => ("table", guess.map(written)),
                Value::Array(_) => ("tables", guess.map(written)),
                _ => ("key", None),
            };
            let right = right.or_else(|| home(name).map(|title| format!("`{name}` in {title}")));
            let right = match right {
                Some(right) => format!("did you mean {right}?"),
                None => format!("expected tables named {}", spell::any_of(&names, '`')),
            };
            return format!("unknown {what} `{name}`, {right}");
        }
        let right = match (guess, home(name)) {
            (None, Some(title)) => format!("it belongs in {title}"),
            (Some(guess), _) => format!("did you mean `{guess}`?"),
            (None, None) => format!("expected {}", spell::any_of(&names, '`')),
        };
        format!("unknown key `{name}` in {}, {right}", self.title)
    }

    fn scalar(&self, key: &Key, node: &Node, errors: &mut Errors) -> Option<Typed<'a>> {
        let value = match scalar(&key.kind, node) {
            Ok(value) => value,
            Err(hint) => {
                let message = format!("`{}` in {} is {}, {hint}", key.name, self.title, node.value);
                errors.add(&node.origin, message);
                return None;
            }
        };
        if let (Kind::Choice(choices) | Kind::BoolOrChoice(choices), Typed::Text(text)) = (&key.kind, &value)
            && choices.not_yet.contains(&text.as_str())
        {
            let message = format!("`{} = \"{text}\"` in {} is not supported yet", key.name, self.title);
            errors.add(&node.origin, message);
        }
        Some(value)
    }

    /// Where `key` was written, whatever its value.
    pub(super) fn written(&self, key: &str) -> Option<&'a Origin> {
        self.table?.get(key).map(|entry| &entry.origin)
    }

    /// Where to point for an error about `key`: its value, or this section when it is not written.
    pub(super) fn origin(&self, key: &str) -> Origin {
        let entry = self.table.and_then(|table| table.get(key));
        entry.map_or(&self.origin, |entry| &entry.node.origin).clone()
    }

    /// Notes that `key` is wrong; `hint` says what would be right.
    pub(super) fn refuse(&self, key: &str, hint: &str, errors: &mut Errors) {
        let value = self.table.and_then(|table| table.get(key)).map(|entry| entry.node.value.to_string());
        let value = value.map_or_else(String::new, |value| format!(" is {value}"));
        errors.add(&self.origin(key), format!("`{key}` in {}{value}, {hint}", self.title));
    }

    /// Notes that what `key` names is wrong.
    pub(super) fn reject(&self, key: &str, reason: &str, errors: &mut Errors) {
        errors.add(&self.origin(key), format!("`{key}` in {}: {reason}", self.title));
    }

    /// Notes that `key` is missing, unless it is there and was wrong.
    pub(super) fn require(&self, key: &str, expected: &str, errors: &mut Errors) {
        if self.written(key).is_none() {
            let message = format!("`{key}` is missing in {}, expected {expected}", self.title);
            errors.add(&self.origin, message);
        }
    }

    /// Notes every one of `keys` that is written, since it has no meaning `with` something else.
    pub(super) fn meaningless(&self, keys: &[&str], with: &str, errors: &mut Errors) {
        for key in keys {
            if let Some(origin) = self.written(key) {
                errors.add(origin, format!("`{key}` in {} has no meaning {with}", self.title));
            }
        }
    }

    /// Whether this version builds `key = "value"`: for values that come from a default.
    pub(super) fn supports(&self, key: &str, value: &str) -> bool {
        let kind = self.keys.iter().find(|known| known.name == key).map(|known| &known.kind);
        !matches!(kind, Some(Kind::Choice(choices)) if choices.not_yet.contains(&value))
    }

    fn value(&self, key: &str) -> Option<&Typed<'a>> {
        self.values.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Typed::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn integer(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Typed::Integer(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn wide(&self, key: &str) -> Option<u128> {
        match self.value(key)? {
            Typed::Wide(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Typed::Text(value) => Some(value),
            _ => None,
        }
    }

    pub(super) fn strings(&self, key: &str) -> &[String] {
        match self.value(key) {
            Some(Typed::Strings(values)) => values,
            _ => &[],
        }
    }

    /// Names and values of a table of strings.
    pub(super) fn texts(&self, key: &str) -> &[(String, String)] {
        match self.value(key) {
            Some(Typed::Texts(values)) => values,
            _ => &[],
        }
    }

    /// The tables called `key`.
    pub(super) fn sections(&self, key: &str) -> &[Section<'a>] {
        match self.value(key) {
            Some(Typed::Sections(sections)) => sections,
            _ => &[],
        }
    }

    /// Takes the table called `key` out; an empty one when the file has none.
    pub(super) fn take(&mut self, key: &str) -> Section<'a> {
        let at = self.values.iter().position(|(name, _)| *name == key);
        let found = at.and_then(|at| match self.values.swap_remove(at).1 {
            Typed::Sections(mut sections) => sections.pop(),
            _ => None,
        });
        found.unwrap_or_else(|| Self::empty(format!("[{key}]")))
    }
}

/// How the file writes the table `name` of the top level.
fn written(name: &str) -> String {
    match ROOT.iter().find(|key| key.name == name).map(|key| &key.kind) {
        Some(Kind::Tables(_)) => format!("[[{name}]]"),
        _ if name == "net" => "[[net]]".into(),
        _ => format!("[{name}]"),
    }
}

/// The table that has a key called `name`.
fn home(name: &str) -> Option<String> {
    fn has(key: &Key, path: &str, name: &str) -> Option<String> {
        let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        let (keys, title) = match key.kind {
            Kind::Table(keys) => (keys, format!("[{path}]")),
            Kind::Tables(keys) => (keys, format!("[[{path}]]")),
            _ => return None,
        };
        let here = keys.iter().any(|key| key.name == name).then_some(title);
        here.or_else(|| keys.iter().find_map(|key| has(key, &path, name)))
    }
    ROOT.iter().find_map(|key| has(key, "", name))
}

/// Reads the table `entry`, or the array of tables.
fn tables<'a>(
    entry: &'a Entry,
    keys: &'static [Key],
    path: &str,
    several: bool,
    errors: &mut Errors,
) -> Option<Typed<'a>> {
    let path = if path.is_empty() { entry.name.clone() } else { format!("{path}.{}", entry.name) };
    let title = if several { format!("[[{path}]]") } else { format!("[{path}]") };
    let nodes = match &entry.node.value {
        Value::Table(_) if !several => vec![&entry.node],
        Value::Array(items) if several => items.iter().collect(),
        Value::Table(_) => {
            errors.add(&entry.origin, format!("[{path}] is one table, expected {title}"));
            return None;
        }
        Value::Array(_) => {
            errors.add(&entry.origin, format!("`{path}` is an array, expected one table {title}"));
            return None;
        }
        other => {
            errors.add(&entry.origin, format!("`{path}` is {other}, expected a table {title}"));
            return None;
        }
    };
    let mut sections = Vec::new();
    for node in nodes {
        let Value::Table(table) = &node.value else {
            errors.add(&node.origin, format!("`{path}` holds {}, expected tables {title}", node.value));
            continue;
        };
        let mut section = Section { origin: node.origin.clone(), ..Section::empty(title.clone()) };
        section.read(table, keys, &path, errors);
        sections.push(section);
    }
    Some(Typed::Sections(sections))
}

/// Reads a value; the error is a hint at what would be right.
fn scalar<'a>(kind: &Kind, node: &Node) -> Result<Typed<'a>, String> {
    let (value, text) = (&node.value, text(node));
    match (kind, value) {
        (Kind::Bool | Kind::BoolOrSize | Kind::BoolOrChoice(_), Value::Bool(value)) => {
            Ok(Typed::Bool(*value))
        }
        (Kind::Bool, _) => Err("expected true or false".into()),
        (Kind::Integer(least, most), _) => integer(value)
            .filter(|value| (*least..=*most).contains(value))
            .map(Typed::Integer)
            .ok_or_else(|| format!("expected an integer from {least} to {most}")),
        (Kind::OneOf(values), _) => {
            let found = integer(value).filter(|value| values.contains(value));
            found.map(Typed::Integer).ok_or_else(|| {
                let values: Vec<String> = values.iter().map(u64::to_string).collect();
                format!("expected {}", values.join(" or "))
            })
        }
        (Kind::Size | Kind::BoolOrSize, Value::Text(text)) => size::parse(text).map(Typed::Integer),
        (Kind::Size, _) => integer(value).map(Typed::Integer).ok_or_else(size::expected),
        (Kind::BoolOrSize, _) => integer(value)
            .map(Typed::Integer)
            .ok_or_else(|| "expected true, false or a page size such as \"2MiB\"".into()),
        (Kind::Ascii(most), _) => text
            .filter(|text| (1..=*most).contains(&text.len()))
            .filter(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~')))
            .map(Typed::Text)
            .ok_or_else(|| format!("expected 1 to {most} printable ASCII characters")),
        (Kind::Text(least), _) => text
            .filter(|text| text.len() >= *least && !text.contains(char::is_control))
            .map(Typed::Text)
            .ok_or_else(|| "expected text without control characters".into()),
        (Kind::Path, _) => text
            .filter(|text| !text.is_empty() && !text.contains('\0'))
            .map(Typed::Text)
            .ok_or_else(|| "expected a path".into()),
        (Kind::Uuid, _) => text
            .and_then(|text| Uuid::parse(&text))
            .map(|uuid| Typed::Wide(u128::from_be_bytes(uuid.0)))
            .ok_or_else(|| "expected a UUID such as \"123e4567-e89b-12d3-a456-426614174000\"".into()),
        (Kind::Wwn, _) => text.and_then(|text| wwn(&text)).map(Typed::Wide).ok_or_else(|| {
            "expected 16 hexadecimal digits such as \"5000c500a1b2c3d4\", or 32 of a device of the host"
                .into()
        }),
        (Kind::PortName, _) => text
            .and_then(|text| text.parse::<fc::Wwn>().ok())
            .map(|name| Typed::Wide(name.bits().into()))
            .ok_or_else(|| {
                "expected 16 hexadecimal digits such as \"2100001b32a9da4e\" or \"21:00:00:1b:32:a9:da:4e\""
                    .into()
            }),
        (Kind::Choice(choices), _) => choice(text, choices, ""),
        (Kind::BoolOrChoice(choices), _) => choice(text, choices, "true, false, "),
        (Kind::Strings | Kind::ChoiceOrStrings(_), Value::Array(items)) => items
            .iter()
            .map(|item| self::text(item).ok_or_else(|| "expected a list of strings".into()))
            .collect::<Result<_, _>>()
            .map(Typed::Strings),
        (Kind::ChoiceOrStrings(choices), _) => choice(text, choices, "a list of paths, "),
        (Kind::Strings, _) => Err("expected a list of strings".into()),
        (Kind::Texts, Value::Table(table)) => table
            .0
            .iter()
            .map(|entry| Some((entry.name.clone(), self::text(&entry.node)?)))
            .collect::<Option<_>>()
            .map(Typed::Texts)
            .ok_or_else(|| "expected a table of strings".into()),
        (Kind::Texts, _) => Err("expected a table of strings".into()),
        // A table that this version does not look into: refused already.
        (Kind::Later | Kind::Table(_) | Kind::Tables(_), _) => Ok(Typed::Bool(true)),
    }
}

/// The text of a value. An option's value is text wherever text is wanted: `--set vm.name=7`. What is within a table or
/// a list that an option gives is what it is in a file.
fn text(node: &Node) -> Option<String> {
    match (&node.value, &node.origin) {
        (Value::Text(text), _) => Some(text.clone()),
        (Value::Bool(_) | Value::Integer(_) | Value::Other(_), Origin::Set(argument)) => {
            let (_, text) = argument.split_once('=')?;
            let text = text.trim();
            (!text.starts_with(['[', '{'])).then(|| text.to_owned())
        }
        _ => None,
    }
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

fn wwn(text: &str) -> Option<u128> {
    let without = |text, start| str::strip_prefix(text, start).unwrap_or(text);
    // As Linux writes them in /dev/disk/by-id and in sysfs.
    let digits = ["wwn-", "naa.", "eui.", "0x"].into_iter().fold(text, without);
    // As scsi_id and multipath write them: behind the type of the designator, NAA.
    let digits = match digits.strip_prefix('3') {
        Some(name) if matches!(name.len(), 16 | 32) => name,
        _ => digits,
    };
    matches!(digits.len(), 16 | 32).then(|| hex(digits)).flatten()
}

fn choice<'a>(text: Option<String>, choices: &Choices, also: &str) -> Result<Typed<'a>, String> {
    let expected = || format!("expected {also}{}", spell::any_of(choices.names, '"'));
    let text = text.ok_or_else(expected)?;
    if choices.names.contains(&text.as_str()) {
        return Ok(Typed::Text(text));
    }
    let guess = spell::closest(&text, choices.names.iter().copied());
    Err(guess.map_or_else(expected, |guess| format!("did you mean \"{guess}\"?")))
}
