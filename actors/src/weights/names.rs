//! Names of blobs: what a peer is asked for.
//!
//! `catalogue/MODEL`, `file/MODEL/PATH`, `digest/MODEL/START-END/PATH`; MODEL is sixteen
//! hexadecimal digits, PATH is relative to the model's folder.

use std::ops::Range;

/// What a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlobName {
    /// The list of a model's files.
    Catalogue,
    /// The bytes of one of them.
    File(String),
    /// SHA-256 of a range of one of them.
    Digest(String, Range<u64>),
}

impl BlobName {
    /// As it is asked for, of the model `id`.
    pub(super) fn text(&self, id: u64) -> String {
        match self {
            Self::Catalogue => format!("catalogue/{id:016x}"),
            Self::File(path) => format!("file/{id:016x}/{path}"),
            Self::Digest(path, range) => {
                format!("digest/{id:016x}/{}-{}/{path}", range.start, range.end)
            }
        }
    }

    /// Reads a name, with the model it is of.
    pub(super) fn parse(text: &str) -> Option<(u64, Self)> {
        let (kind, rest) = text.split_once('/')?;
        let (id, rest) = rest.split_once('/').map_or((rest, None), |(id, rest)| (id, Some(rest)));
        let id = (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok())??;
        let name = match (kind, rest) {
            ("catalogue", None) => Self::Catalogue,
            ("file", Some(path)) => Self::File(path.to_owned()),
            ("digest", Some(rest)) => {
                let (range, path) = rest.split_once('/')?;
                let (start, end) = range.split_once('-')?;
                Self::Digest(path.to_owned(), start.parse().ok()?..end.parse().ok()?)
            }
            _ => return None,
        };
        Some((id, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_text_form() {
        let names = [
            BlobName::Catalogue,
            BlobName::File("vae/config.json".into()),
            BlobName::Digest("transformer/a.safetensors".into(), 8..1 << 40),
        ];
        for name in names {
            assert_eq!(BlobName::parse(&name.text(0xab)), Some((0xab, name)));
        }
        for wrong in
            ["", "catalogue", "catalogue/1", "file/00000000000000ab", "digest/00000000000000ab/1/x"]
        {
            assert_eq!(BlobName::parse(wrong), None, "{wrong}");
        }
    }
}
