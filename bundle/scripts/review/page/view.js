"use strict";
// The page view.html: which volumes are shown, one or two.

const page = JSON.parse(document.getElementById("data").textContent);
const chosen = [0]; // numbers of the volumes that are shown
const loaded = [null]; // these volumes; no other is kept
let turn = 0; // what was asked for before is not shown any more

const viewer = new Viewer(document.getElementById("viewer"), {
  unit: (slot) => page.volumes[chosen[slot]]?.unit,
  keys: [
    ["← →, P N", "previous and next volume"],
    ["B", "another volume beside, and back"],
  ],
});

const groups = [...new Set(page.volumes.map((one) => one.group))];
const selects = [makeSelect(0), makeSelect(1)];
const besideButton = element("button", {
  type: "button",
  textContent: "Beside",
  title: "another volume beside this one, in step (key B)",
  onclick: () => toggleBeside(),
});
viewer.extra.append(...selects.map((one) => one.root), besideButton);
document.getElementById("notes").textContent = page.notes.join(" · ");

function makeSelect(slot) {
  const select = element("select", { className: "volume", title: slot ? "volume beside" : "volume" });
  for (const group of groups) {
    const options = element("optgroup", { label: group });
    page.volumes.forEach((one, number) => {
      if (one.group === group) options.append(element("option", { value: number, textContent: one.name }));
    });
    select.append(options);
  }
  select.onchange = () => show(slot, Number(select.value));
  const button = (text, step, title) =>
    element("button", { type: "button", textContent: text, title, onclick: () => go(slot, step) });
  const root = element(
    "span",
    { className: "group" },
    button("◀", -1, "previous volume (key P)"),
    select,
    button("▶", 1, "next volume (key N)"),
  );
  return { root, select };
}

/** Shows a volume by its number in one of the places. */
async function show(slot, number) {
  chosen[slot] = number;
  loaded[slot] = null;
  const mine = ++turn;
  if (slot === 0 && chosen.length > 1) {
    const same = sameName(page.volumes[number].name, page.volumes[chosen[1]].group);
    if (same >= 0 && same !== chosen[1]) [chosen[1], loaded[1]] = [same, null];
  }
  refresh();
  for (const [place, wanted] of chosen.entries()) {
    if (loaded[place]) continue;
    try {
      const volume = await loadVolume(page.volumes[wanted].script, () => mine === turn);
      if (mine !== turn) return;
      loaded[place] = volume;
      viewer.messages = [];
    } catch (error) {
      if (mine !== turn) return;
      viewer.messages = chosen.map((_, one) => (one === place ? error.message : undefined));
    }
    refresh();
  }
}

function refresh() {
  selects.forEach(({ root, select }, slot) => {
    root.hidden = slot >= chosen.length;
    if (slot < chosen.length) select.value = chosen[slot];
  });
  besideButton.disabled = page.volumes.length < 2;
  besideButton.setAttribute("aria-pressed", chosen.length > 1);
  document.title = chosen.map((number) => page.volumes[number].name).join(" | ");
  viewer.setVolumes([...loaded], chosen.map((number) => page.volumes[number].name));
}

/** Number of the volume of a name in a group, such as the same seed of other weights; -1 where there is none. */
function sameName(name, group) {
  return page.volumes.findIndex((one) => one.name === name && one.group === group);
}

function go(slot, step) {
  show(slot, (chosen[slot] + step + page.volumes.length) % page.volumes.length);
}

function toggleBeside() {
  if (chosen.length > 1) {
    chosen.pop();
    loaded.pop();
    turn++;
    return refresh();
  }
  const { name, group } = page.volumes[chosen[0]];
  const others = page.volumes.map((_, number) => number).filter((number) => number !== chosen[0]);
  const foreign = others.filter((number) => page.volumes[number].group !== group);
  const same = foreign.find((number) => page.volumes[number].name === name);
  const next = same ?? foreign[0] ?? others.find((number) => number > chosen[0]) ?? others[0];
  if (next !== undefined) show(1, next);
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowLeft: -1, p: -1, ArrowRight: 1, n: 1 };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in steps) go(0, steps[key]);
  else if (key === "b") toggleBeside();
  else return;
  event.preventDefault();
});

show(0, 0);
