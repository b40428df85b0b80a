//! Access to TOML tables that reports what it does not understand, and goes on.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;

/// A value with its place in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) value: T,
    /// Byte offset in the text.
    pub(super) offset: usize,
}

/// A key that a table may have.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// A right-hand side that shows the type.
    pub(super) example: &'static str,
}

/// The keys of a kind of table.
pub(super) struct Keys {
    /// How the table is written in a file, for advice on misplaced keys.
    pub(super) header: &'static str,
    pub(super) known: &'static [Key],
    /// Keys of later versions, so that the message can be better than "unknown".
    pub(super) later: &'static [&'static str],
}

/// Longest key that spelling help is tried for; the cost grows with the length.
const MAX_SUGGESTED: usize = 32;
/// Characters of a key that a message repeats.
const MAX_SHOWN: usize = 80;

/// Collects problems and knows the lines of the text.
pub(super) struct Report<'a> {
    file: &'a Path,
    line_starts: Vec<usize>,
    errors: Vec<ConfigError>,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &str, file: &'a Path) -> Self {
        let after_newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self {
            file,
            line_starts: std::iter::once(0).chain(after_newlines).collect(),
            errors: Vec::new(),
        }
    }

    pub(super) fn file(&self) -> &Path {
        self.file
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(super) fn add(
        &mut self,
        offset: usize,
        key: impl Into<Option<String>>,
        message: impl Into<String>,
    ) {
        self.errors.push(ConfigError {
            file: self.file.to_owned(),
            line: self.line(offset),
            key: key.into(),
            message: message.into(),
        });
    }

    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        self.errors
    }
}

/// A table of the file with its place and its kind.
pub(super) struct Section<'t, 'i> {
    table: &'t DeTable<'i>,
    /// Dotted name of the table; empty at the top.
    pub(super) path: String,
    /// Byte offset of its header.
    pub(super) offset: usize,
    keys: &'static Keys,
}

impl<'t, 'i> Section<'t, 'i> {
    /// Enters a table, and reports its keys that its kind has not.
    pub(super) fn enter(
        table: &'t DeTable<'i>,
        path: String,
        offset: usize,
        keys: &'static Keys,
        others: &[&'static Keys],
        report: &mut Report<'_>,
    ) -> Self {
        let section = Self {
            table,
            path,
            offset,
            keys,
        };
        for name in table.keys() {
            let text: &str = name.get_ref();
            if !keys.known.iter().any(|key| key.name == text) {
                let message = unknown_key(text, keys, others);
                report.add(name.span().start, section.key(text), message);
            }
        }
        section
    }

    /// The full name of a key of this table, quoted where TOML would need it, always on one line.
    pub(super) fn key(&self, name: &str) -> String {
        let name = quoted(name);
        if self.path.is_empty() {
            name
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The value of a key as it stands.
    pub(super) fn raw(&self, name: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.get(name)
    }

    /// The value of a key through `parse`; `None` if it is absent or was reported.
    pub(super) fn get<T>(
        &self,
        name: &'static str,
        report: &mut Report<'_>,
        parse: impl FnOnce(&DeValue<'i>, &str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let value = self.raw(name)?;
        self.parse(name, value, report, parse)
    }

    /// The values of a list, at most `max`, each through `parse`; those that are wrong are reported and left out.
    pub(super) fn list<T>(
        &self,
        name: &'static str,
        max: usize,
        report: &mut Report<'_>,
        parse: impl Fn(&DeValue<'i>, &str) -> Result<T, String>,
    ) -> Vec<At<T>> {
        let Some(value) = self.raw(name) else {
            return Vec::new();
        };
        let example = self.example(name);
        let offset = value.span().start;
        let Some(items) = value.get_ref().as_array() else {
            let found = describe(value.get_ref());
            let message = format!("must be a list, not {found}; write {name} = {example}");
            report.add(offset, self.key(name), message);
            return Vec::new();
        };
        if items.len() > max {
            let message = format!("has {} entries; leave at most {max}", items.len());
            report.add(offset, self.key(name), message);
        }
        let parsed = items.iter().take(max);
        parsed
            .filter_map(|item| self.parse(name, item, report, &parse))
            .collect()
    }

    fn parse<T>(
        &self,
        name: &'static str,
        value: &Spanned<DeValue<'i>>,
        report: &mut Report<'_>,
        parse: impl FnOnce(&DeValue<'i>, &str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let offset = value.span().start;
        let correct = format!("write {name} = {}", self.example(name));
        match parse(value.get_ref(), &correct) {
            Ok(value) => Some(At { value, offset }),
            Err(message) => {
                report.add(offset, self.key(name), message);
                None
            }
        }
    }

    fn example(&self, name: &str) -> &'static str {
        let key = self.keys.known.iter().find(|key| key.name == name);
        key.map_or("…", |key| key.example)
    }
}

/// A key as TOML writes it; quoted unless it is bare.
pub(super) fn quoted(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= MAX_SHOWN && name.chars().all(bare) {
        name.to_owned()
    } else {
        let end = name.char_indices().nth(MAX_SHOWN);
        format!("{:?}", &name[..end.map_or(name.len(), |(end, _)| end)])
    }
}

/// The type of a value with its article.
pub(super) fn describe(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn unknown_key(name: &str, keys: &Keys, others: &[&'static Keys]) -> String {
    if keys.later.contains(&name) {
        return "not supported by this version; remove it".to_owned();
    }
    let has = |other: &&&Keys| other.known.iter().any(|key| key.name == name);
    if let Some(other) = others.iter().find(has) {
        return format!("unknown key here; it belongs below {}", other.header);
    }
    let nearest = (name.len() <= MAX_SUGGESTED)
        .then(|| {
            let known = keys.known.iter();
            known.min_by_key(|key| edit_distance(name, key.name))
        })
        .flatten()
        .filter(|key| edit_distance(name, key.name) <= key.name.len() / 2);
    match nearest {
        Some(key) => format!("unknown key; did you mean {}?", key.name),
        None => {
            let known: Vec<_> = keys.known.iter().map(|key| key.name).collect();
            format!("unknown key; known here: {}", known.join(", "))
        }
    }
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
