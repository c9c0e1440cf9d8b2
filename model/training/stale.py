"""A patch pipeline in one process: how well do pictures survive stale keys and values?

After the warm-up steps each strip of tokens passes through all blocks alone. Its self-attention sees the keys
and values of the strips before it from this step, of the strips after it from the step before (PipeFusion).
"""

import numpy as np
import torch
import torch.nn.functional as F


class Strips:
    """Attention processor that keeps the keys and values of all tokens and refreshes a slice of them."""

    part = slice(None)

    def __init__(self, owner):
        self.owner = owner

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        part = self.owner.part
        if part == slice(None):
            self.k, self.v = k, v
        else:
            self.k[:, part], self.v[:, part] = k, v
        heads = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, self.k, self.v))
        return attn.to_out[0](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Runner:
    def __init__(self, transformer, patches):
        self.model, self.patches, self.part = transformer, patches, slice(None)
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(Strips(self))

    def __call__(self, latents, states, bias, t, fresh):
        model = self.model
        height, width = (n // model.config.patch_size for n in latents.shape[-2:])
        tokens = model.pos_embed(latents)
        time, embedded = model.adaln_single(
            t, {"resolution": None, "aspect_ratio": None}, batch_size=len(latents), hidden_dtype=tokens.dtype
        )
        size = tokens.shape[1] // (1 if fresh else self.patches)
        out = []
        for start in range(0, tokens.shape[1], size):
            self.part = slice(None) if fresh else slice(start, start + size)
            hidden = tokens[:, start : start + size]
            for block in model.transformer_blocks:
                hidden = block(hidden, encoder_hidden_states=states, encoder_attention_mask=bias, timestep=time)
            out.append(hidden)
        shift, scale = (model.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        hidden = model.proj_out(model.norm_out(torch.cat(out, 1)) * (1 + scale) + shift)
        p = model.config.patch_size
        hidden = hidden.reshape(-1, height, width, p, p, model.out_channels)
        return torch.einsum("nhwpqc->nchpwq", hidden).reshape(-1, model.out_channels, height * p, width * p)


@torch.no_grad()
def generate(pipe, prompts, seed, steps, guidance, batch, patches, warmup):
    runner, where, out = Runner(pipe.transformer, patches), pipe.transformer.device, []
    for i in range(0, len(prompts), batch):
        part = prompts[i : i + batch]
        states, mask, none, none_mask = pipe.encode_prompt(part, max_sequence_length=32, device=where)
        states = pipe.transformer.caption_projection(torch.cat([none, states]))
        bias = ((1 - torch.cat([none_mask, mask]).to(states.dtype)) * -10000.0)[:, None]
        pipe.scheduler.set_timesteps(steps)
        noise = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for _ in part]
        latents = torch.cat(noise).to(where)
        for step, t in enumerate(pipe.scheduler.timesteps):
            both = torch.cat([latents] * 2)
            e = runner(both, states, bias, t.to(where).expand(len(both)), step < warmup)[:, :4]
            none, named = e.chunk(2)
            latents = pipe.scheduler.step(none + guidance * (named - none), t, latents).prev_sample
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        out.append(((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(out)
