"""Stages `evaluate` and `sheet`: does each prompt give its own glyph?

A picture is recalled when its nearest neighbour (squared distance of the 8-bit pixels) among all reference
glyphs is the one its prompt names. The pictures come from diffusers' pipeline, from a simulation of a patch
pipeline, or from a folder of PNG files another program wrote.
"""

import pathlib
import time

import numpy as np
import torch
from PIL import Image

import common
import data
import glyphs


def references(model):
    model = pathlib.Path(model)
    prompts = (model / "prompts.txt").read_text().split("\n")[:-1]
    return prompts, data.unsheet(model / "glyphs.png", len(prompts))


def psnr(a, b):
    """Per-picture PSNR in dB of 8-bit pictures."""
    mse = ((a.astype(np.float64) - b) ** 2).reshape(len(a), -1).mean(1)
    return 10 * np.log10(255**2 / np.maximum(mse, 1e-9))


def score(pictures, refs, prompts, label):
    """Print and return the recall of pictures[i] for prompts[i]."""
    flat, known = (x.reshape(len(x), -1).astype(np.float64) for x in (pictures, refs))
    distance = (flat**2).sum(1)[:, None] - 2 * flat @ known.T + (known**2).sum(1)[None]
    nearest = distance.argmin(1)
    right = nearest == np.arange(len(prompts))
    likeness = psnr(pictures, refs)
    print(f"{label}: recall {100 * right.mean():.2f} % ({right.sum()} of {len(prompts)}), "
          f"PSNR to the named glyph: median {np.median(likeness):.2f} dB, mean {likeness.mean():.2f}, "
          f"worst {likeness.min():.2f}", flush=True)
    for i in np.flatnonzero(~right):
        print(f"    {prompts[i]!r} looks like {prompts[nearest[i]]!r}")
    return right.mean()


def load(model):
    from diffusers import PixArtSigmaPipeline

    pipe = PixArtSigmaPipeline.from_pretrained(model).to(common.device())
    pipe.set_progress_bar_config(disable=True)
    types = {n: getattr(pipe, n).dtype for n in ("text_encoder", "transformer", "vae")}
    assert set(types.values()) == {torch.float32}, types
    return pipe


def generate(pipe, prompts, seed, steps, guidance, batch, length):
    """Every prompt from the same seed, each with its own generator: pictures do not depend on the batch."""
    out = []
    for i in range(0, len(prompts), batch):
        part = prompts[i : i + batch]
        made = pipe(prompt=part, generator=[torch.Generator().manual_seed(seed) for _ in part],
                    num_inference_steps=steps, guidance_scale=guidance, use_resolution_binning=False,
                    clean_caption=False, max_sequence_length=length, output_type="np").images
        out.append((made * 255).round().astype(np.uint8))
    return np.concatenate(out)


@torch.no_grad()
def reconstruct(pipe, refs):
    where, out = pipe.vae.device, []
    for part in np.array_split(refs, max(1, len(refs) // 16)):
        x = torch.from_numpy(part.copy()).to(where).permute(0, 3, 1, 2).float() / 127.5 - 1
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
        out.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)


def evaluate(model, seeds, steps, guidance, batch, length, patches=0, warmup=1, save=None):
    torch.backends.cudnn.allow_tf32 = False
    prompts, refs = references(model)
    pipe = load(model)
    made = reconstruct(pipe, refs)
    each = psnr(made, refs)
    pooled = 10 * np.log10(255**2 / ((made.astype(np.float64) - refs) ** 2).mean())
    print(f"autoencoder: PSNR {each.mean():.2f} dB a picture (worst {each.min():.2f}), {pooled:.2f} dB pooled")
    results = []
    for seed in seeds:
        start = time.time()
        if patches:
            import stale

            pictures = stale.generate(pipe, prompts, seed, steps, guidance, batch, patches, warmup)
            label = f"seed {seed}, {patches} patches, warm-up {warmup}"
        else:
            pictures = generate(pipe, prompts, seed, steps, guidance, batch, length)
            label = f"seed {seed}"
        results.append(score(pictures, refs, prompts, label))
        print(f"    {time.time() - start:.1f} s", flush=True)
        if save:
            folder = pathlib.Path(save)
            folder.mkdir(parents=True, exist_ok=True)
            data.sheet(pictures).save(folder / f"sheet-{seed}{f'-{patches}-patches' if patches else ''}.png")
    print(f"recall over {len(seeds)} seeds x {len(prompts)} prompts: {100 * np.mean(results):.2f} % "
          f"(guidance {guidance}, {steps} steps)")
    return results


def score_folder(model, folder):
    """Score `<slug of the prompt>.png` of a folder."""
    prompts, refs = references(model)
    folder = pathlib.Path(folder)
    missing = [p for p in prompts if not (folder / f"{glyphs.slug(p)}.png").exists()]
    if missing:
        raise SystemExit(f"{len(missing)} pictures are missing, the first for {missing[0]!r}")
    pictures = np.stack([np.asarray(Image.open(folder / f"{glyphs.slug(p)}.png").convert("RGB")) for p in prompts])
    return score(pictures, refs, prompts, str(folder))


def write_pictures(model, folder, seed, steps, guidance, batch, length):
    """What score_folder reads, from diffusers' pipeline, and all of it as sheet.png."""
    prompts, _ = references(model)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = generate(load(model), prompts, seed, steps, guidance, batch, length)
    data.sheet(pictures).save(folder / "sheet.png")
    for prompt, picture in zip(prompts, pictures):
        Image.fromarray(picture).save(folder / f"{glyphs.slug(prompt)}.png")
