//! The three number words that Python's `json` writes and JSON does not know.

use serde::{Deserialize, Deserializer, de::Error};

/// A float that may have been written as `NaN`, `Infinity` or `-Infinity`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FloatValue(pub f64);

impl<'de> Deserialize<'de> for FloatValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Word(String),
        }
        match Either::deserialize(deserializer)
            .map_err(|_| D::Error::custom("expected a number"))?
        {
            Either::Number(value) => Ok(Self(value)),
            Either::Word(word) => match word.as_str() {
                "NaN" => Ok(Self(f64::NAN)),
                "Infinity" => Ok(Self(f64::INFINITY)),
                "-Infinity" => Ok(Self(f64::NEG_INFINITY)),
                _ => Err(D::Error::custom("expected a number")),
            },
        }
    }
}

/// Puts quotes around `NaN`, `Infinity` and `-Infinity` where they stand outside strings.
pub(super) fn quote_non_finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(first) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        match (in_string, first, word) {
            (false, _, Some(word)) => {
                out.extend(["\"", word, "\""]);
                rest = &rest[word.len()..];
            }
            (true, '\\', _) => {
                let escape = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..escape]);
                rest = &rest[escape..];
            }
            _ => {
                in_string ^= first == '"';
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_words_are_quoted() {
        let text = r#"{"a": -Infinity, "NaN \" Infinity": [NaN, 1, Infinity]}"#;
        let quoted = r#"{"a": "-Infinity", "NaN \" Infinity": ["NaN", 1, "Infinity"]}"#;
        assert_eq!(quote_non_finite(text), quoted);
        assert_eq!(quote_non_finite("\"\\"), "\"\\");
    }
}
