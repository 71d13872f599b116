// What happens when the page opens.

const THEMES = ["auto", "light", "dark"];

function setUpTheme() {
  const button = document.getElementById("theme");
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    button.setAttribute("aria-label", `Colour theme: ${theme}. Press to change`);
  };
  let theme = "auto";
  try { theme = localStorage.getItem("grpo-gym-theme") ?? "auto"; } catch { /* storage is off: start with auto */ }
  apply(THEMES.includes(theme) ? theme : "auto");
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    apply(theme);
    try { localStorage.setItem("grpo-gym-theme", theme); } catch { /* it lasts until the page is closed */ }
  });
}

function taskTable(tasks) {
  const counted = tasks.some((task) => task.count !== null);
  const head = ["Task", ...(counted ? ["Problems"] : []), "", "Before", "After", "Points"];
  return element("table", {}, element("caption", { class: "visually-hidden" }, "Accuracy per task before and after training"),
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col", class: name ? "" : "track-head" }, name)))),
    element("tbody", {}, ...tasks.map((task) => taskRow(task, counted))));
}

function taskRow(task, counted) {
  const percent = (value) => formatValue(value, "percent");
  const known = task.before !== null && task.after !== null;
  const change = known ? 100 * (task.after - task.before) : null;
  const points = known ? `${change >= 0 ? "+" : "−"}${Math.abs(change).toFixed(1)}` : "–";
  const tone = change > 0.05 ? "up" : change < -0.05 ? "down" : "";
  const count = counted ? [element("td", {}, task.count === null ? "–" : task.count.toLocaleString("en-US"))] : [];
  return element("tr", { class: task.all ? "all" : "" }, element("th", { scope: "row" }, task.name), ...count,
    element("td", { class: "track" }, ...(known ? [dumbbell(task.before, task.after)] : [])),
    element("td", {}, percent(task.before)), element("td", {}, percent(task.after)), element("td", { class: tone }, points));
}

function dumbbell(before, after) {
  const node = element("div", { class: "dumbbell", "aria-hidden": "true" }, element("b"), element("i"), element("i", { class: "after" }));
  const [bar, from, to] = node.children;
  bar.style.left = `${100 * Math.min(before, after)}%`;
  bar.style.width = `${100 * Math.abs(after - before)}%`;
  from.style.left = `${100 * before}%`;
  to.style.left = `${100 * after}%`;
  return node;
}

async function start() {
  setUpTheme();
  if (!("DecompressionStream" in window)) throw new Error("this browser is too old: it has no DecompressionStream (Chrome 80, Firefox 113, Safari 16.4)");
  const data = await inflate("data");
  let browser = null;
  if (data.completions.rows.group?.length) browser = new Browser(new Completions(data.completions));
  const choose = (step) => browser?.showSteps(...completionSteps(data.logged, step));
  const training = new ChartGroup(choose), evaluation = new ChartGroup(() => {});
  const place = (id) => document.getElementById(id);
  if (data.charts.length) training.add(data.charts, place("training-charts"));
  if (data.evaluation.charts.length) evaluation.add(data.evaluation.charts, place("evaluation-charts"));
  if (data.evaluation.tasks.length) place("evaluation-tasks").append(taskTable(data.evaluation.tasks));
  place("smoothing")?.addEventListener("input", (event) => {
    const weight = Number(event.target.value);
    place("smoothing-value").textContent = weight ? weight.toFixed(2) : "off";
    training.setSmoothing(weight);
  });
  document.documentElement.dataset.ready = "true";
}

/** A log at step s is about the completions since the log before it; those of step s itself were sampled after it. */
function completionSteps(logged, step) {
  const index = nearest(logged, step);
  return [index > 0 ? logged[index - 1] : 0, Math.max(0, logged[index] - 1)];
}

start().catch((error) => {
  const problem = document.getElementById("problem");
  problem.textContent = `The report could not be drawn: ${error.message}`;
  problem.hidden = false;
  throw error;
});
