"""Captions of a glyph, and the T5 tokenizer trained on them."""

import io
import json

import numpy as np

ARTICLES = ("a", "an", "the")
TEMPLATES = ("{}", "{}", "{}", "a picture of {}", "an icon of {}", "{} on a white background")
SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def captions(texts):
    """All captions of one glyph. The templates that add nothing come first, and often."""
    out = []
    for text in texts:
        first, _, rest = text.partition(" ")
        noun = rest if first in ARTICLES and rest else text
        article = "an" if noun[0] in "aeiou" else "a"
        for form in (text, noun, f"{article} {noun}", f"the {noun}"):
            out += [t.format(form) for t in TEMPLATES]
    return out


def train_tokenizer(sentences, vocab_size, folder):
    """A sentencepiece unigram model with T5's special pieces, and the same thing as tokenizer.json."""
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    blob = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=blob, model_type="unigram", vocab_size=vocab_size,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
        normalization_rule_name="nmt_nfkc", character_coverage=1.0, hard_vocab_limit=False, num_threads=1,
        required_chars="".join(chr(c) for c in range(33, 127)), minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(blob.getvalue())
    proto = pb.ModelProto.FromString(blob.getvalue())
    pieces = [(p.piece, p.score) for p in proto.pieces]
    fast = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    fast.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    fast.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    fast.add_special_tokens(["<pad>", "</s>", "<unk>"])
    fast.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    fast.save(str(folder / "tokenizer.json"))
    config = {**SPECIAL, "extra_ids": 0, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=2) + "\n")
    return len(pieces)


def check_tokenizer(folder, sentences):
    """spiece.model, tokenizer.json and what transformers loads must agree on every sentence."""
    import sentencepiece as spm
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, T5Tokenizer

    slow = spm.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = [T5Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)]
    for text in sentences:
        ids = slow.encode(text) + [1]
        for got in (fast.encode(text).ids, *(t(text).input_ids for t in loaded)):
            assert got == ids, (text, ids, got)


def caption_table(folder, rows):
    """Token ids [glyph, caption, length] padded with 0; captions of shorter lists repeat."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [[fast.encode(text).ids for text in texts] for texts in rows]
    most, longest = max(map(len, ids)), max(len(i) for row in ids for i in row)
    table = np.zeros((len(ids), most, -(-longest // 8) * 8), np.int16)
    for g, row in enumerate(ids):
        for k in range(most):
            tokens = row[k % len(row)]
            table[g, k, : len(tokens)] = tokens
    return table
