// Addresses, keys, and what is shown for them.
//   #/overview   #/rollouts[/ID[/TURN]]   #/compare/ID/ID   with ?name=value for what the filter says

let shown = { view: null, places: [] };
let drawing = 0; // number of the latest thing to draw: earlier ones that come late are dropped
let detail = null; // what the detail shows: view and places

/** The address of a view, of rollouts by their places, with the filter as it is. */
function linkTo(view, ...places) {
  return withFilter([view, ...places.map((place) => data.ids[place])].join("/"));
}

/** The address of a rollout at one of its turns. */
const linkToTurn = (place, turn) => withFilter(`rollouts/${data.ids[place]}/${turn}`);

function withFilter(path) {
  const query = new URLSearchParams(readFilter()).toString();
  return `#/${path}${query && `?${query}`}`;
}

function readAddress() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [view, ...ids] = path.split("/");
  const places = ids.map((id) => data.places.get(id)).filter((place) => place !== undefined);
  const values = Object.fromEntries(new URLSearchParams(query));
  if (view === "compare" && places.length === 2) return { view, places, values };
  const turn = view === "rollouts" && /^\d+$/.test(ids[1]) ? Number(ids[1]) : null;
  if (view === "rollouts" || view === "compare") return { view: "rollouts", places: places.slice(0, 1), turn, values };
  return { view: "overview", places: [], values };
}

function go(address, replacing = false) {
  if (address === location.hash) return;
  history[replacing ? "replaceState" : "pushState"](null, "", address);
  show();
}

async function show() {
  const address = (shown = readAddress());
  const mine = ++drawing;
  const isOverview = address.view === "overview";
  byId("overview").hidden = !isOverview;
  byId("rollouts").hidden = isOverview;
  for (const [id, isCurrent] of [["to-overview", isOverview], ["to-rollouts", !isOverview]])
    if (isCurrent) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  document.body.dataset.view = address.view;
  document.body.dataset.open = address.places.length > 0;
  if (isOverview) return;
  const query = new URLSearchParams(address.values).toString();
  if (show.query !== query) {
    show.query = query;
    fillFilter(address.values);
    await applyFilter();
    if (mine !== drawing) return;
  }
  const places = address.places.length ? address.places : chosen();
  if (places.length) select(places[0]);
  const wanted = [address.view, ...places].join("/");
  if (wanted === detail) return showTurn(address.turn);
  if (!places.length) {
    detail = wanted;
    return showNothing();
  }
  const content = await (address.view === "compare" ? showComparison : showRollout)(...places);
  if (mine !== drawing) return;
  const hadFocus = byId("detail").contains(document.activeElement);
  detail = wanted;
  fill(byId("detail"), content);
  byId("detail").querySelector(".node[aria-current]")?.scrollIntoView({ block: "center" }); // within a tall tree
  byId("detail").scrollTop = 0;
  if (hadFocus || address.view === "compare") byId("question").focus({ preventScroll: true });
  showTurn(address.turn);
}

/** Go to a turn of the rollout that is shown. */
function showTurn(number) {
  byId("detail").querySelector(".turns > [aria-current]")?.removeAttribute("aria-current");
  const card = byId("detail").querySelectorAll(".turns > article")[number];
  if (!card) return;
  card.setAttribute("aria-current", "true");
  card.tabIndex = -1;
  card.scrollIntoView();
  card.focus({ preventScroll: true });
}

/** The rollout that is shown beside the list while the address names none: the selected one, or the most telling. */
function chosen() {
  if (!isDetailSeen()) return [];
  const telling = data.overview.telling?.place;
  return [list.selected ?? (list.found.includes(telling) ? telling : list.found[0])].filter((place) => place !== undefined);
}

const isDetailSeen = () => getComputedStyle(byId("detail")).display !== "none"; // it is not beside the list on a narrow screen

async function applyFilter() {
  const mine = (applyFilter.latest = (applyFilter.latest ?? 0) + 1);
  byId("list").ariaBusy = true;
  const found = await find(readFilter(), (share) => {
    byId("count").textContent = `Searching … ${Math.round(100 * share)} %`;
  });
  if (mine !== applyFilter.latest) return;
  byId("list").ariaBusy = false;
  byId("count").textContent = `${whole(found.length)} of ${plural(data.size, "rollout")}`;
  showFound(found);
}

async function onFilter() {
  await applyFilter();
  if (shown.view === "overview") return;
  show.query = new URLSearchParams(readFilter()).toString();
  history.replaceState(null, "", linkTo(shown.view, ...shown.places));
}

function open(place) {
  select(place);
  go(linkTo("rollouts", place));
}

function moveBy(count) {
  const place = move(count);
  if (place !== null && shown.view === "rollouts" && isDetailSeen()) go(linkTo("rollouts", place), true);
}

function compare() {
  const place = shown.places[0] ?? list.selected;
  const partner = place === null || place === undefined ? null : partnerOf(place);
  if (partner !== null) go(linkTo("compare", place, partner));
}

function close() {
  if (shown.view === "compare") go(linkTo("rollouts", shown.places[0]));
  else if (shown.places.length) {
    go(linkTo("rollouts"));
    byId("list").focus();
  }
}

const KEYS = {
  j: () => moveBy(1),
  k: () => moveBy(-1),
  Enter: () => {
    if (list.selected === null) return;
    open(list.selected);
    byId("detail").focus({ preventScroll: true });
  },
  c: compare,
  Escape: close,
};
const LIST_KEYS = {
  ArrowDown: () => moveBy(1),
  ArrowUp: () => moveBy(-1),
  PageDown: () => moveBy(10),
  PageUp: () => moveBy(-10),
  Home: () => moveBy(-list.found.length),
  End: () => moveBy(list.found.length),
};
const KEYS_EVERYWHERE = {
  "/": () => {
    const isHidden = getComputedStyle(byId("filter")).display === "none"; // beside a rollout on a narrow screen
    if (shown.view !== "rollouts" || isHidden) go(linkTo("rollouts"));
    byId("filter").elements.text.focus();
  },
  o: () => go("#/overview"),
  r: () => go(linkTo("rollouts")),
  t: nextTheme,
  "?": () => byId("help").showModal(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const { target, key } = event;
  if (target.matches("input, select, textarea")) {
    if (key !== "Escape" && !(key === "Enter" && target.matches("input"))) return;
    event.preventDefault();
    byId("list").focus();
    if (list.selected === null) moveBy(1);
    return;
  }
  if (key === "Enter" && target.closest("a, button, summary")) return;
  const isInList = target === byId("list") || target === document.body;
  const action = KEYS_EVERYWHERE[key] ?? (shown.view === "overview" ? undefined : (KEYS[key] ?? (isInList ? LIST_KEYS[key] : undefined)));
  if (!action) return;
  event.preventDefault();
  action();
}

async function start() {
  initTheme();
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address names a view
    byId("main").focus();
  });
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack gzip: it needs Chrome 80, Firefox 113, Safari 16.4 or newer");
  await loadData();
  afterThemeChange = () => {
    setRunColors();
    redraw();
  };
  setRunColors();
  byId("total").textContent = whole(data.size);
  byId("scale").append(...scaleLegend());
  const names = data.overview.runs.map((run) => tail(run.name)).join(", ");
  document.title = `${names} · a2tgpo report`;
  initFilter(onFilter);
  initList(open);
  showOverview();
  preparePrinting();
  byId("to-rollouts").addEventListener("click", (event) => {
    event.preventDefault();
    go(linkTo("rollouts")); // with the filter as it was
  });
  byId("help-button").addEventListener("click", KEYS_EVERYWHERE["?"]);
  document.addEventListener("keydown", onKey);
  addEventListener("popstate", show);
  await show();
  byId("loading").remove();
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  byId("loading").textContent = `The report could not be shown: ${error.message}`;
  throw error;
});
