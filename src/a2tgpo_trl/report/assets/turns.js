// A turn and its credit, as Python wrote them.

const FOLD = 1200; // characters of a text that are shown at once

/** Colour of a number: class and strength, full at the scale. */
function tint(number, scale) {
  const side = !isNumber(number) ? "none" : number < 0 ? "down" : "up";
  return [side, `${Math.round(100 * Math.min(Math.abs(number ?? 0) / scale, 1))}%`];
}

function tinted(what, number, scale, properties = {}, ...children) {
  const [side, share] = tint(number, scale);
  return el(`${what}.tint.${side}`, { ...properties, style: { ...properties.style, "--share": share } }, ...children);
}

/** A square for each turn, with the sign of its advantage. */
function creditStrip(place, most = 14) {
  const [advantages, credits] = [data.index.advantages[place], data.index.credits[place]];
  const text = `advantages ${credits.join(", ")}`;
  return el(
    "div.strip",
    { role: "img", "aria-label": text, title: text },
    advantages.slice(0, most).map((value, k) => tinted("i", value, data.overview.scale, {}, credits[k][0])),
    advantages.length > most && el("small", {}, `+${advantages.length - most}`),
  );
}

/** What the colours say. */
const scaleLegend = () => rampLegend("advantage", ...data.overview.scale_ends);

function rampLegend(name, low, high) {
  return [name, el("b", {}, low), el("i.ramp", { role: "img", "aria-label": `from ${low}, orange, over 0, grey, to ${high}, blue` }), el("b", {}, high)];
}

/** A picture, small; words where the page has none. */
function pictureOf(name, thumbnails) {
  if (!Object.hasOwn(thumbnails, name)) return el("span.picture", { title: "This page has no copy of the picture." }, "[image]");
  return el("img.picture", { src: `data:image/jpeg;base64,${thumbnails[name]}`, alt: "[image]" });
}

/** A text with pictures where U+FFFC stands, by their names. */
const withPictures = (text, names, thumbnails) =>
  text.split("\ufffc").flatMap((words, i) => (i === 0 ? words : [pictureOf(names[i - 1], thumbnails), words]));

/** A text, folded if it is long, without the empty lines around it. */
function longText(given, kind, names = [], thumbnails = {}) {
  const text = given.replace(/^\s*\n|\n\s*$/g, "");
  const body = el(`div.text.${kind}`, { dir: "auto" });
  const show = (shown) => fill(body, withPictures(shown, names, thumbnails));
  if (text.length <= FOLD * 1.2) {
    show(text);
    return body;
  }
  const button = el("button.quiet", { type: "button" }, `Show all ${whole(text.length)} characters`);
  show(`${text.slice(0, FOLD)} …`);
  button.addEventListener("click", () => {
    show(text);
    button.remove();
  });
  return el("div", {}, body, button);
}

/** The lowest and the highest belief of turns. */
function beliefRange(turns) {
  const beliefs = turns.flatMap(({ drawn }) => [drawn.belief_before, drawn.belief_after]).filter(isNumber);
  return [Math.min(...beliefs), Math.max(...beliefs)];
}

const facts = (entries, kind = "facts") => el(`dl.${kind}`, {}, Object.entries(entries).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

/** `shared`: what stands under its head, see `sharedBy`; `thumbnails`: pictures by name. */
function turnCard(turn, number, range, shared, thumbnails) {
  const { advantage, belief, ...credit } = turn.credit;
  return tinted(
    "article",
    turn.drawn.advantage,
    data.overview.scale,
    { "aria-label": `Turn ${number}, advantage ${advantage}` },
    el(
      "header",
      {},
      el("h4", {}, `Turn ${number}`, turn.kind && el("small", {}, turn.kind)),
      el("span.advantage", { title: "advantage: what multiplies the turn's tokens in the loss" }, el("small", {}, "advantage "), advantage),
    ),
    shared,
    facts({ ...(belief && { belief: [belief, beliefTrack(turn.drawn, range)] }), ...credit }, "credit"),
    el("h5", {}, "Model", el("small", {}, turn.tokens)),
    turn.text ? longText(turn.text, "model") : el("p.empty", {}, "nothing"),
    turn.calls.map(callCard),
    turn.observation !== null && [el("h5", {}, "Read then", el("small", {}, turn.observation_tokens)), longText(turn.observation, "observation", turn.images, thumbnails)],
  );
}

/** Belief before and after on the scale of the rollout. */
function beliefTrack({ belief_before: before, belief_after: after }, [lowest, highest]) {
  if (!isNumber(before) || !isNumber(after)) return null;
  const place = (value) => (highest > lowest ? (100 * (value - lowest)) / (highest - lowest) : 50);
  const [from, to] = [place(before), place(after)];
  return el(
    `span.track.${to < from ? "fell" : "rose"}`,
    { "aria-hidden": "true" },
    el("i.way", { style: { left: `${Math.min(from, to)}%`, width: `${Math.abs(to - from)}%` } }),
    el("i.start", { style: { left: `${from}%` } }),
    el("i.end", { style: { left: `${to}%` } }),
  );
}

function callCard(call) {
  const isFailed = call.outcome === "failed";
  return el(
    `div.call${isFailed ? ".failed" : ""}`,
    {},
    el("div.head", {}, el("code.tool", {}, call.name), el("small.outcome", {}, call.outcome), el("small.seconds", {}, call.seconds)),
    el("code.arguments", { dir: "auto" }, call.arguments),
    call.result !== null && el("details", { open: isFailed }, el("summary", {}, "Result of the tool"), longText(call.result, "result")),
  );
}
