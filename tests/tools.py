#!/usr/bin/env python3
"""What people's own tools see of a run, proved on a real one: two workers train the quickstart, while

- the probes /healthz and /readyz answer 200, and /metrics says what metrics.jsonl says;
- `promtool check metrics` has nothing against /metrics;
- a browser opens the page: all its values and every point of its curves are those of metrics.jsonl, its buttons pause, save,
  continue and stop the run, by mouse and by keyboard, nothing is asked of another origin, nothing complains on the console,
  it fits a telephone, and it is dark where the system is;
- TensorBoard, once the run is over, reads the same scalars, PNGs, histograms of the saved weights, and the recipe in HPARAMS.

    cargo build --release --locked && python3 tests/tools.py
    python3 tests/tools.py --coordinator /opt/simsiam/coordinator

Needs Linux, Python 3.11, and nothing but its own library. Tools that are not there are skipped, and that is said: `chromium`,
`chromedriver` and `promtool` are looked for on PATH (Debian: apt-get install chromium chromium-driver prometheus), TensorBoard
in the Python that runs this (pip install tensorboard).
"""

import argparse
import array
import functools
import importlib.util
import itertools
import json
import math
import operator
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
import zlib
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

try:
    import tomllib
except ImportError:
    print(f"tools: SKIPPED, this is Python {sys.version.split()[0]}: run it with 3.11 or later")
    sys.exit()

ROOT = Path(__file__).resolve().parent.parent
# The only checkpoints are those that are asked for, and the run lasts until it is stopped, however fast the machine is.
CHANGES = ["training.epochs=1000", "checkpoint.every_steps=1000000", "evaluation.every_checkpoints=1"]
# More than the hundred that the page shows by themselves at a press of a button.
FIRST_STEPS = 120
# That the page's averages are over.
RECENT_STEPS = 20
# Differences that are told of many.
FEW = 3
# For what takes seconds on a machine that does nothing else.
PATIENCE_S = 300
# For what a page does by itself, at once.
SETTLE_S = 30


class Failed(Exception):
    """Something is not as expected, in a sentence."""


class Skipped(Exception):
    """What is missing, and how to have it."""


def expect(what, expected, found):
    if expected != found:
        raise Failed(f"{what}: expected {expected!r}, found {found!r}")


def expect_each(what, expected, found):
    """Says where two rows differ first, since both are too long to be read."""
    for one, other in itertools.zip_longest(expected, found):
        expect(what, one, other)


# ---- Programs ----------------------------------------------------------------------------------------------------


class Program:
    """A program that is started with its own session, so that all that it starts can be ended with it."""

    def __init__(self, command, log, environment=None):
        self.name, self.log = Path(command[0]).name, log
        with log.open("wb") as words:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=environment, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(SETTLE_S)
        except subprocess.TimeoutExpired:
            pass
        for member in members(self.process.pid):
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended
        self.process.wait()

    def words(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, what, find, is_right=bool, patience_s=PATIENCE_S):
        """What `find` gives once that `is_right`; the program must live that long."""
        deadline = time.monotonic() + patience_s
        while not is_right(found := find()):
            if self.process.poll() is not None:
                last = "\n".join(self.words().splitlines()[-10:])
                raise Failed(f"{self.name} ended with {self.process.returncode}, but expected {what}:\n{last}")
            if time.monotonic() > deadline:
                raise Failed(f"expected {what} within {patience_s} s, found {found!r}")
            time.sleep(0.05)
        return found

    def wait_until(self, what, expected, find, patience_s=PATIENCE_S):
        """Waits until `find` gives what is expected."""
        self.wait_for(f"{what} {expected!r}", find, lambda found: found == expected, patience_s)


def members(session):
    """The processes of a session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before the last bracket may hold anything.
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == session:
            yield int(stat.parent.name)


# A proxy that the environment names is not for this machine's own addresses.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url, body=None):
    """Status and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with HTTP.open(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()
    except OSError as error:
        raise Failed(f"expected an answer of {url}, found none: {error}") from None


# ---- The run -----------------------------------------------------------------------------------------------------


class Run:
    """The quickstart with two workers, in a folder of its own."""

    def __init__(self, program, scratch):
        self.program, self.folder = program, scratch / "runs/quickstart"
        own = {name: value for name, value in os.environ.items() if not name.startswith("SIMSIAM_")}
        changes = [part for change in CHANGES for part in ("--set", change)]
        self.coordinator = Program(
            [program, "--workers", "2", "--dashboard", "127.0.0.1:0", "--out", scratch / "runs", *changes],
            scratch / "coordinator.txt",
            {**own, "SIMSIAM_CACHE_DIR": str(scratch / "cache")},
        )

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.coordinator.__exit__(*problem)

    def begin(self):
        """Waits until there is something to see."""
        page = self.folder / "dashboard.url"
        self.coordinator.wait_for("dashboard.url in the run's folder", page.exists)
        self.origin = page.read_text().strip()
        self.recipe = tomllib.loads((self.folder / "recipe.toml").read_text())
        self.coordinator.wait_for(f"{FIRST_STEPS} steps in metrics.jsonl", lambda: len(self.steps()) >= FIRST_STEPS)
        self.coordinator.wait_for("the evaluation of the random weights in metrics.jsonl", self.evaluations)
        return f"two workers train the {self.recipe['name']}, seen at {self.origin}"

    def end(self):
        """Stops it, if the browser has not done so."""
        self.coordinator.process.terminate()
        self.expect_end()
        return f"the run has ended after {len(self.steps())} steps, with checkpoints of the steps {self.checkpoints()}"

    def expect_end(self):
        try:
            expect("the coordinator's exit code after a stop", 143, self.coordinator.process.wait(PATIENCE_S))
        except subprocess.TimeoutExpired:
            raise Failed(f"expected that the run ends within {PATIENCE_S} s of its stop, found it at work") from None

    def status(self):
        """Where it stands, or stood when it ended."""
        command = [self.program, "status", self.folder, "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def lines(self):
        path = self.folder / "metrics.jsonl"
        # The last line may be under way.
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return [json.loads(line) for line in whole.splitlines()]

    def steps(self):
        return [line for line in self.lines() if "loss" in line]

    def evaluations(self):
        return [line for line in self.lines() if "evaluation" in line]

    def checkpoints(self):
        """Steps of the checkpoints that are there."""
        manifests = (self.folder / "checkpoints").glob("step-*/manifest.json")
        return sorted(int(manifest.parent.name.removeprefix("step-")) for manifest in manifests)


# ---- Probes and Prometheus ---------------------------------------------------------------------------------------


def check_probes(run):
    for address in ("/healthz", "/readyz"):
        expect(f"the status of {address} while workers train", 200, ask(run.origin + address)[0])
    samples = dict(line.rsplit(" ", 1) for line in metrics_text(run).splitlines() if not line.startswith("#"))
    # The step that was the last one when these were written.
    step = int(samples["simsiam_step"])
    counted = {int(samples[f"simsiam_{name}"]) for name in ("steps_total", "step_duration_seconds_count")}
    expect("that all counters of steps are the same", 1, len(counted))
    last = run.steps()[step - 1]
    expect("the step of that line of metrics.jsonl", step, last["step"])
    for name in ("loss", "collapse_level", "learning_rate", "gradient_norm"):
        expect(f"simsiam_{name} of step {step}", last[name], float(samples[f"simsiam_{name}"]))
    return f"/healthz and /readyz answer 200, and /metrics has the values of step {step} in metrics.jsonl"


def check_promtool(run):
    if not shutil.which("promtool"):
        raise Skipped("promtool is not on PATH: apt-get install prometheus, or take it from prometheus.io/download")
    text = metrics_text(run)
    told = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    expect("exit code and complaints of promtool", (0, ""), (told.returncode, told.stdout + told.stderr))
    return f"promtool has nothing against {text.count('# TYPE ')} metrics"


def metrics_text(run):
    status, text = ask(f"{run.origin}/metrics")
    expect("the status of /metrics", 200, status)
    return text


# ---- The browser -------------------------------------------------------------------------------------------------

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"]
# The page glides to what is pressed, unless this is asked of it: a click would go where that was.
FLAGS += ["--force-prefers-reduced-motion"]
# As the WebDriver standard numbers them.
KEYS = {"Tab": "\ue004", "Home": "\ue011", "End": "\ue010", "Enter": "\ue007", "Escape": "\ue00c", "ArrowLeft": "\ue012"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """Chromium without a screen, led by chromedriver."""

    def __init__(self, driver):
        self.driver = driver
        port = r"started successfully on port (\d+)"
        [port] = driver.wait_for("the port of chromedriver", lambda: re.findall(port, driver.words()))
        self.address = f"http://127.0.0.1:{port}/session"
        options = {"binary": shutil.which("chromium"), "args": FLAGS}
        logs = {"browser": "ALL", "performance": "ALL"}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self.address += "/" + self.call("", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        request = urllib.request.Request(self.address, method="DELETE")
        try:
            HTTP.open(request, timeout=SETTLE_S).close()
        except OSError:
            pass  # what is left of it ends with its driver

    def call(self, command, body):
        status, text = ask(self.address + command, body)
        if status != 200:
            raise Failed(f"the browser refused {command or 'a session'}: {json.loads(text)['value']['message']}")
        return json.loads(text)["value"]

    def run(self, script, *arguments):
        return self.call("/execute/sync", {"script": script, "args": arguments})

    def click(self, selector):
        element = self.call("/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.call(f"/element/{element}/click", {})

    def press(self, key):
        value = KEYS.get(key, key)
        strokes = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def tell_chromium(self, command, **parameters):
        self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind):
        return self.call("/se/log", {"type": kind})

    def wait_for(self, what, find):
        return self.driver.wait_for(what, find, bool, SETTLE_S)

    def wait_until(self, what, expected, find):
        self.driver.wait_until(what, expected, find, SETTLE_S)


def check_browser(run, scratch):
    missing = [program for program in ("chromium", "chromedriver") if not shutil.which(program)]
    if missing:
        raise Skipped(f"{' and '.join(missing)} not on PATH: apt-get install chromium chromium-driver")
    # What the browser leaves behind goes with all else.
    own = {**os.environ, "TMPDIR": str(scratch)}
    with Program(["chromedriver", "--port=0"], scratch / "chromedriver.txt", own) as driver, Browser(driver) as browser:
        browser.call("/url", {"url": run.origin})
        page = Page(browser, run)
        check_life(page)
        watch_last_hundred(page)
        press_pause(page)
        check_last_hundred(page)
        check_page(page)
        check_views(page)
        press_save(page)
        check_page(page)
        check_neighbours(page)
        check_ranges(page)
        check_reach_by_keyboard(page)
        check_chart_by_keyboard(page)
        check_telephone(page)
        check_colours(page)
        kept = take_views_away(page)
        press_continue_by_keyboard(page)
        press_stop(page)
        check_page(page)
        check_views_stay(page, kept)
        check_range_after_the_end(page)
        check_words(page)
        check_console(browser)
        requests = check_requests(browser, run.origin)
    return f"the page shows what {len(run.steps())} steps say, and obeys; {requests} requests, none to elsewhere"


# What a person sees, at one moment.
READ_PAGE = """
    const text = (id) => document.getElementById(id).textContent;
    const all = (selector, within = document) => [...within.querySelectorAll(selector)];
    const labels = (svg, kind, side) => all(`text.${kind}`, svg).map((one) => [one.textContent, Number(one.getAttribute(side))]);
    const tiles = {};
    for (const { id, textContent, dataset } of all("[id^=tile-]")) tiles[id.slice(5)] = [textContent, Number(dataset.value)];
    return {
        state: text("state"), connection: text("connection"), answer: text("answer"), health: text("health"),
        range: text("range"), tiles,
        enabled: all("header [data-action]:enabled").map((button) => button.dataset.action),
        workers: all("#workers-table tbody th").map((cell) => cell.firstChild.textContent),
        cards: all("#cards article").map((card) => all("dd", card).map((figure) => figure.textContent)),
        charts: Object.fromEntries(all("#charts figure").map((figure) => [figure.querySelector(".title").textContent, {
            now: figure.querySelector("figcaption").lastChild.textContent,
            up: labels(figure, "left", "y"), across: labels(figure, "below", "x"),
            lines: all(".line", figure).map((path) => path.getAttribute("d")),
            areas: all(".area", figure).map((path) => path.getAttribute("d")),
        }])),
    };
"""


class Page:
    """The dashboard, and the run that it should show."""

    def __init__(self, browser, run):
        self.browser, self.run = browser, run

    def read(self):
        return self.browser.run(READ_PAGE)

    def wait_for_state(self, state):
        self.run.coordinator.wait_until("that the page says", state, lambda: self.read()["state"])

    def wait_for_files(self, compare):
        """Waits until `compare` finds no difference between the page and the files."""
        what = "that the page shows what the run's files say"
        self.browser.driver.wait_for(what, lambda: compare(self.read())[:FEW], operator.not_, SETTLE_S)

    def wait_for_curves(self, steps):
        self.wait_for_files(lambda found: compare_curves(self.run, steps, found))

    def wait_for_picture(self, name, address):
        """Until it is the one of this address, and there."""
        seen = f"const picture = document.getElementById('{name}'); return [picture.getAttribute('src'), picture.naturalWidth > 0]"
        self.browser.wait_until(f"the picture {name}", [address, True], lambda: self.browser.run(seen))

    def press(self, action):
        """Presses a button, and says yes."""
        self.browser.wait_for(f"that {action} can be pressed", lambda: action in self.read()["enabled"])
        self.browser.click(f"header [data-action={action}]")
        self.browser.click("#confirm-yes")


def check_life(page):
    """While steps are made, each moment's loss and collapse level are those of one line."""
    page.wait_for_state("training")
    page.browser.wait_until("the workers on the page", ["worker 1", "worker 2"], lambda: page.read()["workers"])
    # Whoever is about to press a button must not lose it.
    page.browser.run("window.drain = document.querySelector('#workers-table button'); drain.focus()")
    seen = {}

    def look():
        found = page.read()
        expect("the connection while the run goes on", "live", found["connection"])
        seen[found["tiles"]["loss"][1]] = found["tiles"]
        return len(seen)

    page.run.coordinator.wait_for("five different losses on the page", lambda: look() >= 5)
    kept = page.browser.run("return drain.isConnected && document.activeElement === drain")
    expect("whether a worker's button and its focus are kept", True, kept)
    lines = {step["loss"]: step for step in page.run.steps()}
    for loss, tiles in seen.items():
        if loss not in lines:
            raise Failed(f"the loss on the page: expected one of metrics.jsonl, found {loss}")
        expect("the collapse level beside that loss", lines[loss]["collapse_level"], tiles["collapse_level"][1])


def watch_last_hundred(page):
    """While others come and the first ones of them lie further back."""
    page.browser.click("[data-range='100']")
    seen = len(page.run.steps())
    page.run.coordinator.wait_for("twenty steps more", lambda: len(page.run.steps()) >= seen + 20)
    # A screen reader says it again whenever it changes.
    said = page.browser.run("return document.getElementById('chosen').textContent")
    expect("the range that is read aloud", "The last 100 steps", said)


def check_last_hundred(page):
    """A hundred steps by themselves, whatever has come since they were asked for."""
    page.wait_for_curves(page.run.steps()[-100:])
    page.browser.click("[data-range=all]")


def press_pause(page):
    """The story has one moment more then, and the cards that may be read just now are not made anew for it."""
    page.browser.run("window.card = document.querySelector('#cards article')")
    page.press("pause")
    page.wait_for_state("paused")
    told = "return document.querySelector('#moments strong').textContent"
    page.browser.wait_until("that the timeline says", "paused", lambda: page.browser.run(told))
    expect("whether a card is kept", True, page.browser.run("return card.isConnected"))
    page.browser.wait_until("what can be pressed in a pause", ["continue", "save", "stop"], lambda: page.read()["enabled"])


def press_save(page):
    run = page.run
    step = run.steps()[-1]["step"]
    expect("checkpoints before one was asked for", [], run.checkpoints())
    page.press("save")
    run.coordinator.wait_until("a checkpoint of the step", [step], run.checkpoints)
    expect("the answer to save", "A checkpoint is saved after the step in hand, in a pause at once.\n", page.read()["answer"])
    run.coordinator.wait_until("an evaluation of the step", step, lambda: run.evaluations()[-1]["step"])
    expect("the state after a save in a pause", "paused", page.read()["state"])


def press_continue_by_keyboard(page):
    tab_to(page, "button Continue")
    page.browser.press("Enter")
    page.browser.wait_until("the focus on", "button Cancel", lambda: focus(page)["name"])
    tab_to(page, "button Continue")
    page.browser.press("Enter")
    page.wait_for_state("training")


def press_stop(page):
    browser, run = page.browser, page.run
    browser.click("header [data-action=stop]")
    browser.press("Escape")
    browser.wait_for("that Escape closes the question", lambda: not browser.run("return document.getElementById('confirm').open"))
    before = run.steps()[-1]["epoch"]
    what = "a whole epoch after a stop that was not confirmed"
    run.coordinator.wait_for(what, lambda: run.steps()[-1]["epoch"] > before + 1)
    page.press("stop")
    run.expect_end()
    browser.wait_for("that the page says that the coordinator has ended", lambda: "has ended" in page.read()["connection"])
    found = page.read()
    expect("the state after a stop, and what can be pressed", ("stopped", []), (found["state"], found["enabled"]))
    last = run.steps()[-1]["step"]
    expect("the checkpoints after a save and a stop", last, run.checkpoints()[-1])


# ---- What the page shows, and what the files say -----------------------------------------------------------------


def check_page(page):
    """Waits until the page has heard of the last steps, and compares all of it with the files."""
    for compare in (compare_tiles, compare_captions, compare_cards):
        page.wait_for_files(functools.partial(compare, page.run))
    steps = page.run.steps()
    if len(steps) > POINTS:
        # On a fast machine: what came last is thinned only when the page asks for all of them again.
        page.browser.click("[data-range=all]")
    page.wait_for_curves(steps)


def views_of(step):
    return f"/views.png?epoch={step['epoch'] - 1}"


def check_views(page):
    """The pairs of views of this epoch, as a picture of four images."""
    page.wait_for_picture("views", views_of(page.run.steps()[-1]))


def take_views_away(page):
    """As when they are asked for while the run ends: from here on the browser cannot have them. The address of the last ones."""
    page.browser.tell_chromium("Network.enable")
    page.browser.tell_chromium("Network.setBlockedURLs", urls=["*/views.png*"])
    return views_of(page.run.steps()[-1])


def check_views_stay(page, kept):
    """Although those of other epochs were asked for in vain."""
    asked = page.browser.run("return document.getElementById('views').dataset.wanted")
    expect("the views that were asked for last", views_of(page.run.steps()[-1]), asked)
    page.wait_for_picture("views", kept)


def check_neighbours(page):
    """The picture of the newest weights' neighbours, and with the keyboard that of the random ones."""
    browser = page.browser
    pictures = [f"/evaluations/{Path(one['picture']).name}" for one in page.run.evaluations()]
    page.wait_for_picture("neighbours", pictures[-1])
    browser.run("document.getElementById('neighbours-of').focus()")
    for key, picture in (("Home", pictures[0]), ("End", pictures[-1])):
        browser.press(key)
        page.wait_for_picture("neighbours", picture)


def differences(pairs):
    """Of triples of a name, what is expected and what was found, those that differ, in words."""
    return [f"{name}: expected {expected!r}, found {found!r}" for name, expected, found in pairs if expected != found]


def number(value, decimals=0):
    """As the page writes it: halves up, groups of three, a real minus sign."""
    rounded = Decimal(abs(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    whole, point, fraction = str(rounded).partition(".")
    grouped = f"{int(whole):,}".replace(",", "\u202f") if len(whole) > 4 else whole
    is_zero = not (whole + fraction).strip("0")
    return ("\u2212" if value < 0 and not is_zero else "") + grouped + point + fraction


def short(value):
    """As the page writes rates that are not tiny: by digits that count."""
    decimals = next((decimals for least, decimals in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if abs(value) >= least), 4)
    return number(value, decimals)


def read_number(text):
    return float(text.replace("\u2212", "-").replace("\u202f", ""))


def accuracy(figures):
    return max(value for name, value in figures.items() if name.startswith("top1"))


def mean(values):
    """Summed one after the other, as the coordinator does it, so that the last digit is the same."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def compare_tiles(run, found):
    steps = run.steps()
    last, recent = steps[-1], steps[-RECENT_STEPS:]
    best = accuracy(run.evaluations()[-1]["figures"])
    speed = run.recipe["training"]["batch"] / mean([step["seconds"]["step"] for step in recent])
    level = number(mean([step["collapse_level"] for step in recent]), 2)
    expected = {
        "step": [number(last["step"]), last["step"]],
        "loss": [number(last["loss"], 4), last["loss"]],
        "collapse_level": [number(last["collapse_level"], 3), last["collapse_level"]],
        "knn": [f"{number(100 * best, 1)} %", best],
        "images_per_second": [number(speed), speed],
    }
    pairs = [(name, value, found["tiles"][name]) for name, value in expected.items()]
    pairs.append(("the collapse level of the verdict", [level], re.findall(r"collapse level is (\S+\d)", found["health"])))
    return differences(pairs)


def compare_captions(run, found):
    last = run.steps()[-1]
    expected = {
        "Loss": number(last["loss"], 4),
        "Collapse level": f"{number(last['collapse_level'], 3)} · healthy near 1",
        "Learning rate": short(last["learning_rate"]),
        "Gradient norm": number(last["gradient_norm"], 3),
        "Images per second": number(last["images_per_second"]),
    }
    return differences((f"beside {title}", text, found["charts"][title]["now"]) for title, text in expected.items())


def compare_cards(run, found):
    """The figures of the evaluations, the last one first."""
    figures = [[f"{number(100 * value, 2)} %" for value in one["figures"].values()] for one in run.evaluations()]
    pairs = [("result cards", len(figures), len(found["cards"]))]
    for one, card in zip(reversed(figures), found["cards"]):
        pairs.append(("what a card lacks", [], [figure for figure in one if figure not in card]))
    return differences(pairs)


# ---- Curves, as far as pixels tell -------------------------------------------------------------------------------

CURVES = {
    "Loss": "loss",
    "Collapse level": "collapse_level",
    "Learning rate": "learning_rate",
    "Gradient norm": "gradient_norm",
    "Images per second": "images_per_second",
}
PARTS = ["data", "forward", "backward", "all_reduce", "update"]
# That the page asks for.
POINTS = 600
# Coordinates are written to a tenth of a pixel, and labels stand four below the lines that they name.
ROUNDING_PX = 0.0501
LABEL_PX = 4


class Axis:
    """Turns pixels back into values, by the first and the last label."""

    def __init__(self, labels, shift=0):
        if len(labels) < 2:
            raise Failed(f"an axis of a chart: expected two labels or more, found {labels}")
        (first, begin), (last, end) = labels[0], labels[-1]
        self.first, self.begin = read_number(first), begin - shift
        self.per_pixel = (read_number(last) - self.first) / (end - begin)
        self.tolerance = ROUNDING_PX * abs(self.per_pixel) + 1e-9

    def value(self, pixel):
        return self.first + (pixel - self.begin) * self.per_pixel


def points(path, chart):
    """What a path goes through: pairs of step and value; and how far both may be off."""
    across, up = Axis(chart["across"]), Axis(chart["up"], LABEL_PX)
    numbers = [float(text) for text in re.findall(r"-?[\d.]+", path)]
    pairs = [(across.value(x), up.value(y)) for x, y in zip(numbers[::2], numbers[1::2])]
    return pairs, (across.tolerance, up.tolerance)


def compare_curves(run, steps, found):
    """Of all steps that are shown; a point stands for equally many of them, and for their mean."""
    charts = found["charts"]
    width = math.ceil(len(steps) / POINTS)
    groups = [steps[i : i + width] for i in range(0, len(steps), width)]
    at = [(group[0]["step"] + group[-1]["step"]) / 2 for group in groups]
    told = []
    for title, name in CURVES.items():
        expected = [mean([step[name] for step in group]) for group in groups]
        told += compare_curve(title, zip(at, expected), points(charts[title]["lines"][0], charts[title]))
    time = charts["Where the first worker's time goes"]
    for part, path in zip(PARTS, time["areas"]):
        expected = [share_of(part, group) for group in groups]
        told += compare_curve(f"time of {part}", zip(at, expected), heights(path, time))
    return told + compare_accuracies(run, steps, charts["kNN accuracy"])


def compare_curve(title, expected, drawn):
    expected, (pairs, (off_x, off_y)) = list(expected), drawn
    if len(pairs) != len(expected):
        return [f"points of {title}: expected {len(expected)}, found {len(pairs)}"]
    return [
        f"{title}: expected {value} at step {step}, found {y:.6g} at {x:.1f}"
        for (step, value), (x, y) in zip(expected, pairs)
        if abs(x - step) > off_x or abs(y - value) > off_y
    ]


def share_of(part, steps):
    """Percent of their time; where the parts are measured longer than the whole, they are the whole."""
    whole = sum(max(step["seconds"]["step"], sum(step["seconds"][one] for one in PARTS)) for step in steps)
    return 100 * sum(step["seconds"][part] for step in steps) / whole


def heights(path, chart):
    """Of an area, which goes along its upper edge, and back along its lower one."""
    edges, (off_x, off_y) = points(path, chart)
    half = len(edges) // 2
    pairs = [(x, upper - lower) for (x, upper), (_, lower) in zip(edges[:half], reversed(edges[half:]))]
    return pairs, (off_x, 2 * off_y)


def compare_accuracies(run, steps, chart):
    """Of the weights before and after these steps; a class among the first five is none that is drawn."""
    first, last = steps[0]["step"] - 1, steps[-1]["step"]
    curves = {}
    for one in run.evaluations():
        for name, value in one["figures"].items():
            if first <= one["step"] <= last and not name.startswith("top5"):
                curves.setdefault(name, []).append((one["step"], 100 * value))
    if len(curves) != len(chart["lines"]):
        return [f"curves of accuracies: expected {sorted(curves)}, found {len(chart['lines'])}"]
    told = [compare_curve(name, curves[name], points(path, chart)) for name, path in zip(curves, chart["lines"])]
    return [difference for curve in told for difference in curve]


def check_ranges(page):
    """A hundred steps by themselves, however many there are, and then all of them again."""
    page.browser.click("[data-range='100']")
    page.wait_for_curves(page.run.steps()[-100:])
    page.browser.click("[data-range=all]")
    page.wait_for_curves(page.run.steps())


def check_range_after_the_end(page):
    """What cannot be had any more is said, and what is there stays."""
    before = page.read()["charts"]
    page.browser.click("[data-range='100']")
    page.browser.wait_for("that other steps cannot be had", lambda: "cannot be had" in page.read()["range"])
    after = page.read()["charts"]
    for title in before:
        expect_each(f"what is drawn of {title}", before[title].items(), after[title].items())


# Ticks and the steps between them, as the page writes them.
TICKS = [
    (0.25, 0.25, "0.25"), (200, 25, "200"), (2.5, 2.5, "2.5"), (-0.5, 0.5, "\u22120.5"), (0, 1e-5, "0"),
    (-0.9996, 5e-5, "\u22120.99960"), (-0.99995, 5e-5, "\u22120.99995"), (2e-5, 2e-5, "2e\u22125"), (1.25e-5, 2.5e-6, "1.25e\u22125"),
    (1200250, 250, "1\u202f200\u202f250"), (1200000, 100000, "1.2 M"), (2500000, 250000, "2.50 M"), (3000000, 1000000, "3 M"),
]


def check_words(page):
    """Ticks that differ have labels that differ, and the hour after midnight is not the 24th."""
    for value, step, expected in TICKS:
        expect(f"the label of {value} with ticks {step} apart", expected, page.browser.run(f"return tickLabel({value}, {step})"))
    told = page.browser.run("return clock(new Date(2026, 0, 5, 0, 5, 9).getTime())")
    expect("the time of day five minutes after midnight", "00:05:09", told[-8:])


# ---- The keyboard ------------------------------------------------------------------------------------------------

NAME = """
    const name = (one) => `${one.localName} ${one.localName === "svg" ? one.getAttribute("aria-label").split(",")[0]
        : one.getAttribute("aria-label") ?? one.textContent}`;
"""
TO_REACH = """
    const all = document.querySelectorAll("a[href], button:enabled, summary, [tabindex='0']");
    return [...all].filter((one) => one.getClientRects().length).map(name);
"""
FOCUS = """
    const one = document.activeElement;
    const { outlineStyle, outlineColor, outlineWidth } = getComputedStyle(one);
    const { top, bottom, left, right } = one.getBoundingClientRect();
    return {
        name: name(one), colour: outlineColor, ground: getComputedStyle(document.documentElement).backgroundColor,
        outlined: outlineStyle !== "none" && parseFloat(outlineWidth) >= 1,
        inView: bottom > 0 && right > 0 && top < innerHeight && left < innerWidth,
    };
"""


def focus(page):
    return page.browser.run(NAME + FOCUS)


def check_reach_by_keyboard(page):
    """Tab reaches all that can be pressed or moved, and each of it shows that it has the focus."""
    left = set(page.browser.run(NAME + TO_REACH))
    for _ in range(2 * len(left)):
        page.browser.press("Tab")
        found = focus(page)
        if found["name"] in left:
            check_focus(found)
            left.remove(found["name"])
    expect("what the Tab key does not reach", set(), left)


def check_focus(found):
    seen = {what: found[what] for what in ("inView", "outlined")}
    expect(f"whether {found['name']} is seen to have the focus", {"inView": True, "outlined": True}, seen)
    ratio = contrast(found["colour"], found["ground"])
    if ratio < 3:
        raise Failed(f"the outline of {found['name']}: expected a contrast of 3 or more, found {ratio:.1f}")


def tab_to(page, name):
    for _ in range(2 * len(page.browser.run(NAME + TO_REACH))):
        if focus(page)["name"] == name:
            return
        page.browser.press("Tab")
    raise Failed(f"expected that the Tab key reaches {name}, found it nowhere")


def check_chart_by_keyboard(page):
    browser, steps = page.browser, page.run.steps()
    browser.click("[data-range='100']")
    page.wait_for_curves(steps[-100:])
    tab_to(page, "svg Loss")
    check_arrow(browser, steps[-2])
    first, last = look_closer(page)
    page.wait_for_curves(steps[first - 1 : last])
    browser.press("0")
    page.wait_for_curves(steps)


def check_arrow(browser, step):
    """The first one goes to the last step but one, and tells of it."""
    browser.press("ArrowLeft")
    told = browser.run("return [...document.querySelectorAll('#tip:not([hidden]) div')].map((line) => line.textContent)")
    expected = (f"step {number(step['step'])}", number(step["loss"], 4))
    expect("what the arrow tells", expected, (told[0].split(" ·")[0], told[1]))


def look_closer(page):
    """The first and the last step that are shown then."""
    before = page.read()["range"]
    page.browser.press("+")
    page.browser.wait_for("other steps on the charts", lambda: page.read()["range"] != before)
    return [int(read_number(step)) for step in re.match(r"Steps (\S+) to (\S+) of", page.read()["range"]).groups()]


# ---- Sizes and colours -------------------------------------------------------------------------------------------

WIDTHS = """
    const beyond = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1);
    return [innerWidth, document.documentElement.scrollWidth, beyond.slice(0, 5).map((one) => one.outerHTML.slice(0, 80))];
"""
COLOURS = """
    const of = (one) => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor];
    return [...of(document.documentElement), ...of(document.querySelector(".tiles > div"))];
"""


def check_telephone(page):
    browser = page.browser
    # The narrowest that accessibility guidelines name, and what many have.
    for width in (320, 390):
        browser.tell_chromium("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=2, mobile=True)
        browser.wait_until("the width of screen and page, and what is beyond", [width, width, []], lambda: browser.run(WIDTHS))
        browser.click("header [data-action=stop]")
        right = browser.run("return document.getElementById('confirm').getBoundingClientRect().right")
        if not 0 < right <= width:
            raise Failed(f"the question on a screen of {width}: expected it within, found its end at {right}")
        browser.press("Escape")
    browser.tell_chromium("Emulation.clearDeviceMetricsOverride")


def check_colours(page):
    for scheme, is_right in (("dark", lambda light: light < 0.1), ("light", lambda light: light > 0.8)):
        wish = {"name": "prefers-color-scheme", "value": scheme}
        page.browser.tell_chromium("Emulation.setEmulatedMedia", features=[wish])
        ink, ground, ink_of_tile, tile = page.browser.run(COLOURS)
        for letters, behind in ((ink, ground), (ink_of_tile, tile)):
            if not is_right(luminance(behind)) or contrast(letters, behind) < 4.5:
                raise Failed(f"the page in a {scheme} system: expected it {scheme} and easy to read, found {letters} on {behind}")


def luminance(colour):
    """Relative, as the Web Content Accessibility Guidelines define it: 0 black, 1 white."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def check_console(browser):
    """But for the views that were taken away, and the steps that nobody answered with."""
    severe = [entry["message"] for entry in browser.log("browser") if entry["level"] == "SEVERE"]
    severe = [message for message in severe if "/views.png" not in message and "/api/history" not in message]
    expect("what the browser's console complains of", [], severe)


PAGES = {"/", "/style.css", "/dashboard.js", "/views.png", "/evaluations/", "/api/history", "/api/events", "/api/actions"}


def check_requests(browser, origin):
    """How many there were."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    # An address that begins with data: is none, but what it stands for.
    sent = [url for url in sent if not url.startswith("data:")]
    expect("requests to another origin", [], [url for url in sent if not url.startswith(origin + "/")])
    asked = {url.removeprefix(origin).partition("?")[0] for url in sent}
    # Of pictures of evaluations the folder.
    asked = {re.sub(r"/[^/]*\.jpg$", "/", path) for path in asked}
    expect("what the page asks for", PAGES, asked)
    return len(sent)


# ---- TensorBoard -------------------------------------------------------------------------------------------------

# Curves by where their values are in a line of metrics.jsonl.
TAGS = {
    "train/loss": ["loss"],
    "train/collapse_level": ["collapse_level"],
    "train/learning_rate": ["learning_rate"],
    "train/gradient_norm": ["gradient_norm"],
    "train/epoch": ["epoch"],
    "speed/images_per_second": ["images_per_second"],
    "speed/step_seconds": ["seconds", "step"],
    **{f"speed/{part}_seconds": ["seconds", part] for part in PARTS},
    "health/effective_dimensions": ["monitors", "effective_dimensions"],
    "health/statistics_change": ["monitors", "statistics_change"],
    **{f"health/gradient_norm_{part}": ["monitors", "gradient_norms", part] for part in ("backbone", "projector", "predictor")},
    **{f"health/update_ratio_{part}": ["monitors", "update_ratios", part] for part in ("backbone", "projector", "predictor")},
}
ARITHMETIC = "speed/model_flops_per_second"


def check_tensorboard(run, scratch):
    if importlib.util.find_spec("tensorboard") is None:
        raise Skipped(f"{sys.executable} has no tensorboard: pip install tensorboard, and run this with that Python")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Nothing is thinned out.
    events = EventAccumulator(str(run.folder / "tensorboard"), dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0))
    events.Reload()
    scalars = check_scalars(run, events)
    pictures = check_pictures(run, events)
    histograms = check_histograms(run, events)
    settings = check_settings(run, scratch)
    return f"it reads {scalars} scalars, {pictures} pictures, {histograms} histograms and {settings} hyperparameters"


def check_scalars(run, events):
    expected = {tag: [] for tag in TAGS}
    for step in run.steps():
        for tag, path in TAGS.items():
            value = step
            for name in path:
                value = (value or {}).get(name)
            if value is not None:
                expected[tag].append((step["step"], single(value)))
    for one in run.evaluations():
        for name, value in one["figures"].items():
            expected.setdefault(f"evaluation/{one['evaluation']}_{name}", []).append((one["step"], single(value)))
    expect_each("TensorBoard's scalars", sorted([*expected, ARITHMETIC]), sorted(events.Tags()["scalars"]))
    check_arithmetic(run, events)
    for tag, values in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        expect_each(f"step and value of TensorBoard's {tag}", values, found)
    return sum(map(len, expected.values()))


def check_arithmetic(run, events):
    """What an image takes of it is in no line of metrics.jsonl."""
    recent = run.status()["recent"]
    of_image = recent["model_flops_per_second"] / recent["images_per_second"]
    steps, found = run.steps(), events.Scalars(ARITHMETIC)
    expect_each(f"a step of TensorBoard's {ARITHMETIC}", [step["step"] for step in steps], [event.step for event in found])
    for step, event in zip(steps, found):
        expected = of_image * step["images_per_second"]
        if not math.isclose(expected, event.value, rel_tol=1e-6):
            raise Failed(f"{ARITHMETIC} at step {event.step}: expected {expected}, found {event.value}")


def single(value):
    """In the precision of an event file."""
    return struct.unpack("f", struct.pack("f", value))[0]


def check_pictures(run, events):
    expect("TensorBoard's images", ["neighbours", "views"], sorted(events.Tags()["images"]))
    for event in events.Images("views"):
        expect("the size of the views", (event.width, event.height), decode_png(event.encoded_image_string))
    neighbours = [(one["step"], Path(one["picture"]).read_bytes()) for one in run.evaluations()]
    found = [(event.step, event.encoded_image_string) for event in events.Images("neighbours")]
    expect_each("the step and the bytes of a picture of neighbours", neighbours, found)
    return len(events.Images("views")) + len(found)


def decode_png(content):
    """Its width and height, once all of it was decoded."""
    expect("the first bytes of a PNG", b"\x89PNG\r\n\x1a\n", content[:8])
    chunks, at = [], 8
    while at < len(content):
        [length] = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        [checksum] = struct.unpack_from(">I", content, at + 8 + length)
        expect(f"the checksum of the PNG's {kind}", checksum, zlib.crc32(kind + data))
        chunks.append((kind, data))
        at += 12 + length
    expect("the first and the last chunk of the PNG", (b"IHDR", b"IEND"), (chunks[0][0], chunks[-1][0]))
    width, height, depth, colours = struct.unpack_from(">IIBB", chunks[0][1])
    expect("depth and colours of the PNG, which are 8 bits of RGB", (8, 2), (depth, colours))
    pixels = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    # A row begins with the number of its filter.
    expect("the bytes of its pixels", height * (1 + 3 * width), len(pixels))
    return width, height


def check_histograms(run, events):
    checkpoints = run.checkpoints()
    weights = {step: weights_of(run.folder / f"checkpoints/step-{step:06}/model.safetensors") for step in checkpoints}
    names = {f"weights/{name}" for name in weights[checkpoints[0]]}
    expect_each("TensorBoard's histograms", sorted(names), sorted(events.Tags()["histograms"]))
    for tag in names:
        found = events.Histograms(tag)
        expect(f"the checkpoints of {tag}", checkpoints, [event.step for event in found])
        for event in found:
            values = weights[event.step][tag.removeprefix("weights/")]
            check_histogram(f"{tag} at step {event.step}", values, event.histogram_value)
    return len(names) * len(checkpoints)


def check_histogram(name, values, found):
    expected = (min(values), max(values), len(values))
    expect(f"least, greatest and number of {name}", expected, (found.min, found.max, found.num))
    expect(f"the sum of its buckets, {name}", len(values), sum(found.bucket))
    if not math.isclose(math.fsum(values), found.sum, rel_tol=1e-9, abs_tol=1e-9):
        raise Failed(f"the sum of {name}: expected {math.fsum(values)}, found {found.sum}")


def weights_of(path):
    """The weights of convolutions and linear layers in a file of safetensors, by name."""
    content = path.read_bytes()
    [length] = struct.unpack_from("<Q", content)
    tensors = json.loads(content[8 : 8 + length])
    tensors.pop("__metadata__", None)
    layers = {name: tensor for name, tensor in tensors.items() if len(tensor["shape"]) > 1 and tensor["dtype"] == "F32"}
    place = lambda tensor: slice(*(8 + length + offset for offset in tensor["data_offsets"]))
    return {name: array.array("f", content[place(tensor)]) for name, tensor in layers.items()}


def check_settings(run, scratch):
    """What the tab HPARAMS of a TensorBoard shows."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", run.folder.parent, "--host", "127.0.0.1", "--port", "0"]
    with Program(command, scratch / "tensorboard.txt") as server:
        [address] = server.wait_for("TensorBoard's address", lambda: re.findall(r"http://127\.0\.0\.1:\d+", server.words()))
        wish = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"], "sliceSize": 10}

        def groups():
            status, text = ask(f"{address}/data/plugin/hparams/session_groups", wish)
            return json.loads(text)["sessionGroups"] if status == 200 else []

        # It reads the end of a file a moment after its beginning.
        server.wait_until("in HPARAMS", ["STATUS_SUCCESS"], lambda: [group["sessions"][0]["status"] for group in groups()])
        [group] = groups()
    expected = flat(run.recipe)
    expect_each("TensorBoard's hyperparameters", sorted(expected.items()), sorted(group["hparams"].items()))
    return len(expected)


def flat(table, prefix=""):
    """Values by their whole names; lists as they are written."""
    found = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = written(value) if isinstance(value, list) else value
    return found


def written(value):
    """As TOML writes it within a line."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {written(one)}' for name, one in value.items())} }}"
    return json.dumps(value)


# ---- All of it ---------------------------------------------------------------------------------------------------


def passes(name, check, *arguments):
    """Whether nothing is wrong, which is said."""
    try:
        print(f"{name}: passed, {check(*arguments)}", flush=True)
        return True
    except Skipped as missing:
        print(f"{name}: SKIPPED, {missing}", flush=True)
        return True
    except Failed as failure:
        print(f"{name}: FAILED, {failure}", flush=True)
    except Exception:
        # A page without a chart, say: the other parts are looked at all the same.
        print(f"{name}: FAILED, it is not as this script reads it\n{traceback.format_exc()}", flush=True)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinator", type=Path, default=ROOT / "target/release/coordinator", help="the program")
    program = parser.parse_args().coordinator.resolve()
    if not program.exists():
        sys.exit(f"expected the coordinator at {program}, found nothing: build first, or say --coordinator")
    # What was started is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="simsiam-tools-") as folder, Run(program, Path(folder)) as run:
        scratch = Path(folder)
        if not passes("begin", run.begin):
            return 1
        results = [
            passes("probes", check_probes, run),
            passes("prometheus", check_promtool, run),
            passes("browser", check_browser, run, scratch),
            passes("end", run.end),
            passes("tensorboard", check_tensorboard, run, scratch),
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
