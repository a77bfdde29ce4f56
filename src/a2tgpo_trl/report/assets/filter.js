// Which rollouts are listed, and in which order.

const FIELDS = ["text", "low", "high", "first", "last", "stop", "run", "sort"];
const UNKNOWN = "?"; // the stop reason of rollouts that have none

const SORTS = {
  newest: ["newest first", (i) => -data.index.step[i]],
  oldest: ["oldest first", (i) => data.index.step[i]],
  best: ["highest reward", (i) => -(data.index.reward[i] ?? -Infinity)],
  worst: ["lowest reward", (i) => data.index.reward[i] ?? Infinity],
  turns: ["most turns", (i) => -data.index.advantages[i].length],
  strongest: ["largest advantage", (i) => -data.index.largest[i]],
  apart: ["turns most apart", (i) => -data.index.spread[i]],
};

function initFilter(onChange) {
  const form = byId("filter");
  const choices = (name, entries) => form.elements[name].replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
  const known = data.reasons.reduce((sum, [, count]) => sum + count, 0);
  const rest = data.size - known;
  choices("stop", [
    ["", "any"],
    ...data.reasons.map(([reason, count]) => [`=${reason}`, `${reason} (${whole(count)})`]),
    ...(rest ? [[UNKNOWN, `not known (${whole(rest)})`]] : []),
  ]);
  choices("run", [["", "all"], ...data.overview.runs.map((run, number) => [String(number), run.name])]);
  choices("sort", Object.entries(SORTS).map(([name, [title]]) => [name, title]));
  byId("run-filter").hidden = data.overview.runs.length < 2;
  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(onChange, 120);
  });
  form.addEventListener("reset", () => setTimeout(onChange)); // after the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** What the form says: fields that are not empty, by name. */
function readFilter() {
  const values = Object.fromEntries(FIELDS.map((name) => [name, byId("filter").elements[name].value]));
  if (values.sort === "newest") values.sort = "";
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));
}

function fillFilter(values) {
  const { elements } = byId("filter");
  for (const name of FIELDS) elements[name].value = values[name] ?? (name === "sort" ? "newest" : "");
  if (!elements.sort.value) elements.sort.value = "newest";
}

/** Places of the rollouts found, in their order. `progress` hears how far a search through the texts is. */
async function find(values, progress) {
  const { index } = data;
  const bound = (text, otherwise) => (text === undefined || text === "" ? otherwise : Number(text));
  const [low, high] = [bound(values.low, -Infinity), bound(values.high, Infinity)];
  const [first, last] = [bound(values.first, -Infinity), bound(values.last, Infinity)];
  const asksReward = values.low !== undefined || values.high !== undefined;
  const text = values.text?.toLowerCase();
  if (text) await loadTexts(progress);
  const found = [];
  for (let i = 0; i < data.size; i++) {
    const reward = index.reward[i];
    if (asksReward && (reward === null || reward < low || reward > high)) continue;
    if (index.step[i] < first || index.step[i] > last) continue;
    if (values.run !== undefined && index.run[i] !== Number(values.run)) continue;
    if (values.stop === UNKNOWN ? index.stop_reason[i] !== null : values.stop && `=${index.stop_reason[i]}` !== values.stop) continue;
    if (text && !data.texts[i].includes(text)) continue;
    found.push(i);
  }
  const [, key] = SORTS[values.sort] ?? SORTS.newest;
  const keys = new Map(found.map((i) => [i, key(i)]));
  return found.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
}
