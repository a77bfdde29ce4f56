// One rollout, or two of a group side by side.

const membersOf = (place) => data.groups.get(groupOf(place));

/** The member of its group whose reward differs most. */
function partnerOf(place) {
  const { reward, generation } = data.index;
  const apart = (other) => Math.abs((reward[other] ?? 0) - (reward[place] ?? 0));
  const near = (other) => Math.abs(generation[other] - generation[place]);
  const others = membersOf(place).filter((other) => other !== place);
  return others.sort((a, b) => apart(b) - apart(a) || near(a) - near(b))[0] ?? null;
}

/** The rollouts of a group, each a link; `href` says where to. */
function groupChips(place, isCurrent, href, title) {
  return el(
    "div.chips",
    { role: "group", "aria-label": title },
    el("span", {}, title),
    membersOf(place).map((other) =>
      el(
        "a.chip",
        { href: href(other), "aria-current": isCurrent(other) ? "true" : false, title: `rollout ${data.index.generation[other]} of the group` },
        `${data.index.generation[other]}`,
        el("b", {}, data.index.written[other]),
      ),
    ),
  );
}

function showNothing() {
  const why = data.size ? "No rollout is found." : "There are no rollouts: the runs have neither turn records nor completions tables.";
  fill(byId("detail"), el("div.nothing", {}, el("p", {}, why)));
}

/** What holds for all rollouts of a group. */
const groupFacts = (rollout) => (data.overview.runs.length === 1 ? rollout.shared : { run: runTag(rollout.run), ...rollout.shared });

function promptOf(rollout) {
  return el(
    "div.prompt",
    {},
    el("h3", { id: "question", tabindex: -1 }, el("bdi", {}, rollout.question || "(empty prompt)")),
    rollout.images.length > 0 && el("div.pictures", {}, rollout.images.map((name) => pictureOf(name, rollout.thumbnails))),
    el("details", {}, el("summary", {}, "The whole prompt"), longText(rollout.prompt, "whole", rollout.images, rollout.thumbnails)),
  );
}

async function showRollout(place) {
  const [rollout, tree] = await Promise.all([loadRollout(place), loadTree(place)]);
  const partner = partnerOf(place);
  return [
    el(
      "div.bar",
      {},
      el("a.back", { href: linkTo("rollouts") }, "← List"),
      copyButton(),
      partner === null
        ? el("small", {}, "alone in its group")
        : el("a.button", { href: linkTo("compare", place, partner), title: "c" }, "Compare"),
    ),
    promptOf(rollout),
    data.overview.telling?.place === place && el("p.why", {}, data.overview.telling.why),
    facts({ ...groupFacts(rollout), ...rollout.facts }),
    membersOf(place).length > 1 && groupChips(place, (other) => other === place, (other) => linkTo("rollouts", other), "Group"),
    tree && treeCard(tree, place),
    el("div.turns", {}, cards(rollout, beliefRange(rollout.turns), tree)),
  ];
}

async function showComparison(left, right) {
  const pair = await Promise.all([left, right].map(loadRollout));
  const range = beliefRange(pair.flatMap((rollout) => rollout.turns));
  const columns = pair.map((rollout) => cards(rollout, range));
  const count = Math.max(...columns.map((column) => column.length));
  const head = (rollout, side, href) =>
    el("div.side", {}, groupChips(rollout.place, (other) => other === rollout.place, href, side), facts(rollout.facts), creditStrip(rollout.place));
  return [
    el("div.bar", {}, el("a.back.always", { href: linkTo("rollouts", left) }, "← One rollout"), copyButton(), el("span.scale", {}, scaleLegend())),
    promptOf(pair[0]),
    facts(groupFacts(pair[0])),
    el(
      "div.pair",
      {},
      head(pair[0], "Left", (other) => linkTo("compare", other, right)),
      head(pair[1], "Right", (other) => linkTo("compare", left, other)),
      Array.from({ length: count }, (_, k) => columns.map((column) => column[k] ?? el("div.absent", {}, "no such turn"))),
    ),
  ];
}

const cards = (rollout, range, tree = null) =>
  rollout.turns.map((turn, number) => turnCard(turn, number, range, sharedBy(tree, rollout.place, turn), rollout.thumbnails));

function copyButton() {
  const button = el("button.quiet", { type: "button", title: "The address of this page with what it shows" }, "Copy link");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copy it from the address bar";
    }
  });
  return button;
}
