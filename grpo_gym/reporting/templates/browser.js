// The browser of completions: filters, list and detail, put together.

class Browser {
  constructor(completions) {
    this.data = completions;
    this.serial = 0;
    this.get = (id) => document.getElementById(id);
    this.fillChoices();
    this.list = new VirtualList(this.get("list"), this.get("list-space"), (row) => this.row(row), (row) => this.detail(row));
    const form = this.get("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.refresh(), 160); });
    form.addEventListener("reset", () => setTimeout(() => this.refresh()));
    this.refresh();
  }

  fillChoices() {
    this.data.tasks.map((name, index) => [name, index]).sort().forEach(([name, index]) =>
      this.get("task").append(element("option", { value: index }, name || "(no name)")));
    const outcomes = [["best", `highest reward (${formatNumber(this.data.highest)})`], ["worst", `lowest reward (${formatNumber(this.data.lowest)})`]];
    if (this.data.lowest === Infinity) outcomes.length = 0;
    if (this.data.rows.finish.includes("length")) outcomes.push(["length", "cut off"]);
    if (this.data.rows.error.some(Boolean)) outcomes.push(["error", "failed"]);
    for (const [value, name] of outcomes) this.get("outcome").append(element("option", { value }, name));
  }

  filter() {
    const value = (id) => this.get(id).value;
    const bound = (id, otherwise) => (value(id) === "" ? otherwise : Number(value(id)));
    return {
      query: value("query"), task: value("task"), outcome: value("outcome"), sort: value("sort"),
      stepFrom: bound("step-from", -Infinity), stepTo: bound("step-to", Infinity),
      rewardFrom: bound("reward-from", -Infinity), rewardTo: bound("reward-to", Infinity),
    };
  }

  /** Apply the filters; a newer call makes an older one stop. */
  async refresh() {
    const serial = ++this.serial;
    const filter = this.filter();
    let found = this.data.select(filter);
    if (filter.query.trim()) {
      const progress = (share) => this.say(`searching … ${Math.round(100 * share)}%`);
      found = await this.data.search(found, filter.query.trim(), () => serial !== this.serial, progress);
      if (found === null) return;
    }
    this.query = filter.query.trim();
    this.say(this.summary(found));
    this.list.show(found);
    if (!found.length) this.get("detail").replaceChildren(element("p", { class: "empty" }, "No completion matches. Clear the filters to see all."));
    this.get("count").dataset.ready = serial;
  }

  say(text) { this.get("count").textContent = text; }

  summary(found) {
    const count = (number) => number.toLocaleString("en-US");
    const rewards = found.map((row) => this.data.rows.reward[row]).filter((reward) => reward !== null);
    const mean = rewards.length ? `, mean reward ${formatNumber(rewards.reduce((a, b) => a + b, 0) / rewards.length)}` : "";
    const kept = this.data.total > this.data.size ? ` (of ${count(this.data.total)} in the run, evenly chosen)` : "";
    const share = found.length === this.data.size ? count(this.data.size) : `${count(found.length)} of ${count(this.data.size)}`;
    return `${share} completions${kept}${mean}`;
  }

  badge(row) {
    const reward = this.data.rows.reward[row];
    return element("span", { class: `reward ${this.data.tone(reward)}` }, reward === null ? "not scored" : formatNumber(reward));
  }

  row(row) {
    const meta = element("div", { class: "meta" }, this.badge(row), element("span", { class: "task" }, this.data.task(row)),
      element("span", {}, `${this.data.rows.tokens[row]} tokens`), element("span", {}, `step ${this.data.step(row)}`));
    const snippet = element("div", { class: "snippet" });
    const chunk = this.data.chunk(this.data.chunkOf(row));
    if (chunk instanceof Promise) chunk.then((texts) => this.fillSnippet(snippet, texts, row));
    else this.fillSnippet(snippet, chunk, row);
    return element("div", { class: "row", role: "option" }, meta, snippet);
  }

  /** The start of the completion, or the place where the query stands in it. */
  fillSnippet(node, texts, row) {
    const { completion } = this.data.pick(texts, row);
    const at = this.query ? completion.toLowerCase().indexOf(this.query.toLowerCase()) : -1;
    const start = at > 30 ? at - 20 : 0;
    const text = (start ? "… " : "") + completion.slice(start, start + 200).replace(/\s+/g, " ").trim();
    node.replaceChildren(text ? richText(text, this.query) : element("span", { class: "empty" }, "(empty)"));
  }

  async detail(row) {
    const serial = (this.detailSerial = (this.detailSerial ?? 0) + 1);
    const texts = await this.data.texts(row);
    if (serial !== this.detailSerial) return; // another one was chosen meanwhile
    this.get("detail").replaceChildren(this.heading(row), ...this.scores(row), ...this.siblings(row),
      ...this.block("Prompt", texts.prompt), ...(texts.answer ? this.block("Expected answer", texts.answer) : []),
      ...this.block("Completion", texts.completion));
    this.get("detail").scrollTop = 0;
    this.get("detail").dataset.row = row;
  }

  heading(row) {
    const { rows, groups } = this.data;
    const group = rows.group[row];
    const parts = [`step ${groups.step[group]}`, this.data.task(row), `problem ${groups.example[group]}`, `${rows.tokens[row]} tokens`];
    if (rows.finish[row] === "length") parts.push("cut off");
    if (rows.version[row] !== null) parts.push(`policy version ${rows.version[row]}`);
    return element("div", { class: "detail-head" }, this.badge(row), ...parts.map((part) => element("span", {}, part)));
  }

  scores(row) {
    const { rows, metrics } = this.data;
    const found = metrics.map((name, i) => [name, rows.metrics[i][row]])
      .filter(([name, value]) => value !== null && !(name === "num_turns" && value === 1));
    const nodes = [];
    if (rows.error[row]) nodes.push(element("p", { class: "notice" }, rows.error[row]));
    if (found.length > 1) {
      nodes.push(element("h3", {}, "Scores"),
        element("div", { class: "scores" }, ...found.map(([name, value]) => element("div", {}, element("span", {}, `${name} `), formatNumber(value)))));
    }
    return nodes;
  }

  /** The other completions of the same prompt, as buttons. */
  siblings(row) {
    const all = this.data.siblings(this.data.rows.group[row]);
    if (all.length < 2) return [];
    const buttons = all.map((other, i) => {
      const badge = this.badge(other);
      const button = element("button", { type: "button", class: badge.className, "aria-current": other === row, "aria-label": `Completion ${i + 1}, reward ${badge.textContent}` }, badge.textContent);
      button.addEventListener("click", () => this.jump(other, i));
      return button;
    });
    return [element("h3", {}, `All ${all.length} completions of this prompt`), element("div", { class: "siblings" }, ...buttons)];
  }

  async jump(row, place) {
    const index = this.list.items.indexOf(row);
    if (index >= 0) this.list.select(index);
    await this.detail(row);
    this.get("detail").querySelectorAll(".siblings button")[place]?.focus();
  }

  block(title, text) {
    const body = element("pre", { class: "text", "data-text": title.toLowerCase() });
    body.append(text ? richText(text, this.query) : "(empty)");
    return [element("h3", {}, title), body];
  }

  /** Show the completions of some steps. */
  showSteps(from, to) {
    this.get("filters").reset();
    setTimeout(() => {
      this.get("step-from").value = from;
      this.get("step-to").value = to;
      this.refresh();
      this.get("samples").scrollIntoView({ behavior: "smooth" });
      this.get("list").focus({ preventScroll: true });
    }, 10);
  }
}
