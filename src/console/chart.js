// Charts of the last hour, as SVG: small ones in the rows, and large ones with an axis and marks.

import { h, s, setAttribute, setText } from "./dom.js";
import { clock, number, time } from "./format.js";

const HOUR = 3600e3;
/** Spans of a large chart: a young history fills the shortest that it fits in. */
const SPANS = [5 * 60e3, 15 * 60e3, HOUR];
/** A longer pause between two points is a gap in the line. */
const GAP = 35e3;

/** The path of a line through points `[x, y]`; `null` is a gap. */
function line(points, step) {
  let [path, open] = ["", false];
  for (const [i, point] of points.entries()) {
    if (!point) {
      open = false;
      continue;
    }
    const [x, y] = [point[0].toFixed(1), point[1].toFixed(1)];
    // A point alone is a dot.
    path += !open ? `M${x} ${y}${points[i + 1] ? "" : "h.1"}` : step ? `H${x}V${y}` : `L${x} ${y}`;
    open = true;
  }
  return path;
}

/** The span for a history: an hour, or less while it is young. */
export function spanOf(history) {
  const age = time.now() - (history.atMillis[0] ?? time.now()) + 10e3;
  return SPANS.find((span) => age < span) ?? HOUR;
}

/** Points of the last hour, or another span, in a box, with gaps where values or times are missing. */
function place(times, values, now, width, height, most, span = HOUR) {
  const points = [];
  for (let i = 0; i < times.length; i++) {
    const x = width * (1 - (now - times[i]) / span);
    if (x < 0) continue;
    if (i > 0 && times[i] - times[i - 1] > GAP) points.push(null);
    const value = values[i];
    points.push(value === null ? null : [Math.min(x, width), height - (height * value) / most]);
  }
  return points;
}

function highest(lists) {
  let most = 0;
  for (const list of lists) for (const value of list) if (value > most) most = value;
  return most;
}

/** A small chart without an axis. */
export function spark(kind) {
  const [width, height] = [72, 22];
  const area = s("path", { class: "area" });
  const stroke = s("path", { class: "line" });
  const element = s("svg", { class: `spark ${kind}`, viewBox: `0 -1 ${width} ${height + 2}`, "aria-hidden": "true", preserveAspectRatio: "none" }, area, stroke);
  return {
    element,
    update(history, key) {
      const values = history?.[key] ?? [];
      const most = highest([values]);
      const points = most > 0 ? place(history.atMillis, values, time.now(), width, height, most, spanOf(history)) : [];
      setAttribute(stroke, "d", line(points));
      const solid = points.filter(Boolean);
      const closed = solid.length > 1 && solid.length === points.length;
      setAttribute(area, "d", closed ? `${line(points)}V${height}H${solid[0][0].toFixed(1)}Z` : "");
    },
  };
}

/** A round number at or above `value`, for the top of an axis. */
export function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 5, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

/**
 * A large chart. `series` have `key`, `label`, `kind` (a class that colours them) and `shape`: line,
 * step or area. `marks` are decisions; `hover(time)` is called as the pointer moves, `pick(mark)` when
 * one is chosen.
 */
export class Chart {
  constructor({ title, series, unit = number, least = 0, hover, pick }) {
    Object.assign(this, { title, series, unit, least, hover, pick });
    this.top = s("text", { class: "tick", x: 0, y: 9 });
    this.half = s("text", { class: "tick" });
    this.grid = s("path", { class: "grid" });
    this.hours = s("g", { class: "hours" });
    this.paths = series.map((one) => s("path", { class: `${one.shape === "area" ? "area" : "line"} ${one.kind}` }));
    this.marks = s("g", { class: "marks" });
    this.cursor = s("path", { class: "cursor" });
    this.svg = s("svg", { class: "plot", role: "img" }, this.grid, this.hours, ...this.paths, this.marks, this.cursor, this.top, this.half);
    this.values = series.map((one) => h("b"));
    const legend = series.map((one, i) => h("span", { class: `key ${one.kind}` }, h("i", { "aria-hidden": "true" }), one.label, " ", this.values[i]));
    this.at = h("span", { class: "at" });
    this.element = h("figure", { class: "chart" }, h("figcaption", null, h("h3", { text: title }), this.at, h("div", { class: "legend" }, ...legend)), this.svg);
    this.svg.addEventListener("pointermove", (event) => this.hover?.(this.timeAt(event)));
    this.svg.addEventListener("pointerleave", () => this.hover?.(null));
    this.svg.addEventListener("click", (event) => {
      const near = this.nearest(this.timeAt(event));
      if (near) this.pick?.(near);
    });
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  timeAt(event) {
    const box = this.svg.getBoundingClientRect();
    return this.now - this.span * (1 - (event.clientX - box.left) / box.width);
  }

  /** The mark within a few pixels of a time. */
  nearest(at) {
    const reach = (8 / Math.max(1, this.svg.clientWidth)) * this.span;
    const near = (this.decisions ?? []).filter((mark) => Math.abs(mark.atMillis - at) < reach);
    return near.sort((a, b) => Math.abs(a.atMillis - at) - Math.abs(b.atMillis - at))[0];
  }

  update(history, decisions) {
    [this.history, this.decisions] = [history, decisions];
    this.draw();
  }

  draw() {
    const [width, height] = [this.svg.clientWidth, this.svg.clientHeight];
    if (!this.history || width === 0) return;
    this.now = time.now();
    this.span = spanOf(this.history);
    const floor = height - 14;
    const columns = this.series.map((one) => one.of?.(this.history) ?? this.history[one.key]);
    const most = Math.max(this.least, ceiling(highest(columns)));
    setAttribute(this.svg, "viewBox", `0 0 ${width} ${height}`);
    setAttribute(this.grid, "d", `M0 .5H${width}M0 ${floor / 2}H${width}M0 ${floor - 0.5}H${width}`);
    setText(this.top, this.unit(most));
    setText(this.half, this.unit(most / 2));
    setAttribute(this.half, "y", floor / 2 + 11);
    this.series.forEach((one, i) => {
      const points = place(this.history.atMillis, columns[i], this.now, width, floor - 1, most, this.span);
      let path = line(points, one.shape !== "line");
      const solid = points.filter(Boolean);
      if (one.shape === "area" && solid.length) {
        path += `V${floor}H${solid[0][0].toFixed(1)}Z`;
      }
      setAttribute(this.paths[i], "d", path);
    });
    this.drawHours(width, floor);
    const ticks = (this.decisions ?? []).map((mark) => [width * (1 - (this.now - mark.atMillis) / this.span), mark]);
    const shown = ticks.filter(([x]) => x >= 0);
    this.marks.replaceChildren(...shown.map(([x, mark]) => s("path", { class: mark.desired > mark.from ? "up" : mark.desired < mark.from ? "down" : "kept", d: `M${x.toFixed(1)} 0V${floor}M${(x - 3).toFixed(1)} ${floor}h6l-3 -5z` })));
    this.read(this.cursorAt ?? null, columns);
    const last = this.series.map((one, i) => `${one.label} ${this.unit(columns[i].at(-1) ?? null)}`).join(", ");
    setAttribute(this.svg, "aria-label", `${this.title}. Now ${last}; the highest value is ${this.unit(highest(columns))}.`);
  }

  /** Labels at the quarters of an hour. */
  drawHours(width, floor) {
    const quarter = this.span === HOUR ? HOUR / 4 : this.span === SPANS[0] ? 60e3 : 3 * 60e3;
    const labels = [];
    for (let at = Math.ceil((this.now - this.span) / quarter) * quarter; at < this.now; at += quarter) {
      const x = width * (1 - (this.now - at) / this.span);
      labels.push(s("path", { class: "grid", d: `M${x.toFixed(1)} 0V${floor}` }));
      const anchor = x < 18 ? "start" : x > width - 18 ? "end" : "middle";
      labels.push(s("text", { class: "tick", x: x.toFixed(1), y: floor + 11, "text-anchor": anchor, text: clock(at, false) }));
    }
    this.hours.replaceChildren(...labels);
  }

  /** Moves the cursor to a time, and shows the values there; without one, the last values. */
  point(at) {
    this.cursorAt = at;
    if (this.history) this.read(at, this.series.map((one) => one.of?.(this.history) ?? this.history[one.key]));
  }

  read(at, columns) {
    const times = this.history.atMillis;
    let i = times.length - 1;
    if (at !== null) while (i > 0 && Math.abs(times[i - 1] - at) <= Math.abs(times[i] - at)) i--;
    const [width, floor] = [this.svg.clientWidth, this.svg.clientHeight - 14];
    const x = at === null || i < 0 ? null : width * (1 - (this.now - times[i]) / this.span);
    setAttribute(this.cursor, "d", x === null ? "" : `M${x.toFixed(1)} 0V${floor}`);
    setText(this.at, at === null || i < 0 ? "" : clock(times[i]));
    this.values.forEach((value, n) => setText(value, this.unit(columns[n][i] ?? null)));
  }
}
