"""Stage `export`: the trained weights, in half precision, as a folder that diffusers loads."""

import json
import pathlib

import torch

import common
import dit
import vae as autoencoder


def tidy(path, **changes):
    """Rewrite a JSON file with some keys set, or dropped where None."""
    config = {**json.loads(path.read_text()), **changes}
    config = {k: v for k, v in config.items() if not (k in changes and v is None)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export(work, out):
    import diffusers
    from tokenizers import Tokenizer

    work, out = pathlib.Path(work), pathlib.Path(out)
    saved = torch.load(work / "vae.pt", map_location="cpu")
    vae = autoencoder.build()
    vae.load_state_dict(saved["model"])
    vae.register_to_config(scaling_factor=round(saved["scaling"], 6))
    vae.half().save_pretrained(out / "vae")

    text, transformer = dit.build(Tokenizer.from_file(str(out / "tokenizer/tokenizer.json")).get_vocab_size())
    weights = torch.load(work / "dit.pt", map_location="cpu")
    text.load_state_dict(weights["text"])
    transformer.load_state_dict(weights["transformer"])
    transformer.half().save_pretrained(out / "transformer")
    text.half().save_pretrained(out / "text_encoder")
    # computed in single precision, however it is stored
    tidy(out / "text_encoder/config.json", dtype="float32")

    diffusers.DPMSolverMultistepScheduler(**common.SCHEDULER).save_pretrained(out / "scheduler")
    # the default, minus infinity, has no spelling in standard JSON
    tidy(out / "scheduler/scheduler_config.json", lambda_min_clipped=None)
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    total = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out}: {total / 1e6:.2f} MB in all")
    assert total <= 16_000_000, "too large to ship"
