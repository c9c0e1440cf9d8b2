#!/usr/bin/env python3
"""PyTorch's time for the same work as our CPU kernels: one thread, f32.

Setting up (no model is downloaded; the wheel of PyPI needs its CUDA libraries to be importable):

    python3 -m venv /tmp/torchenv && /tmp/torchenv/bin/pip install torch numpy

Alone, it prints one JSON document with the median and spread of every case:

    taskset -c 1 /tmp/torchenv/bin/python model/benches/torch_block.py \\
        [--rounds 9] [--compile] [CASE ...]

Beside our kernels (what `cargo bench --bench torch` does), it is started
with `--serve` and answers one line of JSON for each line of JSON it reads, until its input ends:

    >  {"case": "block-1152x16x1024x120", "mode": "eager", "repeat": 3}
    <  {"case": "block-1152x16x1024x120", "mode": "eager", "seconds": [0.571, 0.570, 0.570],
        "cpu_seconds": [0.541, 0.540, 0.541]}

`cpu_seconds` is the time of the thread on the processor, which other processes disturb less.
`mode` is "eager" (the default) or "compile" (torch.compile, default settings; it needs a C++
compiler), `repeat` is 1 unless given. The first request for a case builds it and runs it unmeasured.
What cannot be done is answered by {"case": .., "error": ".."}. Before the first request it prints
one line {"torch": version, "threads": 1, "capability": "AVX512"}.

Cases, by name:

    block-HIDDENxHEADSxTOKENSxTEXT       a PixArt block: norm, modulation, qkv, attention, output,
                                         cross-attention to TEXT tokens whose keys and values are
                                         ready, norm, modulation, feed-forward with tanh gelu, gates
    attention-QUERIESxKEYSxHEADSxWIDTH   scaled_dot_product_attention on views of a fused projection
    linear-ROWSxINxOUT                   a linear layer with bias
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

CASES = [
    "block-1152x16x1024x120",
    "block-384x6x256x120",
    "attention-4096x4096x16x72",
    "attention-1024x1024x16x72",
    "attention-256x256x6x64",
    "attention-1024x300x16x72",
]


class Block(torch.nn.Module):
    """PixArt's BasicTransformerBlock (ada_norm_single) with q, k and v as one product."""

    def __init__(self, hidden, heads, text):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(hidden, 3 * hidden)
        self.out = torch.nn.Linear(hidden, hidden)
        self.cross_q = torch.nn.Linear(hidden, hidden)
        self.cross_out = torch.nn.Linear(hidden, hidden)
        self.widen = torch.nn.Linear(hidden, 4 * hidden)
        self.narrow = torch.nn.Linear(4 * hidden, hidden)
        width = hidden // heads
        self.register_buffer("modulation", torch.randn(6, hidden) * 0.3)
        self.register_buffer("text_kv", torch.randn(2, 1, heads, text, width))
        self.register_buffer("mask", torch.zeros(1, 1, 1, text))

    def split(self, x):
        batch, tokens, hidden = x.shape
        return x.view(batch, tokens, self.heads, hidden // self.heads).transpose(1, 2)

    def join(self, x):
        batch, heads, tokens, width = x.shape
        return x.transpose(1, 2).reshape(batch, tokens, heads * width)

    def norm(self, x, shift, scale):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def forward(self, x):
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation
        q, k, v = self.qkv(self.norm(x, shift, scale)).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v))
        x = x + gate * self.out(self.join(y))
        keys, values = self.text_kv
        q = self.split(self.cross_q(x))
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask)
        x = x + self.cross_out(self.join(y))
        y = F.gelu(self.widen(self.norm(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2 * self.narrow(y)


def build(case):
    """The work of a case, as a function of no arguments."""
    kind, _, sizes = case.partition("-")
    sizes = [int(size) for size in sizes.split("x")]
    torch.manual_seed(0)
    if kind == "block" and len(sizes) == 4:
        hidden, heads, tokens, text = sizes
        block, x = Block(hidden, heads, text).eval(), torch.randn(1, tokens, hidden)
        return block, (x,)
    if kind == "attention" and len(sizes) == 4:
        queries, keys, heads, width = sizes
        q = torch.randn(1, queries, 3, heads, width)[:, :, 0].transpose(1, 2)
        kv = torch.randn(1, keys, 3, heads, width)
        k, v = kv[:, :, 1].transpose(1, 2), kv[:, :, 2].transpose(1, 2)
        return F.scaled_dot_product_attention, (q, k, v)
    if kind == "linear" and len(sizes) == 3:
        rows, inputs, outputs = sizes
        return torch.nn.Linear(inputs, outputs).eval(), (torch.randn(rows, inputs),)
    raise ValueError(f"no case is called {case!r}")


class Runner:
    """Builds each case once and times it."""

    def __init__(self):
        self.built = {}

    def seconds(self, case, mode, repeat):
        if (case, mode) not in self.built:
            run, inputs = build(case)
            if mode == "compile":
                run = torch.compile(run)
            elif mode != "eager":
                raise ValueError(f"no mode is called {mode!r}")
            run(*inputs)
            self.built[case, mode] = run, inputs
        run, inputs = self.built[case, mode]
        walls, threads = [], []
        for _ in range(repeat):
            wall, thread = time.perf_counter(), time.thread_time()
            run(*inputs)
            walls.append(time.perf_counter() - wall)
            threads.append(time.thread_time() - thread)
        return walls, threads


def answer(runner, line):
    request = {}
    try:
        request = json.loads(line)
        mode = request.get("mode", "eager")
        walls, threads = runner.seconds(request["case"], mode, int(request.get("repeat", 1)))
        answer = {"case": request["case"], "mode": mode}
        return answer | {"seconds": walls, "cpu_seconds": threads}
    except Exception as error:  # the other side decides what a refusal means
        text = str(error).splitlines() or [""]
        return {"case": request.get("case"), "error": f"{type(error).__name__}: {text[0]}"}


def quantiles(times):
    times = sorted(times)
    at = lambda share: times[min(len(times) - 1, int(share * len(times)))]
    return {"median": at(0.5), "low": at(0.25), "high": at(0.75), "least": times[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--serve", action="store_true", help="answer requests on stdin")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    runner = Runner()
    with torch.inference_mode():
        if options.serve:
            print(json.dumps(about), flush=True)
            for line in sys.stdin:
                print(json.dumps(answer(runner, line)), flush=True)
            return
        about["seconds"] = {}
        for case in options.cases:
            modes = ["eager", "compile"] if options.compile else ["eager"]
            about["seconds"][case] = {
                mode: quantiles(runner.seconds(case, mode, options.rounds)[0]) for mode in modes
            }
        json.dump(about, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
