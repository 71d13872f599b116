// Charts as plain SVG. All charts of a page share one cursor: the step that is read out everywhere.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 176, LEFT = 48, RIGHT = 10, TOP = 8, BOTTOM = 22;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  value += 0; // no "-0"
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(1).replace("e+", "e");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toLocaleString("en-US", { maximumFractionDigits: digits });
}

function formatValue(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "percent") return (100 * value).toFixed(1) + "%";
  if (unit === "seconds") return formatNumber(value) + " s";
  return formatNumber(value);
}

/** Round values in [low, high], about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => rough <= power * factor * 1.0001);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0);
  return found;
}

/** The range, widened to the next tick on either side. */
function rounded(low, high) {
  const marks = ticks(low, high, 4);
  const step = marks[1] - marks[0];
  return [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
}

/** Exponential moving average, corrected for its start. */
function smooth(values, weight) {
  let sum = 0, norm = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

/** The index of the entry of the sorted list `xs` nearest to `x`. */
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

class Chart {
  constructor(spec, group) {
    this.spec = spec;
    this.group = group;
    this.smoothing = 0;
    this.xs = [...new Set(spec.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    this.at = element("span", { class: "at" });
    this.legend = element("ul", { class: "legend" });
    this.plot = element("div", { class: "plot", tabindex: "0", role: "img" });
    this.figure = element("figure", { class: "chart", "data-chart": spec.key },
      element("h3", {}, spec.title, this.at), this.legend, this.plot);
    if (spec.note) this.figure.append(element("figcaption", { class: "note" }, spec.note));
    this.spoken = element("span", { class: "visually-hidden", "aria-live": "polite" });
    this.figure.append(this.spoken);
    this.values = spec.lines.map((line) => element("b"));
    spec.lines.forEach((line, i) => this.legend.append(element("li", { class: `series-${i % 6}` },
      element("span", { class: "key", "aria-hidden": "true" }), line.name, this.values[i])));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.plot);
    this.read(null);
  }

  listen() {
    const stepAt = (event) => this.invert(event.clientX - this.plot.getBoundingClientRect().left);
    this.plot.addEventListener("pointermove", (event) => this.group.setStep(stepAt(event)));
    this.plot.addEventListener("pointerleave", () => this.group.setStep(null));
    this.plot.addEventListener("click", (event) => this.group.choose(this.xs[nearest(this.xs, stepAt(event))]));
    this.plot.addEventListener("blur", () => { this.spoken.textContent = ""; this.group.setStep(null); });
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const last = this.xs.length - 1;
    const now = this.step === null || this.step === undefined ? last : nearest(this.xs, this.step);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter") this.group.choose(this.xs[now]);
    if (to === undefined) return;
    event.preventDefault();
    this.group.setStep(this.xs[Math.min(last, Math.max(0, to))]);
    this.spoken.textContent = `step ${this.at.dataset.step}: ` + this.readout();
  }

  readout() {
    return this.spec.lines.map((line, i) => `${line.name} ${this.values[i].textContent}`).join(", ");
  }

  /** What is drawn: y values, and for a stack the lower and upper edge of every line. */
  layout() {
    let base = null;
    return this.spec.lines.map((line) => {
      const y = this.smoothing ? smooth(line.y, this.smoothing) : line.y;
      if (this.spec.kind !== "stack") return { ...line, drawn: y };
      const floor = base ?? y.map(() => 0);
      base = y.map((value, i) => value + floor[i]);
      return { ...line, drawn: base, floor };
    });
  }

  range(lines) {
    const all = lines.flatMap((line) => [...line.drawn, ...line.y, ...(line.low ?? []), ...(line.high ?? [])]);
    let low = Math.min(...all), high = Math.max(...all, this.spec.least ?? -Infinity);
    if (this.spec.unit === "percent" || this.spec.kind === "stack" || (low > 0 && low < 0.5 * high)) low = Math.min(0, low);
    if (this.spec.unit === "percent") high = Math.max(high, Math.min(1, 1.15 * high), 0.05);
    if (low !== high && this.spec.unit !== "percent") [low, high] = rounded(low, high);
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low = low === 0 ? 0 : low - pad; high += pad; }
    return [low, high];
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const lines = this.layout();
    const [low, high] = this.range(lines);
    const [first, last] = [this.xs[0], this.xs.at(-1)];
    const span = last - first || 1;
    this.x = (step) => (first === last ? (LEFT + width - RIGHT) / 2 : LEFT + ((step - first) / span) * (width - LEFT - RIGHT));
    this.y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    this.invert = (pixel) => first + ((pixel - LEFT) / (width - LEFT - RIGHT)) * span;
    const svg = shape("svg", { height: HEIGHT, "aria-hidden": "true" });
    this.axes(svg, width, low, high, first, last);
    lines.forEach((line, i) => this.line(svg, line, i));
    this.cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.markers = lines.map((line, i) => shape("circle", { class: `dot series-${i % 6}`, r: 4, visibility: "hidden" }));
    svg.append(this.cursor, ...this.markers);
    this.drawn = lines;
    this.plot.replaceChildren(svg);
    this.plot.setAttribute("aria-label", this.describe());
    this.read(this.step ?? null);
  }

  describe() {
    const parts = this.spec.lines.map((line) => `${line.name} from ${formatValue(line.y[0], this.spec.unit)} at step ` +
      `${line.x[0]} to ${formatValue(line.y.at(-1), this.spec.unit)} at step ${line.x.at(-1)}`);
    return `${this.spec.title}: ${parts.join("; ")}`;
  }

  axes(svg, width, low, high, first, last) {
    for (const value of ticks(low, high, 4)) {
      const y = this.y(value);
      svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      const label = this.spec.unit === "percent" ? Math.round(100 * value * 10) / 10 + "%" : formatNumber(value);
      svg.append(shape("text", { x: LEFT - 7, y: y + 4, "text-anchor": "end" }, label));
    }
    svg.append(shape("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    const steps = first === last ? [first] : ticks(first, last, width / 90).filter(Number.isInteger);
    for (const step of steps) {
      svg.append(shape("text", { x: this.x(step), y: HEIGHT - 6, "text-anchor": "middle" }, step.toLocaleString("en-US")));
    }
  }

  path(xs, ys) {
    return xs.map((x, i) => `${i ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(ys[i]).toFixed(1)}`).join("");
  }

  between(xs, lower, upper) {
    const back = [...xs].reverse().map((x, i) => `L${this.x(x).toFixed(1)} ${this.y(lower.at(-1 - i)).toFixed(1)}`);
    return this.path(xs, upper) + back.join("") + "Z";
  }

  line(svg, line, index) {
    const group = shape("g", { class: `series-${index % 6}` });
    if (line.floor) {
      group.append(shape("path", { class: "area", d: this.between(line.x, line.floor, line.drawn) }));
    } else {
      if (line.low && this.spec.kind === "points") {
        line.x.forEach((x, i) => group.append(shape("line", { class: "whisker", x1: this.x(x), x2: this.x(x), y1: this.y(line.low[i]), y2: this.y(line.high[i]) })));
      } else if (line.low) {
        group.append(shape("path", { class: "band", d: this.between(line.x, line.low, line.high) }));
      }
      if (this.smoothing) group.append(shape("path", { class: "curve raw", d: this.path(line.x, line.y) }));
      group.append(shape("path", { class: "curve", d: this.path(line.x, line.drawn) }));
      if (this.spec.kind === "points" || line.x.length === 1) {
        line.x.forEach((x, i) => group.append(shape("circle", { class: "dot", r: 4, cx: this.x(x), cy: this.y(line.drawn[i]) })));
      }
    }
    svg.append(group);
  }

  /** Show the values at a step; the newest ones without a step. */
  read(step) {
    this.step = step;
    this.spec.lines.forEach((line, i) => {
      const index = step === null ? line.x.length - 1 : nearest(line.x, step);
      const range = line.low ? ` (${formatValue(line.low[index], this.spec.unit)} – ${formatValue(line.high[index], this.spec.unit)})` : "";
      this.values[i].textContent = formatValue(line.y[index], this.spec.unit) + range;
      if (!this.markers) return;
      const marker = this.markers[i];
      marker.setAttribute("cx", this.x(line.x[index]));
      marker.setAttribute("cy", this.y(this.drawn[i].drawn[index]));
      marker.setAttribute("visibility", step === null ? "hidden" : "visible");
    });
    const at = this.xs[step === null ? this.xs.length - 1 : nearest(this.xs, step)];
    this.at.textContent = `step ${at.toLocaleString("en-US")}`;
    this.at.dataset.step = at;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(at));
  }
}

/** Charts with one cursor. `onChoose(step, previous step)` hears a click. */
class ChartGroup {
  constructor(onChoose) {
    this.charts = [];
    this.onChoose = onChoose;
  }

  add(specs, parent) {
    for (const spec of specs) {
      const chart = new Chart(spec, this);
      this.charts.push(chart);
      parent.append(chart.figure);
      chart.draw();
    }
  }

  setStep(step) {
    this.pending = step;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      for (const chart of this.charts) chart.read(this.pending);
    });
    if (document.activeElement?.classList.contains("plot")) for (const chart of this.charts) chart.read(step);
  }

  choose(step) {
    this.onChoose(step);
  }

  setSmoothing(weight) {
    for (const chart of this.charts) {
      if (chart.spec.kind === "points" || chart.spec.key === "learning_rate") continue;
      chart.smoothing = weight;
      chart.draw();
    }
  }
}
