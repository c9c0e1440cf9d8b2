//! The little of sentencepiece's `ModelProto` that a unigram tokenizer needs.
//!
//! Owns reading protobuf bytes, which come from outside: every length is checked. Does not own
//! what is made of the pieces.

/// How a piece is used (`SentencePiece.Type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// A piece of text, or something this program does not tell apart from it.
    Normal,
    /// The unknown token.
    Unknown,
    /// A token that never stands for text (`<pad>`, `</s>`).
    Control,
    /// A piece that is always cut out whole.
    UserDefined,
}

/// One piece of the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f64,
    pub(super) kind: PieceKind,
}

/// A unigram model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) pieces: Vec<Piece>,
    /// Compiled normalisation rules, possibly none.
    pub(super) charsmap: Vec<u8>,
}

/// `TrainerSpec.ModelType` of a unigram model.
const UNIGRAM: u64 = 1;

/// Reads a `ModelProto`; an error says what is wrong with it.
pub(super) fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model { pieces: Vec::new(), charsmap: Vec::new() };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
            (2, Value::Bytes(bytes)) => check_trainer(bytes)?,
            (3, Value::Bytes(bytes)) => model.charsmap = charsmap(bytes)?,
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err("it holds no pieces, so it is not a sentencepiece model".to_owned());
    }
    Ok(model)
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec())
                    .map_err(|error| format!("a piece is not valid utf-8: {error}"))?;
            }
            (2, Value::Fixed32(bits)) => piece.score = f64::from(f32::from_bits(bits)),
            (3, Value::Varint(kind)) => {
                piece.kind = match kind {
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    _ => PieceKind::Normal,
                }
            }
            _ => {}
        }
    }
    if piece.score.is_nan() {
        return Err(format!("the score of piece {:?} is not a number", piece.text));
    }
    Ok(piece)
}

fn check_trainer(bytes: &[u8]) -> Result<(), String> {
    for field in Fields(bytes) {
        if let (3, Value::Varint(kind)) = field?
            && kind != UNIGRAM
        {
            return Err(format!("model type is {kind}, expected {UNIGRAM} (unigram)"));
        }
    }
    Ok(())
}

fn charsmap(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut found = Vec::new();
    for field in Fields(bytes) {
        if let (2, Value::Bytes(rules)) = field? {
            found = rules.to_vec();
        }
    }
    Ok(found)
}

/// One value of a protobuf message.
enum Value<'a> {
    Varint(u64),
    Fixed64,
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message, in order; ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "it is not a complete protobuf message".to_owned()))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_messages_are_errors() {
        for bytes in [
            &b""[..],
            b"\x0a",
            b"\x0a\xff\xff\xff\xff\x0f",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\x02\x0a\x05",
            b"\x0a\x03\x0a\x01\xff",
            b"\x0b",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
        // One piece "a" in a model of type 2 (byte pair encoding).
        let error = parse(b"\x0a\x03\x0a\x01a\x12\x02\x18\x02").err().unwrap_or_default();
        assert!(error.contains("model type is 2"), "{error}");
    }
}
