"use strict";
// The page of one reader of a study: cases one by one, questions about each, answers that stay until they are submitted.

const study = JSON.parse(document.getElementById("data").textContent);
const FORMAT = 1;
const QUESTIONS = [
  { name: "verdict", legend: "Is this scan real or synthetic?", choices: [["real", "Real"], ["synthetic", "Synthetic"]] },
  {
    name: "confidence",
    legend: "How sure are you?",
    choices: [[1, "1", "guess"], [2, "2", "unsure"], [3, "3", "fairly"], [4, "4", "sure"], [5, "5", "certain"]],
  },
  {
    name: "realism",
    legend: "How realistic does it look?",
    choices: [[1, "1", "not at all"], [2, "2", "little"], [3, "3", "mostly"], [4, "4", "fully"]],
  },
  {
    name: "consistency",
    legend: "Do neighbouring slices fit together?",
    choices: [[1, "1", "not at all"], [2, "2", "little"], [3, "3", "mostly"], [4, "4", "fully"]],
  },
  {
    name: "anatomy",
    legend: "Is the anatomy correct?",
    choices: [[1, "1", "not at all"], [2, "2", "little"], [3, "3", "mostly"], [4, "4", "fully"]],
  },
];
const byId = (id) => document.getElementById(id);

// answers

const blank = (id) => ({
  case: id, verdict: null, confidence: null, realism: null, consistency: null, anatomy: null, comment: "", marks: [],
  seconds: 0,
});
const trial = study.trial && { ...study.trial, isTrial: true };
const cases = [...(trial ? [trial] : []), ...study.cases]; // in the order of the reader
let answers = { format: FORMAT, study: study.study, reader: study.reader, submitted: null, cases: [] };
const storageKey = `prdit study ${study.study} reader ${study.reader}`;
let current = 0;

/** Takes over answers of the same study and reader; returns why it does not. */
function adopt(given) {
  if (!given || typeof given !== "object" || given.format !== FORMAT || !Array.isArray(given.cases))
    return "This is no file of answers.";
  if (given.study !== study.study) return `These are answers of another study (${given.study}).`;
  if (given.reader !== study.reader) return `These are answers of another reader (${given.reader}).`;
  const known = new Map(given.cases.map((one) => [one?.case, one]));
  const strange = given.cases.find((one) => !study.cases.some(({ id }) => id === one?.case));
  if (strange) return `The study has no case ${strange?.case}.`;
  answers = { ...answers, submitted: typeof given.submitted === "string" ? given.submitted : null };
  answers.cases = study.cases.map(({ id }) => checked(id, known.get(id)));
  return "";
}

/** Answers of a case with what is allowed in them. */
function checked(id, given) {
  const made = blank(id);
  if (!given) return made;
  for (const { name, choices } of QUESTIONS) if (choices.some(([value]) => value === given[name])) made[name] = given[name];
  if (typeof given.comment === "string") made.comment = given.comment;
  if (Number.isFinite(given.seconds) && given.seconds > 0) made.seconds = given.seconds;
  const isMark = (mark) => Array.isArray(mark?.index) && mark.index.length === 3 && mark.index.every(Number.isInteger);
  if (Array.isArray(given.marks))
    made.marks = given.marks.filter(isMark).map(({ index, plane, note }) => ({
      index, plane: plane in PLANES ? plane : "axial", note: String(note ?? ""),
    }));
  return made;
}

const ofTrial = blank("trial"); // to try the page; neither kept nor exported
const answersOf = (number) => (cases[number].isTrial ? ofTrial : answers.cases.find((one) => one.case === cases[number].id));
const lacking = (one) => QUESTIONS.filter(({ name }) => one[name] === null);
const isBegun = (one) => lacking(one).length < QUESTIONS.length || one.comment !== "" || one.marks.length > 0;
const isOpen = () => answers.submitted === null || cases[current].isTrial;

function store() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(answers));
    byId("saved").className = "saved";
    byId("saved").textContent = "Kept in this browser";
  } catch {
    byId("saved").className = "saved warning";
    byId("saved").textContent = "This browser keeps nothing: save to a file before you close the page";
  }
}

function restore() {
  adopt({ ...answers, cases: [] });
  let kept = null;
  try {
    kept = localStorage.getItem(storageKey);
    if (!kept || adopt(JSON.parse(kept)) === "") return;
  } catch {
    if (kept === null) return; // the browser keeps nothing, as `store` will say
  }
  localStorage.setItem(`${storageKey} unreadable ${Date.now()}`, kept); // rather than lost
}

// files

const fileName = (suffix) => `answers_${study.study}_${study.reader}.${suffix}`.replace(/[^\w.-]/g, "_");

function download(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function exported() {
  const rounded = answers.cases.map((one) => ({ ...one, seconds: Math.round(one.seconds * 10) / 10 }));
  return { ...answers, cases: rounded };
}

const saveJson = () => download(fileName("json"), "application/json", JSON.stringify(exported(), null, 2) + "\n");

function saveCsv() {
  const names = ["case", ...QUESTIONS.map(({ name }) => name), "comment", "marks", "seconds"];
  const cell = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const rows = exported().cases.map((one) => ({ ...one, marks: one.marks.length ? JSON.stringify(one.marks) : "" }));
  const head = ["study", "reader", "submitted", ...names];
  const same = [study.study, study.reader, answers.submitted];
  const lines = [head, ...rows.map((one) => [...same, ...names.map((name) => one[name])])];
  download(fileName("csv"), "text/csv", "\ufeff" + lines.map((line) => line.map(cell).join(",") + "\r\n").join(""));
}

async function loadFile(file) {
  const text = await file.text();
  const load = () => {
    let problem;
    try {
      problem = adopt(JSON.parse(text));
    } catch {
      problem = "This is no file of answers.";
    }
    if (problem) return tell("The file was not loaded", problem);
    store();
    show(current);
  };
  if (answers.submitted) return tell("The file was not loaded", "Your answers are submitted already.");
  if (!answers.cases.some(isBegun)) return load();
  tell("Replace your answers?", "The answers on this page are replaced by those of the file.", [
    ["Replace them", load],
    ["Keep them", () => {}],
  ]);
}

// questions to the reader in a window of their own

function tell(title, text, choices = [["Close", () => {}]]) {
  const dialog = byId("question");
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  const buttons = choices.map(([name, action]) =>
    element("button", { type: "button", textContent: name, onclick: () => (dialog.close(), action()) }));
  dialog.querySelector("div").replaceChildren(...buttons);
  dialog.showModal();
}

const caseName = (number) => (cases[number].isTrial ? "Trial case" : `Case ${number + (trial ? 0 : 1)}`);

function submit() {
  const missing = cases.map((_, number) => number).filter((number) => !cases[number].isTrial && lacking(answersOf(number)).length);
  const finish = () => {
    answers.submitted = new Date().toISOString();
    store();
    saveJson();
    show(current);
  };
  if (!missing.length)
    return tell("Submit your answers?", "They cannot be changed afterwards. A file with your answers is saved; send it to the organisers of the study.", [
      ["Submit", finish],
      ["Not yet", () => {}],
    ]);
  const names = missing.map((number) => {
    const one = answersOf(number);
    return isBegun(one) ? `${caseName(number)} (${lacking(one).map(({ name }) => name).join(", ")})` : caseName(number);
  });
  tell(`${missing.length} of ${study.cases.length} cases lack answers`, `${names.join("; ")}.`, [
    ["Go to the first of them", () => show(missing[0])],
    ["Submit without these answers", finish],
  ]);
}

// the page

const viewer = new Viewer(byId("viewer"), {
  window: study.window,
  tools: { mark: ["Mark", "K", "Click: mark a location of this case"] },
  marks: () => answersOf(current).marks,
  onMark: (mark) => addMark(mark),
  keys: [["N P", "next and previous case"], ["Enter", "with Mark: mark the crosshair"]],
});

let turn = 0;

/** Shows a case: its volume and what was answered. */
async function show(number) {
  count();
  const isAnother = number !== current || !viewer.first;
  current = number;
  drawAnswers();
  if (!isAnother) return viewer.invalidate();
  const mine = ++turn;
  viewer.messages = [];
  viewer.setVolumes([null]);
  try {
    const volume = await loadVolume(cases[number].script, () => mine === turn);
    if (mine !== turn) return;
    viewer.clearMeasures();
    viewer.resetView();
    viewer.position = [0, 0, 0];
    viewer.setVolumes([volume]);
  } catch (error) {
    if (mine !== turn) return;
    viewer.messages = [error.message];
    viewer.invalidate();
  }
}

function addMark(mark) {
  if (!isOpen()) return;
  answersOf(current).marks.push({ ...mark, note: "" });
  viewer.setTool("cross"); // one click, one location
  changed();
  drawMarks();
  [...document.querySelectorAll(".marks input")].pop().focus();
}

function changed() {
  if (!cases[current].isTrial) store();
  drawProgress();
  viewer.invalidate();
}

function drawAnswers() {
  const one = answersOf(current);
  const open = isOpen();
  const fields = QUESTIONS.map((question) => drawQuestion(question, one, open));
  const comment = element("textarea", { id: "comment", value: one.comment, disabled: !open });
  comment.oninput = () => {
    one.comment = comment.value;
    changed();
  };
  const button = (text, id, action, properties = {}) =>
    element("button", { type: "button", id, textContent: text, onclick: action, ...properties });
  const parts = [
    element("h2", { id: "case", textContent: caseName(current) + (cases[current].isTrial ? " (not counted)" : ` of ${study.cases.length}`) }),
    ...(study.note && (cases[current].isTrial || !trial) ? [element("div", { className: "note", textContent: study.note })] : []),
    ...fields,
    element("fieldset", {}, element("legend", { textContent: "What made you decide? Anything else?" }), comment),
    element(
      "fieldset",
      { id: "marking" },
      element("legend", { textContent: "Marked locations" }),
      button("Mark a location (K)", "mark", () => viewer.setTool("mark"), { disabled: !open }),
      element("ol", { className: "marks" }),
    ),
    element(
      "div",
      { className: "row" },
      button("◀ Previous", "previous", () => go(-1), { disabled: current === 0 }),
      button("Next case ▶", "next", () => go(1), { disabled: current === cases.length - 1, className: "primary" }),
    ),
    element("div", { className: "key", id: "progress" }),
    element("ul", { className: "cases", id: "cases" }),
    element("div", { className: "key", textContent: "green: all answered · orange: begun" }),
    element("div", { className: "row" }, button("Submit all answers…", "submit", submit, { disabled: answers.submitted !== null })),
  ];
  if (answers.submitted) {
    const when = new Date(answers.submitted).toLocaleString();
    const text = `Submitted ${when}. Send ${fileName("json")} to the organisers; “Save to a file” makes it again.`;
    parts.unshift(element("div", { className: "submitted", textContent: text }));
  }
  byId("answers").replaceChildren(...parts);
  byId("answers").scrollTop = 0;
  drawMarks();
  drawProgress();
}

function drawQuestion({ name, legend, choices }, one, open) {
  const labels = choices.map(([value, text, word]) => {
    const input = element("input", { type: "radio", name, value, checked: one[name] === value, disabled: !open });
    input.onchange = () => {
      one[name] = value;
      changed();
    };
    return element("label", {}, input, text, ...(word ? [element("small", { textContent: word })] : []));
  });
  return element("fieldset", {}, element("legend", { textContent: legend }), element("div", { className: "choices" }, ...labels));
}

function drawMarks() {
  const { marks } = answersOf(current);
  const open = isOpen();
  const items = marks.map((mark, number) => {
    const note = element("input", { value: mark.note, placeholder: "what is wrong here?", disabled: !open });
    note.setAttribute("aria-label", `note on location ${number + 1}`);
    note.oninput = () => {
      mark.note = note.value;
      changed();
    };
    const showIt = element("button", { type: "button", textContent: `${number + 1}`, title: "show this location" });
    showIt.onclick = () => viewer.first && viewer.moveTo(viewer.mmOf(viewer.first, mark.index));
    const remove = element("button", { type: "button", textContent: "✕", title: "remove this location", disabled: !open });
    remove.onclick = () => {
      marks.splice(number, 1);
      changed();
      drawMarks();
    };
    return element("li", {}, showIt, note, remove);
  });
  document.querySelector(".marks").replaceChildren(...items);
}

function drawProgress() {
  const complete = answers.cases.filter((one) => !lacking(one).length).length;
  byId("progress").textContent = `${complete} of ${study.cases.length} cases are complete`;
  const items = cases.map((one, number) => {
    const given = answersOf(number);
    const state = !lacking(given).length ? "complete" : isBegun(given) ? "begun" : "open";
    const button = element("button", { type: "button", textContent: one.isTrial ? "Trial" : number + (trial ? 0 : 1) });
    button.onclick = () => show(number);
    button.dataset.state = state;
    button.setAttribute("aria-label", `${caseName(number)}, ${state}`);
    button.setAttribute("aria-current", number === current);
    return element("li", { className: one.isTrial ? "trial" : "" }, button);
  });
  byId("cases").replaceChildren(...items);
}

function go(step) {
  const next = current + step;
  if (next >= 0 && next < cases.length) show(next);
}

// time that a case is looked at: while its volume is there and the page can be seen

let since = performance.now();
let isSeen = document.visibilityState === "visible";
let isCounted = false; // since the answers were kept

function count() {
  const now = performance.now();
  const passed = (now - since) / 1000;
  since = now;
  if (!isSeen || !viewer.first || !isOpen() || passed > 5) return; // a longer gap is a computer that slept
  answersOf(current).seconds += passed;
  isCounted = true;
}

function keepTime() {
  count();
  if (isCounted && answers.submitted === null) store();
  isCounted = false;
}

setInterval(count, 500);
setInterval(keepTime, 5000);
window.addEventListener("pagehide", keepTime);
document.addEventListener("visibilitychange", () => {
  count();
  isSeen = document.visibilityState === "visible";
});
window.addEventListener("storage", (event) => {
  if (event.key !== storageKey) return;
  restore(); // the study is open in another window too
  drawAnswers();
});

document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input:not([type=radio]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  const step = { n: 1, p: -1 }[event.key.toLowerCase()];
  if (step) go(step);
  else if (event.key === "Enter" && viewer.tool === "mark" && !event.target.closest?.("button") && viewer.first)
    addMark({ index: viewer.indexAt(viewer.first, viewer.position), plane: viewer.active });
  else return;
  event.preventDefault();
});

byId("title").textContent = study.title;
byId("reader").textContent = `Reader: ${study.reader}`;
byId("save").onclick = saveJson;
byId("table").onclick = saveCsv;
byId("load").onclick = () => byId("file").click();
byId("file").onchange = () => {
  if (byId("file").files.length) loadFile(byId("file").files[0]);
  byId("file").value = "";
};
restore();
store();
const next = cases.findIndex((one, number) => !one.isTrial && lacking(answersOf(number)).length > 0);
show(answers.cases.some(isBegun) ? Math.max(next, 0) : 0);
