//! `--set KEY=VALUE`: values that replace or join those of the file, before anything is checked.

use std::rc::Rc;

use super::error::{Errors, Origin};
use super::tree::{Entry, Node, Table, Value, parse_value};

/// Applies the options in their order.
pub(super) fn apply(root: &mut Table, options: &[String], errors: &mut Errors) {
    for option in options {
        let origin = Origin::Set(Rc::from(option.as_str()));
        let result = read(option, &origin).and_then(|(path, node)| put(root, &path, node));
        errors.take(&origin, result);
    }
}

/// Splits an option into its path and its value. What is not TOML is text.
fn read<'a>(option: &'a str, origin: &Origin) -> Result<(Vec<&'a str>, Node), String> {
    let expected = "expected KEY=VALUE with a dotted KEY, such as vm.cpus=4";
    let (path, text) = option.split_once('=').ok_or(expected)?;
    let (path, text) = (path.trim(), text.trim());
    let path: Vec<&str> = path.split('.').collect();
    if path.iter().any(|part| part.is_empty()) {
        return Err(expected.into());
    }
    let node = match parse_value(text, origin) {
        Ok(node) => node,
        Err(message) if text.starts_with(['"', '\'', '[', '{']) => {
            return Err(format!("the value is not TOML: {message}"));
        }
        Err(_) => Node { value: Value::Text(text.to_owned()), origin: origin.clone() },
    };
    Ok((path, node))
}

/// Puts `node` at `path`, making tables on the way.
fn put(table: &mut Table, path: &[&str], node: Node) -> Result<(), String> {
    let Some((&name, rest)) = path.split_first() else { return Ok(()) };
    let origin = node.origin.clone();
    let at = match table.0.iter().position(|entry| entry.name == name) {
        Some(at) => at,
        None => {
            let indexed = rest.first().is_some_and(|next| next.parse::<usize>().is_ok());
            let value = if indexed { Value::Array(Vec::new()) } else { Value::Table(Table::default()) };
            let node = Node { value, origin: origin.clone() };
            table.0.push(Entry { name: name.to_owned(), origin: origin.clone(), node });
            table.0.len() - 1
        }
    };
    let Some(entry) = table.0.get_mut(at) else { return Ok(()) };
    if rest.is_empty() {
        entry.origin = origin;
        entry.node = node;
        return Ok(());
    }
    match &mut entry.node.value {
        Value::Table(inner) => put(inner, rest, node),
        Value::Array(items) => put_item(name, items, rest, node),
        other => Err(format!("`{name}` is {other}, not a table")),
    }
}

/// Puts `node` into one of the tables of the array `name`, which `path` begins with: by its place, counted
/// from 0, or by its `id`. The place after the last one makes a new table.
fn put_item(name: &str, items: &mut Vec<Node>, path: &[&str], node: Node) -> Result<(), String> {
    let Some((&which, rest)) = path.split_first() else { return Ok(()) };
    let count = items.len();
    let found = match which.parse::<usize>() {
        Ok(place) => (place <= count).then_some(place),
        Err(_) => items.iter().position(|item| id(item) == Some(which)),
    };
    let place = found.ok_or_else(|| missing(name, which, items))?;
    if place == count {
        items.push(Node { value: Value::Table(Table::default()), origin: node.origin.clone() });
    }
    let Some(item) = items.get_mut(place) else { return Ok(()) };
    if rest.is_empty() {
        *item = node;
        return Ok(());
    }
    match &mut item.value {
        Value::Table(inner) => put(inner, rest, node),
        other => Err(format!("`{name}.{which}` is {other}, not a table")),
    }
}

fn missing(name: &str, which: &str, items: &[Node]) -> String {
    let ids: Vec<String> = items.iter().filter_map(id).map(|id| format!("`{id}`")).collect();
    let known = match (items.len(), ids.is_empty()) {
        (0, _) => "there is none".to_owned(),
        (count, true) => format!("they count from 0 to {}", count - 1),
        (count, false) => format!("they count from 0 to {} and are called {}", count - 1, ids.join(", ")),
    };
    format!("no `{which}` among the `{name}` tables, {known}")
}

/// The `id` of a table.
fn id(item: &Node) -> Option<&str> {
    let Value::Table(table) = &item.value else { return None };
    match &table.get("id")?.node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}
