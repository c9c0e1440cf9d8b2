"""Configurations of the three networks, and what both training stages share."""

import math
import os
import time

import numpy as np
import torch

VOCAB = 512
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=64, layers_per_block=1, norm_num_groups=8,
    down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[32, 64, 96], act_fn="silu", mid_block_add_attention=True,
)
TRANSFORMER = dict(
    num_attention_heads=8, attention_head_dim=24, cross_attention_dim=192, num_layers=8, in_channels=4,
    out_channels=8, sample_size=16, patch_size=2, caption_channels=128, norm_num_groups=32, attention_bias=True,
    activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    num_embeds_ada_norm=1000, interpolation_scale=1, use_additional_conditions=False,
)
TEXT = dict(
    d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
    dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, use_cache=False,
    is_encoder_decoder=False, tie_word_embeddings=False,
)
SCHEDULER = dict(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", solver_order=2,
    prediction_type="epsilon", thresholding=False, algorithm_type="dpmsolver++", solver_type="midpoint",
    lower_order_final=True, timestep_spacing="linspace",
)


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_data(path, where):
    """Pictures [G, 3, 64, 64] in -1..1, caption ids [G, K, L], number of pieces."""
    z = np.load(path)
    pictures = torch.from_numpy(z["pictures"]).to(where).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pictures.contiguous(), torch.from_numpy(z["captions"]).long().to(where), int(z["vocab"])


def save(state, path):
    """Write next to the file, then rename: an interrupted run leaves the last good state."""
    torch.save(state, f"{path}.part")
    os.replace(f"{path}.part", path)


class Ema:
    """Moving average of parameters, updated every few steps."""

    def __init__(self, parameters, decay):
        self.live = list(parameters)
        self.mean = [p.detach().clone() for p in self.live]
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self):
        self.count += 1
        torch._foreach_lerp_(self.mean, self.live, 1 - min(self.decay, self.count / (10 + self.count)))

    @torch.no_grad()
    def swap(self):
        """Exchange the average with the live parameters (twice: as before)."""
        for mean, live in zip(self.mean, self.live):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)

    def state(self):
        return {"mean": self.mean, "count": self.count}

    @torch.no_grad()
    def load(self, state):
        self.count = state["count"]
        for mean, other in zip(self.mean, state["mean"]):
            mean.copy_(other)


class Trainer:
    """Time-scheduled optimisation of one loss closure; on a GPU the whole step is one CUDA graph.

    `loss(progress)` draws its own batch, so that the graph replays with fresh random numbers; the tensor
    `progress` (0..1, fraction of the schedule) is refreshed before every step.
    """

    def __init__(self, parameters, loss, rate, total, path, warmup=300, ema=0.99, ema_every=10, betas=(0.9, 0.99)):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.where = self.parameters[0].device
        cuda = self.where.type == "cuda"
        self.rate = torch.tensor(0.0, device=self.where)
        self.progress = torch.tensor(0.0, device=self.where)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate if cuda else 0.0, betas=betas, weight_decay=0.0, fused=cuda, capturable=cuda
        )
        self.ema = Ema(self.parameters, ema)
        self.loss, self.peak, self.total, self.path = loss, rate, total, path
        self.warmup, self.ema_every = warmup, ema_every
        self.steps, self.spent, self.graph, self.value = 0, 0.0, None, None

    def step(self):
        value = self.loss(self.progress)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def schedule(self, spent):
        done = min(1.0, spent / self.total)
        cosine = 0.5 + 0.5 * math.cos(math.pi * done)
        rate = self.peak * min(1.0, (self.steps + 1) / self.warmup) * (0.01 + 0.99 * cosine)
        self.progress.fill_(done)
        self.rate.fill_(rate)
        if self.where.type != "cuda":
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def capture(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4):
                self.schedule(self.spent)
                self.step()
                self.steps += 1
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.value = self.step()

    def run(self, seconds, label, checkpoint, every=10.0, keep=60.0):
        """Train for `seconds`; print every `every` seconds, call checkpoint() every `keep`."""
        begin = time.time()
        if self.where.type == "cuda":
            self.capture()
            print(f"{label}: first steps and capture took {time.time() - begin:.1f} s", flush=True)
        start, first, told, kept = time.time(), self.steps, 0.0, 0.0
        before, total, seen = self.spent, torch.zeros((), device=self.where), 0
        while True:
            if seen % 20 == 0 and self.where.type == "cuda":
                torch.cuda.synchronize()
            now = time.time() - start
            self.spent = before + now
            if now - told > every or now >= seconds:
                mean = total.item() / max(seen, 1)
                if not math.isfinite(mean):
                    raise RuntimeError("the loss is no number; continue from the last state")
                done = self.steps - first
                print(f"{label}: {self.spent:6.0f} s, step {self.steps}, loss {mean:.5f}, "
                      f"{1e3 * now / max(done, 1):.2f} ms a step", flush=True)
                told, seen = now, 0
                total.zero_()
            if now >= seconds:
                break
            if now - kept > keep:
                checkpoint()
                kept = now
            self.schedule(self.spent)
            if self.graph:
                self.graph.replay()
                total += self.value
            else:
                total += self.step()
            self.steps += 1
            seen += 1
            if self.steps % self.ema_every == 0:
                self.ema.update()
        checkpoint()

    def state(self):
        clock = {"steps": self.steps, "spent": self.spent}
        return {"optimizer": self.optimizer.state_dict(), "ema": self.ema.state(), **clock}

    def load(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # the rate stays our own tensor
            if self.where.type == "cuda":
                group["lr"] = self.rate
        self.ema.load(state["ema"])
        self.steps, self.spent = state["steps"], state["spent"]
