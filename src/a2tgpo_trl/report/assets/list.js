// The list of rollouts: only the rows in view are in the document.

const ROW = 82; // pixels, as in the style sheet
const BEYOND = 6; // rows above and below those in view

const list = {
  found: [], // places, in order
  selected: null, // a place, or none
  shown: [], // what the rows in the document are made of
};

function initList(onOpen) {
  const box = byId("list");
  let asked = false;
  const soon = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      showRows();
    });
  };
  box.addEventListener("scroll", soon);
  new ResizeObserver(soon).observe(box);
  box.addEventListener("click", (event) => {
    const row = event.target.closest("[data-place]");
    if (row) onOpen(Number(row.dataset.place));
  });
}

function showFound(found) {
  list.found = found;
  byId("rows").style.height = `${found.length * ROW}px`;
  byId("list").scrollTop = 0;
  if (list.selected !== null) scrollToSelected();
  showRows();
}

function showRows() {
  if (onPaper) return; // where the list is as long as its rows
  const box = byId("list");
  const start = Math.max(0, Math.floor(box.scrollTop / ROW) - BEYOND);
  const end = Math.min(list.found.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + BEYOND);
  const made = [list.found, list.selected, start, end];
  if (made.every((part, i) => part === list.shown[i])) return; // or a click on a row that is being pressed would be lost
  list.shown = made;
  byId("rows").replaceChildren(...list.found.slice(start, end).map((place, i) => row(place, start + i)));
  const active = list.selected !== null && byId(`row-${list.selected}`);
  if (active) box.setAttribute("aria-activedescendant", active.id);
  else box.removeAttribute("aria-activedescendant");
}

function row(place, number) {
  return el(
    "div.entry.row",
    {
      id: `row-${place}`,
      role: "option",
      "data-place": place,
      "aria-selected": String(place === list.selected),
      "aria-setsize": list.found.length,
      "aria-posinset": number + 1,
      style: { top: `${number * ROW}px` },
    },
    rowContent(place),
  );
}

/** A rollout at a glance. */
function rowContent(place) {
  const { index } = data;
  return [
    el("span.reward", { title: "reward" }, el("span.unseen", {}, "reward "), index.written[place]),
    el("div.question", {}, el("bdi", {}, index.question[place] || "(empty prompt)")),
    el(
      "div.meta",
      {},
      el("span", {}, `step ${index.step[place]}`),
      el("span", {}, plural(index.advantages[place].length, "turn")),
      el("span", {}, index.stop_reason[place] ?? ""),
      data.overview.runs.length > 1 && runTag(index.run[place]),
    ),
    creditStrip(place),
  ];
}

function select(place) {
  list.selected = place;
  scrollToSelected();
  showRows();
}

/** Select the row that is so many below; returns its place, or none. */
function move(by) {
  if (!list.found.length) return null;
  const now = list.found.indexOf(list.selected);
  const start = now >= 0 ? now : by > 0 ? -1 : list.found.length;
  const next = Math.min(Math.max(start + by, 0), list.found.length - 1);
  select(list.found[next]);
  return list.found[next];
}

function scrollToSelected() {
  const box = byId("list");
  const top = list.found.indexOf(list.selected) * ROW;
  if (top < 0) return;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
}
