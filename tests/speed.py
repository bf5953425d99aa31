#!/usr/bin/env python3
"""Speed beside what people use instead: PyTorch, Gloo, albumentations, torchvision. Prints a table.

    python3 -m venv peers && peers/bin/pip install torch torchvision albumentations opencv-python-headless
    peers/bin/python tests/speed.py                      # everything, about half an hour on two cores
    peers/bin/python tests/speed.py step views           # some of it
    peers/bin/python tests/speed.py all-reduce --pairs 5

Ours and theirs run in turn, as often as --pairs says; a row has the median of each and the ratio of every pair. Nothing else
should be at work meanwhile: ratios survive some of it, times do not.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES_PX = [96, 32]
BUCKET_BYTES = [65_536, 1 << 20, 8 << 20, 75_000_000]
BATCH, GLOBAL_BATCH = 32, 64


# What is measured: by name, ours and theirs, each a function that gives {row: value}.


def step_here():
    text = bench("step", "step")
    return {f"training step, {side} px, images/s": rate(text, f"resnet18/step/{side}") for side in SIZES_PX}


def step_torch():
    return {f"training step, {side} px, images/s": peer("torch_step", side) for side in SIZES_PX}


def features_here():
    text = bench("step", "features")
    return {f"features, {side} px, images/s": rate(text, f"resnet18/features/{side}") for side in SIZES_PX}


def features_torch():
    return {f"features, {side} px, images/s": peer("torch_features", side) for side in SIZES_PX}


def memory_here():
    found = {}
    for side in SIZES_PX:
        program = bench_program("step")
        found[f"peak memory of the step, {side} px, MiB"] = peak_mib([program, "--bench", f"step/{side}"])
    return found


def memory_torch():
    command = lambda side: [sys.executable, __file__, "--peer", "torch_step", str(side)]
    return {f"peak memory of the step, {side} px, MiB": peak_mib(command(side)) for side in SIZES_PX}


def memory_torch_step():
    imported = peak_mib([sys.executable, __file__, "--peer", "torch_import"])
    return {row: peak - imported for row, peak in memory_torch().items()}


def views_here():
    return {"views of 96 px by one core, views/s": rate(bench("view", ""), "view/96 px")}


def views_albumentations():
    return {"views of 96 px by one core, views/s": peer("albumentations_views")}


def views_torchvision():
    return {"views of 96 px by one core, views/s": peer("torchvision_views")}


def all_reduce_here(medium):
    text = bench("all_reduce", "")
    found = {}
    for line in text.splitlines():
        parts = re.match(r"(shared memory|TCP)\s+world (\d) +([\d.]+) MB +median +([\d.]+) ms", line)
        if parts and parts[1] == medium:
            found[all_reduce_row(int(parts[2]), float(parts[3]))] = float(parts[4])
    return found


def all_reduce_gloo():
    lines = subprocess.run(
        [sys.executable, __file__, "--peer", "gloo"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    return {all_reduce_row(world, size / 1e6): milliseconds for world, size, milliseconds in rows}


def all_reduce_row(world, megabytes):
    # Ours come with three digits behind the point.
    return f"all-reduce, {world} processes, {round(megabytes, 3):.3g} MB, ms"


def workers_here():
    """What four workers with a thread each keep of one with two: our programs."""
    speed = {workers: run_speed(workers) for workers in (1, 4)}
    return {"4 workers x 1 thread against 1 x 2, 32 px, share": speed[4] / speed[1]}


def workers_ddp():
    speed = {world: peer("ddp", world) for world in (1, 4)}
    return {"4 workers x 1 thread against 1 x 2, 32 px, share": speed[4] / speed[1]}


MEASURES = {
    "step": ("PyTorch channels_last", step_here, step_torch, "more"),
    "features": ("PyTorch channels_last", features_here, features_torch, "more"),
    "memory": ("PyTorch, all of its process", memory_here, memory_torch, "less"),
    "memory-of-step": ("PyTorch, less what importing it takes", memory_here, memory_torch_step, "less"),
    "views": ("albumentations", views_here, views_albumentations, "more"),
    "views-torchvision": ("torchvision on PIL", views_here, views_torchvision, "more"),
    "all-reduce": ("Gloo", lambda: all_reduce_here("shared memory"), all_reduce_gloo, "less"),
    "all-reduce-tcp": ("Gloo", lambda: all_reduce_here("TCP"), all_reduce_gloo, "less"),
    "workers": ("DDP over Gloo", workers_here, workers_ddp, "more"),
}


# Our programs.


def bench_program(name):
    command = ["cargo", "bench", "--workspace", "--locked", "--no-run", "--message-format=json", "--bench", name]
    messages = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    programs = [json.loads(line).get("executable") for line in messages.splitlines() if '"executable":"' in line]
    return programs[-1]


def bench(name, filter_):
    command = [bench_program(name), "--bench"] + ([filter_] if filter_ else [])
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def rate(text, name):
    """Criterion's middle estimate of elements a second."""
    part = text[text.index(name) :]
    found = re.search(r"thrpt:\s+\[[\d.]+\s+K?elem/s\s+([\d.]+)\s+(K?)elem/s", part)
    return float(found[1]) * (1000 if found[2] else 1)


def run_speed(workers):
    """Median images/s of a run of ResNet-18 with the small stem, 64 images in 4 shards."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [
            "data.images=2048", f"training.batch={GLOBAL_BATCH}", "training.shards=4", "training.epochs=1",
            "views.crop_px=32", "model.backbone=resnet18", "model.stem=small", "model.width=64", "model.projector_dim=2048",
            "model.predictor_dim=512", "optimizer.warmup_epochs=0", "evaluation.every_checkpoints=0",
        ]
        command = ["cargo", "run", "--release", "--locked", "--bin", "coordinator", "--"]
        command += ["--workers", str(workers), "--out", f"{folder}/run"]
        command += [part for change in changes for part in ("--set", change)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        lines = Path(f"{folder}/run/quickstart/metrics.jsonl").read_text().splitlines()
        return statistics.median(json.loads(line)["images_per_second"] for line in lines[2:])


def peak_mib(command):
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} failed"
    return usage.ru_maxrss / 1024


def peer(name, *arguments):
    command = [sys.executable, __file__, "--peer", name, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


# The peers, each in a process of its own. Imports are inside, so that none pays for another's.


def simsiam(side):
    import torch.nn.functional as F
    import torchvision
    from torch import nn

    encoder = torchvision.models.resnet18(zero_init_residual=True)
    if side <= 32:
        encoder.conv1, encoder.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    encoder.fc = nn.Sequential(
        nn.Linear(512, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU(inplace=True),
        nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048, affine=False),
    )  # fmt: skip

    class SimSiam(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder
            self.predictor = nn.Sequential(
                nn.Linear(2048, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, 2048)
            )

        def forward(self, x1, x2):
            z1, z2 = self.encoder(x1), self.encoder(x2)
            p1, p2 = self.predictor(z1), self.predictor(z2)
            cosine = F.cosine_similarity
            return -(cosine(p1, z2.detach()).mean() + cosine(p2, z1.detach()).mean()) / 2

    return SimSiam()


def steps_per_second(model, batch, side, steps):
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    x1, x2 = (torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last) for _ in range(2))

    def step():
        loss = model(x1, x2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return 1 / median_seconds(step, steps)


def median_seconds(work, times, warm_up=3):
    taken = []
    for _ in range(times + warm_up):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[warm_up:])


def torch_step(side):
    import torch

    torch.set_num_threads(2)
    model = simsiam(int(side)).to(memory_format=torch.channels_last)
    print(BATCH * steps_per_second(model, BATCH, int(side), 10))


def torch_import():
    import torchvision  # noqa: F401


def torch_features(side):
    import torch

    torch.set_num_threads(2)
    encoder = simsiam(int(side)).to(memory_format=torch.channels_last).encoder
    encoder.fc = torch.nn.Identity()
    encoder.eval()
    x = torch.randn(BATCH, 3, int(side), int(side)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        print(BATCH / median_seconds(lambda: encoder(x), 20))


def spawn(work, world, *arguments):
    import torch.multiprocessing as mp

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, args=(world, *arguments), nprocs=world)


def ddp(world):
    spawn(ddp_rank, int(world))


def ddp_rank(rank, world):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(2 if world == 1 else 1)
    torch.manual_seed(0)
    model = simsiam(32).to(memory_format=torch.channels_last)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
        model = torch.nn.parallel.DistributedDataParallel(model)
    speed = GLOBAL_BATCH * steps_per_second(model, GLOBAL_BATCH // world, 32, 10)
    if rank == 0:
        print(speed, flush=True)
    if world > 1:
        dist.destroy_process_group()


def gloo():
    for world in (2, 4):
        spawn(gloo_rank, world)


def gloo_rank(rank, world):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for size in BUCKET_BYTES:
        bucket = torch.randn(size // 4)
        taken = []
        for _ in range(12):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(bucket)
            taken.append(time.perf_counter() - start)
        if rank == 0:
            print(json.dumps([world, size, statistics.median(taken[2:]) * 1e3]), flush=True)
    dist.destroy_process_group()


def torchvision_views():
    import random

    import torch
    import torchvision.transforms as T
    from PIL import Image, ImageFilter

    torch.set_num_threads(1)
    blur = T.Lambda(lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))))
    official = T.Compose([
        T.RandomResizedCrop(96, scale=(0.2, 1.0)),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([blur], p=0.5),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    image = Image.fromarray(noise())
    print_rate(lambda: official(image))


def albumentations_views():
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)
    views = A.Compose([
        A.RandomResizedCrop((96, 96), scale=(0.2, 1.0)),
        A.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        A.ToGray(p=0.2),
        A.GaussianBlur(blur_limit=(3, 13), sigma_limit=(0.1, 2.0), p=0.5),
        A.HorizontalFlip(p=0.5),
        A.Normalize(),
    ])
    image = noise()
    print_rate(lambda: views(image=image))


def noise():
    import numpy

    return numpy.random.randint(0, 255, (96, 96, 3), dtype=numpy.uint8)


def print_rate(view):
    for _ in range(50):
        view()
    start, count = time.perf_counter(), 3000
    for _ in range(count):
        view()
    print(count / (time.perf_counter() - start))


# The table.


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(MEASURES)}")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        name, *rest = arguments.peer
        return globals()[name](*rest)
    unknown = set(arguments.names) - set(MEASURES)
    if unknown:
        parser.error(f"no measure is called {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    print("| | beside | here | there | times better, pair by pair |")
    print("|---|---|---|---|---|", flush=True)
    for name in arguments.names or MEASURES:
        beside, here, there, better = MEASURES[name]
        pairs = [(here(), there()) for _ in range(arguments.pairs)]
        for row in pairs[0][0]:
            ours, theirs = ([found[row] for found in side] for side in zip(*pairs))
            ratios = [o / t if better == "more" else t / o for o, t in zip(ours, theirs)]
            medians = [f"{statistics.median(values):.3g}" for values in (ours, theirs)]
            print(f"| {row} | {beside} | {' | '.join(medians)} | {', '.join(f'{r:.2f}' for r in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
