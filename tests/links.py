#!/usr/bin/env python3
"""A run over slow links, beside what the model of a step says: workers in network namespaces, joined by a program that holds
back each packet as a link of this latency and rate would. Needs Linux and root, and nothing but Python's own library.

    cargo build --release --locked && sudo python3 tests/links.py
    sudo python3 tests/links.py --workers 4 --set training.exchange_precision=bf16

The model is that of `coordinator check --forecast`: 2 x latency, and the longer of sent / rate and what the sockets take without
any link.
"""

import argparse
import fcntl
import heapq
import json
import os
import re
import select
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/coordinator"
# Frames as in data centres: with 1,500 bytes this program would not keep up with a gigabit.
MTU = 9000
# One-way latency in seconds, and bits a second of a worker's link, and of one connection on it as clouds have it; 0 is no limit.
LINKS = [
    (0, 0, 0), (0.001, 1e9, 0), (0.020, 1e9, 0), (0.001, 100e6, 0), (0.020, 100e6, 0), (0.001, 1e9, 300e6),
]  # fmt: skip
RUNS = {
    "quickstart, 1 MB": ["training.epochs=3", "optimizer.warmup_epochs=0", "data.images=2048"],
    "ResNet-18, 74 MB": [
        "data.images=512", "training.batch=64", "training.epochs=1", "optimizer.warmup_epochs=0", "views.crop_px=32",
        "model.backbone=resnet18", "model.width=64", "model.projector_dim=2048", "model.predictor_dim=512",
    ],
}  # fmt: skip


class Switch(threading.Thread):
    """Joins namespaces by TUN devices. What leaves one waits until it would have been sent, and then for the latency."""

    def __init__(self, devices, latency, link_rate, flow_rate):
        super().__init__(daemon=True)
        self.devices, self.latency = devices, latency
        self.link_rate, self.flow_rate = link_rate, flow_rate
        self.is_over = False

    def run(self):
        poll = select.epoll()
        names = {device: address for address, device in self.devices.items()}
        for device in names:
            poll.register(device, select.EPOLLIN)
        # By the way out, the flow and the way in, when it is free again.
        free = {}
        waiting, count = [], 0
        while not self.is_over:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.05
            ready = poll.poll(pause if pause < 0.0002 else min(pause, 0.05))
            for device, _ in ready:
                for _ in range(16):
                    try:
                        packet = os.read(device, MTU + 64)
                    except BlockingIOError:
                        break
                    target = packet[16:20]
                    if target not in self.devices:
                        continue
                    bits = len(packet) * 8
                    # Both addresses and both ports, where headers have no options.
                    flow = packet[12:24]
                    ways = [((names[device], "out"), self.link_rate), (flow, self.flow_rate), ((target, "in"), self.link_rate)]
                    begin = end = time.monotonic()
                    for way, rate in ways:
                        # Each stretch begins while the one before is still under way.
                        begin = max(begin, free.get(way, 0.0))
                        free[way] = begin + (bits / rate if rate else 0.0)
                        end = max(end, free[way])
                    count += 1
                    heapq.heappush(waiting, (end + self.latency, count, target, packet))
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, target, packet = heapq.heappop(waiting)
                try:
                    os.write(self.devices[target], packet)
                except BlockingIOError:
                    pass  # dropped, as by any full queue


def namespace(number, settings):
    """A namespace with one address and these settings of the kernel; gives that, and its end of the link."""
    name, address = f"links{number}", f"10.99.0.{number}"
    subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
    command(f"ip netns add {name}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    IFF_TUN, IFF_NO_PI, TUNSETIFF = 0x0001, 0x1000, 0x400454CA
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    command(f"ip link set {name} netns {name}")
    command(f"ip -n {name} link set lo up")
    command(f"ip -n {name} link set {name} mtu {MTU} txqueuelen 10000 up")
    command(f"ip -n {name} addr add {address}/24 dev {name}")
    for setting in settings:
        command(f"ip netns exec {name} sysctl -qw {setting}")
    return bytes(map(int, address.split("."))), device


def command(text):
    subprocess.run(text.split(), check=True)


def train(changes, link, workers, settings):
    """Median seconds of a step and of its all-reduce."""
    devices = dict(namespace(number, settings) for number in range(1, workers + 2))
    switch = Switch(devices, *link)
    switch.start()
    with tempfile.TemporaryDirectory() as folder:
        token, run = f"{folder}/token", f"{folder}/run"
        subprocess.run([PROGRAM, "token", token], check=True, stdout=subprocess.DEVNULL)
        common = ["--token-file", token, "--insecure-network"]
        coordinator = subprocess.Popen(
            ["ip", "netns", "exec", "links1", PROGRAM, "--workers", "0", "--remote-workers", str(workers)]
            + ["--listen", "10.99.0.1:7070", "--out", run, *common, "--set", "evaluation.every_checkpoints=0"]
            + [part for change in changes for part in ("--set", change)],
            stdout=subprocess.DEVNULL, stderr=open(f"{folder}/log", "w"), env=environment(f"{folder}/cache"),
        )  # fmt: skip
        others = [
            subprocess.Popen(
                ["ip", "netns", "exec", f"links{rank + 2}", PROGRAM, "worker", "--join", "10.99.0.1:7070"]
                + ["--listen", f"10.99.0.{rank + 2}:0", *common],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(f"{folder}/cache{rank}"),
            )  # fmt: skip
            for rank in range(workers)
        ]
        status = coordinator.wait()
        for other in others:
            other.wait()
        switch.is_over = True
        switch.join()
        for device in devices.values():
            os.close(device)
        assert status == 0, Path(f"{folder}/log").read_text()
        lines = [json.loads(line) for line in Path(f"{run}/quickstart/metrics.jsonl").read_text().splitlines()]
    return [statistics.median(line["seconds"][name] for line in lines[2:]) for name in ("step", "all_reduce")]


def environment(cache):
    return {**os.environ, "RAYON_NUM_THREADS": "1", "SIMSIAM_CACHE_DIR": cache, "RUST_LOG": "info"}


def sent_bytes(changes, workers):
    """What `coordinator check` says that a worker sends in a step."""
    text = subprocess.run(
        [PROGRAM, "check", "--workers", str(workers), *(part for change in changes for part in ("--set", change))],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return float(re.search(r"sends ([\d.]+) MB to the others", text)[1]) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe")
    parser.add_argument("--sysctl", action="append", default=[], metavar="KEY=VALUE", help="in each worker's namespace")
    arguments = parser.parse_args()
    workers = arguments.workers
    print("| run | latency | rate | step, ms | its all-reduce, ms | model, ms | measured / model |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, changes in RUNS.items():
        changes = changes + arguments.set
        sent = sent_bytes(changes, workers)
        unshaped = None
        for link in LINKS:
            latency, rate, flow_rate = link
            step, all_reduce = train(changes, link, workers, arguments.sysctl)
            unshaped = unshaped or all_reduce
            model = 2 * latency + max(unshaped, 8 * sent / rate if rate else 0)
            link = f"{latency * 1e3:.0f} ms | {rate / 1e6:.0f} Mbit/s" if rate else "none | not limited"
            link += f", {flow_rate / 1e6:.0f} a connection" if flow_rate else ""
            row = [step, all_reduce, model]
            print(f"| {name} | {link} | {' | '.join(f'{s * 1e3:.1f}' for s in row)} | {all_reduce / model:.2f} |", flush=True)


if __name__ == "__main__":
    main()
