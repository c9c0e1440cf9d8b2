//! Where each value of a manifest is in its text.
//!
//! Owns the map from a value's path (`node[1].bulk_ports`) to its bytes. Does not know the schema.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// Byte ranges by path.
pub(super) struct Places(BTreeMap<String, Range<usize>>);

impl Places {
    /// The places of everything in `root`.
    pub(super) fn of(root: &DeTable<'_>) -> Self {
        let mut places = Self(BTreeMap::new());
        places.table("", root);
        places
    }

    /// Where `path` is, or else the innermost part of it that was written.
    pub(super) fn nearest(&self, path: &str) -> Range<usize> {
        let mut path = path;
        loop {
            if let Some(span) = self.0.get(path) {
                return span.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return 0..0,
            }
        }
    }

    fn table(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let dot = if path.is_empty() { "" } else { "." };
            self.value(format!("{path}{dot}{}", key.get_ref()), value.span(), value.get_ref());
        }
    }

    fn value(&mut self, path: String, span: Range<usize>, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.table(&path, table),
            DeValue::Array(array) => {
                for (index, item) in array.iter().enumerate() {
                    self.value(format!("{path}[{index}]"), item.span(), item.get_ref());
                }
            }
            _ => {}
        }
        self.0.insert(path, span);
    }
}
