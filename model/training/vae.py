"""Stage `vae`: the autoencoder. Trained on the glyphs, shifted by up to two pixels half of the time."""

import math
import pathlib

import torch
import torch.nn.functional as F

import common

NOISE = 0.2  # largest standard deviation of the noise the decoder sees, against latents of about one


def build():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(**common.VAE)


def shifted(padded, index, reach):
    """Pictures `index` of the padded set, each moved by its own offset of up to `reach` pixels."""
    n, side = len(index), padded.shape[-1] - 2 * reach
    moves = torch.rand(n, 1, device=index.device) < 0.5
    offset = torch.where(moves[:, None], torch.randint(0, 2 * reach + 1, (n, 2, 1), device=index.device), reach)
    grid = offset + torch.arange(side, device=index.device)
    picked = padded.permute(0, 2, 3, 1)[index[:, None, None], grid[:, 0, :, None], grid[:, 1, None, :]]
    return picked.permute(0, 3, 1, 2)


def gradients(x):
    return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]


def loss_of(vae, pictures, batch):
    reach = 2
    padded = F.pad(pictures, (reach,) * 4, value=1.0)
    where, count = pictures.device, len(pictures)
    kind = dict(device_type=where.type, dtype=torch.bfloat16, enabled=where.type == "cuda", cache_enabled=False)

    def loss(progress):
        x = shifted(padded, torch.randint(0, count, (batch,), device=where), reach)
        with torch.autocast(**kind):
            mean = vae.encode(x).latent_dist.mean
            noise = torch.rand(batch, 1, 1, 1, device=where) * NOISE
            y = vae.decode(mean + noise * torch.randn_like(mean)).sample
        y, mean = y.float(), mean.float()
        error = y - x
        edges = sum((a - b).abs().mean() for a, b in zip(gradients(y), gradients(x)))
        # the absolute error gives way to the squared one: the figure is a squared error
        sharp = (1 - progress) * (error.abs().mean() + 0.5 * edges)
        return sharp + 4 * error.square().mean() + 1e-3 * mean.square().mean()

    return loss


@torch.no_grad()
def encode(vae, pictures):
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)])


@torch.no_grad()
def psnr(vae, pictures):
    """Per-picture PSNR of the reconstruction, and that of the pooled error, in dB."""
    out = torch.cat([vae.decode(encode(vae, part)).sample.clamp(-1, 1) for part in pictures.split(32)])
    mse = ((out - pictures) / 2).square().mean((1, 2, 3))
    return -10 * torch.log10(mse), -10 * math.log10(mse.mean().item())


@torch.no_grad()
def normalise(vae, pictures):
    """Fold an affine map into quant_conv and its inverse into post_quant_conv: every latent channel gets
    mean zero and the same deviation. The posterior's variance head becomes the (constant) training noise.
    Returns the scaling factor."""
    latents = encode(vae, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    common_deviation = latents.std()
    gain, channels = common_deviation / deviation, len(mean)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    weight[:channels] *= gain[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) * gain
    weight[channels:] = 0
    bias[channels:] = 2 * (gain * NOISE / 2).log()
    post = vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight /= gain[None, :, None, None]
    return 1 / encode(vae, pictures).std().item()


def train(work, seconds, total, batch, rate):
    work, where = pathlib.Path(work), common.device()
    pictures, _, _ = common.load_data(work / "data.npz", where)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    vae = build().to(where, memory_format=torch.channels_last)
    trainer = common.Trainer(vae.parameters(), loss_of(vae, pictures, batch), rate, total, work / "vae.state.pt")
    if trainer.path.exists():
        state = torch.load(trainer.path, map_location=where)
        vae.load_state_dict(state["model"])
        trainer.load(state)
    print(f"vae: {sum(p.numel() for p in vae.parameters())} parameters, from step {trainer.steps}", flush=True)

    def checkpoint():
        common.save({"model": vae.state_dict(), **trainer.state()}, trainer.path)

    trainer.run(seconds, "vae", checkpoint)
    trainer.ema.swap()
    vae.eval()
    scaling = normalise(vae, pictures)
    each, pooled = psnr(vae, pictures)
    print(f"vae: PSNR {each.mean():.2f} dB a picture (worst {each.min():.2f}), {pooled:.2f} dB pooled; "
          f"scaling factor {scaling:.4f}", flush=True)
    common.save({"model": vae.state_dict(), "scaling": scaling}, work / "vae.pt")
