// The tree of a prompt: turns that its rollouts share, and where they part. Columns are turns, and each row ends in a leaf.

const GRID = { column: 64, row: 24, leaf: 120 }; // pixels

/** The tree of a prompt; null where its rollouts are none. */
async function loadTree(place) {
  const rollouts = await Promise.all(membersOf(place).map(loadRollout));
  const nodes = treeNodes(rollouts);
  return nodes.length > 0 ? { nodes, rollouts, rows: layOut(nodes), ...treeColors(nodes) } : null;
}

/** Turns by their numbers, each once with the rollouts that go through it, in the order in which rollouts meet them. */
function treeNodes(rollouts) {
  const nodes = new Map();
  for (const rollout of rollouts) {
    rollout.turns.forEach((turn, depth) => {
      if (turn.node === null) return;
      if (!nodes.has(turn.node)) nodes.set(turn.node, { number: turn.node, parent: turn.parent, depth, turn, through: [], drawn: [] });
      nodes.get(turn.node).through.push(rollout.place);
      nodes.get(turn.node).drawn.push(turn.drawn);
    });
  }
  return [...nodes.values()];
}

/** Give each node its row: that of its parent for a first child, a new one for every other. Returns how many there are. */
function layOut(nodes) {
  const numbers = new Set(nodes.map((node) => node.number));
  const children = new Map();
  for (const node of nodes) {
    const parent = numbers.has(node.parent) ? node.parent : null;
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(node);
  }
  let row = 0;
  const placeBelow = (number) =>
    children.get(number)?.forEach((child, i) => {
      if (i > 0) row++;
      child.row = row;
      placeBelow(child.number);
    });
  placeBelow(null);
  return row + 1;
}

/** What colours nodes: values where there are any, otherwise advantages; of a node, the mean over its rollouts. */
function treeColors(nodes) {
  const name = nodes.some(({ drawn }) => drawn.some(({ value }) => isNumber(value))) ? "value" : "advantage";
  for (const node of nodes) {
    const known = node.drawn.map((numbers) => numbers[name]).filter(isNumber);
    node.worth = known.length ? known.reduce((sum, number) => sum + number, 0) / known.length : null;
  }
  return { name, scale: Math.max(...nodes.map(({ worth }) => Math.abs(worth ?? 0))) || 1 };
}

/** The node that an arrow key leads to. */
function neighbour(nodes, node, key) {
  const column = nodes.filter(({ depth }) => depth === node.depth).sort((a, b) => a.row - b.row);
  const towards = {
    ArrowLeft: () => nodes.find(({ number }) => number === node.parent),
    ArrowRight: () => nodes.find(({ parent }) => parent === node.number),
    ArrowUp: () => column[column.indexOf(node) - 1],
    ArrowDown: () => column[column.indexOf(node) + 1],
  };
  return towards[key]?.();
}

const at = (depth, row) => ({ left: `${(depth + 1) * GRID.column}px`, top: `${(row + 1) * GRID.row}px` }); // the prompt and a head come first

function treeCard(tree, place) {
  const { nodes, name, scale, rows, rollouts } = tree;
  const columns = 1 + Math.max(...nodes.map(({ depth }) => depth));
  const tip = el("p.tip", {}, "Each box is a turn; the outlined ones are of the rollout below. A click opens a turn; so does Enter, and arrow keys go from one to the next.");
  const links = new Map(nodes.map((node) => [node, nodeLink(tree, node, place)]));
  const point = ({ target }) => {
    const node = nodes.find((one) => links.get(one) === target.closest("a"));
    if (node) fill(tip, el("bdi", {}, describe(tree, node)));
  };
  const map = el(
    "div.map",
    { style: { width: `${(columns + 1) * GRID.column + GRID.leaf}px`, height: `${(rows + 1) * GRID.row}px` } },
    Array.from({ length: columns }, (_, depth) => el("small", { style: at(depth, -1) }, `turn ${depth}`)),
    nodes.map((node) => edge(nodes, node, place)),
    el("span.root", { style: at(-1, 0) }, "prompt"),
    [...links.values()],
    leaves(nodes, rollouts).map(([row, [first, ...others]]) =>
      el("span.leaf", { style: at(columns, row) }, el("b", { title: "reward" }, first.written), el("small", {}, leafName([first, ...others]))),
    ),
  );
  map.addEventListener("mouseover", point);
  map.addEventListener("focusin", point);
  map.addEventListener("keydown", (event) => {
    const from = nodes.find((node) => links.get(node) === event.target);
    const to = from && neighbour(nodes, from, event.key);
    if (!to) return;
    event.preventDefault();
    focusNode(links.get(to));
  });
  return el(
    "section.card.tree",
    { "aria-label": "Tree of the prompt" },
    el(
      "header",
      {},
      el("h4", {}, "Tree", el("small", {}, `${plural(rollouts.length, "rollout")}, ${plural(nodes.length, "turn")}`)),
      el("span.scale", {}, rampLegend(name, signed(-scale), signed(scale))),
    ),
    tip,
    el("div.scroll", {}, map),
  );
}

/** A turn in the tree. It opens the rollout that is shown, where that goes through the turn, otherwise the first that does. */
function nodeLink(tree, node, place) {
  const { nodes, scale } = tree;
  const isOnPath = node.through.includes(place);
  const href = linkToTurn(isOnPath ? place : node.through[0], node.depth);
  const link = tinted(
    "a.node",
    node.worth,
    scale,
    {
      id: `node-${node.number}`,
      href,
      tabindex: node === nodes.find(({ through }) => through.includes(place)) ? 0 : -1,
      "aria-current": isOnPath ? "true" : false,
      "aria-label": describe(tree, node),
      style: at(node.depth, node.row),
    },
    signed(node.worth),
  );
  link.addEventListener("click", () => href === location.hash && showTurn(node.depth));
  return link;
}

/** From the parent's middle down to the node's row, then to the node. */
function edge(nodes, node, place) {
  const parent = nodes.find(({ number }) => number === node.parent) ?? { depth: -1, row: 0 };
  const size = { width: `${(node.depth - parent.depth) * GRID.column}px`, height: `${(node.row - parent.row) * GRID.row}px` };
  return el(`i.edge${node.through.includes(place) ? ".on" : ""}`, { "aria-hidden": "true", style: { ...at(parent.depth, parent.row), ...size } });
}

/** Rows, with the rollouts that end there. */
function leaves(nodes, rollouts) {
  const rows = new Map();
  for (const rollout of rollouts) {
    const last = nodes.findLast(({ through }) => through.includes(rollout.place));
    if (last) rows.set(last.row, [...(rows.get(last.row) ?? []), rollout]);
  }
  return [...rows];
}

const leafName = (rollouts) => `rollout${rollouts.length > 1 ? "s" : ""} ${rollouts.map(({ generation }) => generation).join(", ")}`;

/** What is known of a node, in a line. */
function describe({ name }, node) {
  const { surprisal, "leaves below": below } = node.turn.credit;
  const known = [`Turn ${node.depth}`, `${name} ${signed(node.worth)}`, surprisal && `surprisal ${surprisal}`, below && `leaves below ${below}`];
  const words = node.turn.text.replace(/\s+/g, " ").trim();
  return `${known.filter(Boolean).join(" · ")} · ${words.length > 90 ? `${words.slice(0, 90)} …` : words}`;
}

/** One node at a time can be reached with Tab. */
function focusNode(link) {
  for (const other of link.parentElement.querySelectorAll(".node")) other.tabIndex = other === link ? 0 : -1;
  link.focus();
}

/** Under a turn's head: the other rollouts that go through it, and the way back to the tree. */
function sharedBy(tree, place, turn) {
  const node = tree?.nodes.find(({ number }) => number === turn.node);
  if (!node) return null;
  const { generation, written } = data.index;
  const back = el("button.quiet", { type: "button" }, "↑ Tree");
  back.addEventListener("click", () => focusNode(byId(`node-${node.number}`)));
  const chip = (other) =>
    el("a.chip", { href: linkToTurn(other, node.depth), "aria-current": other === place ? "true" : false }, `${generation[other]}`, el("b", {}, written[other]));
  return el(
    "div.chips.shared",
    {},
    back,
    node.through.length > 1 && [el("span", {}, `shared by ${plural(node.through.length, "rollout")}`), node.through.map(chip)],
  );
}
