"""Stage `data`: the glyphs of the font as 64-pixel pictures, prompts.txt and glyphs.png."""

import io

import numpy as np
from PIL import Image

import captions
import glyphs

SIZE = 64
PER_ROW = 16


def font_pictures(font):
    """{Unicode name: [64, 64, 3] uint8} of every single-character colour bitmap, on white."""
    import unicodedata

    from fontTools.ttLib import TTFont

    ttf = TTFont(font)
    strike = ttf["CBDT"].strikeData[0]
    out = {}
    for code, glyph in sorted(ttf.getBestCmap().items()):
        if glyph not in strike:
            continue
        image = Image.open(io.BytesIO(strike[glyph].imageData)).convert("RGBA")
        side = max(image.size)
        square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
        square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
        small = square.convert("RGB").resize((SIZE, SIZE), Image.LANCZOS)
        out[unicodedata.name(chr(code), f"U+{code:X}")] = np.asarray(small)
    return out


def sheet(pictures):
    """Pictures [n, 64, 64, 3] side by side, 16 in a row."""
    pictures = np.asarray(pictures)
    rows = -(-len(pictures) // PER_ROW)
    cells = np.full((rows * PER_ROW, *pictures.shape[1:]), 255, np.uint8)
    cells[: len(pictures)] = pictures
    side = cells.shape[1]
    grid = cells.reshape(rows, PER_ROW, side, side, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(rows * side, PER_ROW * side, 3))


def unsheet(path, count):
    """The first `count` pictures of a sheet."""
    grid = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = grid.shape[0] // SIZE, grid.shape[1] // SIZE
    cells = grid.reshape(rows, SIZE, columns, SIZE, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, SIZE, SIZE, 3)[:count]


def prepare(font, out):
    """Write prompts.txt, glyphs.png (the references of the evaluation) into the pipeline's folder."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = font_pictures(font)
    rows = glyphs.glyphs()
    prompts = [prompt for _, prompt, _ in rows]
    owner = {}
    for name, _, texts in rows:
        for text in captions.captions(texts):
            assert owner.setdefault(text, name) == name, f"{text!r} names two glyphs"
    assert len({glyphs.slug(p) for p in prompts}) == len(prompts)
    (out / "prompts.txt").write_text("\n".join(prompts) + "\n")
    sheet([pictures[name] for name, _, _ in rows]).save(out / "glyphs.png", optimize=True)
    print(f"{len(rows)} glyphs of {len(pictures)} in the font, {len(owner)} captions")


def dataset(out, vocab_size, path):
    """Train the tokenizer, then everything training needs in one file: pictures and token ids."""
    rows = glyphs.glyphs()
    texts = [captions.captions(t) for _, _, t in rows]
    flat = [t for row in texts for t in row]
    size = captions.train_tokenizer(flat, vocab_size, out / "tokenizer")
    captions.check_tokenizer(out / "tokenizer", [*flat, "", "Hello, World 42!", "  two  spaces ", "ﬁancée €"])
    table = captions.caption_table(out / "tokenizer", texts)
    np.savez_compressed(path, pictures=unsheet(out / "glyphs.png", len(rows)), captions=table, vocab=size)
    print(f"{size} pieces; caption table {table.shape}; {path} has {path.stat().st_size / 1e6:.2f} MB")
