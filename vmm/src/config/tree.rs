//! The file as a tree of values that remember where they were written.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Errors, Origin};

/// A value and its origin.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// A value as TOML has it.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Bool(bool),
    Integer(i128),
    Text(String),
    Array(Vec<Node>),
    Table(Table),
    /// A float, a date or an integer beyond 128 bits, as it was written: no key takes one.
    Other(String),
}

/// A table: keys in alphabetical order.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(pub(super) Vec<Entry>);

/// A key of a table and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where the key was written.
    pub(super) origin: Origin,
    pub(super) node: Node,
}

impl Table {
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.name == name)
    }
}

/// Parses a file. Syntax errors are noted one a line; the tree then holds what could be read.
pub(super) fn parse(text: &str, errors: &mut Errors) -> Table {
    let (document, problems) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let mut problems: Vec<_> = problems
        .iter()
        .map(|problem| (lines.at(problem.span().map_or(0, |span| span.start)), problem.message()))
        .collect();
    problems.sort_by_key(|&(line, _)| line);
    problems.dedup_by_key(|&mut (line, _)| line);
    for (line, message) in problems {
        errors.add(&Origin::Line(line), format!("not TOML: {message}"));
    }
    table(document.get_ref(), &|offset| Origin::Line(lines.at(offset)))
}

/// Parses one value, of an option at `origin`.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Result<Node, String> {
    let value = DeValue::parse(text).map_err(|error| error.message().to_owned())?;
    Ok(node(&value, &|_| origin.clone()))
}

/// Where the lines of a text end: a file with thousands of disks has tens of thousands of keys, each on some line.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(offset, _)| offset).collect())
    }

    /// The line of a byte, counted from 1.
    fn at(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|&end| end < offset)
    }
}

fn table(from: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Table {
    let entry = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| Entry {
        name: std::borrow::Cow::<str>::clone(name.get_ref()).into_owned(),
        origin: origin(name.span().start),
        node: node(value, origin),
    };
    Table(from.iter().map(entry).collect())
}

fn node(from: &Spanned<DeValue<'_>>, origin: &dyn Fn(usize) -> Origin) -> Node {
    let value = match from.get_ref() {
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(|_| Value::Other(integer.to_string()), Value::Integer),
        DeValue::Float(float) => Value::Other(float.as_str().to_owned()),
        DeValue::Datetime(time) => Value::Other(time.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| node(item, origin)).collect()),
        DeValue::Table(entries) => Value::Table(table(entries, origin)),
    };
    Node { value, origin: origin(from.span().start) }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Text(text) if text.chars().count() > 40 => {
                write!(f, "\"{}...\"", text.chars().take(40).collect::<String>())
            }
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Array(_) => f.write_str("an array"),
            Self::Table(_) => f.write_str("a table"),
            Self::Other(text) => f.write_str(text),
        }
    }
}
