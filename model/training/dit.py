"""Stage `dit`: the transformer and the text encoder, together, on the latents of the glyphs.

Epsilon prediction with min-SNR weights (5), a tenth of the captions empty. Two augmentations make the
network forgiving about inputs that sampling produces and plain diffusion never shows:

- overshoot: classifier-free guidance pushes away from the other glyphs, so half of the samples start from
  x0 + c (x0 - other), with the epsilon that leads back to x0;
- stale strips: in a patch pipeline the attention of one strip of the picture sees the other strips as they
  were a step ago, so some samples carry strips of more noise than their timestep says (without loss there).
"""

import pathlib

import torch

import common
import vae as autoencoder


def build(vocab):
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    text = T5EncoderModel(T5Config(vocab_size=vocab, **common.TEXT))
    transformer = PixArtTransformer2DModel(**common.TRANSFORMER)
    with torch.no_grad():
        # PixArt learns a variance in the second half of the channels, which sampling drops: here it is zero
        proj = transformer.proj_out
        keep = torch.arange(proj.out_features) % common.TRANSFORMER["out_channels"] < 4
        proj.weight *= keep[:, None]
        proj.bias *= keep
    return text, transformer


def alphas(where):
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().to(where)


def predict(text, transformer, ids, latents, timestep):
    """Epsilon for token ids padded with 0."""
    mask = ids.ne(0)
    bias = ((~mask).float() * -1e4)[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
    states = text(input_ids=ids, attention_mask=bias).last_hidden_state
    added = {"resolution": None, "aspect_ratio": None}
    out = transformer(latents, encoder_hidden_states=states, encoder_attention_mask=mask, timestep=timestep,
                      added_cond_kwargs=added, return_dict=False)[0]
    return out[:, :4]


def loss_of(text, transformer, latents, captions, batch):
    where, cumulative = latents.device, alphas(latents.device)
    glyphs, choices, length = captions.shape
    kind = dict(device_type=where.type, dtype=torch.bfloat16, enabled=where.type == "cuda", cache_enabled=False)
    empty = torch.zeros(length, dtype=torch.long, device=where)
    empty[0] = 1

    def uniform():
        return torch.rand(batch, 1, 1, 1, device=where)

    def loss(_progress):
        which = torch.randint(0, glyphs, (batch,), device=where)
        ids = captions[which, torch.randint(0, choices, (batch,), device=where)]
        ids = torch.where(torch.rand(batch, 1, device=where) < 0.1, empty, ids)
        clean = latents[which]
        other = latents[torch.randint(0, glyphs, (batch,), device=where)]
        reach = 0.35 * torch.randn(batch, 1, 1, 1, device=where).abs() * (uniform() < 0.5)
        t = torch.randint(0, 1000, (batch,), device=where)
        stale = ((uniform() < 0.25) & (torch.rand(batch, 1, 4, 1, device=where) < 0.5)).repeat_interleave(4, 2)
        late = (t[:, None, None, None] + (100 * uniform()).long()).clamp(max=999)
        level = torch.where(stale, late, t[:, None, None, None])
        a = cumulative[level]
        noisy = a.sqrt() * (clean + reach * (clean - other)) + (1 - a).sqrt() * torch.randn_like(clean)
        target = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        now = cumulative[t][:, None, None, None]
        snr = now / (1 - now)
        # overshoot makes targets large where there is little noise; they count less there
        weight = snr.clamp(max=5) / snr / (1 + snr * reach.square()) * ~stale
        with torch.autocast(**kind):
            out = predict(text, transformer, ids, noisy, t)
        return (weight * (out.float() - target).square()).mean()

    return loss


def train(work, seconds, total, batch, rate, compile_blocks):
    work, where = pathlib.Path(work), common.device()
    torch.backends.cudnn.allow_tf32 = False
    pictures, captions, vocab = common.load_data(work / "data.npz", where)
    saved = torch.load(work / "vae.pt", map_location=where)
    vae = autoencoder.build().to(where)
    vae.load_state_dict(saved["model"])
    latents = autoencoder.encode(vae.eval(), pictures) * saved["scaling"]
    text, transformer = (m.to(where).train() for m in build(vocab))
    models = torch.nn.ModuleDict({"text": text, "transformer": transformer})
    trainer = common.Trainer(models.parameters(), loss_of(text, transformer, latents, captions, batch), rate, total,
                             work / "dit.state.pt", warmup=1000, ema=0.995, ema_every=10)
    if trainer.path.exists():
        state = torch.load(trainer.path, map_location=where)
        models.load_state_dict(state["model"])
        trainer.load(state)
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in models.items()}
    print(f"dit: {sizes} parameters, latents {tuple(latents.shape)} std {latents.std():.3f}, "
          f"from step {trainer.steps}", flush=True)

    def checkpoint():
        common.save({"model": models.state_dict(), **trainer.state()}, trainer.path)

    if compile_blocks:
        for block in transformer.transformer_blocks:
            block.compile(dynamic=False)
    trainer.run(seconds, "dit", checkpoint)
    trainer.ema.swap()
    common.save({k: m.state_dict() for k, m in models.items()}, work / "dit.pt")
