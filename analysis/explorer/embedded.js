// The model of a page without a server: answers what the explorer asks, from attention that the page carries.
//
// Each row of attention, of one layer, head and chosen patch, is stored in whole numbers with a scale of its own, for
// both directions and every group of steps. A map is made as attrace's `sram` makes it: the mean over the chosen patches
// and the steps, laid on the grid of the map (bicubic, clamped at 0), averaged over all pairs of layer and head by their weights.

const WAY = { generated: "g2r", keys: "r2g" };
const SIDES = { g2r: ["queries", "keys"], r2g: ["keys", "queries"] };

async function unpacked(text, index) {
  // arrays by name, from one gzip stream as base64
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer(), arrays = {};
  let start = 0;
  for (const { name, type, shape } of index) {
    const length = shape.reduce((product, one) => product * one, 1), kind = type === "float32" ? Float32Array : Uint8Array;
    arrays[name] = new kind(bytes.slice(start, start + length * kind.BYTES_PER_ELEMENT));
    start += length * kind.BYTES_PER_ELEMENT;
    if (kind === Uint8Array) addUp(arrays[name], length / shape[0]);
  }
  return arrays;
}

function addUp(values, step) {
  // each group of steps is stored as its difference from the one before, modulo 256
  for (let at = step; at < values.length; at++) values[at] += values[at - step];
}

function resized(values, [rows, columns], matrices) {
  if (matrices === null) return values;
  const narrow = matrices.columns.map((weights) => {
    const made = new Float64Array(rows);
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) made[row] += weights[column] * values[row * columns + column];
    return made;
  });
  const made = new Float64Array(matrices.rows.length * narrow.length);
  matrices.rows.forEach((weights, row) => narrow.forEach((line, column) => {
    let sum = 0;
    for (let old = 0; old < rows; old++) sum += weights[old] * line[old];
    made[row * narrow.length + column] = sum;
  }));
  return made;
}

function weightsOf(one, way, region) {
  // share of every stored patch that is chosen
  if (region === "mask") return one.mask;
  if (region === "all") return one.sizes[way];
  const [top, left, bottom, right] = region, { rows, columns } = one.cover[way];
  const over = (matrix, first, last) => matrix.map((shares) => shares.slice(first, last).reduce((sum, share) => sum + share, 0));
  const down = over(rows, top, bottom), across = over(columns, left, right);
  return down.flatMap((share) => across.map((other) => share * other));
}

class EmbeddedModel extends LocalModel {
  constructor(facts, relations, arrays, state) {
    super(facts, state);
    Object.assign(this, { relations, arrays, sums: new Map() });
  }

  send(question) {
    queueMicrotask(() => {
      const { maps, error, share } = this.answer(question);
      this.tell("msg:custom", { id: question.id, error, share }, maps.map((map) => new DataView(map.buffer)));
    });
  }

  answer(question) {
    const { relation, parts, layer, head, group } = question, known = this.values.facts.relations[relation];
    let error = NaN, share = NaN;
    const lists = { layers: "layer", heads: "head", groups: "group" };
    const maps = parts.map((part) => {
      if (part === "map") {
        const found = this.mean(question, { layer, head, group });
        [error, share] = [found.error, found.share];
        return found.values;
      }
      const made = known[part].map((_, place) => this.mean(question, { layer, head, group, [lists[part]]: place }).values);
      return Float32Array.from(made.flatMap((values) => [...values]));
    });
    return { maps, error, share };
  }

  sumsOf({ relation, from, region }, number) {
    // of one class, for each group, layer and head: the sum over chosen patches and steps, and what it weighs
    const key = JSON.stringify([relation, from, region, number]);
    if (!this.sums.has(key)) {
      if (this.sums.size > 40) this.sums.clear();
      this.sums.set(key, this.summed(this.relations[relation][number], `${relation}_${number}`, WAY[from], region));
    }
    return this.sums.get(key);
  }

  summed(one, name, way, region) {
    const { [`${name}_${way}`]: rows, [`${name}_${way}_scale`]: scales, [`${name}_shares`]: shares } = this.arrays;
    const weights = weightsOf(one, way, region), chosen = [...weights.keys()].filter((cell) => weights[cell] > 0);
    const total = chosen.reduce((sum, cell) => sum + weights[cell], 0);
    const [rowsKept, columnsKept] = one[SIDES[way][1]].kept, cells = rowsKept * columnsKept, pairs = one.layers.length * one.heads.length;
    return one.counts.map((counts, group) => Array.from({ length: pairs }, (_, pair) => {
      const count = counts[Math.floor(pair / one.heads.length)];
      if (count === 0 || total === 0) return null;
      const sums = new Float64Array(cells);
      let doubt = 0, share = 0;
      for (const cell of chosen) {
        const scale = (weights[cell] / total) * count * scales[pair * weights.length + cell];
        const row = ((group * pairs + pair) * weights.length + cell) * cells;
        for (let other = 0; other < cells; other++) sums[other] += scale * rows[row + other];
        doubt += scale / 2;
        if (shares && way === "g2r") share += (weights[cell] / total) * count * shares[(group * pairs + pair) * weights.length + cell];
      }
      return { sums, count, doubt, share: shares && way === "g2r" ? share : count };
    }));
  }

  mean(question, { layer, head, group }) {
    const way = WAY[question.from], shown = SIDES[way][1], { grids } = this.values.facts.relations[question.relation];
    const [rows, columns] = grids[question.from === "keys" ? "generated" : "keys"], total = new Float64Array(rows * columns);
    let weight = 0, error = 0, share = 0, partial = false;
    this.relations[question.relation].forEach((one, number) => {
      const groups = this.sumsOf(question, number), even = question.unit === "even" ? one[shown].count : 1;
      one.layers.forEach((known, place) => one.heads.forEach((label, slot) => {
        if ((layer >= 0 && layer !== known) || (head >= 0 && label >= 0 && head !== label)) return;
        const pair = place * one.heads.length + slot;
        const found = groups.filter((_, span) => group < 0 || group === span).map((pairs) => pairs[pair]).filter(Boolean);
        const steps = found.reduce((sum, part) => sum + part.count, 0);
        if (steps === 0 || !found.every((part) => Number.isFinite(part.doubt))) return;
        const sums = new Float64Array(found[0].sums.length);
        for (const part of found) part.sums.forEach((value, cell) => (sums[cell] += value / steps));
        // the weights of layers say nothing of the heads of one
        const pairWeight = layer < 0 || (one.by_head && head < 0) ? one.weights[place][slot] : 1;
        const laid = resized(sums, one[shown].kept, one.resize[way]);
        for (let cell = 0; cell < total.length; cell++) total[cell] += pairWeight * Math.max(0, laid[cell]) * even;
        error += pairWeight * (found.reduce((sum, part) => sum + part.doubt, 0) / steps) * even * one.gain[way];
        share += pairWeight * found.reduce((sum, part) => sum + part.share, 0) / steps;
        partial ||= one.partial && way === "g2r";
        weight += pairWeight;
      }));
    });
    if (weight === 0) return { values: new Float32Array(total.length).fill(NaN), error: NaN, share: NaN };
    return { values: Float32Array.from(total, (sum) => sum / weight), error: error / weight, share: partial ? share / weight : NaN };
  }
}

async function embedded(element, links) {
  const { facts, relations, index, state } = JSON.parse(element.querySelector("[data-facts]").textContent);
  const arrays = await unpacked(element.querySelector("[data-rows]").textContent.trim(), index);
  return new EmbeddedModel({ ...facts, links }, relations, arrays, state);
}
