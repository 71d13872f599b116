// The completions: texts in compressed chunks, filters over columns, a list that draws only the rows in sight.

const ROW_HEIGHT = 60;
const MAX_LIST_HEIGHT = 12e6; // browsers stop laying out far beyond this; longer lists scroll in proportion

async function inflate(id) {
  const node = document.getElementById(id);
  const text = node.textContent;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const values = JSON.parse(await new Response(stream).text());
  node.remove(); // the inflated copy is kept instead
  return values;
}

class Completions {
  constructor(columns) {
    Object.assign(this, columns); // total, groups, rows, tasks, metrics
    this.size = this.rows.group.length;
    this.chunks = new Map();
    const groups = this.groups.step.length;
    this.first = new Int32Array(groups + 1).fill(this.size);
    for (let row = this.size - 1; row >= 0; row--) this.first[this.rows.group[row]] = row;
    this.spread = Float64Array.from({ length: groups }, (_, g) => this.deviation(g));
    const rewards = this.rows.reward.filter((reward) => reward !== null);
    this.lowest = rewards.reduce((a, b) => Math.min(a, b), Infinity);
    this.highest = rewards.reduce((a, b) => Math.max(a, b), -Infinity);
  }

  /** Variance of the rewards of a group. */
  deviation(group) {
    const rewards = this.siblings(group).map((row) => this.rows.reward[row]).filter((reward) => reward !== null);
    const mean = rewards.reduce((a, b) => a + b, 0) / (rewards.length || 1);
    return rewards.reduce((sum, reward) => sum + (reward - mean) ** 2, 0) / (rewards.length || 1);
  }

  siblings(group) {
    return Array.from({ length: this.first[group + 1] - this.first[group] }, (_, i) => this.first[group] + i);
  }

  step(row) { return this.groups.step[this.rows.group[row]]; }
  task(row) { return this.tasks[this.groups.task[this.rows.group[row]]]; }
  chunkOf(row) { return this.groups.chunk[this.rows.group[row]]; }

  /** The texts of a chunk: at once when it is there, else a promise. */
  chunk(number) {
    if (!this.chunks.has(number)) {
      const promise = inflate(`chunk-${number}`).then((texts) => { this.chunks.set(number, texts); return texts; });
      this.chunks.set(number, promise);
    }
    return this.chunks.get(number);
  }

  async texts(row) { return this.pick(await this.chunk(this.chunkOf(row)), row); }

  pick(texts, row) {
    const place = this.groups.place[this.rows.group[row]];
    return { prompt: texts.prompts[place], answer: texts.answers[place], completion: texts.completions[this.rows.place[row]] };
  }

  tone(reward) {
    if (reward === null || this.highest === this.lowest) return "";
    const share = (reward - this.lowest) / (this.highest - this.lowest);
    return share >= 0.75 ? "high" : share <= 0.25 ? "low" : "";
  }

  matches(row, filter) {
    const reward = this.rows.reward[row], step = this.step(row);
    if (filter.task !== "" && this.groups.task[this.rows.group[row]] !== Number(filter.task)) return false;
    if (step < filter.stepFrom || step > filter.stepTo) return false;
    if (filter.outcome === "error" && !this.rows.error[row]) return false;
    if (filter.outcome === "length" && this.rows.finish[row] !== "length") return false;
    if (filter.outcome === "best" && reward !== this.highest) return false;
    if (filter.outcome === "worst" && reward !== this.lowest) return false;
    if (filter.rewardFrom === -Infinity && filter.rewardTo === Infinity) return true;
    return reward !== null && reward >= filter.rewardFrom && reward <= filter.rewardTo;
  }

  /** Rows that match everything but the text, sorted. */
  select(filter) {
    const found = [];
    for (let row = 0; row < this.size; row++) if (this.matches(row, filter)) found.push(row);
    return this.sorted(found, filter.sort);
  }

  sorted(found, sort) {
    const sign = sort.startsWith("-") ? -1 : 1;
    const key = {
      step: (row) => this.step(row),
      reward: (row) => this.rows.reward[row],
      tokens: (row) => this.rows.tokens[row],
      spread: (row) => this.spread[this.rows.group[row]],
    }[sort.replace("-", "")];
    if (sort === "step") return found;
    const keys = new Map(found.map((row) => [row, key(row)]));
    return found.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // unscored ones last
      return sign * (x - y) || a - b;
    });
  }

  /** The rows of `found` whose texts contain `query`, in the same order; null when `isStale()` came true. */
  async search(found, query, isStale, progress) {
    const needle = query.toLowerCase();
    const byChunk = Map.groupBy ? Map.groupBy(found, (row) => this.chunkOf(row)) : groupRows(found, (row) => this.chunkOf(row));
    const hits = new Set();
    let done = 0, pause = performance.now();
    for (const [number, rows] of byChunk) {
      const texts = await this.chunk(number);
      if (isStale()) return null;
      for (const row of rows) if (this.contains(this.pick(texts, row), needle)) hits.add(row);
      done++;
      if (performance.now() - pause > 30) { // let the page breathe
        progress(done / byChunk.size);
        await new Promise((resolve) => setTimeout(resolve));
        if (isStale()) return null;
        pause = performance.now();
      }
    }
    return found.filter((row) => hits.has(row));
  }

  contains(texts, needle) {
    return texts.completion.toLowerCase().includes(needle) || texts.prompt.toLowerCase().includes(needle) || texts.answer.toLowerCase().includes(needle);
  }
}

function groupRows(rows, key) {
  const groups = new Map();
  for (const row of rows) {
    const k = key(row);
    if (!groups.has(k)) groups.set(k, []);
    groups.get(k).push(row);
  }
  return groups;
}

/** A text with its tags (<answer> and the like) coloured and the query marked; everything is text, nothing markup. */
function richText(text, query) {
  const pieces = document.createDocumentFragment();
  const wanted = query ? query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") : null;
  const pattern = new RegExp(`(${wanted ?? "(?!)"})|(</?[a-zA-Z_][\\w|]*>|<\\|[^|>]{1,40}\\|>)`, "gi");
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    pieces.append(text.slice(end, match.index), element(match[1] !== undefined ? "mark" : "span", { class: "tag" }, match[0]));
    end = match.index + match[0].length;
  }
  pieces.append(text.slice(end));
  return pieces;
}

/** A list of any length: only the rows in sight exist. */
class VirtualList {
  constructor(node, space, makeRow, onSelect) {
    Object.assign(this, { node, space, makeRow, onSelect, items: [], selected: -1 });
    node.addEventListener("scroll", () => this.draw());
    node.addEventListener("keydown", (event) => this.key(event));
    node.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.select(Number(row.dataset.index));
    });
    new ResizeObserver(() => this.draw()).observe(node);
  }

  show(items) {
    this.items = items;
    this.selected = -1;
    this.height = Math.min(items.length * ROW_HEIGHT, MAX_LIST_HEIGHT);
    this.space.style.height = `${this.height}px`;
    this.node.scrollTop = 0;
    this.drawnFrom = undefined;
    this.draw();
    if (items.length) this.select(0);
  }

  /** The item at the top edge, as a fraction. */
  top() {
    const view = this.node.clientHeight, full = this.items.length * ROW_HEIGHT;
    if (full <= MAX_LIST_HEIGHT) return this.node.scrollTop / ROW_HEIGHT;
    return (this.node.scrollTop / (this.height - view)) * ((full - view) / ROW_HEIGHT);
  }

  draw() {
    const view = this.node.clientHeight, top = this.top();
    const from = Math.max(0, Math.floor(top) - 4);
    const to = Math.min(this.items.length, Math.ceil(top + view / ROW_HEIGHT) + 4);
    const offset = this.node.scrollTop - top * ROW_HEIGHT;
    const rows = [];
    for (let index = from; index < to; index++) {
      const row = this.makeRow(this.items[index]);
      row.id = `row-${index}`;
      row.dataset.index = index;
      row.style.top = `${offset + index * ROW_HEIGHT}px`;
      row.setAttribute("aria-setsize", this.items.length);
      row.setAttribute("aria-posinset", index + 1);
      row.setAttribute("aria-selected", index === this.selected);
      rows.push(row);
    }
    this.space.replaceChildren(...rows);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.node.clientHeight / ROW_HEIGHT) - 1);
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || !this.items.length) return;
    event.preventDefault();
    this.select(Math.min(this.items.length - 1, Math.max(0, this.selected + move)));
  }

  select(index) {
    this.selected = index;
    this.reveal(index);
    this.draw();
    this.node.setAttribute("aria-activedescendant", `row-${index}`);
    this.onSelect(this.items[index]);
  }

  reveal(index) {
    const view = this.node.clientHeight, top = this.top();
    const visible = view / ROW_HEIGHT;
    let to = top;
    if (index < top) to = index;
    if (index + 1 > top + visible) to = index + 1 - visible;
    if (to === top) return;
    const full = this.items.length * ROW_HEIGHT;
    this.node.scrollTop = full <= MAX_LIST_HEIGHT ? to * ROW_HEIGHT : (to * ROW_HEIGHT * (this.height - view)) / (full - view);
  }
}
