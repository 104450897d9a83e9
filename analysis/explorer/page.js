// What a report does in the browser. Run by Bokeh once the page stands; `meta`, `arrays`, `models` and `mapper` are its arguments.
// A map is made as attrace's `sram` makes it: the mean over the chosen patches of each layer and head, laid on the
// grid of the page (bicubic, clamped at 0), averaged over all pairs of layer and head by their weights.
const facts = JSON.parse(meta);
const CHOSEN = {g2r: "generated", r2g: "reference"};
const SHOWN = {g2r: "reference", r2g: "generated"};
const SIDE = {generated: "queries", reference: "keys"};
const grids = {generated: facts.grids.r2g, reference: facts.grids.g2r};
const page = (id) => document.getElementById(id);
const {direction: direction_picker, region: region_picker, time: time_slider, layer: layer_picker, head: head_picker} = models;
const {value: value_picker, scale: scale_picker, opacity: opacity_slider, palette: palette_picker, level: level_picker} = models;
const figures = {generated: models.generated, reference: models.reference};
const galleries = {r2g: models.gallery_r2g, g2r: models.gallery_g2r};
const part = (figure, name) => figure.renderers.find((one) => one.name === name);
const boxes = {};  // the chosen cells of each picture: row, column, rows, columns
for (const name of ["generated", "reference"]) {
  const [row, column] = facts.start[name];
  boxes[name] = {row, column, rows: 1, columns: 1};
}
let held = null;  // the upper end of the colours where it is fixed

const direction = () => facts.directions[direction_picker.active];
const region = () => facts.regions[region_picker.active];
const density = () => value_picker.value === "density";
const unit = () => facts.units[value_picker.value];

// ---- attention of chosen patches -----------------------------------------------------------------------------------

function covered(one, way, box) {
  // share of every kept cell of the class that the box covers
  const {rows, columns} = one.cover[way];
  const over = (matrix, start, length) =>
    matrix.map((shares) => shares.slice(start, start + length).reduce((sum, share) => sum + share, 0));
  const down = over(rows, box.row, box.rows), across = over(columns, box.column, box.columns);
  return down.flatMap((share) => across.map((other) => share * other));
}

function resized(values, size, matrices) {
  if (matrices === null) return values;
  const [rows, columns] = size;
  const narrow = matrices.columns.map((weights) => {
    const made = new Float64Array(rows);
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) made[row] += weights[column] * values[row * columns + column];
    return made;
  });
  const made = new Float64Array(matrices.rows.length * narrow.length);
  matrices.rows.forEach((weights, row) => narrow.forEach((line, column) => {
    let sum = 0;
    for (let place = 0; place < rows; place++) sum += weights[place] * line[place];
    made[row * narrow.length + column] = sum;
  }));
  return made;
}

function attention(way) {
  // the map of the chosen patches, how far a value may be from the recorded one, and how much of the attention lies on
  // what is shown, where the model attends to other keys too
  const shown = SHOWN[way], size = grids[shown], box = boxes[CHOSEN[way]];
  const total = new Float64Array(size[0] * size[1]);
  const group = time_slider.value - 1, layer = Number(layer_picker.value), head = Number(head_picker.value);
  let pairs = 0, error = 0, share = 0, partial = false;
  facts.classes.forEach((one, number) => {
    const rows = arrays[`class_${number}_${way}`], quanta = arrays[`class_${number}_${way}_quanta`];
    if (rows === undefined) return;
    const shares = way === "g2r" ? arrays[`class_${number}_shares`] : undefined;
    const masked = way === "g2r" && region() === "mask";
    const weights = masked ? one.mask : covered(one, way, box);
    const chosen = [...weights.keys()].filter((cell) => weights[cell] > 0);
    const cells = one[SIDE[shown]].kept[0] * one[SIDE[shown]].kept[1];
    const even = density() ? one[SIDE[shown]].count : 1;
    one.layers.forEach((known, place) => {
      if (layer >= 0 && layer !== known) return;
      one.heads.forEach((label, slot) => {
        if (head >= 0 && label >= 0 && head !== label) return;
        const sums = new Float64Array(cells);
        let weight = 0, doubt = 0, shown_share = 0;
        one.counts.forEach((counts, span) => {
          if ((group >= 0 && group !== span) || counts[place] === 0) return;
          for (const cell of chosen) {
            const row = ((span * one.layers.length + place) * one.heads.length + slot) * weights.length + cell;
            const part = weights[cell] * counts[place], quantum = part * quanta[row];
            for (let other = 0; other < cells; other++) sums[other] += quantum * rows[row * cells + other];
            weight += part;
            doubt += quantum / 2;
            if (shares) shown_share += part * shares[row];
          }
        });
        if (weight === 0 || !Number.isFinite(doubt)) return;
        const made = resized(sums, one[SIDE[shown]].kept, one.resize[way]);
        // the weights of layers say nothing of the heads of one
        const pair = layer < 0 || (facts.by_head && head < 0) ? one.weights[place][slot] : 1;
        for (let cell = 0; cell < total.length; cell++) total[cell] += pair * Math.max(0, made[cell]) / weight * even;
        error += pair * doubt / weight * even * one.gain[way];
        share += pair * (shares ? shown_share / weight : 1);
        partial ||= shares !== undefined;
        pairs += pair;
      });
    });
  });
  if (pairs === 0) return {values: total.fill(NaN), error: NaN, share: NaN};
  return {values: total.map((sum) => sum / pairs), error: error / pairs, share: partial ? share / pairs : NaN};
}

// ---- showing -------------------------------------------------------------------------------------------------------

const digits = (value) => (Math.abs(value) >= 1 ? value.toPrecision(4) : value.toPrecision(3));
const pixels = (name, cell, axis) => Math.floor(((cell + 0.5) * facts.sizes[name][axis]) / grids[name][axis]);
function cellName(name, row, column) {
  if (name === "reference" && facts.view === "tokens") return `key ${row} (${facts.tokens[row]})`;
  const where = `row ${row}, column ${column}`;
  return facts.sizes[name] ? `${where} (pixel ${pixels(name, row, 0)}, ${pixels(name, column, 1)})` : where;
}

function greyOf(picture) {
  // as in the figures: in grey below the heat, so that colour means attention
  const grey = new picture.constructor(picture, picture.shape);
  grey.forEach((pixel, place) => {
    const light = 0.299 * (pixel & 255) + 0.587 * ((pixel >> 8) & 255) + 0.114 * ((pixel >> 16) & 255);
    grey[place] = 0xff000000 + Math.round(light) * 0x10101;
  });
  return grey;
}
const pictures = {};
for (const name of ["generated", "reference"]) {
  const picture = arrays[`picture_${name}`];
  if (picture !== undefined && part(figures[name], "picture")) pictures[name] = {colour: picture, grey: greyOf(picture)};
}

function explain(way, values, share) {
  const chosen = CHOSEN[way], shown = SHOWN[way], box = boxes[chosen], finite = values.some(Number.isFinite);
  let what = `${facts.names[chosen]} ${cellName(chosen, box.row, box.column)}`;
  if (chosen === "reference" && facts.view === "tokens") what = `K${cellName(chosen, box.row, 0).slice(1)}`;
  if (facts.view === "whole") what = "The attention of all keys together";
  else if (way === "g2r" && region() === "mask") what = "The mask";
  else if (box.rows * box.columns > 1) what += ` (${box.rows} x ${box.columns} from there)`;
  if (!finite) return `${what}: there are no values in these steps.`;
  const best = values.reduce((top, value, cell) => (value > values[top] ? cell : top), 0);
  const place = cellName(shown, Math.floor(best / grids[shown][1]), best % grids[shown][1]);
  const verb = way === "g2r" ? "takes most from" : "goes most to";
  const onto = shown === "reference" && facts.view === "tokens" ? "" : `${facts.names[shown].toLowerCase()} `;
  const told = `${what} ${verb} ${onto}${place}: ${digits(values[best])} ${unit()}.`;
  if (!Number.isFinite(share)) return told;
  const all = facts.view === "tokens" ? "All keys of the list" : "All patches of the reference";
  return `${told} ${all} together get ${(100 * share).toPrecision(3)} % of its attention.`;
}

function colours(values, fixed) {
  const largest = values.reduce((top, value) => (value > top ? value : top), 0) || 1;
  if (!fixed) held = null;
  else if (held === null) held = largest;
  return held === null ? largest : held;
}

function show() {
  const way = direction(), chosen = CHOSEN[way], shown = SHOWN[way];
  const {values, error, share} = attention(way);
  const heat = part(figures[shown], "heat").data_source;
  heat.data.image[0].set(values);
  const high = colours(values, scale_picker.active === 1);
  mapper.low = 0;
  mapper.high = high;
  for (const name of Object.keys(figures)) {
    const drawn = part(figures[name], "heat");
    drawn.visible = name === shown;
    const under = part(figures[name], "picture")?.data_source;
    if (under) {
      under.data = {...under.data, image: [name === shown ? pictures[name].grey : pictures[name].colour]};
    }
  }
  heat.change.emit();
  const masked = way === "g2r" && region() === "mask", box = boxes[chosen];
  part(figures[shown], "chosen").data_source.data = {left: [], right: [], top: [], bottom: []};
  part(figures[chosen], "chosen").data_source.data = masked || facts.view === "whole"
    ? {left: [], right: [], top: [], bottom: []}
    : {left: [box.column], right: [box.column + box.columns], top: [box.row], bottom: [box.row + box.rows]};
  const inside = part(figures.generated, "mask");
  if (inside) inside.visible = masked;
  page("legend-high").textContent = `${digits(high)} ${unit()}`;
  page("legend-error").textContent = Number.isFinite(error) ? `stored to within ± ${error.toPrecision(2)}` : "";
  page("told").textContent = explain(way, Array.from(values), share);
  for (const name of Object.keys(figures)) page(`${name}-role`).textContent = name === shown ? "attention of the chosen patches" : "click to choose";
}

// ---- galleries of the levels ---------------------------------------------------------------------------------------

const Floats = part(figures.generated, "heat").data_source.data.image[0].constructor;
const layouts = {};

function drawGallery(way) {
  const figure = galleries[way], level = facts.levels[level_picker.active];
  const maps = arrays[`${level}_${way}_${value_picker.value}`];
  const holder = page(`gallery-${way}`);
  holder.hidden = maps === undefined;
  if (maps === undefined) return;
  const [count, rows, columns] = maps.shape, flat = Float32Array.from(maps), labels = facts.labels[`${level}_${way}`];
  const width = holder.clientWidth || 800;
  const side = Math.min(count === 1 ? 280 : 180, width / 2 - 8);
  const across = Math.max(1, Math.min(count, Math.floor(width / side)));
  const panel = Math.min(width / across, count === 1 ? 280 : 220), cell = (panel - 10) / columns, strip = 18 / cell;
  const high = flat.reduce((top, value) => (value > top ? value : top), 0) || 1;
  const own = scale_picker.active === 0;
  const data = {image: [], value: [], x: [], y: [], dw: [], dh: [], label: [], short: []};
  for (let place = 0; place < count; place++) {
    const values = flat.subarray(place * rows * columns, (place + 1) * rows * columns);
    const most = values.reduce((top, value) => (value > top ? value : top), 0) || 1;
    data.image.push(new Floats(own ? values.map((value) => value / most) : values, [rows, columns]));
    data.value.push(new Floats(values, [rows, columns]));
    data.x.push((place % across) * (columns + 10 / cell));
    data.y.push(Math.floor(place / across) * (rows + strip + 8 / cell) + strip);
    data.dw.push(columns);
    data.dh.push(rows);
    data.label.push(labels[place]);
    const letters = Math.floor(panel / 6.5);
    data.short.push(labels[place].length > letters ? `…${labels[place].slice(1 - letters)}` : labels[place]);
  }
  layouts[way] = {columns: columns + 10 / cell, rows: rows + strip + 8 / cell, across, count};
  const heat = part(figure, "heat");
  heat.glyph.color_mapper.low = 0;
  heat.glyph.color_mapper.high = own ? 1 : high;
  heat.data_source.data = data;
  const under = part(figure, "picture");
  const picture = pictures[SHOWN[way]];
  under.visible = picture !== undefined;
  const {x, y, dw, dh} = data;
  if (picture) under.data_source.data = {image: x.map(() => picture.grey), x, y, dw, dh};
  figure.x_range.setv({start: 0, end: width / cell});
  const height = Math.ceil(count / across) * layouts[way].rows;
  figure.y_range.setv({start: height, end: 0});
  figure.height = Math.round(height * cell);
  page(`gallery-${way}-scale`).textContent = own
    ? "Each map from 0 to its own largest value."
    : `All maps from 0 to ${digits(high)} ${unit()}.`;
}
const drawGalleries = () => Object.keys(galleries).forEach(drawGallery);

function pickFromGallery(way, event) {
  const {columns, rows, across, count} = layouts[way];
  const place = Math.floor(event.y / rows) * across + Math.floor(event.x / columns);
  const level = facts.levels[level_picker.active];
  if (event.x / columns >= across || place < 0 || place >= count) return;
  if (level === "tlam") time_slider.value = place + 1;
  if (level === "hlam" && !head_picker.disabled) head_picker.value = String(facts.heads[place]);
  if (level === "llam" && facts.llam[way][place] >= 0) layer_picker.value = String(facts.llam[way][place]);
}

// ---- choosing ------------------------------------------------------------------------------------------------------

const within = (value, length) => Math.max(0, Math.min(length - 1, value));

function choose(name, row, column, rows = 1, columns = 1) {
  const way = Object.keys(CHOSEN).find((one) => CHOSEN[one] === name);
  const [height, width] = grids[name];
  const top = within(row, height), left = within(column, width);
  boxes[name] = {row: top, column: left, rows: within(rows - 1, height - top) + 1, columns: within(columns - 1, width - left) + 1};
  if (facts.directions.includes(way)) direction_picker.active = facts.directions.indexOf(way);
  if (region() === "mask") region_picker.active = 0;
  show();
}

function onKey(name, event) {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const {row, column, rows, columns} = boxes[name];
  if (event.shiftKey) choose(name, row, column, Math.max(1, rows + step[0]), Math.max(1, columns + step[1]));
  else choose(name, row + step[0], column + step[1], rows, columns);
}

for (const name of Object.keys(figures)) {
  const figure = figures[name], holder = page(name);
  if (facts.view === "whole") break;
  const cell = (event) => [Math.floor(event.y), Math.floor(event.x)];
  figure.on_event("tap", (event) => choose(name, ...cell(event)));
  figure.on_event("mousemove", (event) => {
    const box = boxes[name], [row, column] = cell(event);
    const inside = row >= 0 && column >= 0 && row < grids[name][0] && column < grids[name][1];
    if (!models.follow.active || CHOSEN[direction()] !== name || region() !== "patch" || !inside) return;
    if (row !== box.row || column !== box.column) choose(name, row, column);
  });
  figure.on_event("selectiongeometry", (event) => {
    const {x0, x1, y0, y1} = event.geometry;
    const top = Math.floor(Math.min(y0, y1)), left = Math.floor(Math.min(x0, x1));
    const bottom = Math.ceil(Math.max(y0, y1)), right = Math.ceil(Math.max(x0, x1));
    if (event.final) choose(name, Math.max(0, top), Math.max(0, left), bottom - Math.max(0, top), right - Math.max(0, left));
  });
  holder.addEventListener("keydown", (event) => onKey(name, event));
}
function onRegion() {
  for (const name of Object.keys(figures)) figures[name].toolbar.tools.find((one) => one.name === "box").active = region() === "box";
  if (region() === "patch") for (const box of Object.values(boxes)) box.rows = box.columns = 1;
  if (region() === "mask") direction_picker.active = facts.directions.indexOf("g2r");
  show();
}

function onScale() {
  held = null;
  show();
  drawGalleries();
}

function onOpacity() {
  // without a picture below, the colours are those of the legend
  const shown = [...Object.entries(figures), ...Object.entries(galleries).map(([way, figure]) => [SHOWN[way], figure])];
  for (const [name, figure] of shown) part(figure, "heat").glyph.global_alpha = pictures[name] ? opacity_slider.value : 1;
}

function onPalette() {
  const palette = facts.palettes[palette_picker.value];
  for (const one of [mapper, ...Object.values(galleries).map((figure) => part(figure, "heat").glyph.color_mapper)])
    one.palette = palette;
  page("legend-bar").style.background = `linear-gradient(to right, ${palette.filter((_, place) => place % 16 === 0).join(", ")}, ${palette.at(-1)})`;
}

const onChange = (model, name, react) => model.properties[name].change.connect(react);
for (const [model, name] of [[direction_picker, "active"], [time_slider, "value"], [layer_picker, "value"], [head_picker, "value"]])
  onChange(model, name, show);
onChange(region_picker, "active", onRegion);
onChange(scale_picker, "active", onScale);
onChange(value_picker, "value", onScale);
onChange(level_picker, "active", drawGalleries);
onChange(opacity_slider, "value", onOpacity);
onChange(palette_picker, "value", onPalette);
for (const way of Object.keys(galleries)) galleries[way].on_event("tap", (event) => pickFromGallery(way, event));
new ResizeObserver(drawGalleries).observe(page("galleries"));
onPalette();
onOpacity();
show();
drawGalleries();
document.documentElement.dataset.ready = "true";
