#!/usr/bin/env python3
"""How cost grows: with workers, with batch, crop and network, with the number of images. Prints tables.

    cargo build --release --locked && python3 tests/scaling.py    # all of them, a quarter of an hour on two cores
    python3 tests/scaling.py workers start                        # some of them
    python3 tests/scaling.py --program /opt/simsiam/coordinator

Needs Linux and nothing but Python's own library. `memory` and `start` write up to 7 GB into TMPDIR, or into target/ where that
is not set, and remove them. Nothing else should be at work meanwhile: rows that are measured twice say how steady the machine
was.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
# Of STL-10 in its official layout: planes of 96 by 96 bytes.
RECORD_BYTES = 3 * 96 * 96
# Steps that are left out of every median: the first ones fill pools and caches.
WARM_UP = 2
# Longer than any of these runs; one that hangs is not waited for.
LIMIT_S = 900
GRACE_S = 10

COMMON = ["evaluation.every_checkpoints=0", "optimizer.warmup_epochs=0"]
RESNET = [
    *COMMON, "views.crop_px=32", "model.stem=small", "model.width=64", "model.projector_dim=2048", "model.predictor_dim=512",
    "training.epochs=1",
]  # fmt: skip
# So little arithmetic that a pass over 100,000 images takes seconds.
TINY = [
    *COMMON, "views.crop_px=16", "model.width=4", "model.projector_dim=16", "model.predictor_dim=4", "training.epochs=1",
    "training.batch=256", "training.shards=4", "checkpoint.every_steps=1000000",
]  # fmt: skip


class Failed(Exception):
    """A run that did not do what it was started for, with what it wrote."""


class Run:
    """A coordinator with its workers, in a folder of its own, and what memory each of them had whenever it was looked at.

    Workers that fetch are as on another machine: they see no files, and each has a cache of its own.
    """

    def __init__(self, place, changes, workers=1, collective="auto", cache=None, fetches=False):
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=place.folder))
        self.out, self.log = self.folder / "run/quickstart", self.folder / "log"
        self.memory, self.others = {}, []
        command = [place.program, "--out", self.folder / "run", "--collective", collective]
        command += [part for change in changes for part in ("--set", change)]
        command += ["--cache-dir", cache or place.folder / "cache"]
        self.began = time.time()
        if fetches:
            self.start_apart(place, command, workers)
        else:
            self.process = self.start([*command, "--workers", str(workers)], self.log)

    def start_apart(self, place, command, workers):
        """The coordinator, and the workers by themselves."""
        token, address = self.folder / "token", f"127.0.0.1:{free_port()}"
        answer([place.program, "token", token])
        common = ["--token-file", token]
        self.began = time.time()
        self.process = self.start(
            [*command, "--workers", "0", "--remote-workers", str(workers), "--listen", address, *common], self.log
        )
        for number in range(workers):
            worker = [place.program, "worker", "--join", address, "--no-local-files", "--connect-timeout-s", str(LIMIT_S)]
            worker += ["--cache-dir", self.folder / f"cache-{number}", *common]
            self.others.append(self.start(worker, self.folder / f"worker-{number}.log", threads(workers)))

    def start(self, command, log, rayon_threads=None):
        environment = {**os.environ, "RUST_LOG": "info"}
        if rayon_threads:
            environment["RAYON_NUM_THREADS"] = str(rayon_threads)
        with log.open("wb") as words:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=environment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.process, *self.others):
            if process.poll() is None:
                process.kill()
            process.wait()
        # Workers that it has started end when it does, and write until then.
        deadline = time.monotonic() + GRACE_S
        while any(map(memory, self.memory)) and time.monotonic() < deadline:
            time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)

    def to_the_end(self):
        """Waits until all steps are made."""
        self.wait_until(lambda: self.process.poll() is not None)
        if self.process.returncode != 0:
            raise self.failure(f"the run ended with {self.process.returncode}")
        return self

    def to_the_first_step(self):
        """Waits until one step is committed; gives when that was."""
        metrics = self.out / "metrics.jsonl"
        self.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, pause_s=0.002)
        return time.time()

    def wait_until(self, is_over, pause_s=0.02):
        deadline = time.monotonic() + LIMIT_S
        while not is_over():
            if self.process.poll() not in (None, 0):
                raise self.failure(f"the run ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                raise self.failure(f"the run took more than {LIMIT_S} s")
            self.look()
            time.sleep(pause_s)

    def look(self):
        """Notes the memory of coordinator and workers."""
        for pid in [self.process.pid, *(other.pid for other in self.others), *workers_of(self.process.pid)]:
            if found := memory(pid):
                self.memory.setdefault(pid, []).append(found)

    def coordinator_mb(self):
        """At the peak, with files that are mapped and without."""
        return tuple(map(max, zip(*self.memory[self.process.pid])))

    def worker_mb(self):
        """The same of the workers, whichever had most; and what that one had at most times."""
        most = [0, 0, 0]
        for pid, seen in self.memory.items():
            if pid != self.process.pid:
                whole, own = zip(*seen)
                most = list(map(max, most, [max(whole), max(own), statistics.median(own)]))
        return most

    def failure(self, what):
        logs = [self.log, *self.folder.glob("worker-*.log"), *self.out.glob("logs/worker-*.log")]
        words = [f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs if log.exists()]
        return Failed("\n".join([what, *words]))

    def steps(self):
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line][WARM_UP:]
        if not steps:
            raise self.failure("the run made too few steps to say anything of them")
        return steps

    def median(self, part):
        """Of what a step of the first worker takes, in seconds."""
        return statistics.median(step["seconds"][part] for step in self.steps())

    def fold_seconds(self):
        """What an all-reduce takes for whoever comes last to it, and waits for nobody."""
        shortest = {}
        for line in (self.out / "spans.jsonl").read_text().splitlines():
            step = json.loads(line)
            taken = sum(span["duration_us"] for span in step["spans"] if span["phase"] == "all_reduce") / 1e6
            shortest[step["step"]] = min(taken, shortest.get(step["step"], taken))
        return statistics.median(taken for step, taken in shortest.items() if step > WARM_UP)

    def journal(self, event):
        """When it last told of this, in seconds since 1970."""
        records = [json.loads(line) for line in (self.out / "journal.jsonl").read_text().splitlines()]
        return max(record["unix_time_ms"] for record in records if record["event"] == event) / 1e3

    def said(self, pattern):
        found = re.search(pattern, self.log.read_text())
        return found[1] if found else "?"


def threads(workers):
    """What a coordinator gives each worker."""
    return max(1, CORES // workers)


def answer(command):
    """What a program says that ends by itself."""
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {found.stderr}")
    return found.stdout


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def workers_of(coordinator):
    """Processes that it has started and that are workers by now: a child that is about to be one still has its memory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == coordinator and (entry / "cmdline").read_bytes().split(b"\0")[1:2] == [b"worker"]:
                yield int(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended


def memory(pid):
    """MB at the peak with files that are mapped, which the system takes back when it needs room, and MB without them now."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(VmHWM|RssAnon|RssShmem):\s+(\d+) kB$", text, re.M)}
    return (kib["VmHWM"] * 1024 / 1e6, (kib["RssAnon"] + kib["RssShmem"]) * 1024 / 1e6) if "VmHWM" in kib else None


def stl10(place, images):
    """A folder as STL-10's, with noise for images. It is written once, and on the disk by then."""
    folder = place.folder / f"stl10-{images}"
    if folder.exists():
        return folder
    folder.mkdir()
    noise, at_once = random.Random(images), 512
    with (folder / "unlabeled_X.bin").open("wb") as out:
        for start in range(0, images, at_once):
            out.write(noise.randbytes(RECORD_BYTES * min(at_once, images - start)))
        out.flush()
        os.fsync(out.fileno())
    return folder


def is_stl10(folder):
    return ["data={source='stl10',path='%s'}" % folder]


# The tables.


def head(*columns):
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def workers_table(place):
    """One batch, by more and more workers of this machine."""
    networks = {
        "quickstart, batch 128": [*COMMON, "data.images=2048", "training.epochs=4", "training.shards=8"],
        "ResNet-18, 32 px, batch 64": [
            *RESNET, "data.images=768", "training.batch=64", "training.shards=8", "model.backbone=resnet18",
        ],
    }  # fmt: skip
    if place.is_quick:
        networks = {name: [*changes, "data.images=384", "training.epochs=1"] for name, changes in networks.items()}
    head(
        "network", "workers, threads of each", "gradients through", "images/s", "of one worker's", "step, ms",
        "its all-reduce, ms", "for the last to come, ms",
    )  # fmt: skip
    for name, changes in networks.items():
        alone = None
        ways = [(workers, way) for workers in (2, 4, 8) for way in ("auto", "tcp")]
        for workers, way in [(1, "auto"), *ways, (1, "auto")]:

            def measure():
                nonlocal alone
                with Run(place, changes, workers, way) as run:
                    run.to_the_end()
                    speed = statistics.median(step["images_per_second"] for step in run.steps())
                    alone = alone or speed
                    folds = [1e3 * run.median("all_reduce"), 1e3 * run.fold_seconds()] if workers > 1 else []
                    share = f"{speed / alone:.2f}"
                    return [f"{speed:.1f}", share, f"{1e3 * run.median('step'):.1f}", *(f"{fold:.2f}" for fold in folds)]

            through = {"auto": "memory", "tcp": "TCP"}[way] if workers > 1 else ""
            place.row([name, f"{workers} x {threads(workers)}", through], measure, 5)
    crowded = [workers for workers in (1, 2, 4, 8) if workers * threads(workers) > CORES]
    if crowded:
        many = ", ".join(map(str, crowded))
        print(f"\nThe machine has {CORES} cores: {many} workers share them, and wait for each other to get one.")
    print("One worker's speed is that of its first row; the second one of it says how steady the machine was.")


def step_table(place):
    """One worker, one shard: a step against what it is made of."""
    base = {"batch": 32, "crop": 32, "network": "resnet18", "stem": "small"}
    others = {
        "batch": [{"batch": 16}, {}, {"batch": 64}, {"batch": 128}],
        "crop": [{}, {"crop": 64}, {"crop": 96}, {"crop": 96, "stem": "small-pool"}],
        "network": [{"network": "resnet10"}, {}, {"network": "resnet34"}, {"network": "resnet50"}],
    }
    steps = 3 if place.is_quick else 8
    head(
        "changed", "batch", "crop, px", "network, stem", "GFLOP a step", "step, ms", "images/s", "GFLOP/s",
        "its memory as foretold, MB", "while it trains, MB", "at the peak, MB",
    )  # fmt: skip
    for what, rows in others.items():
        for change in rows:
            row = {**base, **change}
            changes = [
                *RESNET, f"training.batch={row['batch']}", "training.shards=1", f"data.images={row['batch'] * steps}",
                f"views.crop_px={row['crop']}", f"model.backbone={row['network']}", f"model.stem={row['stem']}",
            ]  # fmt: skip

            def measure():
                gflop = gflop_of_step(place, changes)
                with Run(place, changes) as run:
                    run.to_the_end()
                    step, (peak, _, usual) = run.median("step"), run.worker_mb()
                    foretold = run.said(r"about ([\d.]+) MB of memory")
                    return [
                        f"{gflop:.4g}", f"{1e3 * step:.0f}", f"{row['batch'] / step:.1f}", f"{gflop / step:.0f}",
                        foretold, f"{usual:.0f}", f"{peak:.0f}",
                    ]  # fmt: skip

            place.row([what, f"{row['batch']}", f"{row['crop']}", f"{row['network']}, {row['stem']}"], measure, 7)
    print("\nThe peak is where the worker saves: it holds the state once more, and the files that it sends.")


def gflop_of_step(place, changes):
    """What the recipe says that a step computes, in convolutions and linear layers."""
    text = answer([place.program, "check", *(part for change in changes for part in ("--set", change))])
    value, prefix = re.search(r"# all workers: ([\d.]+) (\w?)FLOP a step", text).groups()
    return float(value) * {"": 1e-9, "k": 1e-6, "M": 1e-3, "G": 1, "T": 1e3, "P": 1e6}[prefix]


def memory_table(place):
    """Two workers of a tiny network see each image once."""
    head(
        "images", "of pixels, MB", "workers have them from", "a worker's own memory, MB", "and with mapped images, MB",
        "the coordinator's own, MB", "and with mapped images, MB", "seconds",
    )  # fmt: skip
    for images in (512, 1024, 2048) if place.is_quick else (2_048, 20_000, 100_000):
        data = stl10(place, images)
        for fetches in (False, True):

            def measure():
                with Run(place, [*TINY, *is_stl10(data)], workers=2, fetches=fetches) as run:
                    run.to_the_end()
                    found = [*run.worker_mb()[1::-1], *run.coordinator_mb()[::-1]]
                    return [*(f"{mb:.0f}" for mb in found), f"{time.time() - run.began:.0f}"]

            whence = "the coordinator" if fetches else "the same files"
            place.row([f"{images:,}", f"{images * RECORD_BYTES / 1e6:,.0f}", whence], measure, 5)
    print(
        "\nMapped are the files of the data, or blocks in the cache. Their pages are shared, and the system takes them back when"
        "\nit needs room; all that a program needs is its own memory."
    )


def start_table(place):
    """From the command to the first step that all four workers have committed."""
    quickstart = [*COMMON, "training.epochs=1000", "checkpoint.every_steps=1000000"]
    images = 2_000 if place.is_quick else 100_000
    data = stl10(place, images)
    large = [*quickstart, *is_stl10(data)]
    kept = place.folder / "cache-kept"
    name, times = f"{images:,} images as STL-10's", 1 if place.is_quick else 3
    head(
        "data", "how it starts", "first step after, s", "images opened and hashed, s", "workers joined, s",
        "first views made, s", "first step made, s", "coordinator has read from the disk, MB", "workers have fetched, MB",
    )  # fmt: skip
    rows = [
        ("quickstart", "images are drawn", lambda: start(place, quickstart, None)),
        ("quickstart", "drawn before", lambda: start(place, quickstart, kept)),
        (name, "seen for the first time, in memory", lambda: start(place, large, None, data)),
        (name, "seen for the first time, on the disk", lambda: start(place, large, None, data, is_cold=True)),
        (name, "seen before, in memory", lambda: start(place, large, kept, data)),
        (name, "seen before, on the disk", lambda: start(place, large, kept, data, is_cold=True)),
        (name, "seen before, workers fetch", lambda: start(place, large, kept, data, fetches=True)),
    ]
    # So that there is something to be kept.
    for changes in (quickstart, large):
        place.row(None, lambda: start(place, changes, kept), 0)
    for data_name, how, measure in rows:

        def several():
            columns = list(zip(*(measure() for _ in range(times))))
            medians = [statistics.median(column) for column in columns]
            seconds = ", ".join(f"{second:.2f}" for second in columns[0])
            return [seconds, *(f"{part:.2f}" for part in medians[1:5]), *(f"{mb:.0f}" for mb in medians[5:])]

        place.row([data_name, how], several, 7)
    print(
        "\nThe coordinator maps the file. If its cache has no manifest for a file of this path, size and time of change, it"
        "\nreads all of it, to hash its blocks (BLAKE3, on all cores). Drawn images it hashes at each start. Workers that see"
        "\nthe same file hash the blocks that their first batch is drawn from, up to 8 of 4 MiB for each shard; others fetch"
        "\nthese. Then they report to be ready, and go on with the 16 blocks after these while they train. Parts are medians."
    )


def start(place, changes, cache, data=None, is_cold=False, fetches=False):
    """A start; without a cache, with an empty one."""
    if data:
        put_in_memory(data / "unlabeled_X.bin", is_cold)
    with tempfile.TemporaryDirectory(dir=place.folder) as empty:
        with Run(place, changes, workers=4, cache=cache or empty, fetches=fetches) as run:
            ended = run.to_the_first_step()
            from_disk = read_from_disk(run.process.pid)
            fetched = sum(size(block) for block in run.folder.glob("cache-*/blocks/*"))
            times = [run.began, *map(run.journal, ("created", "joined", "started")), ended]
            parts = [after - before for before, after in zip(times, times[1:])]
            return [ended - run.began, *parts, from_disk / 1e6, fetched / 1e6]


def put_in_memory(path, is_cold):
    """Reads a file, or has the system forget what it holds of it."""
    with path.open("rb", buffering=0) as file:
        if is_cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        while file.read(1 << 24):
            pass


def read_from_disk(pid):
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return float("nan")  # the system does not count, or does not say
    return int(re.search(r"^read_bytes: (\d+)$", text, re.M)[1])


def size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # written aside until now


TABLES = {"workers": workers_table, "step": step_table, "memory": memory_table, "start": start_table}


class Place:
    """The program, where it may write, and what of it failed."""

    def __init__(self, program, folder, is_quick):
        self.program, self.folder, self.is_quick, self.has_failed = program, folder, is_quick, False

    def row(self, names, measure, columns):
        """Measures and prints a row; what failed says why, and the next one is tried all the same."""
        try:
            found = measure()
        except Failed as failure:
            print(f"{names}: {failure}", file=sys.stderr, flush=True)
            self.has_failed, found = True, ["failed"]
        if names:
            cells = [*names, *found]
            print(f"| {' | '.join([*cells, *[''] * (len(names) + columns - len(cells))])} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(TABLES)}")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/coordinator")
    parser.add_argument("--quick", action="store_true", help="fewer steps and images: to see the script work, not for figures")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(TABLES)
    if unknown:
        parser.error(f"no table is called {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if not arguments.program.exists():
        parser.error(f"{arguments.program} does not exist: build it, or give --program")
    # As after Ctrl-C, so that nothing is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(os.environ.get("TMPDIR") or ROOT / "target")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scaling-", dir=folder) as folder:
        place = Place(arguments.program.resolve(), Path(folder), arguments.quick)
        for name in arguments.names or TABLES:
            TABLES[name](place)
    sys.exit(1 if place.has_failed else 0)


if __name__ == "__main__":
    main()
