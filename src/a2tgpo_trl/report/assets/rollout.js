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
        el("b", {}, compact(data.index.reward[other])),
      ),
    ),
  );
}

function showNothing() {
  fill(
    byId("detail"),
    el(
      "div.nothing",
      {},
      el("span.mark.large", { "aria-hidden": "true" }, el("i"), el("i"), el("i")),
      el("p", {}, data.size ? "Choose a rollout to see which of its turns earned what." : "There are no rollouts: the runs have neither turn records nor completions tables."),
      data.size > 0 && el("p", {}, el("kbd", {}, "j"), " ", el("kbd", {}, "k"), " move, ", el("kbd", {}, "Enter"), " opens, ", el("kbd", {}, "c"), " compares, ", el("kbd", {}, "/"), " filters"),
    ),
  );
}

const facts = (...items) => el("dl.facts", {}, items.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

/** What holds for all rollouts of a group. */
function groupFacts(rollout) {
  const isOneRun = data.overview.runs.length === 1;
  return [
    ...(isOneRun ? [] : [["run", runTag(rollout.run)]]),
    ["true answer", el("bdi.answer", {}, rollout.answer ?? MISSING)],
    ["place", `step ${rollout.step}, batch ${rollout.batch}, group ${rollout.group}`],
  ];
}

function ownFacts(rollout) {
  const rewards = Object.entries(rollout.rewards ?? {}).map(([name, value]) => el("small", {}, ` · ${name} ${compact(value)}`));
  return [
    ["rollout", String(rollout.generation)],
    ["reward", [el("b", {}, compact(rollout.reward)), rewards]],
    ["ended", rollout.stop_reason ?? MISSING],
  ];
}

function promptOf(rollout) {
  return el(
    "div.prompt",
    {},
    el("h3", { id: "question", tabindex: -1 }, el("bdi", {}, rollout.question || "(empty prompt)")),
    el("details", {}, el("summary", {}, "The whole prompt"), longText(rollout.prompt, "whole")),
  );
}

async function showRollout(place) {
  const rollout = await loadRollout(place);
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
    facts(...groupFacts(rollout), ...ownFacts(rollout)),
    membersOf(place).length > 1 && groupChips(place, (other) => other === place, (other) => linkTo("rollouts", other), "Group"),
    el("div.turns", {}, turnCards(rollout, beliefRange(rollout.turns))),
  ];
}

async function showComparison(left, right) {
  const pair = await Promise.all([left, right].map(loadRollout));
  const range = beliefRange(pair.flatMap((rollout) => rollout.turns));
  const cards = pair.map((rollout) => turnCards(rollout, range));
  const count = Math.max(...cards.map((column) => column.length));
  const head = (rollout, side, href) =>
    el("div.side", {}, groupChips(rollout.place, (other) => other === rollout.place, href, side), facts(...ownFacts(rollout)), creditStrip(data.index.advantages[rollout.place]));
  return [
    el("div.bar", {}, el("a.back.always", { href: linkTo("rollouts", left) }, "← One rollout"), copyButton(), el("span.scale", {}, scaleLegend())),
    promptOf(pair[0]),
    facts(...groupFacts(pair[0])),
    el(
      "div.pair",
      {},
      head(pair[0], "Left", (other) => linkTo("compare", other, right)),
      head(pair[1], "Right", (other) => linkTo("compare", left, other)),
      Array.from({ length: count }, (_, k) => cards.map((column) => column[k] ?? el("div.absent", {}, "no such turn"))),
    ),
  ];
}

function turnCards(rollout, range) {
  const answer = rollout.stop_reason === "answered" ? rollout.turns.length - 1 : null; // number of that turn
  return rollout.turns.map((turn, number) => turnCard(turn, number, number === answer, range));
}

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
