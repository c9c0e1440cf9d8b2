#!/usr/bin/env python3
"""PyTorch's time on a GPU for the work that `model/benches/gpu.rs` times: a stack of PixArt blocks.

    python3 model/benches/torch_gpu.py [--rounds 15]

Prints one line of JSON for each case: median, least and most milliseconds of a pass through all
blocks, eager and through torch.compile, in f32 (no TF32, as ours) and bf16.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from torch_block import Block  # noqa: E402

BLOCKS, HIDDEN, HEADS, BATCH, TEXT = 28, 1152, 16, 2, 120


def stack(dtype):
    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*[Block(HIDDEN, HEADS, TEXT) for _ in range(BLOCKS)])
    for block in blocks:
        block.text_kv = block.text_kv.expand(-1, BATCH, -1, -1, -1).contiguous()
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return blocks.eval().to("cuda", dtype)


def milliseconds(run, x, rounds):
    times = []
    for index in range(rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(x)
        torch.cuda.synchronize()
        if index >= 3:
            times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    about = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(0)}
    print(json.dumps(about), flush=True)
    for side in (32, 64):
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            blocks = stack(dtype)
            x = torch.randn(BATCH, side * side, HIDDEN, device="cuda", dtype=dtype)
            for mode in ("eager", "compile"):
                if mode == "compile":
                    # Block by block: all of them share what is compiled for the first.
                    for block in blocks:
                        block.compile()
                with torch.inference_mode():
                    times = milliseconds(blocks, x, options.rounds)
                case = f"stack-{BLOCKS}x{HIDDEN}x{HEADS}x{side * side}x{TEXT}"
                row = {"case": case, "dtype": name, "mode": mode, "ms": times[len(times) // 2]}
                row |= {"least": times[0], "most": times[-1]}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
