// The first view: runs in a few numbers, the most telling rollout, then the charts.

/** A run's name with its colour. */
function runTag(number) {
  return el("span.run", {}, el("i", { style: { background: `var(--run-${number})` }, "aria-hidden": "true" }), el("bdi", {}, data.overview.runs[number].name));
}

/** Colours of runs as CSS variables, for the theme that is shown. */
function setRunColors() {
  data.overview.runs.forEach((run, number) => document.documentElement.style.setProperty(`--run-${number}`, color(run.color)));
}

/** A table of texts and elements; the first cell of a row names it. */
function table(head, rows, caption) {
  return el(
    "table",
    {},
    caption && el("caption", {}, caption),
    el("thead", {}, el("tr", {}, head.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((cell) => el("td", {}, cell))))),
  );
}

const tableCard = (name, ...given) => el("div.card.scroll", { tabindex: 0, role: "region", "aria-label": name }, table(...given));

function showOverview() {
  const { runs, charts, telling, sections } = data.overview;
  const chartsOf = (section) => charts.filter((chart) => chart.section === section).map(chartCard);
  const notes = runs.flatMap((run, number) => run.notes.map((note) => el("li", {}, runs.length > 1 && [runTag(number), ": "], note)));
  fill(
    byId("overview"),
    el("h1", {}, runs.length > 1 ? `${runs.length} runs` : el("bdi", {}, runs[0].name)),
    runsTable(),
    notes.length > 0 && el("ul.notice", { "aria-label": "What is missing" }, notes),
    telling && [
      el("h2", {}, "The most telling rollout"),
      el("a.card.entry.telling", { href: linkTo("rollouts", telling.place) }, rowContent(telling.place)),
      el("p.why", {}, telling.why),
    ],
    sections.map((section) => {
      const content = [chartsOf(section), tableOfRuns(section)];
      return there(content).length > 0 && [el("h2", {}, section), el("div.grid", {}, content[0]), content[1]];
    }),
  );
}

function runsTable() {
  const { runs, progress } = data.overview;
  const rows = runs.map((run, number) => [
    [runTag(number), el("small", {}, run.source ? `from ${run.source}` : "no rollouts")],
    [whole(run.rollouts), run.shown < run.rollouts && el("small", {}, `${whole(run.shown)} to browse`)],
    ...progress.map((name) => change(run.progress[name])),
  ]);
  return tableCard("Runs", ["Run", "Rollouts", ...progress], rows, "From the first part of a run to its last, an eighth each");
}

function change(ends) {
  if (!ends) return MISSING;
  const [before, after] = ends;
  return [el("span.before", {}, before, el("span", { "aria-hidden": "true" }, " → ")), el("span.unseen", {}, " to "), el("b", {}, after)];
}

/** The table of a section, with the rows of all runs. */
function tableOfRuns(section) {
  const { runs } = data.overview;
  const found = runs.flatMap((run, number) => run.tables.filter((one) => one.section === section).map((one) => [number, one]));
  if (!found.length) return null;
  const [[, { title, head }]] = found;
  const named = (number, name) => (runs.length > 1 ? [runTag(number), ` · ${name}`] : name);
  const rows = found.flatMap(([number, { rows }]) => rows.map(([name, ...cells]) => [named(number, name), ...cells]));
  return tableCard(title, head, rows, `${title}, whole run`);
}
