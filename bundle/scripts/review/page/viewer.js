"use strict";
// Axial, coronal and sagittal slices of one volume, or of two in step, linked by a crosshair.
//
// Positions are in mm from the middle of the volumes, along R, A and S, so that volumes of different grids stay in step.
// Radiological convention: the patient's right, front and head are at the left and the top of a slice. So in every plane
// both directions of the screen run against those of the voxels.

const PLANES = {
  axial: { across: 0, down: 1, axis: 2, letters: "RLAP" },
  coronal: { across: 0, down: 2, axis: 1, letters: "RLHF" },
  sagittal: { across: 1, down: 2, axis: 0, letters: "APHF" },
};
const DIRECTIONS = ["LR", "PA", "FH"]; // of negative and positive mm along R, A, S
const PRESETS = {
  Lung: [-1350, 150],
  Mediastinum: [-160, 240],
  Bone: [-450, 1050],
  Full: [-1000, 1000],
};
const TOOLS = {
  cross: ["Crosshair", "C", "Click or drag: move the crosshair"],
  window: ["Window", "W", "Drag: brightness and contrast"],
  pan: ["Move", "V", "Drag: move the image"],
  measure: ["Measure", "M", "Drag: length in mm"],
};
const MAX_ZOOM = 12;
const WHEEL_PIXELS = 40; // of a touch pad's scrolling for one slice
const BAR_MM = [1, 2, 5, 10, 20, 50, 100, 200];
const COLOURS = { cross: "rgba(80, 200, 255, .75)", measure: "#ffd34d", mark: "#ff8f5a", text: "#e8e8e8" };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function mmText(mm, axis) {
  const text = Math.abs(mm).toFixed(1);
  return text === "0.0" ? "0.0 mm" : `${DIRECTIONS[axis][mm > 0 ? 1 : 0]} ${text} mm`;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

class Viewer {
  /**
   * @param {HTMLElement} root - in which toolbar, slices and status line are made.
   * @param {object} options - `window`: HU [low, high] to start with; `tools`: more entries like those of TOOLS;
   *   `marks`: function that gives the locations to draw, {index, plane}; `onMark`: called with such a location.
   */
  constructor(root, options = {}) {
    this.options = options;
    this.tools = { ...TOOLS, ...options.tools };
    this.volumes = [];
    this.panes = [];
    this.layout = "all";
    this.tool = "cross";
    this.position = [0, 0, 0];
    this.slabMm = 0;
    this.showCross = true;
    this.measures = [];
    this.active = "axial";
    this.colours = new Uint32Array(65536);
    this._buildToolbar(root);
    this.grid = element("div", { className: "panes" });
    this.status = element("output", { className: "status" });
    root.append(this.toolbar, this.grid, this.status);
    this.setTool("cross");
    this.resetView();
    this.setWindow(...(options.window ?? PRESETS.Lung));
    new ResizeObserver(() => this.invalidate()).observe(this.grid);
    document.addEventListener("keydown", (event) => this._key(event));
  }

  // what is shown

  /** Shows one volume or two; null is one that is being loaded. The position stays, as far as there are voxels. */
  setVolumes(volumes, names = []) {
    const another = volumes.length !== this.volumes.length;
    this.volumes = volumes;
    this.names = names;
    this.measures = this.measures.filter((one) => one.volume === volumes[one.slot]);
    if (another || !this.panes.length) this._buildPanes();
    for (const pane of this.panes) {
      pane.key = "";
      pane.title.textContent = volumes.length > 1 ? names[pane.slot] ?? "" : "";
    }
    this.moveTo(this.position);
  }

  get first() {
    return this.volumes.find((volume) => volume) ?? null;
  }

  /** Voxel [i, j, k] of a volume that is nearest to a position. */
  indexAt(volume, mm) {
    return mm.map((value, axis) => Math.round(value / volume.spacing[axis] + (volume.shape[axis] - 1) / 2));
  }

  mmOf(volume, index) {
    return index.map((value, axis) => (value - (volume.shape[axis] - 1) / 2) * volume.spacing[axis]);
  }

  /** HU of a voxel; null outside of the volume. */
  valueAt(volume, [i, j, k]) {
    const [nx, ny, nz] = volume.shape;
    const inside = i >= 0 && j >= 0 && k >= 0 && i < nx && j < ny && k < nz;
    return inside ? volume.voxels[i + nx * (j + ny * k)] : null;
  }

  /** Puts the crosshair on the voxel of the first volume that is nearest to a position in mm. */
  moveTo(mm) {
    const volume = this.first;
    if (volume) {
      const index = this.indexAt(volume, mm).map((value, axis) => clamp(value, 0, volume.shape[axis] - 1));
      this.position = this.mmOf(volume, index);
    }
    this.invalidate();
  }

  /** Goes so many slices on, as wheels and keys do: down is to the feet, the back, the left. */
  scroll(plane, slices) {
    if (!this.first) return;
    const { axis } = PLANES[plane];
    const mm = [...this.position];
    mm[axis] -= slices * this.first.spacing[axis];
    this.moveTo(mm);
  }

  setWindow(low, high) {
    const width = clamp(high - low, 1, 20000);
    const level = clamp((low + high) / 2, -10000, 10000);
    this.window = [level - width / 2, level + width / 2];
    for (let i = 0; i < 65536; i++) {
      const grey = clamp(Math.round((255 * (i - 32768 - this.window[0])) / width), 0, 255);
      this.colours[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    this.widthInput.value = Math.round(width);
    this.levelInput.value = Math.round(level);
    for (const [name, button] of Object.entries(this.presetButtons)) {
      const preset = PRESETS[name];
      button.setAttribute("aria-pressed", preset[0] === this.window[0] && preset[1] === this.window[1]);
    }
    this.windowVersion = (this.windowVersion ?? 0) + 1;
    this.invalidate();
  }

  setSlab(mm) {
    this.slabMm = clamp(Number(mm) || 0, 0, 1000);
    this.slabInput.value = this.slabMm;
    this.invalidate();
  }

  setTool(tool) {
    this.tool = tool;
    for (const [name, button] of Object.entries(this.toolButtons)) button.setAttribute("aria-pressed", name === tool);
    this.grid.dataset.tool = tool;
  }

  /** 'all' planes, or one of them alone. */
  setLayout(layout) {
    this.layout = layout;
    this.layoutSelect.value = layout;
    this._buildPanes();
    this.invalidate();
  }

  /** The whole slice in every plane again. */
  resetView() {
    this.views = Object.fromEntries(Object.keys(PLANES).map((plane) => [plane, { zoom: 1, middle: [0, 0] }]));
    this.invalidate();
  }

  clearMeasures() {
    this.measures = [];
    this.invalidate();
  }

  // toolbar and panes

  _buildToolbar(root) {
    const button = (text, title, action) =>
      element("button", { type: "button", textContent: text, title, onclick: action });
    const numberInput = (properties) => element("input", { type: "number", step: 10, ...properties });
    const group = (name, ...children) => {
      const made = element("div", { className: "group" }, ...children);
      made.setAttribute("role", "group");
      made.setAttribute("aria-label", name);
      return made;
    };
    this.presetButtons = {};
    Object.entries(PRESETS).forEach(([name, [low, high]], number) => {
      const title = `${low} to ${high} HU (key ${number + 1})`;
      this.presetButtons[name] = button(name, title, () => this.setWindow(low, high));
    });
    this.toolButtons = {};
    for (const [name, [text, key, title]] of Object.entries(this.tools))
      this.toolButtons[name] = button(text, `${title} (key ${key})`, () => this.setTool(name));
    const fromInputs = () => {
      const [width, level] = [this.widthInput, this.levelInput].map((input) => parseFloat(input.value));
      if (Number.isFinite(width) && Number.isFinite(level)) this.setWindow(level - width / 2, level + width / 2);
    };
    this.widthInput = numberInput({ min: 1, onchange: fromInputs, title: "width of the window, HU" });
    this.levelInput = numberInput({ onchange: fromInputs, title: "middle of the window, HU" });
    this.slabInput = numberInput({ min: 0, max: 1000, step: 1, value: 0, title: "0: single slices" });
    this.slabInput.oninput = () => this.setSlab(this.slabInput.value);
    this.layoutSelect = element("select", { title: "a double click on a slice does the same" });
    for (const name of ["all", ...Object.keys(PLANES)])
      this.layoutSelect.append(element("option", { value: name, textContent: name === "all" ? "all planes" : name }));
    this.layoutSelect.onchange = () => this.setLayout(this.layoutSelect.value);
    this.help = this._buildHelp();
    root.append(this.help);
    this.extra = element("div", { className: "group" });
    this.toolbar = element(
      "div",
      { className: "toolbar" },
      this.extra,
      group("window", ...Object.values(this.presetButtons)),
      group("window in HU", element("label", {}, "W ", this.widthInput), element("label", {}, "L ", this.levelInput)),
      group("tools", ...Object.values(this.toolButtons)),
      group("slab", element("label", { title: "maximum intensity over a slab" }, "MIP ", this.slabInput, " mm")),
      group(
        "view",
        this.layoutSelect,
        button("Reset", "whole slices, no measures (key 0)", () => this._reset()),
        button("Help", "mouse and keys (key ?)", () => this.help.showModal()),
      ),
    );
    this.toolbar.setAttribute("role", "toolbar");
  }

  _buildHelp() {
    const rows = [
      ["Wheel, two fingers", "slices of the plane under the pointer"],
      ["↑ ↓, PgUp PgDn, Home End", "one slice, ten, first and last, in the plane last pointed at"],
      ["Click, drag", "what the chosen tool says; the crosshair links all planes"],
      ["Right drag, or Shift + drag", "window: right is more contrast range, down is darker"],
      ["Ctrl + wheel, pinch", "zoom at the pointer"],
      ["Middle drag, or Alt + drag", "move the image"],
      ["Double click, A", "one plane alone, and back"],
      ["1 2 3 4", Object.keys(PRESETS).join(", ")],
      ...Object.values(this.tools).map(([name, key, title]) => [key, `${title} (${name})`]),
      ["[ ]", "thinner and thicker slab (maximum intensity)"],
      ["X", "crosshair on and off"],
      ["0", "reset zoom and measures"],
      ...(this.options.keys ?? []),
    ];
    const table = element("table");
    for (const [keys, what] of rows)
      table.append(element("tr", {}, element("th", { textContent: keys }), element("td", { textContent: what })));
    const close = element("form", { method: "dialog" }, element("button", { textContent: "Close" }));
    const convention =
      "Slices are shown as radiologists look at them: the patient's right is on the left of axial and coronal " +
      "slices, the front on the left of sagittal ones. Positions are counted from the middle of the volume.";
    return element(
      "dialog",
      { className: "help" },
      element("h2", { textContent: "Mouse and keys" }),
      table,
      element("p", { textContent: convention }),
      close,
    );
  }

  _buildPanes() {
    const planes = this.layout === "all" ? Object.keys(PLANES) : [this.layout];
    const slots = Math.max(1, this.volumes.length);
    this.grid.replaceChildren();
    this.grid.className = `panes ${this.layout === "all" ? "all" : "one"} ${slots > 1 ? "two" : "single"}`;
    this.panes = [];
    for (let slot = 0; slot < slots; slot++) for (const plane of planes) this.panes.push(this._buildPane(slot, plane));
    this._takeSizes();
  }

  _buildPane(slot, plane) {
    const text = (where, content = "") => element("span", { className: `label ${where}`, textContent: content });
    const [left, right, top, bottom] = PLANES[plane].letters;
    const canvas = element("canvas", { className: "over" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${plane} slice`);
    const pane = {
      slot,
      plane,
      canvas,
      place: text("place"),
      title: text("title", this.volumes.length > 1 ? this.names?.[slot] ?? "" : ""),
      reading: text("reading"),
      message: text("message"),
      image: element("canvas", { className: "slice" }),
      key: "",
      width: 0,
      height: 0,
    };
    const letters = [text("left", left), text("right", right), text("top", top), text("bottom", bottom)];
    pane.root = element(
      "div",
      { className: `pane ${plane}` },
      pane.image,
      canvas,
      pane.place,
      pane.title,
      pane.reading,
      pane.message,
      ...letters,
    );
    pane.root.dataset.slot = slot;
    pane.root.dataset.plane = plane;
    this.grid.append(pane.root);
    this._listen(pane);
    return pane;
  }

  // drawing

  /** Draws at the next frame. */
  invalidate() {
    if (this.frame || !this.grid) return;
    this.frame = requestAnimationFrame(() => this._drawAll());
  }

  _drawAll() {
    this.frame = 0;
    this._takeSizes();
    for (const pane of this.panes) this._draw(pane);
    this._tellPosition();
  }

  /** Sizes of all panes at once: asked for between changes of the page, each would cost a new layout. */
  _takeSizes() {
    for (const pane of this.panes) [pane.width, pane.height] = [pane.root.clientWidth, pane.root.clientHeight];
  }

  _draw(pane) {
    const volume = this.volumes[pane.slot];
    const { width, height } = pane;
    const isThere = Boolean(volume && width && height);
    pane.root.classList.toggle("empty", !isThere);
    pane.place.textContent = pane.plane;
    pane.message.textContent = volume ? "" : this.messages?.[pane.slot] ?? "Loading…";
    pane.reading.textContent = "";
    if (!isThere) return;
    this._slice(pane, volume);
    const { across, down, axis } = PLANES[pane.plane];
    const [halfAcross, halfDown] = [across, down].map((one) => (volume.shape[one] * volume.spacing[one]) / 2);
    const [left, top] = this._toScreen(pane, halfAcross, halfDown);
    const [right, bottom] = this._toScreen(pane, -halfAcross, -halfDown);
    const box = { left, top, width: right - left, height: bottom - top };
    for (const name in box) pane.image.style[name] = `${box[name]}px`; // scaled by the browser, on the GPU where it can
    const outside = pane.index < 0 || pane.index >= volume.shape[axis];
    if (outside) pane.message.textContent = "outside of this volume";
    pane.place.textContent =
      `${pane.plane} ${outside ? "–" : volume.shape[axis] - pane.index}/${volume.shape[axis]}  ` +
      mmText(this.position[axis], axis) + (this.slabMm ? `  MIP ${this.slabMm} mm` : "");
    this._drawOver(pane, volume);
    if (pane.pointer) this._tellValue(pane);
  }

  /** Crosshair, measures, marks and scale bar, where they are not as they were. */
  _drawOver(pane, volume) {
    const { across, down, axis } = PLANES[pane.plane];
    const { width, height } = pane;
    const cross = this.showCross && this._toScreen(pane, this.position[across], this.position[down]);
    const measures = this.measures.filter(
      ({ plane, slot, from }) => plane === pane.plane && slot === pane.slot && this._isShown(pane, from[axis]),
    );
    const marks = (this.options.marks?.() ?? [])
      .map(({ index }, number) => ({ number, mm: this.mmOf(volume, index) }))
      .filter(({ mm }) => this._isShown(pane, mm[axis]));
    const ratio = window.devicePixelRatio || 1;
    const ends = measures.map(({ from, to }) => [from, to]);
    const key = JSON.stringify([width, height, ratio, this._scale(pane), this.views[pane.plane], cross, ends, marks]);
    if (key === pane.overKey) return;
    pane.overKey = key;
    pane.canvas.width = Math.round(width * ratio); // clears it, too
    pane.canvas.height = Math.round(height * ratio);
    const context = pane.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (cross) this._drawCross(pane, context, cross);
    for (const measure of measures) this._drawMeasure(pane, context, measure);
    for (const mark of marks) this._drawMark(pane, context, mark);
    this._drawBar(pane, context);
  }

  /** Brings the slice, or the maximum over the slab around it, into the pane's picture. */
  _slice(pane, volume) {
    const { across, down, axis } = PLANES[pane.plane];
    const index = Math.round(this.position[axis] / volume.spacing[axis] + (volume.shape[axis] - 1) / 2);
    const key = [volume.name, index, this.slabMm, this.windowVersion].join();
    if (pane.key === key && pane.of === volume) return;
    const [columns, rows] = [volume.shape[across], volume.shape[down]];
    const half = Math.max(0, Math.round(this.slabMm / volume.spacing[axis]) - 1) / 2;
    const first = clamp(Math.ceil(index - half), 0, volume.shape[axis]);
    const last = Math.min(Math.ceil(index - half) + 2 * half, volume.shape[axis] - 1);
    const steps = [1, volume.shape[0], volume.shape[0] * volume.shape[1]];
    const { voxels } = volume;
    const values = new Int16Array(columns * rows).fill(-32768);
    const [stepAcross, stepDown, step] = [steps[across], steps[down], steps[axis]];
    for (let n = first; n <= last; n++) {
      let out = 0;
      for (let row = rows - 1; row >= 0; row--) {
        let from = n * step + row * stepDown + (columns - 1) * stepAcross;
        for (let column = 0; column < columns; column++, from -= stepAcross, out++)
          if (voxels[from] > values[out]) values[out] = voxels[from];
      }
    }
    const picture = new ImageData(columns, rows);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = this.colours[values[i] + 32768];
    pane.image.width = columns;
    pane.image.height = rows;
    pane.image.getContext("2d").putImageData(picture, 0, 0);
    Object.assign(pane, { key, values, index, columns, rows, of: volume });
  }

  /** Pixels of the page for one mm in a plane; the same for both volumes. */
  _scale(pane) {
    const { across, down } = PLANES[pane.plane];
    const size = (axis) =>
      Math.max(...this.volumes.map((volume) => (volume ? volume.shape[axis] * volume.spacing[axis] : 1)));
    const fit = Math.min(pane.width / size(across), pane.height / size(down));
    return fit * this.views[pane.plane].zoom;
  }

  _toScreen(pane, mmAcross, mmDown) {
    const scale = this._scale(pane);
    const [x, y] = this.views[pane.plane].middle;
    return [pane.width / 2 - (mmAcross - x) * scale, pane.height / 2 - (mmDown - y) * scale];
  }

  /** Position in mm, in the slice that is shown, of a point of the pane. */
  _toMm(pane, [x, y]) {
    const { across, down } = PLANES[pane.plane];
    const scale = this._scale(pane);
    const { middle } = this.views[pane.plane];
    const mm = [...this.position];
    mm[across] = middle[0] - (x - pane.width / 2) / scale;
    mm[down] = middle[1] - (y - pane.height / 2) / scale;
    return mm;
  }

  _drawCross({ width, height }, context, at) {
    const [x, y] = at.map((one) => Math.round(one) + 0.5);
    const gap = 9; // what is in the middle stays visible
    context.strokeStyle = COLOURS.cross;
    context.lineWidth = 1;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [
      [0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height],
    ]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  /** Whether something at a position along an axis belongs to what a pane shows. */
  _isShown(pane, mm) {
    const { axis } = PLANES[pane.plane];
    const half = Math.max(this.slabMm, this.volumes[pane.slot].spacing[axis]) / 2;
    return Math.abs(mm - this.position[axis]) <= half + 1e-6;
  }

  _drawMeasure(pane, context, { from, to }) {
    const { across, down } = PLANES[pane.plane];
    const ends = [from, to].map((mm) => this._toScreen(pane, mm[across], mm[down]));
    context.font = "13px system-ui, sans-serif";
    context.strokeStyle = context.fillStyle = COLOURS.measure;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(...ends[0]);
    context.lineTo(...ends[1]);
    context.stroke();
    for (const [x, y] of ends) context.fillRect(x - 2, y - 2, 4, 4);
    this._drawText(pane, context, `${distance(from, to).toFixed(1)} mm`, ends[1][0] + 8, ends[1][1] - 6);
  }

  _drawText(pane, context, text, x, y) {
    const width = context.measureText(text).width;
    const [left, base] = [clamp(x, 4, pane.width - width - 4), Math.max(y, 16)];
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeText(text, left, base);
    context.fillText(text, left, base);
  }

  _drawMark(pane, context, { number, mm }) {
    const { across, down } = PLANES[pane.plane];
    const [x, y] = this._toScreen(pane, mm[across], mm[down]);
    context.strokeStyle = context.fillStyle = COLOURS.mark;
    context.lineWidth = 2;
    context.beginPath();
    context.arc(x, y, 11, 0, 2 * Math.PI);
    context.stroke();
    context.font = "bold 14px system-ui, sans-serif";
    this._drawText(pane, context, String(number + 1), x + 13, y - 8);
  }

  _drawBar(pane, context) {
    const { width, height } = pane;
    const scale = this._scale(pane);
    const mm = BAR_MM.filter((one) => one * scale < width / 4).pop();
    if (!mm) return;
    const [left, base] = [width - mm * scale - 14, height - 12];
    context.fillStyle = COLOURS.text;
    context.fillRect(left, base, mm * scale, 2);
    context.fillRect(left, base - 4, 1, 8);
    context.fillRect(left + mm * scale - 1, base - 4, 1, 8);
    context.font = "12px system-ui, sans-serif";
    this._drawText(pane, context, `${mm} mm`, left, base - 8);
  }

  // what is told

  _tellValue(pane) {
    const volume = this.volumes[pane.slot];
    if (!volume) return;
    const { across, down } = PLANES[pane.plane];
    const index = this.indexAt(volume, this._toMm(pane, pane.pointer));
    const [column, row] = [volume.shape[across] - 1 - index[across], volume.shape[down] - 1 - index[down]];
    const inside = column >= 0 && row >= 0 && column < pane.columns && row < pane.rows;
    const value = inside ? pane.values[column + pane.columns * row] : -32768;
    const unit = this.options.unit?.(pane.slot) ?? "HU";
    pane.reading.textContent = value === -32768 ? "" : `${value} ${unit}`;
  }

  _tellPosition() {
    const volume = this.first;
    if (!volume) return;
    const values = this.volumes.map((one, slot) => {
      const value = one && this.valueAt(one, this.indexAt(one, this.position));
      return value === null ? "–" : `${value} ${this.options.unit?.(slot) ?? "HU"}`;
    });
    const place = this.position.map(mmText).join("  ");
    const voxel = this.indexAt(volume, this.position).join(", ");
    this.status.textContent =
      `Crosshair  ${place}  ·  ${values.join(" | ")}  ·  voxel ${voxel}  ·  ` +
      "the patient's right is on the left";
  }

  // mouse, touch pad, keys

  _listen(pane) {
    const { canvas } = pane;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let drag = null;
    let used = ""; // tool of the last press
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.volumes[pane.slot]) return;
      event.preventDefault();
      document.activeElement?.blur();
      canvas.setPointerCapture(event.pointerId);
      this.active = pane.plane;
      used = this._toolOf(event);
      drag = this._startDrag(pane, used, at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      pane.pointer = at(event);
      this.active = pane.plane;
      if (drag) drag(pane.pointer);
      else this._tellValue(pane);
    });
    canvas.addEventListener("pointerleave", () => {
      pane.pointer = null;
      pane.reading.textContent = "";
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drag = null));
    canvas.addEventListener("dblclick", () => {
      if (used === "cross") this.setLayout(this.layout === "all" ? pane.plane : "all");
    });
    let scrolled = 0; // touch pads send many small steps
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        if (!this.first) return;
        if (event.ctrlKey) return this._zoom(pane, at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.1 : 0.01)));
        if (event.deltaMode || Math.abs(event.deltaY) >= 100) {
          scrolled = 0;
          return this.scroll(pane.plane, Math.sign(event.deltaY)); // one notch of a wheel
        }
        scrolled += event.deltaY / WHEEL_PIXELS;
        const slices = Math.trunc(scrolled);
        scrolled -= slices;
        if (slices) this.scroll(pane.plane, slices);
      },
      { passive: false },
    );
  }

  _toolOf(event) {
    if (event.button === 2 || event.shiftKey) return "window";
    return event.button === 1 || event.altKey ? "pan" : this.tool;
  }

  /** Begins to drag with a tool; returns what each new point of the pane does. */
  _startDrag(pane, tool, start) {
    const { across, down } = PLANES[pane.plane];
    if (tool === "window") {
      const [low, high] = this.window;
      const [width, level] = [high - low, (low + high) / 2];
      return ([x, y]) => {
        const newWidth = Math.max(1, width * Math.exp((x - start[0]) / 200));
        const newLevel = level + (y - start[1]) * Math.max(1, width / 400);
        this.setWindow(Math.round(newLevel - newWidth / 2), Math.round(newLevel + newWidth / 2));
      };
    }
    if (tool === "pan") {
      const view = this.views[pane.plane];
      const [x0, y0] = view.middle;
      return ([x, y]) => {
        const scale = this._scale(pane);
        view.middle = [x0 + (x - start[0]) / scale, y0 + (y - start[1]) / scale];
        this.invalidate();
      };
    }
    const from = this._toMm(pane, start);
    if (tool === "measure") {
      const measure = { plane: pane.plane, slot: pane.slot, volume: this.volumes[pane.slot], from, to: from };
      return (point) => {
        if (measure.to === from) this.measures.push(measure);
        measure.to = this._toMm(pane, point);
        this.invalidate();
      };
    }
    const move = (point) => {
      const mm = [...this.position];
      const there = this._toMm(pane, point);
      [mm[across], mm[down]] = [there[across], there[down]];
      this.moveTo(mm);
    };
    move(start);
    if (tool === "mark") {
      const volume = this.volumes[pane.slot];
      this.options.onMark?.({ index: this.indexAt(volume, this.position), plane: pane.plane });
      return () => {};
    }
    return move;
  }

  _zoom(pane, point, factor) {
    const { across, down } = PLANES[pane.plane];
    const view = this.views[pane.plane];
    const before = this._toMm(pane, point);
    view.zoom = clamp(view.zoom * factor, 1, MAX_ZOOM);
    const after = this._toMm(pane, point);
    view.middle = [across, down].map((axis, i) => (view.zoom === 1 ? 0 : view.middle[i] + before[axis] - after[axis]));
    this.invalidate();
  }

  _reset() {
    this.resetView();
    this.clearMeasures();
  }

  _key(event) {
    const field = event.target.closest?.("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    if (field && (field.type !== "radio" || event.key.startsWith("Arrow"))) return;
    const plane = this.layout === "all" ? this.active : this.layout;
    const end = this.first ? this.first.shape[PLANES[plane].axis] : 0;
    const slices = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -end, End: end };
    const names = Object.keys(PRESETS);
    const tool = Object.keys(this.tools).find((name) => this.tools[name][1].toLowerCase() === event.key.toLowerCase());
    const preset = PRESETS[names[Number(event.key) - 1]];
    if (event.key in slices) this.scroll(plane, slices[event.key]);
    else if (preset) this.setWindow(...preset);
    else if (tool) this.setTool(tool);
    else if (event.key === "0") this._reset();
    else if (event.key === "[" || event.key === "]") this.setSlab(this.slabMm + (event.key === "]" ? 5 : -5));
    else if (event.key.toLowerCase() === "a") this.setLayout(this.layout === "all" ? plane : "all");
    else if (event.key.toLowerCase() === "x") {
      this.showCross = !this.showCross;
      this.invalidate();
    } else if (event.key === "?") this.help.showModal();
    else return;
    event.preventDefault();
  }
}

function distance(from, to) {
  return Math.hypot(...from.map((value, axis) => value - to[axis]));
}
