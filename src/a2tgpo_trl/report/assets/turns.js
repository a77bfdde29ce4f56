// A turn and its credit.

const FOLD = 1200; // characters of a text that are shown at once

/** Colour by advantage: class and strength, full at the scale of the report. */
function tint(advantage) {
  if (!isNumber(advantage)) return { side: "none", share: 0 };
  return { side: advantage < 0 ? "down" : "up", share: Math.min(Math.abs(advantage) / data.overview.scale, 1) };
}

function tinted(what, advantage, properties = {}, ...children) {
  const { side, share } = tint(advantage);
  return el(`${what}.tint.${side}`, { ...properties, style: { "--share": `${Math.round(share * 100)}%` } }, ...children);
}

const sign = (value) => (!isNumber(value) ? MISSING : Math.abs(value) < 0.005 ? "0" : value > 0 ? "+" : "−");

/** A square for each turn, with the sign of its advantage. */
function creditStrip(advantages, most = 14) {
  const text = `advantages ${advantages.map((value) => fixed(value, 2, true)).join(", ")}`;
  return el(
    "div.strip",
    { role: "img", "aria-label": text, title: text },
    advantages.slice(0, most).map((value) => tinted("i", value, {}, sign(value))),
    advantages.length > most && el("small", {}, `+${advantages.length - most}`),
  );
}

/** What the colours say. */
function scaleLegend() {
  const end = compact(data.overview.scale);
  return [
    el("span", {}, "advantage"),
    el("b", {}, `−${end}`),
    el("i.ramp", { role: "img", "aria-label": `from −${end}, orange, over 0, grey, to +${end}, blue` }),
    el("b", {}, `+${end}`),
  ];
}

function rewardBadge(reward) {
  return el("span.reward", { title: "reward" }, el("span.unseen", {}, "reward "), compact(reward));
}

/** A text, folded if it is long, without the empty lines around it. */
function longText(given, kind) {
  const text = given.replace(/^\s*\n|\n\s*$/g, "");
  const body = el(`div.text.${kind}`, { dir: "auto" });
  if (text.length <= FOLD * 1.2) {
    body.append(text);
    return body;
  }
  const button = el("button.quiet", { type: "button" }, `Show all ${whole(text.length)} characters`);
  body.append(`${text.slice(0, FOLD)} …`);
  button.addEventListener("click", () => {
    body.replaceChildren(text);
    button.remove();
  });
  return el("div", {}, body, button);
}

/** The lowest and the highest belief of turns. */
function beliefRange(turns) {
  const beliefs = turns.flatMap((turn) => [turn.belief_before, turn.belief_after]).filter(isNumber);
  return beliefs.length ? [Math.min(...beliefs), Math.max(...beliefs)] : [0, 1];
}

function turnCard(turn, number, isAnswer, [lowest, highest]) {
  const calls = turn.calls ?? [];
  const kind = calls.length ? plural(calls.length, "tool call") : isAnswer ? "answer" : "";
  return tinted(
    "article",
    turn.advantage,
    { "aria-label": `Turn ${number}, advantage ${fixed(turn.advantage, 2, true)}` },
    el(
      "header",
      {},
      el("h4", {}, `Turn ${number}`, kind && el("small", {}, kind)),
      el("span.advantage", { title: "advantage: what multiplies the turn's tokens in the loss" }, el("small", {}, "advantage "), fixed(turn.advantage, 2, true)),
    ),
    credit(turn, lowest, highest),
    el("h5", {}, "Model", el("small", {}, isNumber(turn.num_tokens) ? plural(turn.num_tokens, "token") : "")),
    turn.text ? longText(turn.text, "model") : el("p.empty", {}, "nothing"),
    calls.map(callCard),
    turn.observation !== null && [
      el("h5", {}, "Read then", el("small", {}, isNumber(turn.num_observation_tokens) ? plural(turn.num_observation_tokens, "token") : "")),
      longText(turn.observation, "observation"),
    ],
  );
}

function credit(turn, lowest, highest) {
  const part = isNumber(turn.outcome_advantage) && isNumber(turn.advantage) ? turn.advantage - turn.outcome_advantage : null;
  const hasRange = isNumber(turn.clip_low) && isNumber(turn.clip_high);
  const items = [
    ["belief", belief(turn, lowest, highest)],
    ["gain", fixed(turn.information_gain, 2, true)],
    ["normalised", [fixed(turn.normalized_gain, 2, true), isNumber(turn.turn_group_size) && el("small", {}, ` turn group of ${turn.turn_group_size}`)]],
    ["outcome + turn", part === null ? MISSING : `${fixed(turn.outcome_advantage, 2, true)} ${part < 0 ? "−" : "+"} ${fixed(Math.abs(part), 2)}`],
    ["clip range", [hasRange ? `${fixed(turn.clip_low, 4)} – ${fixed(turn.clip_high, 4)}` : MISSING, isNumber(turn.clip_scale) && el("small", {}, ` ×${fixed(turn.clip_scale, 2)}`)]],
    ...Object.entries(turn.estimator_columns ?? {}).map(([name, value]) => [name, fixed(value, 2, true)]),
  ];
  return el("dl.credit", {}, items.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** Belief before and after, as numbers and on the scale of the rollout. */
function belief({ belief_before: before, belief_after: after }, lowest, highest) {
  if (!isNumber(before) && !isNumber(after)) return MISSING;
  const numbers = `${fixed(before)} → ${fixed(after)}`;
  if (!isNumber(before) || !isNumber(after)) return numbers;
  const place = (value) => (highest > lowest ? (100 * (value - lowest)) / (highest - lowest) : 50);
  const [from, to] = [place(before), place(after)];
  return [
    el("span", {}, numbers),
    el(
      `span.track.${to < from ? "fell" : "rose"}`,
      { "aria-hidden": "true" },
      el("i.way", { style: { left: `${Math.min(from, to)}%`, width: `${Math.abs(to - from)}%` } }),
      el("i.start", { style: { left: `${from}%` } }),
      el("i.end", { style: { left: `${to}%` } }),
    ),
  ];
}

function callCard(call) {
  const outcome = call.failed === null ? "" : call.failed ? "failed" : "done";
  const isRun = isNumber(call.seconds);
  return el(
    `div.call${call.failed ? ".failed" : ""}`,
    {},
    el(
      "div.head",
      {},
      el("code.tool", {}, call.name),
      el("span.outcome", {}, outcome),
      el("span.seconds", {}, isRun ? seconds(call.seconds) : outcome && "did not run"),
    ),
    el("code.arguments", { dir: "auto" }, call.arguments ?? MISSING),
    call.result !== null && el("details", { open: Boolean(call.failed) }, el("summary", {}, "Result of the tool"), longText(call.result, "result")),
  );
}
