// The data of the page: gzip in base64, unpacked when it is asked for.

async function unpack(name) {
  const packed = atob(byId(`data-${name}`).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const data = {
  overview: null, // runs, charts, palette, …
  index: null, // columns, an entry for each rollout
  size: 0, // rollouts
  ids: [], // of rollouts: run.batch.group.generation
  places: new Map(), // id → place in the index
  groups: new Map(), // run.batch.group → places
  reasons: [], // stop reasons, most frequent first
  texts: [], // all texts of each rollout in lower case, once they have been searched
};
const unpacked = new Map(); // name → what is unpacked

async function loadData() {
  data.overview = await unpack("overview");
  const index = (data.index = await unpack("index"));
  data.size = index.run.length;
  const counts = new Map();
  for (let i = 0; i < data.size; i++) {
    const group = groupOf(i);
    const id = `${group}.${index.generation[i]}`;
    data.ids.push(id);
    data.places.set(id, i);
    if (!data.groups.has(group)) data.groups.set(group, []);
    data.groups.get(group).push(i);
    const reason = index.stop_reason[i];
    if (reason !== null) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  }
  data.reasons = [...counts].sort((a, b) => b[1] - a[1]);
}

function groupOf(place) {
  const { run, batch, group } = data.index;
  return `${run[place]}.${batch[place]}.${group[place]}`;
}

/** A rollout with its texts. */
async function loadRollout(place) {
  const size = data.overview.part;
  const first = data.groups.get(groupOf(place))[0];
  const [{ prompts, rollouts }, thumbnails] = await Promise.all([load(`part-${Math.floor(place / size)}`), loadThumbnails(first)]);
  const rollout = rollouts[place % size];
  const entry = Object.fromEntries(Object.entries(data.index).map(([name, column]) => [name, column[place]]));
  return { ...entry, ...rollout, prompt: prompts[rollout.prompt], thumbnails, place };
}

function load(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(name));
  return unpacked.get(name);
}

/** The pictures of the group that begins at a place, by name; none if it has none. */
async function loadThumbnails(first) {
  const name = `pictures-${first}`;
  return byId(`data-${name}`) ? load(name) : {};
}

/** All texts of all rollouts, in lower case; `progress` hears of the share that is ready. */
async function loadTexts(progress) {
  const size = data.overview.part;
  for (let start = data.texts.length; start < data.size; start += size) {
    progress(start / data.size);
    const { prompts, rollouts } = await load(`part-${start / size}`);
    if (data.texts.length > start) continue; // another search was here first
    rollouts.forEach((rollout, i) => {
      const turns = rollout.turns.flatMap((turn) => [
        turn.text,
        turn.observation,
        ...turn.calls.flatMap((call) => [call.name, call.arguments, call.result]),
      ]);
      data.texts.push([prompts[rollout.prompt], data.index.answer[start + i], ...turns].join("\n").toLowerCase());
    });
  }
}
