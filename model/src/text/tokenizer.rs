//! T5's tokenizer, from `tokenizer.json` or from `spiece.model`.
//!
//! Owns loading both and padding, cutting and ending a sequence as transformers does. Does not own
//! which text is tokenized. Invariant: both ways give the ids that transformers gives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::decoders::metaspace::Metaspace as MetaspaceDecoder;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, PaddingParams, Tokenizer as Inner};

use super::sentencepiece::{self, Piece, PieceKind};
use crate::checkpoint::{CheckpointError, read_bounded, read_json};
use crate::error::ModelError;

/// Bytes of a tokenizer file beyond which it is refused.
const TOKENIZER_BYTES_MAX: u64 = 64 << 20;
/// Sentinel tokens that T5 adds to the vocabulary of `spiece.model` when nothing else is said.
const EXTRA_IDS: u64 = 100;
/// Sentinel tokens beyond which a configuration is refused.
const EXTRA_IDS_MAX: u64 = 10_000;

/// The tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds {
    /// Token ids, padded to the length asked for.
    pub ids: Vec<u32>,
    /// 1 for a token and 0 for padding, as long as `ids`.
    pub mask: Vec<u32>,
    /// The text that was cut off, if any.
    pub truncated: Option<String>,
}

/// T5's tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    pad: u32,
    eos: u32,
}

impl Tokenizer {
    /// Loads the tokenizer in `dir`: `tokenizer.json`, or else `spiece.model` (to which T5's
    /// sentinel tokens `<extra_id_n>` are added). Names of special tokens are taken from
    /// `tokenizer_config.json` where it is there.
    ///
    /// # Errors
    /// When neither file is there or the one that is cannot be used.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let (json, spiece) = (dir.join("tokenizer.json"), dir.join("spiece.model"));
        let config = dir.join("tokenizer_config.json");
        let config = if config.is_file() { read_json(&config)? } else { Value::Null };
        let name = |key: &str, default: &str| special_token(&config, key, default);
        let (path, inner) = if json.is_file() {
            let bytes = read_bounded(&json, TOKENIZER_BYTES_MAX)?;
            let inner = guarded(|| Inner::from_bytes(bytes)).map_err(|why| unusable(&json, why))?;
            (json, inner)
        } else if spiece.is_file() {
            let bytes = read_bounded(&spiece, TOKENIZER_BYTES_MAX)?;
            let extra = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(EXTRA_IDS);
            let names =
                [name("pad_token", "<pad>"), name("eos_token", "</s>"), name("unk_token", "<unk>")];
            let inner = guarded(|| from_sentencepiece(&bytes, extra, &names))
                .map_err(|why| unusable(&spiece, why))?;
            (spiece, inner)
        } else {
            return Err(CheckpointError::MissingFile {
                path: dir.to_owned(),
                expected: "tokenizer.json or spiece.model".to_owned(),
            });
        };
        Self::from_inner(inner, path, &name("pad_token", "<pad>"), &name("eos_token", "</s>"))
    }

    fn from_inner(
        mut inner: Inner,
        path: PathBuf,
        pad: &str,
        eos: &str,
    ) -> Result<Self, CheckpointError> {
        // Cutting and padding are done here, whatever the file says.
        inner.with_padding(None::<PaddingParams>);
        inner.with_truncation(None).map_err(|error| unusable(&path, error))?;
        let id = |token: &str| {
            let missing = || unusable(&path, format!("its vocabulary lacks the token {token:?}"));
            inner.token_to_id(token).ok_or_else(missing)
        };
        let (pad, eos) = (id(pad)?, id(eos)?);
        Ok(Self { inner, pad, eos })
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of `prompt`, ended by `</s>` and padded to `max_length`. When they are more, the
    /// last ones are cut off and `</s>` is kept, as transformers does.
    ///
    /// # Errors
    /// When `max_length` is 0 or the tokenizer fails on the prompt.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<TokenIds, ModelError> {
        if max_length == 0 {
            return Err(ModelError::Invalid("max_length is 0, expected at least 1".to_owned()));
        }
        let failed = |why: String| ModelError::Invalid(format!("cannot tokenize: {why}"));
        let encoding = guarded(|| self.inner.encode(prompt, false)).map_err(failed)?;
        let all = encoding.get_ids();
        let kept = all.len().min(max_length - 1);
        let truncated = match &all[kept..] {
            [] => None,
            lost => Some(guarded(|| self.inner.decode(lost, false)).map_err(failed)?),
        };
        let mut ids = all[..kept].to_vec();
        ids.push(self.eos);
        let mut mask = vec![1; ids.len()];
        ids.resize(max_length, self.pad);
        mask.resize(max_length, 0);
        Ok(TokenIds { ids, mask, truncated })
    }
}

/// Calls into the tokenizers crate, which indexes normalisation rules from the file without
/// checking them: a panic there becomes an error like the others.
fn guarded<T, E: ToString>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer's rules are broken; download its file again".to_owned()),
    }
}

/// `tokenizer_config.json` writes a special token as a string or as an object with `content`.
fn special_token(config: &Value, key: &str, default: &str) -> String {
    let value = config.get(key);
    let text = value.and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
    text.unwrap_or(default).to_owned()
}

fn unusable(path: &Path, reason: impl ToString) -> CheckpointError {
    CheckpointError::Tokenizer { path: path.to_owned(), reason: reason.to_string() }
}

/// Builds what transformers' `T5Tokenizer` builds from `spiece.model`.
fn from_sentencepiece(bytes: &[u8], extra_ids: u64, names: &[String]) -> Result<Inner, String> {
    if extra_ids > EXTRA_IDS_MAX {
        return Err(format!("extra_ids is {extra_ids}, expected at most {EXTRA_IDS_MAX}"));
    }
    let model = sentencepiece::parse(bytes)?;
    let unknown = model.pieces.iter().position(|piece| piece.kind == PieceKind::Unknown);
    let unknown = unknown.ok_or("it has no unknown token")?;
    let known = |text: &str| model.pieces.iter().any(|piece| piece.text == text);
    let sentinels: Vec<String> = (0..extra_ids)
        .rev()
        .map(|index| format!("<extra_id_{index}>"))
        .filter(|sentinel| !known(sentinel))
        .collect();
    let pieces = model.pieces.iter().map(|piece| (piece.text.clone(), piece.score));
    let vocab = pieces.chain(sentinels.iter().map(|text| (text.clone(), 0.0))).collect();
    let unigram = Unigram::from(vocab, Some(unknown), false).map_err(|error| error.to_string())?;
    let mut inner = Inner::new(unigram);
    if !model.charsmap.is_empty() {
        let rules = Precompiled::from(&model.charsmap).map_err(|error| error.to_string())?;
        inner.with_normalizer(Some(rules)).map_err(|error| error.to_string())?;
    }
    inner.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::from(WhitespaceSplit),
        PreTokenizerWrapper::from(Metaspace::new('▁', PrependScheme::Always, true)),
    ])));
    inner.with_decoder(Some(MetaspaceDecoder::new('▁', PrependScheme::Always, true)));
    let whole = |text: &str, special| AddedToken::from(text, special).normalized(false);
    let is = |kind| move |piece: &&Piece| piece.kind == kind;
    let control = model.pieces.iter().filter(is(PieceKind::Control)).map(|piece| &piece.text);
    let special = names.iter().filter(|name| known(name)).chain(control).chain(&sentinels);
    let special: Vec<AddedToken> = special.map(|text| whole(text, true)).collect();
    inner.add_special_tokens(special).map_err(|error| error.to_string())?;
    let user = model.pieces.iter().filter(is(PieceKind::UserDefined));
    let user: Vec<AddedToken> = user.map(|piece| whole(&piece.text, false)).collect();
    inner.add_tokens(user).map_err(|error| error.to_string())?;
    Ok(inner)
}
