// The explorer of a trace: pictures, the attention between their patches, and what to look through.
//
// An anywidget module without a framework. It draws; a model answers. `model.get("facts")` says what there is to see,
// `model.get("state")` what is chosen. The component asks with model.send({id, relation, from, region, layer, head,
// group, unit, parts}):
//   relation             index into facts.relations
//   from                 "generated" or "keys": the side on which patches are chosen
//   region               [top, left, bottom, right] in cells of that side, "mask", or "all"
//   layer, head, group   indices into the lists of the relation, -1 for the mean
//   unit                 "even" (1 is even attention) or "share"
//   parts                of "map", "layers", "heads", "groups"
// and hears "msg:custom" with {id, error, share, failed} and one float32 buffer for each part: the cells of the other
// side, map after map, NaN where nothing was recorded.

const DEFAULTS = {
  relation: 0, from: "generated", region: null, layer: -1, head: -1, group: -1,
  unit: "even", scale: "own", cells: "blocks", colours: "inferno", strength: 100, theme: "auto",
};
const CHOICES = {
  from: ["generated", "keys"], unit: ["even", "share"], scale: ["own", "fixed"], cells: ["blocks", "smooth"],
  colours: ["inferno", "viridis", "gray"], theme: ["auto", "light", "dark"],
};
const ALONG = { groups: "group", layers: "layer", heads: "head" };
const OPACITY = [0.45, 0.85];  // of the lowest and highest heat, as in attrace's figures
const GREY = [0.12, 0.92];  // of black and white below heat
const PIN = "#19e3ff";
const CACHED = 400;
const FRAME = 900;  // milliseconds that a group of steps is shown while playing

// ---- small tools ---------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const digits = (value) => String(Number(value.toPrecision(value >= 100 ? 4 : 3)));
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const peak = (values) => {
  let best = -1;
  for (let cell = 0; cell < values.length; cell++) if (values[cell] > (best < 0 ? -Infinity : values[best])) best = cell;
  return best;
};
const cellBox = ([row, column]) => [row, column, row + 1, column + 1];
const isBox = (region) => Array.isArray(region);

function scaledBox(box, old, grid) {
  const [down, across] = [grid[0] / old[0], grid[1] / old[1]];
  return [Math.floor(box[0] * down), Math.floor(box[1] * across), Math.ceil(box[2] * down), Math.ceil(box[3] * across)];
}

// a label that may be broken after dots and underscores
const breakable = (label) => label.split(/(?<=[._])/).flatMap((part) => [part, document.createElement("wbr")]);

function whereIn([row, column], [rows, columns]) {
  const down = ["top", "", "bottom"][Math.floor((3 * (row + 0.5)) / rows)];
  const across = ["left", "", "right"][Math.floor((3 * (column + 0.5)) / columns)];
  return [down, across].filter(Boolean).join(" ") || "centre";
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

async function loadPicture(address) {
  if (!address) return null;
  const image = new Image();
  image.src = address;
  await image.decode();
  const colour = canvasOf(image.naturalWidth, image.naturalHeight);
  colour.getContext("2d").drawImage(image, 0, 0);
  const grey = canvasOf(colour.width, colour.height), context = grey.getContext("2d");
  context.drawImage(colour, 0, 0);
  const pixels = context.getImageData(0, 0, grey.width, grey.height), data = pixels.data;
  for (let at = 0; at < data.length; at += 4) {
    const light = 0.2126 * data[at] + 0.7152 * data[at + 1] + 0.0722 * data[at + 2];
    data.fill(255 * GREY[0] + (GREY[1] - GREY[0]) * light, at, at + 3);
  }
  context.putImageData(pixels, 0, 0);
  return { colour, grey };
}

function asker(model) {
  // asks the model and keeps what it answered
  const waiting = new Map(), kept = new Map();
  let last = 0;
  const hear = (answer, buffers) => {
    const asked = waiting.get(answer.id);
    if (!asked) return;
    waiting.delete(answer.id);
    if (answer.failed) return asked.reject(new Error(answer.failed));
    const found = { error: answer.error ?? NaN, share: answer.share ?? NaN };
    asked.parts.forEach((part, place) => {
      const { buffer, byteOffset, byteLength } = buffers[place];
      found[part] = new Float32Array(byteOffset === undefined ? buffers[place] : buffer.slice(byteOffset, byteOffset + byteLength));
    });
    asked.resolve(found);
  };
  model.on("msg:custom", hear);
  const ask = (question) => {
    const key = JSON.stringify(question);
    if (!kept.has(key)) {
      const answered = new Promise((resolve, reject) => {
        waiting.set(++last, { resolve, reject, parts: question.parts });
        model.send({ ...question, id: last });
      });
      answered.catch(() => kept.delete(key));
      kept.set(key, answered);
      if (kept.size > CACHED) kept.delete(kept.keys().next().value);
    }
    return kept.get(key);
  };
  return { ask, close: () => model.off("msg:custom", hear) };
}

// ---- drawing -------------------------------------------------------------------------------------------------------

class Painter {
  constructor(colours) {
    this.tables = Object.fromEntries(Object.entries(colours).map(([name, hex]) => [
      name, Uint8Array.from({ length: hex.length / 2 }, (_, place) => parseInt(hex.slice(2 * place, 2 * place + 2), 16)),
    ]));
  }

  colour(share, name) {
    const at = 3 * Math.round(255 * clamp(share, 0, 1));
    return this.tables[name].subarray(at, at + 3);
  }

  heat(values, [rows, columns], high, { colours, strength }, bare) {
    const canvas = canvasOf(columns, rows), context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
    for (let cell = 0; cell < rows * columns; cell++) {
      if (!Number.isFinite(values[cell])) continue;
      const share = clamp(values[cell] / high, 0, 1);
      pixels.data.set(this.colour(share, colours), 4 * cell);
      pixels.data[4 * cell + 3] = bare ? 255 : 2.55 * strength * (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * share);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  map(canvas, { picture, values, grid, high }, state) {
    // a picture in grey below its heat, or in colour without heat
    const context = canvas.getContext("2d"), { width, height } = canvas;
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = true;
    if (picture) context.drawImage(values ? picture.grey : picture.colour, 0, 0, width, height);
    if (!values) return picture ? undefined : this.cells(context, grid);
    context.imageSmoothingEnabled = state.cells === "smooth";
    context.drawImage(this.heat(values, grid, high, state, !picture), 0, 0, width, height);
  }

  cells(context, [rows, columns]) {
    // where there is no picture its patches are seen
    const { width, height } = context.canvas;
    context.strokeStyle = "rgb(128 128 128 / .35)";
    context.lineWidth = 1;
    context.beginPath();
    for (let row = 1; row < rows; row++) context.rect(0, (row * height) / rows, width, 0);
    for (let column = 1; column < columns; column++) context.rect((column * width) / columns, 0, 0, height);
    context.stroke();
  }

  legend(canvas, state) {
    const context = canvas.getContext("2d");
    for (let x = 0; x < canvas.width; x++) {
      context.fillStyle = `rgb(${this.colour(x / (canvas.width - 1), state.colours).join(" ")})`;
      context.fillRect(x, 0, 1, canvas.height);
    }
  }
}

function outline(context, [top, left, bottom, right], [rows, columns], { dashed = false, scale = 1 } = {}) {
  const { width, height } = context.canvas, inset = 1.5 * scale;
  const box = [(left * width) / columns + inset, (top * height) / rows + inset];
  const size = [((right - left) * width) / columns - 2 * inset, ((bottom - top) * height) / rows - 2 * inset];
  context.setLineDash([]);
  context.strokeStyle = "rgb(0 0 0 / .75)";
  context.lineWidth = 5 * scale;
  context.strokeRect(...box, ...size);
  context.setLineDash(dashed ? [5 * scale, 4 * scale] : []);
  context.strokeStyle = dashed ? "#fff" : PIN;
  context.lineWidth = 2.5 * scale;
  context.strokeRect(...box, ...size);
}

// ---- the state in a link -------------------------------------------------------------------------------------------

function encodeState(state) {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name] && value !== null);
  return new URLSearchParams(changed.map(([name, value]) => [name, String(value)])).toString();
}

function checkedState(found, facts) {
  const state = { ...DEFAULTS };
  for (const [name, known] of Object.entries(CHOICES)) if (known.includes(found[name])) state[name] = found[name];
  const whole = (name, low, high) => {
    const value = Number(found[name]);
    if (Number.isInteger(value) && value >= low && value < high) state[name] = value;
  };
  whole("relation", 0, facts.relations.length);
  const relation = facts.relations[state.relation];
  whole("strength", 0, 101);
  for (const [plural, one] of Object.entries(ALONG)) whole(one, -1, relation[plural].length);
  state.region = checkedRegion(found.region, relation, state.from, facts);
  if (relation.kind === "whole") Object.assign(state, { from: "keys", region: "all" });
  return state;
}

function checkedRegion(found, relation, from, facts) {
  const box = isBox(found) ? found.map(Number) : String(found ?? "").split(",").map(Number);
  const [rows, columns] = relation.grids[from];
  const inside = box.length === 4 && box.every(Number.isInteger)
    && box[0] >= 0 && box[1] >= 0 && box[0] < box[2] && box[1] < box[3] && box[2] <= rows && box[3] <= columns;
  if (inside) return box;
  if (found === "all" || (found === "mask" && facts.mask && from === "generated")) return found;
  return cellBox(relation.start[from]);
}

const decodeState = (text, facts) => checkedState(Object.fromEntries(new URLSearchParams(text)), facts);

// ---- one side of the attention: a picture, or a list of words ------------------------------------------------------

class Side {
  constructor(explorer, name, relation) {
    Object.assign(this, { explorer, name, relation, values: null, high: 1, hover: null, pinned: null });
    this.role = make("span", { class: "role" });
    this.tip = make("div", { class: "tip", hidden: true }, make("b"), make("span"));
  }

  get grid() {
    return this.explorer.relationOf(this).grids[this.name];
  }

  get isWords() {
    return this.name === "keys" && this.explorer.facts.relations[this.relation].kind === "tokens";
  }

  get title() {
    const { facts } = this.explorer;
    return this.name === "generated" ? facts.generated.name : facts.relations[this.relation].name;
  }

  build() {
    const label = `${this.title}. Arrow keys move the chosen patch, with Shift they make it larger; Escape chooses everything.`;
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.stage = make("div", {
      class: "stage", tabindex: 0, role: "application", "aria-label": label, "data-side": this.name,
      pointermove: (event) => this.move(event), pointerleave: () => this.leave(), pointerdown: (event) => this.press(event),
      pointerup: (event) => this.release(event), pointercancel: () => (this.drag = null), keydown: (event) => this.key(event),
    }, this.canvas, this.tip);
    const [rows, columns] = this.size ?? this.grid;
    this.figure = make("figure", { class: `side ${this.name}` }, make("figcaption", {}, make("b", {}, this.title), this.role), this.stage);
    this.figure.style.setProperty("--aspect", String(columns / rows));
    return this.figure;
  }

  get size() {
    const { facts } = this.explorer;
    return (this.name === "generated" ? facts.generated : facts.relations[this.relation]).size;
  }

  cellAt(event, [rows, columns] = this.grid) {
    const box = this.canvas.getBoundingClientRect();
    return [
      clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), 0, rows - 1),
      clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), 0, columns - 1),
    ];
  }

  move(event) {
    const cell = this.cellAt(event);
    if (this.drag) {
      const [first, second] = [this.drag, cell];
      this.dragged = [Math.min(first[0], second[0]), Math.min(first[1], second[1]), Math.max(first[0], second[0]) + 1, Math.max(first[1], second[1]) + 1];
    }
    if (event.pointerType === "touch") return;
    this.place(event);
    if (this.hover && this.hover[0] === cell[0] && this.hover[1] === cell[1]) return this.draw();
    this.hover = cell;
    this.explorer.point(this, this.drag ? this.dragged : cellBox(cell));
  }

  leave() {
    this.hover = this.drag = null;
    this.tip.hidden = true;
    this.explorer.point(null);
  }

  press(event) {
    if (event.button !== 0) return;
    this.drag = this.cellAt(event);
    this.dragged = cellBox(this.drag);
    if (event.pointerType !== "touch") this.stage.setPointerCapture(event.pointerId);
  }

  release() {
    if (!this.drag) return;
    this.drag = null;
    this.explorer.pin(this, this.dragged);
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") return this.explorer.pin(this, "all");
    if (!step) return;
    event.preventDefault();
    const [rows, columns] = this.grid;
    const [top, left, bottom, right] = isBox(this.pinned) ? this.pinned : cellBox(this.explorer.relationOf(this).start[this.name]);
    let box;
    if (event.shiftKey) {
      box = [top, left, clamp(bottom + step[0], top + 1, rows), clamp(right + step[1], left + 1, columns)];
    } else if (!isBox(this.pinned)) {
      box = [top, left, bottom, right];
    } else {
      const [down, across] = [clamp(top + step[0], 0, rows - bottom + top), clamp(left + step[1], 0, columns - right + left)];
      box = [down, across, down + bottom - top, across + right - left];
    }
    this.explorer.pin(this, box);
  }

  nameOf(row, column, grid = this.grid) {
    const { size } = this;
    const pixel = (at, axis) => Math.floor(((at + 0.5) * size[axis]) / grid[axis]);
    return `row ${row}, column ${column}` + (size ? ` \u00b7 pixel ${pixel(row, 0)}, ${pixel(column, 1)}` : "");
  }

  place(event) {
    // the tip stands beside the pointer, on the side where there is room
    const box = this.stage.getBoundingClientRect(), [value, where] = this.tip.children;
    if (this.values) {
      const [row, column] = this.cellAt(event, this.mapGrid);
      value.textContent = this.explorer.valued(this.values[row * this.mapGrid[1] + column]);
    } else value.textContent = "";
    where.textContent = this.nameOf(...this.cellAt(event));
    this.tip.hidden = false;
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    this.tip.style.left = `${clamp(x + (x > box.width / 2 ? -this.tip.offsetWidth - 14 : 14), 0, box.width - this.tip.offsetWidth)}px`;
    this.tip.style.top = `${clamp(y + 14, 0, box.height - this.tip.offsetHeight)}px`;
  }

  show(answer, region, grid) {
    this.mapGrid = grid;
    this.values = answer ? answer.map : null;
    this.error = answer ? answer.error : NaN;
    this.pinned = region;
    const shown = this.values && peak(this.values) >= 0 ? this.values[peak(this.values)] : 1;
    this.high = this.explorer.scaleOf(shown) || 1;
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, box = this.stage.getBoundingClientRect();
    if (!box.width) return;
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
    const { explorer } = this, context = this.canvas.getContext("2d");
    explorer.painter.map(this.canvas, { picture: this.picture, values: this.values, grid: this.values ? this.mapGrid : this.grid, high: this.high }, explorer.state);
    if (this.pinned === "mask" && explorer.maskShade) {
      context.imageSmoothingEnabled = false;
      context.drawImage(explorer.maskShade, 0, 0, width, height);
    }
    if (isBox(this.pinned)) outline(context, this.pinned, this.grid, { scale: ratio });
    if (this.drag) outline(context, this.dragged, this.grid, { scale: ratio });
    else if (this.hover) outline(context, cellBox(this.hover), this.grid, { dashed: true, scale: ratio });
  }
}

class Words extends Side {
  build() {
    const { tokens } = this.explorer.facts.relations[this.relation];
    this.chips = tokens.map((token, key) => make("button", {
      type: "button", class: "chip", "aria-pressed": "false", tabindex: key ? -1 : 0,
      pointerenter: (event) => event.pointerType === "touch" || this.over(key), pointerleave: () => this.leave(),
      click: () => this.explorer.pin(this, [key, 0, key + 1, 1]), keydown: (event) => this.key(event, key),
    }, make("span", {}, token.trim() || "\u2423"), make("small")));
    this.stage = make("div", { class: "chips", role: "group", "aria-label": `${this.title}: words` }, ...this.chips);
    this.figure = make("figure", { class: "side words" }, make("figcaption", {}, make("b", {}, this.title), this.role), this.stage);
    return this.figure;
  }

  over(key) {
    this.hover = [key, 0];
    this.explorer.point(this, [key, 0, key + 1, 1]);
  }

  key(event, key) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return this.explorer.pin(this, "all");
    if (!step) return;
    event.preventDefault();
    const next = clamp(key + step, 0, this.chips.length - 1);
    this.chips[next].focus();
    this.explorer.pin(this, [next, 0, next + 1, 1]);
  }

  nameOf(row) {
    return `\u201c${this.explorer.facts.relations[this.relation].tokens[row].trim()}\u201d`;
  }

  draw() {
    const { explorer } = this;
    this.chips.forEach((chip, key) => {
      const value = this.values ? this.values[key] : NaN, share = Number.isFinite(value) ? clamp(value / this.high, 0, 1) : NaN;
      const chosen = isBox(this.pinned) && this.pinned[0] <= key && key < this.pinned[2];
      chip.setAttribute("aria-pressed", String(chosen));
      chip.tabIndex = (isBox(this.pinned) ? this.pinned[0] : 0) === key ? 0 : -1;
      const [red, green, blue] = Number.isFinite(share) ? explorer.painter.colour(share, explorer.state.colours) : [0, 0, 0];
      const light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 115;
      chip.style.background = Number.isFinite(share) ? `rgb(${red} ${green} ${blue})` : "";
      chip.style.color = Number.isFinite(share) ? (light ? "#111" : "#fff") : "";
      chip.lastChild.textContent = Number.isFinite(value) ? explorer.valued(value, true) : "";
    });
  }
}

// ---- small multiples: one map for each group of steps, layer or head -----------------------------------------------

class Multiples {
  constructor(explorer, part, title) {
    Object.assign(this, { explorer, part, title, one: ALONG[part] });
    this.list = make("div", { class: `tiles ${part}`, role: "radiogroup", "aria-label": title, keydown: (event) => this.key(event) });
    this.play = part === "groups" ? make("button", { type: "button", class: "quiet play", click: () => this.explorer.play() }, "Play") : null;
    this.element = make("section", { class: part }, make("h2", {}, make("span", {}, title), this.play), this.list);
    if (part === "groups") this.scrub();
  }

  scrub() {
    let down = false;
    const choose = (event) => {
      const tile = down && document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-place]");
      if (tile && this.list.contains(tile)) this.choose(Number(tile.dataset.place));
    };
    this.list.addEventListener("pointerdown", () => (down = true));
    this.list.addEventListener("pointermove", choose);
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) this.list.addEventListener(end, () => (down = false));
  }

  labels() {
    return this.explorer.relation[this.part];
  }

  build() {
    const all = { groups: "All steps", layers: "All layers", heads: "All heads" }[this.part];
    this.tiles = [all, ...this.labels()].map((label, place) => make("button", {
      type: "button", role: "radio", class: "tile", title: label, "data-place": place - 1, click: () => this.choose(place - 1),
    }, make("canvas", { "aria-hidden": "true" }), make("span", {}, ...breakable(label)), make("small")));
    this.list.replaceChildren(...this.tiles);
    this.element.hidden = this.labels().length < 2;
    this.mark();
  }

  choose(place) {
    if (this.explorer.state[this.one] !== place) this.explorer.change({ [this.one]: place });
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const place = clamp(this.explorer.state[this.one] + step, -1, this.labels().length - 1);
    this.choose(place);
    this.tiles[place + 1].focus();
  }

  mark() {
    this.tiles.forEach((tile, place) => {
      const chosen = this.explorer.state[this.one] === place - 1;
      tile.setAttribute("aria-checked", String(chosen));
      tile.tabIndex = chosen ? 0 : -1;
    });
  }

  show(maps, mean, side) {
    const { explorer } = this, grid = explorer.relation.grids[side.name], [rows, columns] = grid, cells = rows * columns;
    const [high, wide] = side.isWords ? [16, 160] : [Math.round(160 / (side.size ? side.size[1] / side.size[0] : columns / rows)), 160];
    this.tiles.forEach((tile, place) => {
      const values = place ? maps.subarray((place - 1) * cells, place * cells) : mean;
      const [canvas, , small] = tile.children, best = peak(values);
      [canvas.width, canvas.height] = [wide, clamp(high, 16, 240)];
      const top = best < 0 ? 1 : explorer.scaleOf(values[best]) || 1;
      explorer.painter.map(canvas, { picture: side.picture, values, grid: side.isWords ? [columns, rows] : grid, high: top }, explorer.state);
      small.textContent = best < 0 ? "not called" : `peak ${explorer.valued(values[best], true)}`;
    });
  }
}

// ---- the explorer --------------------------------------------------------------------------------------------------

class Explorer {
  constructor(model, el) {
    Object.assign(this, { model, el, facts: model.get("facts"), held: null, pointed: null, turn: 0 });
    this.asker = asker(model);
    this.painter = new Painter(this.facts.colours);
    const linked = this.facts.links && location.hash.length > 1;
    this.state = linked ? decodeState(location.hash.slice(1), this.facts) : checkedState(model.get("state") ?? {}, this.facts);
  }

  get relation() {
    return this.facts.relations[this.state.relation];
  }

  numberOf(side) {
    // index of the relation in which patches of a side are chosen; a vector has none, so words beside it stand in
    if (side.name === "keys") return side.relation;
    return this.relation.kind === "whole" ? this.others[0]?.relation : this.state.relation;
  }

  relationOf(side) {
    return this.facts.relations[this.numberOf(side) ?? this.state.relation];
  }

  // -- building

  async build() {
    const { facts } = this, find = (kind) => {
      const found = facts.relations.findIndex((one) => one.kind === kind);
      return this.relation.kind === kind ? this.state.relation : found;
    };
    const picture = find("picture"), words = find("tokens");
    this.generated = new Side(this, "generated");
    this.others = [picture >= 0 && new Side(this, "keys", picture), words >= 0 && new Words(this, "keys", words)].filter(Boolean);
    this.sides = [this.generated, ...this.others];
    this.multiples = [["groups", "Time"], ["heads", "Heads"], ["layers", "Layers"]].map((one) => new Multiples(this, ...one));
    this.told = make("p", { class: "told" });
    this.detail = make("p", { class: "detail" });
    this.live = make("p", { class: "hidden", role: "status", "aria-live": "polite" });
    this.legend = make("canvas", { width: 180, height: 10, "aria-hidden": "true" });
    this.high = make("span");
    this.note = make("span", { class: "flash", role: "status" });
    const pictures = make("div", { class: "sides" }, ...this.sides.map((side) => side.build()));
    pictures.dataset.count = String(this.sides.length);
    pictures.dataset.words = String(words >= 0 && picture < 0);
    this.root = make("div", { class: "attrace" }, make("div", { class: "lead" }, this.told, this.detail), pictures,
      this.bar(), make("div", { class: "through" }, ...this.multiples.map((one) => one.element)), this.live);
    this.el.replaceChildren(this.root);
    this.theme();
    const load = async (side, address) => (side.picture = await loadPicture(address));
    await Promise.all([load(this.generated, facts.generated.picture), ...this.others.map((side) => load(side, facts.relations[side.relation].picture)), this.loadMask()]);
    this.multiples.forEach((one) => one.build());
    this.watch = new ResizeObserver(() => this.sides.forEach((side) => side.draw()));
    this.sides.forEach((side) => this.watch.observe(side.stage));
    await this.refresh();
  }

  async loadMask() {
    if (!this.facts.mask) return;
    const mask = await loadPicture(this.facts.mask), context = mask.colour.getContext("2d");
    const pixels = context.getImageData(0, 0, mask.colour.width, mask.colour.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data[at + 3] = pixels.data[at] > 127 ? 0 : 170;
      pixels.data.fill(255, at, at + 3);
    }
    context.putImageData(pixels, 0, 0);
    this.maskShade = mask.colour;
  }

  bar() {
    const region = (label, value) => make("button", { type: "button", class: "quiet", "data-region": value, "aria-pressed": "false", click: () => this.choose(value) }, label);
    this.regions = this.relation.kind === "whole" ? [] : [region("Patch", "patch"), this.facts.mask && region("Mask", "mask"), region("Everything", "all")].filter(Boolean);
    const names = this.facts.relations.map((one) => one.name);
    const contexts = names.length > Math.max(1, this.others.length) ? this.select("Keys", names.map((name, place) => [place, name]), this.state.relation, (value) => this.turnTo(Number(value))) : null;
    return make("div", { class: "bar" },
      make("div", { class: "legend" }, make("span", {}, "0"), this.legend, this.high),
      make("div", { class: "group", role: "group", "aria-label": "What is chosen" }, ...this.regions),
      contexts,
      make("div", { class: "group end" }, this.note,
        make("button", { type: "button", class: "quiet", click: () => this.save() }, "Save picture"),
        this.facts.links ? make("button", { type: "button", class: "quiet", click: () => this.copy() }, "Copy link") : null,
        this.more()));
  }

  select(label, options, value, change) {
    const made = make("select", { change: (event) => change(event.target.value) }, ...options.map(([key, text]) => make("option", { value: key, selected: key === value }, text)));
    return make("label", {}, make("span", {}, label), made);
  }

  more() {
    const pick = (name, label, options) => this.select(label, options, this.state[name], (value) => this.change({ [name]: value }));
    const strength = make("input", { type: "range", min: 0, max: 100, value: this.state.strength, input: (event) => this.change({ strength: Number(event.target.value) }) });
    return make("details", { class: "more", keydown: (event) => event.key === "Escape" && event.currentTarget.removeAttribute("open") },
      make("summary", { class: "quiet" }, "More"),
      make("div", { class: "panel" },
        pick("unit", "Values", [["even", "times even attention"], ["share", "share of the attention"]]),
        pick("scale", "Colours span", [["own", "each map"], ["fixed", "this map, always"]]),
        pick("cells", "Cells", [["blocks", "as recorded"], ["smooth", "smoothed"]]),
        pick("colours", "Palette", CHOICES.colours.map((name) => [name, name])),
        pick("theme", "Page", [["auto", "as the system"], ["light", "light"], ["dark", "dark"]]),
        make("label", {}, make("span", {}, "Heat"), strength),
        make("p", {}, "Point to look, click to pin, drag a box. Arrow keys move the choice, Shift and an arrow widen it, Escape chooses everything.")));
  }

  theme() {
    const { theme } = this.state, body = document.body;
    const host = body.dataset.jpThemeLight === "false" || body.classList.contains("vscode-dark") ? "dark"
      : body.dataset.jpThemeLight === "true" || body.classList.contains("vscode-light") ? "light" : "";
    const scheme = theme === "auto" ? host : theme;
    this.root.style.colorScheme = scheme;
    if (this.facts.links) document.documentElement.style.colorScheme = scheme;
  }

  // -- choosing

  point(side, region = null) {
    this.pointed = side && this.numberOf(side) !== undefined ? { side, region } : null;
    this.show();
  }

  pin(side, region) {
    const relation = this.numberOf(side);
    if (relation === undefined) return;
    const kept = relation === this.state.relation ? {} : { layer: -1, head: -1, group: -1 };
    this.change({ ...kept, relation, from: side.name, region }, relation !== this.state.relation);
  }

  choose(value) {
    const { from } = this.state, start = cellBox(this.relation.start[from]);
    this.change(value === "mask" ? { from: "generated", region: "mask" } : { region: value === "all" ? "all" : start });
  }

  turnTo(relation) {
    const { theme, colours, unit, cells } = this.state;
    this.state = checkedState({ theme, colours, unit, cells, relation }, this.facts);
    this.model.set("state", this.state);
    this.model.save_changes();
    this.watch.disconnect();
    return this.build();
  }

  change(changes, rebuilt = false) {
    Object.assign(this, { state: checkedState({ ...this.state, ...changes }, this.facts), pointed: null });
    this.model.set("state", this.state);
    this.model.save_changes();
    if (rebuilt) this.multiples.forEach((one) => one.build());
    return this.refresh();
  }

  adopt(state) {
    // a state that came from outside, such as a linked explorer
    const checked = checkedState(state ?? {}, this.facts);
    if (encodeState(checked) === encodeState(this.state)) return;
    const rebuilt = checked.relation !== this.state.relation;
    this.state = checked;
    if (rebuilt) this.multiples.forEach((one) => one.build());
    this.refresh();
  }

  // -- showing

  question(relation, from, region, parts = ["map"]) {
    const { layer, head, group, unit } = this.state, mine = relation === this.state.relation;
    return { relation, from, region, layer: mine ? layer : -1, head: mine ? head : -1, group: mine ? group : -1, unit, parts };
  }

  asked(side, chosen) {
    // what a side shows: the attention of what is chosen on the other one
    const other = side.name === "keys" ? "generated" : "keys";
    if (chosen.from !== other) return null;
    const relation = side.name === "keys" ? side.relation : chosen.relation;
    const { grids } = this.facts.relations[relation], mine = this.relation.grids.generated;
    const region = isBox(chosen.region) && other === "generated" ? scaledBox(chosen.region, mine, grids.generated) : chosen.region;
    return this.question(relation, other, region);
  }

  show() {
    // one at a time, the newest next: a slow model is never asked for what nobody looks at any more
    this.again = true;
    this.showing ??= this.showNewest().finally(() => (this.showing = null));
    return this.showing;
  }

  async showNewest() {
    while (this.again) {
      this.again = false;
      await this.showOnce().catch((error) => this.fail(error));
    }
  }

  async showOnce() {
    const pinned = { from: this.state.from, relation: this.state.relation, region: this.state.region }, { pointed } = this;
    const hovered = pointed && { from: pointed.side.name, relation: this.numberOf(pointed.side), region: pointed.region };
    const questions = this.sides.map((side) => (hovered && this.asked(side, hovered)) ?? this.asked(side, pinned));
    const answers = await Promise.all(questions.map((question) => question && this.asker.ask(question)));
    this.sides.forEach((side, place) => {
      const holds = side.name === pinned.from && (side.name === "generated" || side.relation === pinned.relation);
      const grids = questions[place] && this.facts.relations[questions[place].relation].grids;
      side.show(answers[place], holds ? pinned.region : null, grids?.[side.name]);
    });
    this.tell(hovered ?? pinned, questions, answers, pinned);
    this.turn += 1;
  }

  async refresh() {
    const { state } = this;
    this.el.dataset.shows = "busy";
    this.theme();
    if (this.facts.links) history.replaceState(null, "", `#${encodeState(this.state)}`);
    this.regions.forEach((one) => {
      const { region } = this.state, value = one.dataset.region;
      one.setAttribute("aria-pressed", String(value === (isBox(region) ? "patch" : region)));
    });
    this.painter.legend(this.legend, this.state);
    this.multiples.forEach((one) => one.mark());
    await this.show();
    this.live.textContent = `${this.told.textContent} ${this.detail.textContent}`;
    await this.showMultiples().catch((error) => this.fail(error));
    if (state === this.state) this.el.dataset.shows = "all";
  }

  async showMultiples() {
    const { relation, from, region } = this.state, asked = JSON.stringify(this.state);
    const parts = ["map", ...Object.keys(ALONG)];
    const side = from === "keys" ? this.generated : this.others.find((one) => one.relation === relation);
    const answer = await this.asker.ask(this.question(relation, from, region, parts));
    if (asked !== JSON.stringify(this.state)) return;
    // the tile of all steps, layers or heads shows the mean over them, whatever is chosen among them
    await Promise.all(this.multiples.map(async (one) => {
      const mean = this.state[one.one] < 0 ? answer : await this.asker.ask({ ...this.question(relation, from, region), [one.one]: -1 });
      if (asked === JSON.stringify(this.state)) one.show(answer[one.part], mean.map, side);
    }));
  }

  scaleOf(high) {
    if (this.state.scale === "own") this.held = null;
    else this.held ??= high;
    return this.held ?? high;
  }

  valued(value, short = false) {
    if (!Number.isFinite(value)) return "no value";
    if (this.state.unit === "even") return short ? `${digits(value)}\u00d7` : `${digits(value)} \u00d7 even`;
    return `${digits(100 * value)} %${short ? "" : " of the attention"}`;
  }

  tell(chosen, questions, answers, pinned) {
    const from = this.sides.find((side) => side.name === chosen.from && (side.relation ?? chosen.relation) === chosen.relation) ?? this.generated;
    const target = chosen.from === "keys" ? this.generated : this.others.find((side) => side.relation === this.state.relation) ?? this.others[0];
    const place = this.sides.indexOf(target), answer = answers[place];
    const values = answer.map, best = peak(values), columns = target.mapGrid[1];
    const cell = [Math.floor(best / columns), best % columns], relation = this.facts.relations[questions[place].relation];
    const mean = [["layer", "layers"], ["head", "heads"], ["group", "steps"]].map(([one, many]) =>
      questions[place][one] < 0 ? `all ${many}` : relation[`${one}s`][questions[place][one]]);
    this.told.textContent = best < 0 ? "There is no value here: the layer was not called in these steps." : this.sentence(chosen, from, target, cell, values[best], answer.share, relation);
    const stored = Number.isFinite(answer.error) && answer.error > 0 ? [`stored to within \u00b1 ${this.valued(answer.error)}`] : this.facts.exact ? ["exact values"] : [];
    const path = isBox(chosen.region) && best >= 0 ? [`${from.nameOf(chosen.region[0], chosen.region[1])} \u2192 ${target.nameOf(...cell, target.mapGrid)}`] : [];
    this.detail.textContent = [...path, ...mean, ...stored].join("  \u00b7  ");
    this.high.textContent = this.valued(target.high);
    for (const side of this.sides) {
      const question = questions[this.sides.indexOf(side)];
      side.role.textContent = !question ? "chosen here" : side.name === "keys" ? "where it looks" : "where it acts";
      if (question && relation.kind === "whole") side.role.textContent = "where all keys act";
      if (!question && pinned.from !== side.name) side.role.textContent = "";
    }
    this.error = answer.error;
  }

  sentence(chosen, from, target, cell, value, share, relation) {
    const noun = relation.name.charAt(0).toLowerCase() + relation.name.slice(1);
    const { region } = chosen, many = isBox(region) && (region[2] - region[0]) * (region[3] - region[1]) > 1;
    const side = chosen.from === "generated" ? "the generated picture" : `the ${noun}`;
    const who = relation.kind === "whole" ? "All of the keys together"
      : region === "all" ? `All of ${side}` : region === "mask" ? "The masked part of the generated picture"
      : from.isWords ? from.nameOf(region[0]) : `This ${many ? "box" : "patch"} of ${side}`;
    const object = target.isWords ? target.nameOf(cell[0]) : `the ${whereIn(cell, target.mapGrid)} of ${target === this.generated ? "the generated picture" : `the ${noun}`}`;
    const verb = chosen.from === "generated" ? "looks most at" : relation.kind === "whole" ? "act most on" : "acts most on";
    const amount = this.state.unit === "even" ? `${digits(value)} times the even share` : `${digits(100 * value)} % of ${chosen.from === "generated" ? "its attention" : "what it gives"}`;
    const part = Number.isFinite(share) ? ` ${relation.kind === "tokens" ? "The text" : `The ${noun}`} gets ${digits(100 * share)} % of its attention.` : "";
    return `${who} ${verb} ${object}, ${amount}.${part}`;
  }

  fail(error) {
    this.told.textContent = `This could not be computed: ${error.message}`;
    this.el.dataset.failed = error.message;
  }

  // -- playing, saving, linking

  play() {
    const strip = this.multiples[0];
    if (this.playing) {
      clearInterval(this.playing);
      this.playing = null;
    } else {
      this.playing = setInterval(() => this.change({ group: (this.state.group + 1) % this.relation.groups.length }), FRAME);
    }
    strip.play.textContent = this.playing ? "Pause" : "Play";
  }

  flash(text) {
    this.note.textContent = text;
    setTimeout(() => (this.note.textContent = ""), 2500);
  }

  async copy() {
    const address = location.href;
    try {
      await navigator.clipboard.writeText(address);
    } catch {
      const field = make("textarea", {}, address);
      this.root.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    this.flash("Link copied");
  }

  picture() {
    // what is seen, as one picture: both sides, the sentence, the colours
    const shown = this.sides.filter((side) => side.canvas), high = 720, gap = 24;
    const widths = shown.map((side) => (high * side.canvas.width) / side.canvas.height);
    const canvas = canvasOf(Math.round(widths.reduce((sum, width) => sum + width + gap, gap)), high + 150), context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    let x = gap;
    shown.forEach((side, place) => {
      context.drawImage(side.canvas, x, gap, widths[place], high);
      x += widths[place] + gap;
    });
    context.fillStyle = "#1a1a1e";
    context.font = "600 20px system-ui, sans-serif";
    context.fillText(this.told.textContent, gap, high + 62, canvas.width - 2 * gap);
    context.font = "15px system-ui, sans-serif";
    context.fillStyle = "#55555c";
    context.fillText(this.detail.textContent, gap, high + 90, canvas.width - 2 * gap);
    context.drawImage(this.legend, gap + 18, high + 110);
    context.fillText("0", gap, high + 121);
    context.fillText(this.high.textContent, gap + 26 + this.legend.width, high + 121);
    return canvas;
  }

  async save() {
    const blob = await new Promise((done) => this.picture().toBlob(done, "image/png"));
    const link = make("a", { href: URL.createObjectURL(blob), download: `${this.facts.name}.png` });
    link.click();
    URL.revokeObjectURL(link.href);
    this.flash("Saved");
  }

  close() {
    clearInterval(this.playing);
    this.watch?.disconnect();
    this.asker.close();
  }
}

async function render({ model, el }) {
  const explorer = new Explorer(model, el);
  el.explorer = explorer;
  const adopt = () => explorer.adopt(model.get("state"));
  model.on("change:state", adopt);
  await explorer.build();
  return () => {
    model.off("change:state", adopt);
    explorer.close();
  };
}

export default { render };
