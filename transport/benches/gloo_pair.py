#!/usr/bin/env python3
"""torch.distributed over gloo between two processes on one machine, for `ditmesh bench transport`.

Setting up (no model is downloaded; the wheel of PyPI needs its CUDA libraries to be importable):

    python3 -m venv /tmp/torchenv && /tmp/torchenv/bin/pip install torch numpy

Alone, it prints one JSON document:

    /tmp/torchenv/bin/python transport/benches/gloo_pair.py --cores 0,1

Beside our transport it is started with `--serve --cores A,B`. It prints one line {"torch": version}
when both ranks are joined, then answers one line of JSON for each line it reads, until its input ends:

    >  {"bytes": 67108864, "count": 8}      <  {"seconds": 0.21}
    >  {"pings": 300}                       <  {"microseconds": 131.0}

Messages go from rank 0 to rank 1 by send and recv; the time ends when rank 1 has said that it has
them all. Pings are 64 bytes there and back; the median is told. The first message of a size is not
measured.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def join(rank, core, port):
    os.sched_setaffinity(0, {core})
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    return torch, dist


class Rank:
    def __init__(self, rank, core, port):
        self.rank, self.other = rank, 1 - rank
        self.torch, self.dist = join(rank, core, port)
        self.small = self.torch.zeros(64, dtype=self.torch.uint8)
        self.buffer = None

    def stream(self, size, count):
        if self.buffer is None or self.buffer.numel() != size:
            self.buffer = self.torch.zeros(size, dtype=self.torch.uint8)
            self.move(1)
        begun = time.perf_counter()
        self.move(count)
        return time.perf_counter() - begun

    def move(self, count):
        for _ in range(count):
            if self.rank == 0:
                self.dist.send(self.buffer, self.other)
            else:
                self.dist.recv(self.buffer, self.other)
        if self.rank == 0:
            self.dist.recv(self.small, self.other)
        else:
            self.dist.send(self.small, self.other)

    def pings(self, count):
        trips = []
        for _ in range(count):
            begun = time.perf_counter()
            if self.rank == 0:
                self.dist.send(self.small, self.other)
                self.dist.recv(self.small, self.other)
            else:
                self.dist.recv(self.small, self.other)
                self.dist.send(self.small, self.other)
            trips.append(time.perf_counter() - begun)
        return statistics.median(trips) * 1e6

    def obey(self, order):
        if "pings" in order:
            return {"microseconds": self.pings(order["pings"])}
        return {"seconds": self.stream(order["bytes"], order["count"])}


def follow(core, port):
    """Rank 1: the same orders, from rank 0's standard input."""
    rank = Rank(1, core, port)
    for line in sys.stdin:
        rank.obey(json.loads(line))


def lead(cores, serve):
    port = free_port()
    command = [sys.executable, __file__, "--follow", str(port), "--cores", f"{cores[1]},0"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def ask(order):
        other.stdin.write(json.dumps(order) + "\n")
        other.stdin.flush()
        return rank.obey(order)

    rank = Rank(0, cores[0], port)
    if serve:
        print(json.dumps({"torch": rank.torch.__version__}), flush=True)
        for line in sys.stdin:
            print(json.dumps(ask(json.loads(line))), flush=True)
    else:
        size, count = 64 << 20, 8
        rates = [size * count / ask({"bytes": size, "count": count})["seconds"] / 1e9 for _ in range(7)]
        print(json.dumps({
            "torch": rank.torch.__version__,
            "gb_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
            **ask({"pings": 300}),
        }))
    other.stdin.close()
    other.wait(timeout=20)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--follow", type=int)
    args = parser.parse_args()
    cores = [int(core) for core in args.cores.split(",")]
    if args.follow:
        follow(cores[0], args.follow)
    else:
        lead(cores, args.serve)


if __name__ == "__main__":
    main()
