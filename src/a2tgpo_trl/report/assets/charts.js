// Charts by Chart.js, from series that Python worked out.

const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [12, 4], [4, 6], [10, 2, 2, 2]];
const PAPER = { width: 340, height: 210, dots: 3 }; // size of a printed chart in pixels, and dots a pixel
const drawn = new Map(); // canvas → [Chart.js chart, what it shows]

const isByRun = (chart) => data.overview.runs.length > 1 && chart.run === null;

/** What a legend calls a series. */
function label(chart, series) {
  const run = data.overview.runs[series.run].name;
  if (!isByRun(chart)) return series.name || run;
  return series.name ? `${run} · ${series.name}` : run;
}

/** Runs have colours and what they show has dashes; with one run, what it shows has the colours. */
function look(chart, series, number) {
  if (chart.kind === "shares") return { color: color(-1 - number), dash: [] };
  if (!isByRun(chart)) return { color: color(number), dash: [] };
  const names = [...new Set(chart.series.map((other) => other.name))];
  return { color: color(series.run), dash: DASHES[names.indexOf(series.name) % DASHES.length] };
}

const points = (series, values) => series.x.map((x, i) => ({ x, y: values[i] }));

function datasets(chart) {
  return chart.series.flatMap((series, number) => {
    const { color, dash } = look(chart, series, number);
    const shared = { label: label(chart, series), borderColor: color, backgroundColor: color };
    if (chart.kind === "shares") return [{ ...shared, data: series.y, barPercentage: 1, categoryPercentage: 0.94 }];
    if (chart.kind === "bars") return [{ ...shared, data: series.y, maxBarThickness: 36 }];
    const line = {
      ...shared,
      data: points(series, series.y),
      borderDash: dash,
      borderWidth: 1.8,
      pointRadius: chart.kind === "line" && series.x.length <= 30 ? 2.2 : 0,
      pointHoverRadius: 4,
      clip: 4, // points on the edge are whole
    };
    if (chart.kind === "histogram") return [{ ...line, stepped: "middle", fill: chart.series.length < 3 && "origin", backgroundColor: `${color}22` }];
    if (!series.low) return [line];
    const edge = { ...shared, isEdge: true, borderWidth: 0, pointRadius: 0, pointHoverRadius: 0 };
    return [
      { ...line, series },
      { ...edge, data: points(series, series.low) },
      { ...edge, data: points(series, series.high), fill: "-1", backgroundColor: `${color}26` },
    ];
  });
}

function options(chart) {
  const ink = cssColor("--muted");
  const grid = { color: cssColor("--grid"), tickColor: "transparent" };
  const title = (text) => ({ display: true, text, color: ink, font: { size: 11 } });
  const ticks = { color: ink, font: { size: 11 }, maxRotation: 0, autoSkipPadding: 14 };
  const isStacked = chart.kind === "shares";
  const isBar = isStacked || chart.kind === "bars";
  return {
    animation: false,
    responsive: !onPaper,
    devicePixelRatio: onPaper ? PAPER.dots : undefined,
    maintainAspectRatio: false,
    interaction: { mode: isBar ? "index" : "nearest", axis: "x", intersect: false },
    scales: {
      x: {
        type: isBar ? "category" : "linear",
        title: title(chart.x),
        grid: { ...grid, display: !isBar },
        ticks: isBar ? ticks : { ...ticks, callback: compact },
        stacked: isStacked,
      },
      y: {
        title: title(chart.y),
        grid,
        border: { display: false },
        ticks: { ...ticks, callback: compact, maxTicksLimit: 6 },
        stacked: isStacked,
        beginAtZero: chart.kind !== "line" || chart.y.startsWith("share") || chart.y === "seconds",
        max: isStacked ? 1 : undefined,
      },
    },
    plugins: {
      legend: {
        position: "bottom",
        align: "start",
        labels: {
          color: cssColor("--ink"),
          font: { size: 11 },
          boxWidth: 22,
          boxHeight: 8,
          padding: 10,
          usePointStyle: !isBar,
          pointStyle: "line",
          pointStyleWidth: 26,
          filter: (item, { datasets }) => !datasets[item.datasetIndex].isEdge,
          generateLabels: legendLabels,
        },
        onClick: (_, item, legend) => toggle(legend.chart, item.datasetIndex),
      },
      tooltip: {
        backgroundColor: cssColor("--tip"),
        titleColor: cssColor("--tip-ink"),
        bodyColor: cssColor("--tip-ink"),
        usePointStyle: true,
        filter: (item) => !item.dataset.isEdge,
        callbacks: {
          title: (items) => items.length && `${chart.x}: ${isBar ? items[0].label : compact(items[0].parsed.x)}`,
          label: ({ dataset, parsed, dataIndex }) => {
            const { series } = dataset;
            const ends = series ? ` (${compact(series.low[dataIndex])} to ${compact(series.high[dataIndex])})` : "";
            return ` ${dataset.label}: ${compact(parsed.y)}${ends}`;
          },
        },
      },
    },
  };
}

/** As Chart.js has them, with the dashes of the lines. */
function legendLabels(chart) {
  const labels = Chart.defaults.plugins.legend.labels.generateLabels(chart);
  return labels.map((item) => ({ ...item, lineDash: chart.data.datasets[item.datasetIndex].borderDash, lineWidth: 1.8 }));
}

/** Show or hide a line, with its band. */
function toggle(chart, first) {
  const isShown = chart.isDatasetVisible(first);
  for (let i = first; i === first || chart.data.datasets[i]?.isEdge; i++) chart.setDatasetVisibility(i, !isShown);
  chart.update();
}

function draw(canvas, chart) {
  drawn.get(canvas)?.[0].destroy();
  const isBar = chart.kind === "shares" || chart.kind === "bars";
  const content = { datasets: datasets(chart), labels: isBar ? chart.series[0].x.map((x) => (isNumber(x) ? compact(x) : x)) : undefined };
  const made = new Chart(canvas, { type: isBar ? "bar" : "line", data: content, options: options(chart) });
  if (onPaper) made.resize(PAPER.width, PAPER.height);
  drawn.set(canvas, [made, chart]);
}

function redraw() {
  for (const [canvas, [, chart]] of [...drawn]) draw(canvas, chart);
}

const arriving = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      arriving.unobserve(target);
      draw(target, target.chart);
    }
  },
  { rootMargin: "300px" },
);

/** Before printing, draw what has not come into view too; all of it for paper, and afterwards for the screen again. */
function preparePrinting() {
  const print = (is) => {
    onPaper = is;
    showTheme(); // draws again
  };
  addEventListener("beforeprint", () => {
    print(true);
    for (const canvas of document.querySelectorAll("canvas")) {
      arriving.unobserve(canvas);
      if (!drawn.has(canvas)) draw(canvas, canvas.chart);
    }
  });
  addEventListener("afterprint", () => print(false));
}

/** A card with a chart, which is drawn once it comes into view, and the same as a table. */
function chartCard(chart) {
  const run = chart.run !== null && data.overview.runs.length > 1 ? data.overview.runs[chart.run].name : "";
  const canvas = el("canvas", { role: "img", "aria-label": `${chart.title} ${run}. ${chart.what}` });
  canvas.chart = chart;
  arriving.observe(canvas);
  const plot = el("div.plot", {}, canvas);
  const table = el("div.numbers", { hidden: true, tabindex: 0, role: "region", "aria-label": `${chart.title}, as a table` });
  const button = el("button.quiet", { type: "button", "aria-pressed": "false", "aria-label": `${chart.title}: show as a table` }, "Table");
  button.addEventListener("click", () => {
    const isTable = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", isTable);
    if (isTable) table.replaceChildren(chartTable(chart));
    table.hidden = !isTable;
    plot.hidden = isTable;
  });
  return el(
    "article.card.chart",
    { id: `chart-${chart.key}` },
    el("header", {}, el("h3", {}, chart.title, run && el("span.of-run", {}, runTag(chart.run))), button),
    el("p.what", {}, chart.what),
    plot,
    table,
  );
}

function chartTable(chart) {
  const xs = [...new Set(chart.series.flatMap((series) => series.x))];
  if (xs.every(isNumber)) xs.sort((a, b) => a - b);
  const columns = chart.series.flatMap((series) => {
    const name = label(chart, series);
    const lines = series.low ? [[name, series.y], [`${name}, low`, series.low], [`${name}, high`, series.high]] : [[name, series.y]];
    return lines.map(([title, values]) => [title, new Map(series.x.map((x, i) => [x, values[i]]))]);
  });
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, chart.x), columns.map(([title]) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, xs.map((x) => el("tr", {}, el("th", { scope: "row" }, isNumber(x) ? compact(x) : x), columns.map(([, values]) => el("td", {}, compact(values.get(x))))))),
  );
}
