// Fills the page, and keeps it as the run is. Values come from the server as numbers.
"use strict";

const $ = (id) => document.getElementById(id);
const meta = (name) => document.querySelector(`meta[name=${name}]`).content;
const tip = $("tip");

// ---- Words -----------------------------------------------------------------------------------------------------

/** A number for people: groups of three, a real minus sign. */
function number(value, decimals = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const [whole, fraction] = Math.abs(value).toFixed(decimals).split(".");
  const grouped = whole.length > 4 ? whole.replace(/\B(?=(\d{3})+$)/g, "\u202f") : whole;
  const zero = Number(Math.abs(value).toFixed(decimals)) === 0;
  return (value < 0 && !zero ? "\u2212" : "") + grouped + (fraction ? `.${fraction}` : "");
}

/** A number with so many digits that count, for axes and rates. */
function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    return value.toExponential(1).replace("-", "\u2212").replace("e+", "e").replace("e-", "e\u2212");
  }
  const decimals = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4;
  return number(value, decimals);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([length]) => whole >= length);
  if (first < 0) return "0 s";
  const [length, name] = units[first];
  const next = units[first + 1];
  const rest = next ? Math.floor((whole % length) / next[0]) : 0;
  return `${Math.floor(whole / length)} ${name}${rest ? ` ${rest} ${next[1]}` : ""}`;
}

/** A size or a rate with the prefix that leaves one to three digits before the point. */
function scaled(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const prefixes = ["", "k", "M", "G", "T", "P"];
  const place = Math.max(0, Math.min(prefixes.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  const shown = value / 1000 ** place;
  return `${number(shown, shown >= 100 ? 0 : shown >= 10 ? 1 : 2)} ${prefixes[place]}${unit}`;
}

const age = (ms) => (ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : duration(ms / 1000));
const milliseconds = (seconds) => (seconds < 1 ? `${number(1000 * seconds)} ms` : `${number(seconds, 2)} s`);
const percent = (share, decimals = 0) => `${number(100 * share, decimals)} %`;
const words = (name) => name.replaceAll("_", " ");

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An element with text, attributes and children. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// ---- What is shown ---------------------------------------------------------------------------------------------

/** Points of a curve that are asked for; twice as many by what comes, and they are asked for again. */
const POINTS = 600;

let status = null;
let story = { moments: [], generations: [], evaluations: [], cards: [], steps_per_epoch: null };
let columns = empty();
/** Of which of the run's lives these are: one that is rolled back begins another. */
let life = null;
/** What is shown: "all", { last: steps } or { from, to }. */
let range = "all";
/** What was asked for last, which is shown once it is there. */
let wanted = range;
/** Why it is not, if it cannot be had. */
let refusal = "";
/** Rises with each question, so that a late answer to an earlier one is left alone. */
let question = 0;
/** The last question that is not under way any more, whether it was answered or has failed. */
let answered = 0;
/** What has come since a question was asked: its answer may not know of it. */
let meanwhile = [];

function empty() {
  return { first: [], last: [], epoch: [], curves: {}, seconds: {} };
}

function bounds(range) {
  const last = lastStep();
  if (range === "all") return { from: 1, to: Math.max(last, 2) };
  if (range.last) return { from: Math.max(1, last - range.last + 1), to: Math.max(last, 2) };
  return range;
}

const lastStep = () => Math.max(status?.last_step?.step ?? 0, columns.last.at(-1) ?? 0);

const isLive = (range) => range === "all" || range.last;

/** Asks for the steps of a range. What is here stays until they are there. */
async function ask(next = wanted) {
  const mine = ++question;
  wanted = next;
  meanwhile = [];
  const { from, to } = bounds(next);
  const answer = await read(`/api/history?points=${POINTS}&from=${from}${isLive(next) ? "" : `&to=${to}`}`);
  if (mine !== question) return;
  answered = mine;
  if (!answer) {
    // What is here has all that came meanwhile.
    if (next !== range) refusal = "Other steps cannot be had, the coordinator does not answer. ";
    wanted = range;
    return draw();
  }
  range = next;
  refusal = "";
  ({ columns, life } = answer);
  meanwhile.splice(0).forEach(append);
  draw();
  return answer.last_step;
}

/** The JSON at an address; null if there is none. */
async function read(address) {
  try {
    const response = await fetch(address);
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

/** Steps that have come. */
function append(news) {
  if (answered !== question) meanwhile.push(news);
  if (!isLive(range)) return;
  let begin = news.first.findIndex((step) => step > (columns.last.at(-1) ?? 0));
  if (begin < 0) return;
  while (begin < news.first.length && mergeLast(news, begin)) begin++;
  const extend = (to, from) => { for (let i = begin; i < from.length; i++) to.push(from[i]); };
  for (const key of ["first", "last", "epoch"]) extend(columns[key], news[key]);
  for (const [name, curve] of Object.entries(news.curves)) {
    columns.curves[name] ??= { mean: [], low: [], high: [] };
    for (const key of ["mean", "low", "high"]) extend(columns.curves[name][key], curve[key]);
  }
  for (const [name, values] of Object.entries(news.seconds)) extend((columns.seconds[name] ??= []), values);
  // An answer under way would be thrown away for another one, and on a slow link none would ever be taken.
  if (columns.first.length > 2 * POINTS && answered === question) ask();
  soon();
}

/** Takes step `i` into the last point, as long as that stands for fewer steps than the others do. */
function mergeLast(news, i) {
  const end = columns.first.length - 1;
  const steps = (at) => columns.last[at] - columns.first[at] + 1;
  if (end < 1 || steps(end) >= steps(0)) return false;
  const count = steps(end);
  columns.last[end] = news.last[i];
  columns.epoch[end] = news.epoch[i];
  const mean = (before, now) => (now === null ? before : before === null ? now : (before * count + now) / (count + 1));
  const least = (before, now, pick) => (now === null ? before : before === null ? now : pick(before, now));
  for (const [name, curve] of Object.entries(columns.curves)) {
    curve.mean[end] = mean(curve.mean[end], news.curves[name].mean[i]);
    curve.low[end] = least(curve.low[end], news.curves[name].low[i], Math.min);
    curve.high[end] = least(curve.high[end], news.curves[name].high[i], Math.max);
  }
  for (const [name, values] of Object.entries(columns.seconds)) values[end] = mean(values[end], news.seconds[name][i]);
  return true;
}

/** Drops the points that have come to lie before the range, where they would be drawn beside it and scale its axes. */
function dropBefore(from) {
  let gone = 0;
  while (columns.last[gone] < from) gone++;
  if (!gone) return;
  const curves = Object.values(columns.curves).flatMap(({ mean, low, high }) => [mean, low, high]);
  const all = [columns.first, columns.last, columns.epoch, ...curves, ...Object.values(columns.seconds)];
  for (const values of all) values.splice(0, gone);
}

/** Draws once for all that came within a frame. */
let due = false;
function soon() {
  if (due || document.hidden) return;
  due = true;
  requestAnimationFrame(() => { due = false; draw(); });
}
document.addEventListener("visibilitychange", () => soon());

// ---- Charts ----------------------------------------------------------------------------------------------------

const HEIGHT = 216;
const EDGE = { left: 52, right: 10, top: 10, bottom: 26 };
const PARTS = [
  ["data", "data", 9], ["forward", "forward", 0], ["backward", "backward", 4],
  ["all_reduce", "all-reduce", 1], ["update", "update", 7], ["rest", "the rest", 3],
];

const CHARTS = [
  { id: "loss", title: "Loss", decimals: 4 },
  { id: "collapse_level", title: "Collapse level", decimals: 3, least: [0, 1], guide: 1, meaning: "1 is spread over the whole sphere, 0 is collapse" },
  { id: "knn", title: "kNN accuracy", decimals: 2, unit: " %" },
  { id: "learning_rate", title: "Learning rate", decimals: 5, least: [0] },
  { id: "gradient_norm", title: "Gradient norm", decimals: 3, least: [0] },
  { id: "images_per_second", title: "Images per second", decimals: 0, least: [0] },
  { id: "time", title: "Where the first worker's time goes", decimals: 1, unit: " %", least: [0, 100] },
];

/** Steps between ticks that people like. */
function ticks(low, high, most) {
  if (!(high > low)) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const places = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) places.push(i * step);
  return { places, step };
}

/** A tick's value, with as many digits as tell it from the one beside it. */
function tickLabel(value, step) {
  if (Math.abs(value) >= 1e6 && step >= 1e5) return `${number(value / 1e6, decimalsOf(step / 1e6))} M`;
  if (value === 0 && step < 1e-4) return "0";
  if (value !== 0 && Math.abs(value) < 1e-3 && step < 1e-4) {
    const power = 10 ** Math.floor(Math.log10(Math.abs(value)) + 1e-9);
    return value.toExponential(decimalsOf(step / power)).replace("-", "\u2212").replace("e-", "e\u2212");
  }
  return number(value, decimalsOf(step));
}

/** Digits after the point of multiples of a step between ticks: 2.5 has one more than 2. */
function decimalsOf(step) {
  const power = Math.floor(Math.log10(step) + 1e-9);
  const isOdd = Math.abs(step / 10 ** power - 2.5) < 0.01;
  return Math.max(0, (isOdd ? 1 : 0) - power);
}

/** The points of a chart's curves within the range: { name, colour, xs, ys, lows, highs, shape }. */
function seriesOf(chart, { from, to }) {
  if (chart.id === "knn") return accuracies(from, to);
  if (chart.id === "time") return shares();
  const curve = columns.curves[chart.id];
  if (!curve) return [];
  const xs = columns.first.map((first, i) => (first + columns.last[i]) / 2);
  return [{ name: "", colour: 0, xs, ys: curve.mean, lows: curve.low, highs: curve.high, shape: "line" }];
}

function accuracies(from, to) {
  const curves = new Map();
  for (const { evaluation, step, figures } of story.evaluations) {
    if (step < from - 1 || step > to) continue;
    for (const [figure, value] of Object.entries(figures)) {
      if (figure.startsWith("top5")) continue;
      const name = `${evaluation === "knn" ? "" : `${evaluation} `}${settings(figure)}`;
      if (!curves.has(name)) curves.set(name, { name, colour: curves.size, xs: [], ys: [], shape: "marks" });
      const curve = curves.get(name);
      curve.xs.push(step);
      curve.ys.push(100 * value);
    }
  }
  return [...curves.values()].map((curve) => ({ ...curve, lows: curve.ys, highs: curve.ys }));
}

/** "top1_k200_t0.1" as "k 200, T 0.1". */
function settings(figure) {
  const parts = figure.match(/^top1_k(\d+)_t([\d.]+)$/);
  return parts ? `k ${parts[1]}, T ${parts[2]}` : words(figure);
}

function shares() {
  const xs = columns.first.map((first, i) => (first + columns.last[i]) / 2);
  const sums = xs.map((_, i) => PARTS.reduce((sum, [part]) => sum + (columns.seconds[part]?.[i] ?? 0), 0));
  let below = xs.map(() => 0);
  return PARTS.map(([part, name, colour]) => {
    const own = xs.map((_, i) => (100 * (columns.seconds[part]?.[i] ?? 0)) / (sums[i] || 1));
    const lows = below;
    below = below.map((low, i) => low + own[i]);
    return { name, colour, xs, ys: own, lows, highs: below, shape: "area" };
  });
}

for (const chart of CHARTS) {
  chart.figure = make("figure", { class: chart.id === "time" ? "chart wide" : "chart" });
  chart.caption = make("figcaption", {}, make("span", { class: "title" }, chart.title));
  chart.now = make("span", { class: chart.id === "knn" || chart.id === "time" ? "legend" : "now" });
  chart.caption.append(chart.now);
  chart.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  chart.svg.setAttribute("tabindex", "0");
  chart.svg.setAttribute("role", "img");
  chart.figure.append(chart.caption, chart.svg);
  $("charts").append(chart.figure);
  listen(chart);
}
new ResizeObserver(soon).observe($("charts"));

function draw() {
  const span = bounds(range);
  if (range.last) dropBefore(span.from);
  for (const chart of CHARTS) drawChart(chart, span);
  if (marked) markAgain();
  const shown = columns.first.length;
  const steps = columns.last.length ? columns.last.at(-1) - columns.first[0] + 1 : 0;
  const most = Math.max(...columns.last.map((last, at) => last - columns.first[at] + 1));
  const thinned = shown && steps > shown ? ` Lines are means of up to ${most} steps that follow each other, bands their extremes.` : "";
  // The first part is read aloud where it changes, and so does not count steps.
  say($("chosen"), refusal + (shown ? chosen(span) : "The curves begin with the first step."));
  say($("of"), shown ? `${range.last ? `, ${number(span.from)} to ${number(span.to)},` : ""} of ${number(lastStep())}.${thinned}` : "");
  for (const button of document.querySelectorAll("[data-range]")) {
    const is = button.dataset.range === "all" ? range === "all" : range.last === Number(button.dataset.range);
    button.setAttribute("aria-pressed", is);
  }
}

function chosen({ from, to }) {
  if (range === "all") return "All steps";
  return range.last ? `The last ${number(range.last)} steps` : `Steps ${number(from)} to ${number(to)}`;
}

function drawChart(chart, { from, to }) {
  const width = Math.max(240, chart.svg.clientWidth || 400);
  const right = width - EDGE.right;
  const bottom = HEIGHT - EDGE.bottom;
  const series = seriesOf(chart, { from, to });
  chart.series = series;
  const { low, high, places, step } = vertical(chart, series);
  const x = (value) => EDGE.left + ((value - from) / Math.max(1, to - from)) * (right - EDGE.left);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - EDGE.top);
  chart.scale = { x, from, to, right, left: EDGE.left };
  const lines = places.map((place) =>
    `<line class="rule" x1="${EDGE.left}" x2="${right}" y1="${y(place)}" y2="${y(place)}"/><text class="left" x="${EDGE.left - 6}" y="${y(place) + 4}">${tickLabel(place, step)}</text>`);
  const across = ticks(from, to, width < 300 ? 3 : width < 700 ? 4 : 8);
  const labels = across.places.filter((place) => place >= 1 && Number.isInteger(place)).map((place) =>
    `<text class="below" x="${x(place)}" y="${HEIGHT - 6}">${tickLabel(place, Math.max(1, across.step))}</text>`);
  const born = story.generations.filter((one) => one.step > from && one.step <= to && one.generation > 1).map((one) =>
    `<line class="born" x1="${x(one.step)}" x2="${x(one.step)}" y1="${EDGE.top}" y2="${bottom}"/>`);
  const guide = chart.guide === undefined ? "" :
    `<line class="guide" x1="${EDGE.left}" x2="${right}" y1="${y(chart.guide)}" y2="${y(chart.guide)}"/>`;
  const curves = series.map((one) => `<g class="c${one.colour}">${shape(one, x, y)}</g>`);
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  chart.svg.setAttribute("height", HEIGHT);
  // A point that stands for several steps may lie beside the range. The last one's mark is to be whole.
  const plot = `<clipPath id="plot-${chart.id}"><rect x="${EDGE.left - 5}" y="0" width="${right - EDGE.left + 10}" height="${HEIGHT}"/></clipPath>`;
  const clipped = `${plot}<g clip-path="url(#plot-${chart.id})">${curves.join("")}</g>`;
  chart.svg.innerHTML = lines.join("") + labels.join("") + born.join("") + clipped + guide +
    `<line class="cursor" y1="${EDGE.top}" y2="${bottom}"/><rect class="choosing" y="${EDGE.top}" height="${bottom - EDGE.top}"/>`;
  chart.svg.setAttribute("aria-label", summary(chart, series, from, to));
  caption(chart, series);
}

function vertical(chart, series) {
  let [low, high] = [Infinity, -Infinity];
  for (const one of series) {
    for (let i = 0; i < one.lows.length; i++) {
      if (one.lows[i] !== null && one.lows[i] < low) low = one.lows[i];
      if (one.highs[i] !== null && one.highs[i] > high) high = one.highs[i];
    }
  }
  for (const value of chart.least ?? []) { low = Math.min(low, value); high = Math.max(high, value); }
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  if (high - low < 1e-12) { const room = Math.abs(high) * 0.1 || 0.5; low = chart.least?.includes(low) ? low : low - room; high += room; }
  const { places, step } = ticks(low, high, 4);
  if (chart.id === "time") return { low: 0, high: 100, places, step };
  const margin = 0.04 * (high - low);
  const fixed = (value) => chart.least?.includes(value);
  return { low: fixed(low) ? low : low - margin, high: high + margin, places, step };
}

function shape({ xs, ys, lows, highs, shape: kind }, x, y) {
  const px = (value) => value.toFixed(1);
  const path = (values, begin = "M") => {
    let text = "";
    let pen = begin;
    for (let i = 0; i < xs.length; i++) {
      if (values[i] === null) { pen = "M"; continue; }
      text += `${pen}${px(x(xs[i]))} ${px(y(values[i]))}`;
      pen = "L";
    }
    return text;
  };
  if (!xs.length) return "";
  if (kind === "marks") {
    return `<path class="line" d="${path(ys)}"/>` + xs.map((one, i) => `<circle class="mark" r="3.5" cx="${px(x(one))}" cy="${px(y(ys[i]))}"/>`).join("");
  }
  const around = () => {
    let back = "";
    for (let i = xs.length - 1; i >= 0; i--) if (lows[i] !== null) back += `L${px(x(xs[i]))} ${px(y(lows[i]))}`;
    return `${path(highs)}${back}Z`;
  };
  if (kind === "area") return `<path class="area" d="${around()}"/>`;
  const banded = xs.length > 1 && lows.some((low, i) => low !== highs[i]);
  const dot = xs.length === 1 ? `<circle class="mark" r="3" cx="${px(x(xs[0]))}" cy="${px(y(ys[0]))}"/>` : "";
  return (banded ? `<path class="band" d="${around()}"/>` : "") + `<path class="line" d="${path(ys)}"/>` + dot;
}

function summary(chart, series, from, to) {
  const told = series.filter((one) => one.ys.length).map((one) => {
    const text = (value) => number(value, chart.decimals) + (chart.unit ?? "");
    const [first, last] = [one.ys[0], one.ys.at(-1)];
    return `${one.name ? `${one.name}: ` : ""}${text(first)} at first, ${text(last)} at last`;
  });
  return `${chart.title}, steps ${from} to ${to}. ${told.join("; ") || "Nothing yet"}.`;
}

function caption(chart, series) {
  if (chart.id === "time" || chart.id === "knn") {
    const names = series.map((one) => `${one.name}|${one.colour}`).join();
    if (chart.named === names) return;
    chart.named = names;
    chart.now.replaceChildren(...series.map((one) => make("span", { class: `c${one.colour}` }, make("i", { class: "swatch" }), one.name)));
    if (!series.length) chart.now.textContent = "none yet";
    return;
  }
  const last = series[0]?.ys.at(-1);
  const name = chart.guide === undefined ? "" : "healthy near 1";
  const exact = status?.last_step?.[chart.id];
  const value = isLive(range) ? exact ?? last : last;
  say(chart.now, value === undefined ? "" : name ? `${number(value, chart.decimals)} · ${name}` : chart.id === "learning_rate" ? short(value) : number(value, chart.decimals));
}

// ---- Looking closer --------------------------------------------------------------------------------------------

/** The chart, the place on it and its step that the pointer or the keys are at. */
let marked = null;

function choose(next) {
  unmark();
  ask(next);
}

for (const button of document.querySelectorAll("[data-range]")) {
  button.addEventListener("click", () => choose(button.dataset.range === "all" ? "all" : { last: Number(button.dataset.range) }));
}

function show(lines, x, y) {
  tip.replaceChildren(...lines.map((text) => make("div", {}, text)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 16 + width < innerWidth ? x + 16 : Math.max(4, x - 16 - width);
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - height - 4))}px`;
}

const placesOf = (chart) => chart.series?.find((one) => one.xs.length)?.xs ?? [];

function nearest(places, value) {
  let [low, high] = [0, places.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < value) low = middle + 1; else high = middle;
  }
  return low > 0 && value - places[low - 1] < places[low] - value ? low - 1 : low;
}

/** The rule at a place, on all charts that have it. */
function rule(chart, index) {
  const at = placesOf(chart)[index];
  for (const other of CHARTS) {
    const line = other.svg.querySelector(".cursor");
    if (!line || !other.scale) continue;
    line.classList.toggle("on", at !== undefined);
    if (at === undefined) continue;
    line.setAttribute("x1", other.scale.x(at));
    line.setAttribute("x2", other.scale.x(at));
  }
}

function unmark() {
  marked = null;
  tip.hidden = true;
  for (const chart of CHARTS) chart.svg.querySelector(".cursor")?.classList.remove("on");
}

/** On charts that were drawn anew, where the same step may have another place, or none. */
function markAgain() {
  const places = placesOf(marked.chart);
  if (!(places[0] <= marked.at)) return unmark();
  marked.index = nearest(places, marked.at);
  rule(marked.chart, marked.index);
}

function mark(chart, index, clientX, clientY) {
  const places = placesOf(chart);
  if (!places.length) return;
  index = Math.max(0, Math.min(places.length - 1, index));
  const at = places[index];
  marked = { chart, index, at };
  rule(chart, index);
  const [first, last] = chart.id === "knn" ? [at, at] : [columns.first[index], columns.last[index]];
  const epoch = story.steps_per_epoch ? ` · epoch ${number(last / story.steps_per_epoch, 1)}` : "";
  const lines = [(first === last ? `step ${number(first)}` : `steps ${number(first)} to ${number(last)}`) + epoch];
  const text = (value) => number(value, chart.decimals) + (chart.unit ?? "");
  for (const one of chart.series) {
    const place = one.xs === places ? index : one.xs.indexOf(at);
    if (place < 0 || one.ys[place] === undefined) continue;
    const spread = chart.id !== "time" && first !== last && one.lows[place] !== one.highs[place]
      ? ` (${text(one.lows[place])} to ${text(one.highs[place])})` : "";
    lines.push(`${one.name ? `${one.name}: ` : ""}${text(one.ys[place])}${spread}`);
  }
  show(lines, clientX, clientY);
}

function zoom(chart, factor) {
  const { from, to } = bounds(wanted);
  const middle = marked?.chart === chart ? placesOf(chart)[marked.index] : (from + to) / 2;
  const length = Math.max(4, (to - from) * factor);
  if (length >= lastStep() - 1) return choose("all");
  const begin = Math.max(1, Math.min(Math.round(middle - length / 2), lastStep() - length));
  choose({ from: Math.round(begin), to: Math.round(begin + length) });
}

function listen(chart) {
  const { svg } = chart;
  let began = null;
  const at = (event) => {
    const box = svg.getBoundingClientRect();
    const px = Math.max(EDGE.left, Math.min(chart.scale.right, event.clientX - box.left));
    const { from, to, left, right } = chart.scale;
    return { px, step: from + ((px - left) / (right - left)) * Math.max(1, to - from) };
  };
  const box = (from, to) => {
    const chosen = svg.querySelector(".choosing");
    chosen?.classList.toggle("on", from !== undefined);
    if (from === undefined) return;
    chosen?.setAttribute("x", Math.min(from, to));
    chosen?.setAttribute("width", Math.abs(to - from));
  };
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !chart.scale) return;
    began = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!chart.scale) return;
    const here = at(event);
    if (began) box(began.px, here.px);
    mark(chart, nearest(placesOf(chart), here.step), event.clientX, event.clientY);
  });
  svg.addEventListener("pointerup", (event) => {
    if (!began) return;
    const here = at(event);
    const [low, high] = [began, here].sort((a, b) => a.px - b.px);
    began = null;
    box();
    if (high.px - low.px < 8) return;
    const from = Math.max(1, Math.floor(low.step));
    choose({ from, to: Math.max(from + 4, Math.ceil(high.step)) });
  });
  svg.addEventListener("pointercancel", () => { began = null; box(); unmark(); });
  svg.addEventListener("pointerleave", () => { if (!began) unmark(); });
  svg.addEventListener("dblclick", () => choose("all"));
  svg.addEventListener("blur", unmark);
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const places = placesOf(chart);
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
    if (move !== undefined && places.length) {
      const now = marked?.chart === chart ? marked.index : places.length - 1;
      const index = Math.max(0, Math.min(places.length - 1, now + (event.shiftKey ? 10 * move : move)));
      const frame = svg.getBoundingClientRect();
      mark(chart, index, frame.left + chart.scale.x(places[index]), frame.top + EDGE.top);
    } else if (event.key === "+" || event.key === "=") zoom(chart, 0.5);
    else if (event.key === "-") zoom(chart, 2);
    else if (event.key === "0" || event.key === "Escape") choose("all");
    else return;
    event.preventDefault();
  });
}

// ---- The headline ----------------------------------------------------------------------------------------------

const STATES = {
  gathering: "waiting for workers", reuniting: "waiting for workers to come back", unattended: "its coordinator does not answer",
};

const isOver = () => ["completed", "stopped", "failed"].includes(status?.state);

function tile(id, value, note, exact) {
  say($(`tile-${id}`), value);
  say($(`note-${id}`), note);
  if (exact !== undefined && exact !== null) $(`tile-${id}`).dataset.value = exact;
}

function drawStatus() {
  const { last_step: last, recent, total_steps: total } = status;
  say($("state"), STATES[status.state] ?? words(status.state));
  const share = total ? Math.min(1, status.step / total) : 0;
  $("progress").firstElementChild.style.width = `${100 * share}%`;
  $("progress").setAttribute("aria-valuenow", Math.round(100 * share));
  document.title = `${total ? `${Math.floor(100 * share)} % · ` : ""}${status.run} · SimSiam`;
  const [verdict, ...reasons] = status.health.sentence.split(":");
  $("health").className = `health ${status.health.health}`;
  if ($("health").textContent !== status.health.sentence) {
    $("health").replaceChildren(...(reasons.length ? [make("strong", {}, `${verdict}:`), reasons.join(":")] : [verdict]));
  }
  tile("step", number(status.step), `${total ? `of ${number(total)} · ` : ""}epoch ${status.epoch} of ${status.total_epochs}`, status.step);
  const since = status.begun_unix_time_ms ? (status.unix_time_ms - status.begun_unix_time_ms) / 1000 : null;
  const until = status.remaining_s === null ? "" : ` · until about ${clock(status.unix_time_ms + 1000 * status.remaining_s, false)}`;
  tile("remaining", status.remaining_s === null ? "–" : duration(status.remaining_s), since === null ? "" : `begun ${duration(since)} ago${until}`);
  tile("loss", number(last?.loss, 4), "between \u22121 and 1", last?.loss);
  tile("collapse_level", number(last?.collapse_level, 3), "near 1 is healthy, near 0 is collapse", last?.collapse_level);
  const speed = recent ? `of the last ${recent.steps} steps, ${milliseconds(recent.step_s)} each · ${scaled(recent.model_flops_per_second, "FLOP/s")}` : "";
  tile("images_per_second", number(recent?.images_per_second), speed, recent?.images_per_second);
  drawKnn();
  drawWorkers();
  for (const button of document.querySelectorAll("[data-action]")) {
    button.disabled = !connected || !status.actions.includes(button.dataset.action);
  }
  drawViews();
  $("report-there").hidden = !status.has_report;
  $("report-missing").hidden = status.has_report;
}

/** Those of the epoch under way. */
function drawViews() {
  if ($("views")) depict("views", `/views.png?epoch=${Math.max(0, status.epoch - 1)}`);
}

/** Asks for a picture once. The one before stays until it is there, and for good where it cannot be had, as at a run's end. */
function depict(id, address) {
  const shown = $(id);
  if (shown.dataset.wanted === address) return;
  shown.dataset.wanted = address;
  const next = shown.cloneNode();
  next.src = address;
  const place = () => { if ($(id).dataset.wanted === address) $(id).replaceWith(next); };
  next.decode().then(place, () => {});
}

function drawKnn() {
  const knn = story.evaluations.filter((one) => one.evaluation === "knn");
  if (!knn.length) return tile("knn", "–", status?.evaluation_failure ?? "no evaluation yet");
  const best = (one) => Math.max(...Object.entries(one.figures).filter(([name]) => name.startsWith("top1")).map(([, value]) => value));
  const last = knn.at(-1);
  const random = knn.find((one) => one.step === 0);
  const note = `at step ${number(last.step)}${random && random !== last ? `; random weights ${percent(best(random), 1)}` : ""}`;
  tile("knn", percent(best(last), 1), status?.evaluation_failure ? `${note}; ${status.evaluation_failure}` : note, best(last));
}

// ---- Workers ---------------------------------------------------------------------------------------------------

/** Workers give a sign of life each second. */
const LATE_MS = 4000;

function drawWorkers() {
  const { workers, workers_expected: expected, shards, generation } = status;
  const lost = status.workers_lost ? ` ${status.workers_lost} lost so far.` : "";
  say($("workers-caption"), workers.length
    ? `${workers.length} of ${expected} workers, generation ${generation}.${lost}`
    : isOver() ? `The run is over.${lost}` : `No worker is here; the run waits for ${expected}.${lost}`);
  placeRows($("workers-table").tBodies[0], workers.map(({ worker }) => worker));
  for (const worker of workers) fillRow(workerRows.get(worker.worker), worker, shards);
  $("workers-table").hidden = !workers.length;
}

/** Each worker's row. It is kept, since one that is made anew loses the focus, and a press that has begun on it. */
const workerRows = new Map();

/** Has a row for each of these workers in `body`, in their order, and no other one. */
function placeRows(body, workers) {
  for (const [worker, row] of workerRows) {
    if (workers.includes(worker)) continue;
    row.remove();
    workerRows.delete(worker);
  }
  workers.forEach((worker, place) => {
    if (!workerRows.has(worker)) workerRows.set(worker, workerRow(worker, body.dataset));
    const row = workerRows.get(worker);
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
  });
}

function workerRow(worker, { question, label }) {
  const numbers = (name) => make("td", { class: "number", "data-label": name });
  const drain = make("button", { type: "button", "data-action": "drain", "data-worker": worker, "data-question": question, "aria-label": `${label} worker ${worker}` }, label);
  return make("tr", {}, make("th", { scope: "row" }), make("td"), numbers("images/s"), make("td"), numbers("step"),
    numbers("to the others"), numbers("last sign of life"), make("td", {}, drain));
}

function fillRow(row, worker, shards) {
  const [name, held, speed, split, step, others, seen] = row.cells;
  const isAtWork = worker.doing === "training" || worker.doing === "finished";
  const seconds = worker.pace?.seconds;
  const rates = status.rates[worker.worker];
  name.replaceChildren(`worker ${worker.worker}`, make("span", { class: `doing${isAtWork ? "" : " off"}` }, worker.doing), make("small", {}, worker.description));
  held.replaceChildren(...shardsOf(worker, shards));
  speed.replaceChildren(...computed(rates));
  split.replaceChildren(...(seconds ? splitOf(seconds) : ["–"]));
  say(step, seconds ? milliseconds(seconds.step) : "–");
  others.replaceChildren(...sent(rates));
  say(seen, `${age(worker.silent_ms)} ago`);
  seen.classList.toggle("late", worker.silent_ms > LATE_MS);
}

/** A worker's images, the arithmetic that its network needs for them, and which share that is of what its device can. */
function computed(rates) {
  if (!rates) return ["–"];
  const share = rates.peak_share === null ? [] : [make("small", {}, `${percent(rates.peak_share)} of the peak`)];
  return [number(rates.images_per_second), make("small", {}, scaled(rates.model_flops_per_second, "FLOP/s")), ...share];
}

/** What a worker sends to the others, while it is in an all-reduce and in each step. */
function sent(rates) {
  if (!rates || rates.sent_bytes_per_step === null) return ["–"];
  return [scaled(rates.sent_bytes_per_second, "B/s"), make("small", {}, `${scaled(rates.sent_bytes_per_step, "B")} a step`)];
}

function shardsOf({ first_shard: first, shard_count: count }, shards) {
  if (!count) return ["none"];
  const bar = make("span", { class: "shards", "aria-hidden": "true" }, make("i"));
  bar.firstChild.style.left = `${(100 * first) / shards}%`;
  bar.firstChild.style.width = `${(100 * count) / shards}%`;
  return [bar, make("small", {}, count === 1 ? `shard ${first} of ${shards}` : `shards ${first} to ${first + count - 1} of ${shards}`)];
}

function splitOf(seconds) {
  const known = PARTS.slice(0, 5).map(([part]) => seconds[part]);
  const all = [...known, Math.max(0, seconds.step - known.reduce((a, b) => a + b, 0))];
  const total = all.reduce((a, b) => a + b, 0) || 1;
  const bar = make("span", { class: "split", "aria-hidden": "true" }, ...PARTS.map(([, , colour], i) => {
    const part = make("i", { class: `c${colour}` });
    part.style.width = `${(100 * all[i]) / total}%`;
    return part;
  }));
  const told = PARTS.map(([, name], i) => [name, all[i] / total]).filter(([, share]) => share >= 0.005);
  return [bar, make("small", {}, told.map(([name, share]) => `${name} ${percent(share)}`).join(" · "))];
}

// ---- The story -------------------------------------------------------------------------------------------------

/** Moments that are shown at first. */
const FEW = 14;
let momentsShown = FEW;
let momentKind = "all";

function drawStory() {
  drawStrip();
  const chosen = story.moments.filter((moment) => momentKind === "all" || moment.kind === momentKind).reverse();
  $("moments").replaceChildren(...chosen.slice(0, momentsShown).map((moment) => make("li", { class: moment.kind },
    make("span", { class: "time", title: new Date(moment.unix_time_ms).toISOString() }, clock(moment.unix_time_ms)), " ",
    make("strong", {}, moment.event), " ", moment.detail)));
  if (!chosen.length) $("moments").replaceChildren(make("li", {}, momentKind === "fault" ? "No fault so far." : "Nothing yet."));
  $("more").hidden = chosen.length <= momentsShown;
  say($("more"), `Show ${Math.min(50, chosen.length - momentsShown)} earlier ones`);
  drawCards();
  drawNeighbours();
  if (status) drawKnn();
}

/** The time of day, and the day if it is not today's. */
function clock(ms, seconds = true) {
  const date = new Date(ms);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined, hourCycle: "h23" });
  const today = date.toDateString() === new Date(status?.unix_time_ms ?? Date.now()).toDateString();
  return today ? time : `${date.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
}

function drawStrip() {
  const spans = story.generations;
  const holder = $("strip");
  if (!spans.length) { holder.replaceChildren(make("p", { class: "caption" }, "No generation was formed yet.")); return; }
  const width = Math.max(280, holder.clientWidth || 800);
  const over = isOver();
  const end = over ? spans.at(-1).to_ms ?? spans.at(-1).from_ms : status?.unix_time_ms ?? Date.now();
  const start = spans[0].from_ms;
  const most = Math.max(...spans.map((span) => span.workers), status?.workers_expected ?? 1);
  const x = (ms) => 4 + (Math.max(0, Math.min(end, ms) - start) / Math.max(1, end - start)) * (width - 8);
  const [top, floor] = [16, 76];
  const body = spans.map((span, i) => {
    const height = ((floor - top) * span.workers) / most;
    const [left, right] = [x(span.from_ms), x(span.to_ms ?? end)];
    const label = right - left > 18 ? `<text class="below strong" x="${(left + right) / 2}" y="${floor - height / 2 + 4}">${span.generation}</text>` : "";
    const now = i === spans.length - 1 && !span.to_ms ? " now" : "";
    return `<rect class="gen${now}" x="${left}" width="${Math.max(1.5, right - left - 1)}" y="${floor - height}" height="${height}" rx="2"/>${label}`;
  });
  const marks = story.moments.map((moment) => {
    const at = x(moment.unix_time_ms);
    if (moment.unix_time_ms < start) return "";
    if (moment.event === "coordinator") return `<line class="coordinator" x1="${at}" x2="${at}" y1="${top - 6}" y2="${floor}"/>`;
    return moment.kind === "fault" ? `<path class="fault" d="M${at - 5} 3h10l-5 9z"/>` : "";
  });
  const faults = story.moments.filter((moment) => moment.kind === "fault").length;
  holder.innerHTML = `<svg role="img" viewBox="0 0 ${width} 98" height="98">${body.join("")}${marks.join("")}` +
    `<text x="4" y="94">${clock(start)}</text><text class="left" x="${width - 4}" y="94">${over ? clock(end) : "now"}</text></svg>`;
  holder.firstChild.setAttribute("aria-label", `${spans.length} generations, ${faults} faults. The last generation has ${spans.at(-1).workers} workers.`);
}

/** The cards that are on the page, since the story comes again with every moment: who reads earlier ones keeps them. */
let cardsShown = null;

function drawCards() {
  if (cardsShown === JSON.stringify(story.cards)) return;
  cardsShown = JSON.stringify(story.cards);
  if (!story.cards.length) {
    $("cards").replaceChildren(make("p", { class: "missing" }, "There are no result cards yet: ", make("code", {}, "evaluate knn RUN"), " makes one for a checkpoint, also while the run goes on."));
    return;
  }
  const cards = [...story.cards].reverse().map((card) => {
    const figures = card.figures.flatMap((figure) => {
      const value = figure.is_share ? percent(figure.value, 2) : short(figure.value);
      const interval = figure.interval ? `95 %: ${number(100 * figure.interval[0], 1)}–${number(100 * figure.interval[1], 1)}` : "";
      return [make("dt", {}, figure.label), make("dd", interval ? { title: interval } : {}, value)];
    });
    const weights = card.checkpoint ?? "random weights";
    return make("article", { class: "card" }, make("h3", {}, `${card.evaluation} · ${weights}`), make("p", {}, card.data), make("dl", {}, ...figures));
  });
  const few = cards.slice(0, 6);
  const rest = cards.slice(6);
  const parts = [make("div", { class: "cards" }, ...few)];
  const open = $("cards").querySelector("details")?.open ? { open: "" } : {};
  if (rest.length) parts.push(make("details", open, make("summary", {}, `${rest.length} earlier ones`), make("div", { class: "cards" }, ...rest)));
  $("cards").replaceChildren(...parts);
}

/** The card whose neighbours are shown, by its file; null for the newest, whichever that is. */
let neighboursOf = null;
const drawnCards = () => story.cards.filter((card) => card.picture);

function drawNeighbours() {
  const cards = drawnCards();
  $("neighbours-figure").hidden = !cards.length;
  if (!cards.length) return;
  const chosen = cards.findIndex((card) => card.file === neighboursOf);
  const place = chosen < 0 ? cards.length - 1 : chosen;
  const { checkpoint, data, picture } = cards[place];
  const weights = `${checkpoint ?? "random weights"} on ${data}`;
  const slider = $("neighbours-of");
  slider.max = cards.length - 1;
  slider.value = place;
  slider.disabled = cards.length < 2;
  slider.setAttribute("aria-valuetext", weights);
  say($("neighbours-weights"), weights);
  depict("neighbours", `/evaluations/${picture}`);
}

$("neighbours-of").addEventListener("input", ({ target }) => {
  const cards = drawnCards();
  neighboursOf = Number(target.value) === cards.length - 1 ? null : cards[target.value].file;
  drawNeighbours();
});

for (const button of document.querySelectorAll("[data-moments]")) {
  button.addEventListener("click", () => {
    momentKind = button.dataset.moments;
    for (const other of document.querySelectorAll("[data-moments]")) other.setAttribute("aria-pressed", other === button);
    drawStory();
  });
}
$("more").addEventListener("click", () => { momentsShown += 50; drawStory(); });

// ---- Actions ---------------------------------------------------------------------------------------------------

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-action]");
  if (!button) return;
  const { action, worker, question } = button.dataset;
  const dialog = $("confirm");
  say($("confirm-title"), `${button.textContent} ${worker ? `worker ${worker}` : "the run"}?`);
  say($("confirm-question"), question);
  say($("confirm-yes"), button.textContent);
  dialog.returnValue = "";
  dialog.onclose = () => { if (dialog.returnValue === "yes") act(worker ? { action, worker: Number(worker) } : { action }); };
  dialog.showModal();
});

async function act(request) {
  try {
    const response = await fetch("/api/actions", {
      method: "POST",
      headers: { "content-type": "application/json", "x-simsiam-secret": meta("secret") },
      body: JSON.stringify(request),
    });
    say($("answer"), await response.text());
  } catch {
    say($("answer"), "The coordinator does not answer.");
  }
}

// ---- What comes ------------------------------------------------------------------------------------------------

let connected = false;
let ended = false;

function connection(state, text) {
  connected = state === "live";
  $("connection").className = `connection ${state}`;
  say($("connection"), text);
  if (status) drawStatus();
}

function begin(after) {
  const events = new EventSource(`/api/events?after=${after}`);
  const on = (name, hear) => events.addEventListener(name, (event) => hear(JSON.parse(event.data)));
  on("hello", ({ instance, life: now }) => {
    // Another coordinator, with another secret.
    if (instance !== meta("instance")) return location.reload();
    connection("live", "live");
    // The steps that are here may have been made anew while this page was away.
    if (now !== life) ask();
  });
  on("status", (news) => {
    const first = status === null;
    status = news;
    drawStatus();
    if (first) { drawStory(); draw(); }
    if (story.generations.length) drawStrip();
  });
  on("steps", append);
  on("again", () => ask());
  on("story", (news) => { story = news; drawStory(); soon(); });
  on("end", () => {
    ended = true;
    events.close();
    connection("over", "the coordinator has ended; this is how the run stood");
  });
  events.onerror = () => {
    if (ended) return;
    connection("lost", "connection lost, trying again");
    // The browser itself tries again only after an answer that was a stream, or none: not after a proxy's 502, nor
    // where another coordinator asks for the token.
    if (events.readyState === EventSource.CLOSED) setTimeout(reloadWhenThere, AGAIN_MS);
  };
}

/** How long the page waits before it looks for a coordinator again. */
const AGAIN_MS = 2000;

/** Loads the page anew, or the form that asks for the token, as soon as a coordinator answers. */
async function reloadWhenThere() {
  const isThere = await fetch("/healthz").then(({ ok }) => ok, () => false);
  if (isThere) location.reload();
  else setTimeout(reloadWhenThere, AGAIN_MS);
}

ask().then((last) => begin(last ?? 0));
