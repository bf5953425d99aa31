// What the pointer is at. The page is complete without this.
"use strict";
const tip = document.getElementById("tip");

function show(content, x, y) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 16 + width < innerWidth ? x + 16 : Math.max(4, x - 16 - width);
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - height - 4))}px`;
}

function line(text) {
  const element = document.createElement("div");
  element.textContent = text;
  return element;
}

/** Where an event is, in the units of a drawing. */
function within(svg, event) {
  const box = svg.getBoundingClientRect();
  const scale = svg.viewBox.baseVal.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

// Curves: a rule at the nearest point, and the values there. The arrow keys move it.
for (const svg of document.querySelectorAll(".chart svg")) {
  const [left, top, right, bottom, min, max] = svg.dataset.plot.split(" ").map(Number);
  const numbers = (text) => (text ? text.split(" ").map(Number) : []);
  const curves = [...svg.querySelectorAll(".series")].map((series) => ({
    name: series.dataset.name, xs: numbers(series.dataset.xs), ys: numbers(series.dataset.ys),
  }));
  const places = [...new Set(curves.flatMap((curve) => curve.xs))].sort((a, b) => a - b);
  const cursor = svg.querySelector(".cursor");
  const at = (x) => left + ((x - min) / (max - min)) * (right - left);
  let current = places.length - 1;

  const mark = (index, clientX, clientY) => {
    current = Math.max(0, Math.min(places.length - 1, index));
    const x = places[current];
    const epoch = svg.dataset.epoch ? ` · epoch ${(x / svg.dataset.epoch).toFixed(1)}` : "";
    const one = svg.dataset.x.replace(/s$/, "");
    const lines = [line(`${one} ${+x.toFixed(2)}${epoch}`)];
    for (const { name, xs, ys } of curves) {
      const index = xs.indexOf(x);
      if (index >= 0) {
        const value = ys[index].toFixed(svg.dataset.decimals).replace("-", "\u2212") + svg.dataset.unit;
        lines.push(line(name ? `${name}: ${value}` : value));
      }
    }
    cursor.setAttribute("x1", at(x));
    cursor.setAttribute("x2", at(x));
    cursor.classList.add("on");
    show(lines, clientX, clientY);
  };
  const leave = () => { cursor.classList.remove("on"); tip.hidden = true; };
  svg.addEventListener("pointermove", (event) => {
    const [x] = within(svg, event);
    const distances = places.map((place) => Math.abs(at(place) - x));
    mark(distances.indexOf(Math.min(...distances)), event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    const index = current + (event.shiftKey ? 10 * move : move);
    const x = places[Math.max(0, Math.min(places.length - 1, index))];
    mark(index, box.left + (at(x) / svg.viewBox.baseVal.width) * box.width, box.top + top);
  });
}

// Maps: the picture of the nearest point, on both maps at once; and one class alone.
for (const maps of document.querySelectorAll(".maps")) {
  const { columns, side, rows } = maps.dataset;
  const names = [...maps.querySelectorAll("button")].map((button) => button.textContent);
  const middle = (element) => {
    const { x, y, width, height } = element.getBBox();
    return [x + width / 2, y + height / 2];
  };
  const unmark = () => maps.querySelectorAll(".pointed").forEach((point) => point.classList.remove("pointed"));
  const picture = (index) => {
    const seen = document.createElement("div");
    const scale = 96 / side;
    seen.className = "seen";
    seen.style.backgroundImage = getComputedStyle(maps).getPropertyValue("--sheet");
    seen.style.backgroundSize = `${columns * side * scale}px ${rows * side * scale}px`;
    seen.style.backgroundPosition =
      `${-(index % columns) * side * scale}px ${-Math.floor(index / columns) * side * scale}px`;
    return seen;
  };
  for (const svg of maps.querySelectorAll(".map")) {
    const points = [...svg.querySelectorAll("[data-i]")];
    let centres;
    svg.addEventListener("pointermove", (event) => {
      centres ??= points.map(middle);
      const [x, y] = within(svg, event);
      let nearest = -1;
      let least = 12 ** 2;
      centres.forEach(([cx, cy], place) => {
        const distance = (cx - x) ** 2 + (cy - y) ** 2;
        const group = points[place].parentNode;
        const hidden = maps.classList.contains("choosing") && !group.classList.contains("chosen");
        if (distance < least && !hidden) [nearest, least] = [place, distance];
      });
      unmark();
      if (nearest < 0) { tip.hidden = true; return; }
      const index = points[nearest].dataset.i;
      maps.querySelectorAll(`[data-i="${index}"]`).forEach((point) => point.classList.add("pointed"));
      const name = names[points[nearest].parentNode.dataset.class];
      show([picture(index), line(name)], event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => { unmark(); tip.hidden = true; });
  }
  for (const button of maps.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const chosen = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", chosen);
      const pressed = [...maps.querySelectorAll('button[aria-pressed="true"]')].map((one) => one.dataset.class);
      maps.classList.toggle("choosing", pressed.length > 0);
      for (const group of maps.querySelectorAll(".map g")) {
        group.classList.toggle("chosen", pressed.includes(group.dataset.class));
      }
    });
  }
}
