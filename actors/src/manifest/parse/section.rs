//! One table of a manifest while it is read.
//!
//! Owns looking up keys and saying what is missing, unknown or of the wrong type, and where.
//! Does not know the schema: [`super`] says which keys there are.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::error::nearest;
use super::values::{FromToml, kind_of};

/// Something wrong at a range of bytes.
#[derive(Debug)]
pub(super) struct Fault {
    /// The bytes.
    pub(super) span: Range<usize>,
    /// What is wrong.
    pub(super) message: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

/// A table and what it is called.
pub(super) struct Section<'t, 'i> {
    table: &'t DeTable<'i>,
    span: Range<usize>,
    title: String,
}

impl<'t, 'i> Section<'t, 'i> {
    /// The whole file.
    pub(super) fn root(table: &'t DeTable<'i>) -> Self {
        Self { table, span: 0..0, title: "the manifest".to_owned() }
    }

    /// Refuses the first key that is none of `known`.
    pub(super) fn keys(&self, known: &[&str]) -> Result<(), Fault> {
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        let name = key.get_ref();
        Err(Fault {
            span: key.span(),
            message: format!("unknown key `{name}` in {}", self.title),
            advice: Some(nearest(name, known.iter().copied())),
        })
    }

    /// The value of `key`, if it is there.
    pub(super) fn optional<T: FromToml>(&self, key: &str) -> Result<Option<T>, Fault> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        T::from_toml(value)
            .map(Some)
            .map_err(|fault| Fault { message: format!("`{key}` {}", fault.message), ..fault })
    }

    /// The value of `key`, or `default` when it is not there.
    pub(super) fn or<T: FromToml>(&self, key: &str, default: T) -> Result<T, Fault> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// The value of `key`, which must be there.
    pub(super) fn required<T: FromToml>(&self, key: &str) -> Result<T, Fault> {
        self.optional(key)?.ok_or_else(|| self.missing(key, "write"))
    }

    /// Whether `key` is the word `word`; another string is a fault, another type is not.
    pub(super) fn word(&self, key: &str, word: &str, other: &str) -> Result<bool, Fault> {
        match self.table.get(key).map(|value| (value.span(), value.get_ref())) {
            Some((_, DeValue::String(text))) if text == word => Ok(true),
            Some((span, value)) if !matches!(value, DeValue::Table(_)) => Err(Fault {
                span,
                message: format!("`{key}` is {}, expected \"{word}\" or {other}", kind_of(value)),
                advice: None,
            }),
            _ => Ok(false),
        }
    }

    /// Whether `key` is a table.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| matches!(value.get_ref(), DeValue::Table(_)))
    }

    /// The table `key`, if it is there.
    pub(super) fn section(&self, key: &str) -> Result<Option<Self>, Fault> {
        self.table.get(key).map(|value| open(value, key, format!("[{key}]"))).transpose()
    }

    /// The table `key`, which must be there.
    pub(super) fn required_section(&self, key: &str) -> Result<Self, Fault> {
        self.section(key)?.ok_or_else(|| self.missing(key, "add the table"))
    }

    /// The tables of the array `key`; none when it is not there.
    pub(super) fn sections(&self, key: &str) -> Result<Vec<Self>, Fault> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let title = format!("[[{key}]]");
        match value.get_ref() {
            DeValue::Array(items) => {
                items.iter().map(|item| open(item, key, title.clone())).collect()
            }
            other => Err(Fault {
                span: value.span(),
                message: format!("`{key}` is {}, expected a list of tables", kind_of(other)),
                advice: Some(format!("write {title} above each of them")),
            }),
        }
    }

    fn missing(&self, key: &str, what: &str) -> Fault {
        let advice = match what {
            "write" => format!("write `{key} = ...` there"),
            _ => format!("{what} [{key}]"),
        };
        let message = format!("{} has no `{key}`", self.title);
        Fault { span: self.span.clone(), message, advice: Some(advice) }
    }
}

fn open<'t, 'i>(
    value: &'t Spanned<DeValue<'i>>,
    key: &str,
    title: String,
) -> Result<Section<'t, 'i>, Fault> {
    match value.get_ref() {
        DeValue::Table(table) => Ok(Section { table, span: value.span(), title }),
        other => Err(Fault {
            span: value.span(),
            message: format!("`{key}` is {}, expected a table", kind_of(other)),
            advice: Some(format!("write {title} on a line of its own, its keys below")),
        }),
    }
}
