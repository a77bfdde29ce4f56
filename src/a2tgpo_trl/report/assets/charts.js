// Charts by Chart.js, from series that Python worked out.

const PAPER = { width: 340, height: 210, dots: 3 }; // size of a printed chart in pixels, and dots a pixel
const drawn = new Map(); // canvas → [Chart.js chart, what it shows]

const points = (series, values) => series.x.map((x, i) => ({ x, y: values[i] }));

function datasets(chart) {
  const { dashes } = data.overview.palette;
  return chart.series.flatMap((series) => {
    const ink = color(series.color);
    const stroke = series.is_light ? `${ink}73` : ink;
    const shared = { label: series.label, borderColor: stroke, backgroundColor: stroke };
    if (chart.kind === "shares") return [{ ...shared, data: series.y, barPercentage: 1, categoryPercentage: 0.94 }];
    if (chart.kind === "bars") return [{ ...shared, data: series.y, maxBarThickness: 36 }];
    const line = {
      ...shared,
      data: points(series, series.y),
      borderDash: dashes[series.dash % dashes.length],
      borderWidth: 1.8,
      pointRadius: chart.kind === "line" && series.x.length <= 30 ? 2.2 : 0,
      pointHoverRadius: 4,
      clip: 4, // points on the edge are whole
    };
    if (chart.kind === "histogram") return [{ ...line, stepped: "middle", fill: chart.series.length < 3 && "origin", backgroundColor: `${ink}22` }];
    if (!series.low) return [line];
    const edge = { ...shared, isEdge: true, borderWidth: 0, pointRadius: 0, pointHoverRadius: 0 };
    return [
      { ...line, series },
      { ...edge, data: points(series, series.low) },
      { ...edge, data: points(series, series.high), fill: "-1", backgroundColor: `${ink}26` },
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
        ticks: isBar ? ticks : { ...ticks, callback: compact, precision: chart.kind === "line" ? 0 : undefined },
        stacked: isStacked,
      },
      y: {
        title: title(chart.y),
        grid,
        border: { display: false },
        ticks: { ...ticks, callback: compact, maxTicksLimit: 6 },
        stacked: isStacked,
        beginAtZero: chart.is_from_zero,
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
        backgroundColor: cssColor("--ink"),
        titleColor: cssColor("--card"),
        bodyColor: cssColor("--card"),
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
  const numbers = el("div.numbers", { hidden: true, tabindex: 0, role: "region", "aria-label": `${chart.title}, as a table` });
  const button = el("button.quiet", { type: "button", "aria-pressed": "false", "aria-label": `${chart.title}: show as a table` }, "Table");
  button.addEventListener("click", () => {
    const isTable = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", isTable);
    if (isTable) numbers.replaceChildren(chartTable(chart));
    numbers.hidden = !isTable;
    plot.hidden = isTable;
  });
  return el(
    "article.chart",
    { id: `chart-${chart.key}` },
    el("header", {}, el("h3", {}, chart.title, run && el("small", {}, runTag(chart.run))), button),
    el("p.what", {}, chart.what),
    plot,
    numbers,
  );
}

function chartTable(chart) {
  const xs = [...new Set(chart.series.flatMap((series) => series.x))];
  if (xs.every(isNumber)) xs.sort((a, b) => a - b);
  const columns = chart.series.flatMap((series) => {
    const name = series.label;
    const lines = series.low ? [[name, series.y], [`${name}, low`, series.low], [`${name}, high`, series.high]] : [[name, series.y]];
    return lines.map(([title, values]) => [title, new Map(series.x.map((x, i) => [x, values[i]]))]);
  });
  const rows = xs.map((x) => [isNumber(x) ? compact(x) : x, ...columns.map(([, values]) => compact(values.get(x)))]);
  return table([chart.x, ...columns.map(([title]) => title)], rows);
}
