// The first view: runs in a few numbers, then the charts.

/** A run's name with its colour. */
function runTag(number) {
  return el("span.run", {}, el("i", { style: { background: `var(--run-${number})` }, "aria-hidden": "true" }), el("bdi", {}, data.overview.runs[number].name));
}

/** Colours of runs as CSS variables, for the theme that is shown. */
function setRunColors() {
  data.overview.runs.forEach((_, number) => document.documentElement.style.setProperty(`--run-${number}`, color(number)));
}

function showOverview() {
  const { runs, charts } = data.overview;
  const sections = [...new Set(charts.map((chart) => chart.section))];
  const notes = runs.flatMap((run, number) => run.notes.map((note) => el("li", {}, runs.length > 1 && [runTag(number), " "], note)));
  fill(
    byId("overview"),
    el("h1", {}, runs.length > 1 ? `${runs.length} runs` : el("bdi", {}, runs[0].name)),
    runsTable(),
    notes.length > 0 && el("ul.notice", { "aria-label": "What is missing" }, notes),
    sections.map((section) =>
      el(
        "section",
        { "aria-labelledby": `section-${section}` },
        el("h2", { id: `section-${section}` }, section),
        el("div.grid", {}, charts.filter((chart) => chart.section === section).map(chartCard)),
        section === "Tools" && toolsTable(),
      ),
    ),
    !sections.includes("Tools") && toolsTable(),
  );
}

const FORMATS = { reward: fixed, turns: fixed, gain: (x) => fixed(x, 2, true), turn_credit: fixed, answered: percent, failed: percent };

function runsTable() {
  const { runs, progress } = data.overview;
  const names = Object.keys(progress);
  const head = ["Run", "Rollouts", "Steps", ...Object.values(progress)];
  return el(
    "div.card.scroll",
    { tabindex: 0, role: "region", "aria-label": "Runs" },
    el(
      "table.runs",
      {},
      el("caption", {}, "From the first part of a run to its last, an eighth each"),
      el("thead", {}, el("tr", {}, head.map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, runs.map((run, number) => {
        const [first, last] = [run.progress[0], run.progress.at(-1)];
        return el(
          "tr",
          {},
          el("th", { scope: "row" }, runTag(number), el("small", {}, run.source ? `from ${run.source}` : "no rollouts")),
          el("td", {}, whole(run.rollouts), run.shown < run.rollouts && el("small", {}, `${whole(run.shown)} to browse`)),
          el("td", {}, first ? `${whole(first.first)} – ${whole(last.last)}` : MISSING),
          names.map((name) => el("td", {}, first ? change(first[name], last[name], FORMATS[name]) : MISSING)),
        );
      })),
    ),
  );
}

function change(before, after, format) {
  if (!isNumber(before) && !isNumber(after)) return MISSING;
  return [el("span.before", {}, format(before)), el("span.arrow", { "aria-hidden": "true" }, " → "), el("span.unseen", {}, " to "), el("b", {}, format(after))];
}

function toolsTable() {
  const rows = data.overview.runs.flatMap((run, number) => run.tools.map((tool) => [number, tool]));
  if (!rows.length) return null;
  const titles = ["Run", "Tool", "Calls", "Failed", "Median", "95 % below", "Longest"];
  return el(
    "div.card.scroll",
    { tabindex: 0, role: "region", "aria-label": "Tools" },
    el(
      "table.tools-table",
      {},
      el("caption", {}, "Tool calls, whole run"),
      el("thead", {}, el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, rows.map(([number, tool]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, runTag(number)),
          el("td", {}, el("code", {}, tool.name)),
          [whole(tool.calls), percent(tool.failed), seconds(tool.median), seconds(tool.p95), seconds(tool.max)].map((text) => el("td", {}, text)),
        ),
      )),
    ),
  );
}
