// Logits to scored instances at the image's own size, as `inference/postprocess.py` and `resize_masks.py` do it.

const SHOWN_BELOW = 10; // as there: candidates of an image without any above the threshold

/** The pixels of a mask: runs of foreground, down the columns, as [begin, end, begin, end, …]. */
export const areaOf = (runs) => {
  let area = 0;
  for (let i = 0; i < runs.length; i += 2) area += runs[i + 1] - runs[i];
  return area;
};

/** How one axis of logits becomes pixels: to the canvas, cut to its real part, to the image; both steps bilinear. */
export function logitAxis(length, canvas, real, size) {
  const bilinear = (from, to, place) => {
    const at = Math.max(0, ((place + 0.5) * from) / to - 0.5), low = Math.min(Math.floor(at), from - 1);
    return [low, Math.min(low + 1, from - 1), at - low];
  };
  const first = new Int32Array(size), parts = [];
  for (let pixel = 0; pixel < size; pixel++) {
    const [low, high, share] = bilinear(real, size, pixel), weights = new Map();
    for (const [place, part] of [[low, 1 - share], [high, share]]) {
      const [a, b, inner] = bilinear(length, canvas, place);
      weights.set(a, (weights.get(a) ?? 0) + part * (1 - inner));
      weights.set(b, (weights.get(b) ?? 0) + part * inner);
    }
    first[pixel] = Math.min(...weights.keys());
    parts.push(weights);
  }
  const reads = Math.max(...parts.map((weights, i) => Math.max(...weights.keys()) - first[i] + 1));
  const weights = new Float64Array(size * reads);
  parts.forEach((some, pixel) => some.forEach((weight, at) => (weights[pixel * reads + at - first[pixel]] = weight)));
  return { first, reads, weights };
}

/** The first pixel, and the one after the last, that read a logit from `low` to `high`. */
function pixelsThatRead({ first, reads }, low, high) {
  let begin = 0, end = first.length;
  while (begin < end && first[begin] + reads <= low) begin++;
  while (end > begin && first[end - 1] > high) end--;
  return [begin, end];
}

/** One mask, the pixels whose resized logit is above 0: {runs, area, certainty}, the last the mean sigmoid in it. */
function makeMask(logits, [height, width], down, along) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (logits[y * width + x] <= 0) continue;
      [top, bottom] = [Math.min(top, y), y];
      [left, right] = [Math.min(left, x), Math.max(right, x)];
    }
  }
  const runs = [], size = down.first.length, column = new Float64Array(height + down.reads);
  if (bottom < 0) return { runs, area: 0, certainty: 0 };
  const [x0, x1] = pixelsThatRead(along, left, right), [y0, y1] = pixelsThatRead(down, top, bottom);
  const lowest = down.first[y0], highest = Math.min(height, down.first[y1 - 1] + down.reads);
  let sum = 0;
  for (let x = x0; x < x1; x++) {
    for (let y = lowest; y < highest; y++) {
      let value = 0;
      for (let k = 0; k < along.reads; k++) {
        const at = along.first[x] + k; // beyond the edge the weight is 0
        if (at < width) value += along.weights[x * along.reads + k] * logits[y * width + at];
      }
      column[y] = value;
    }
    for (let y = y0; y < y1; y++) {
      let value = 0;
      for (let k = 0; k < down.reads; k++) value += down.weights[y * down.reads + k] * column[down.first[y] + k];
      if (value <= 0) continue;
      sum += 1 / (1 + Math.exp(-value));
      const place = x * size + y;
      if (runs.length && runs[runs.length - 1] === place) runs[runs.length - 1]++;
      else runs.push(place, place + 1);
    }
  }
  const area = areaOf(runs);
  return { runs, area, certainty: area ? sum / area : 0 };
}

const logit = (score) => Math.log(score / (1 - score)), sigmoid = (value) => 1 / (1 + Math.exp(-value));

/** The score that is reported for one of the network, as `inference/score_calibration.py` makes it. */
export function reportedScore(score, [scale, shift]) {
  return scale === 1 && shift === 0 ? score : Math.fround(sigmoid(scale * logit(score) + shift));
}

/** The score of the network, or a little less, that is reported as `score`. */
export function networkScore(score, [scale, shift]) {
  return scale === 1 && shift === 0 ? score : sigmoid((logit(score) - shift) / scale) * (1 - 2 ** -20);
}

/** The best pairs of query and class, best first, and how many above the threshold the limit leaves out. */
function bestPairs(logits, queries, columns, least, most) {
  const pairs = [];
  for (let query = 0; query < queries; query++) {
    const row = logits.subarray(query * columns, (query + 1) * columns), highest = Math.max(...row);
    const powers = Array.from(row, (value) => Math.exp(value - highest));
    const total = powers.reduce((sum, value) => sum + value, 0);
    for (let label = 0; label < columns - 1; label++) pairs.push({ query, label, score: powers[label] / total });
  }
  pairs.sort((a, b) => b.score - a.score);
  const above = pairs.filter(({ score }) => score >= least).length; // a mean over the mask is at most 1
  return { pairs: pairs.slice(0, Math.min(most, above || SHOWN_BELOW)), beyond: Math.max(0, above - most) };
}

/** The number of pixels that two masks share. */
export function shared(one, other) {
  if (one[one.length - 1] <= other[0] || other[other.length - 1] <= one[0]) return 0; // as most masks of an image
  let pixels = 0;
  for (let i = 0, j = 0; i < one.length && j < other.length; ) {
    pixels += Math.max(0, Math.min(one[i + 1], other[j + 1]) - Math.max(one[i], other[j]));
    if (one[i + 1] < other[j + 1]) i += 2;
    else j += 2;
  }
  return pixels;
}

/** Without copies: instances, best first, of which more than the fraction lies in a better one of their class. */
export function withoutCopies(found, copyOverlap) {
  if (copyOverlap >= 1) return found;
  const kept = [];
  for (const one of found) {
    const isCopy = (better) => better.label === one.label && shared(better.runs, one.runs) / one.area > copyOverlap;
    if (!kept.some(isCopy)) kept.push(one);
  }
  return kept;
}

/**
 * The instances of an image, best first: {found, left_out}, each found as {label, score, runs, area}.
 *
 * classes and masks: the output tensors of one image, {data, dims}, (1, Q, K+1) and (1, Q, h, w). canvas, real, size:
 * [height, width] of the padded input, of its real part, of the image. Copies are among them (`withoutCopies`).
 */
export function postProcess(classes, masks, { canvas, real, size }, { least, max_detections: most }) {
  const [, queries, columns] = classes.dims, [, , height, width] = masks.dims;
  const { pairs, beyond } = bestPairs(classes.data, queries, columns, least, most);
  const down = logitAxis(height, canvas[0], real[0], size[0]), along = logitAxis(width, canvas[1], real[1], size[1]);
  const made = new Map();
  for (const { query } of pairs) {
    if (made.has(query)) continue;
    const logits = masks.data.subarray(query * height * width, (query + 1) * height * width);
    made.set(query, makeMask(logits, [height, width], down, along));
  }
  const scored = pairs.map(({ query, label, score }) => {
    const { runs, area, certainty } = made.get(query);
    return { query, label, runs, area, score: Math.fround(score * certainty) };
  });
  const visible = scored.filter(({ area }) => area > 0).sort((a, b) => b.score - a.score);
  const found = visible.filter(({ score }) => score >= least);
  const left_out = {
    limit: beyond,
    full: Number(new Set(found.map(({ query }) => query)).size === queries),
    copies: 0,
    best_score: found.length || !visible.length ? 0 : visible[0].score,
  };
  return { found, left_out };
}

/** Runs as COCO's compressed counts (maskApi.c, rleToString). */
function compress(runs, pixels) {
  const lengths = [];
  let place = 0;
  for (const border of runs) {
    lengths.push(border - place);
    place = border;
  }
  if (place < pixels) lengths.push(pixels - place);
  let text = "";
  lengths.forEach((length, i) => {
    let rest = i > 2 ? length - lengths[i - 2] : length, more = true;
    while (more) {
      let group = rest & 31;
      rest >>= 5;
      more = group & 16 ? rest !== -1 : rest !== 0;
      if (more) group |= 32;
      text += String.fromCharCode(group + 48);
    }
  });
  return text;
}

/** The box [x, y, width, height] of runs in an image of so many rows. */
function boxOf(runs, rows) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -1, -1];
  for (let i = 0; i < runs.length; i += 2) {
    const last = runs[i + 1] - 1, [from, to] = [Math.floor(runs[i] / rows), Math.floor(last / rows)];
    [x0, x1] = [Math.min(x0, from), Math.max(x1, to)];
    [y0, y1] = from < to ? [0, rows - 1] : [Math.min(y0, runs[i] % rows), Math.max(y1, last % rows)];
  }
  return [x0, y0, x1 - x0 + 1, y1 - y0 + 1];
}

/** The instances as the COCO file that /predict of `serve` answers, without its sentences (`notes`). */
export function toCoco({ found, left_out }, name, [height, width], { classes, category_ids: ids, least }) {
  const annotations = found.map(({ label, score, runs, area }, index) => ({
    id: index + 1,
    image_id: 1,
    category_id: ids[label],
    segmentation: { size: [height, width], counts: compress(runs, height * width) },
    score,
    bbox: boxOf(runs, height),
    area,
    iscrowd: 0,
  }));
  const categories = classes.map((one, label) => ({ id: ids[label], name: one }));
  const images = [{ id: 1, file_name: name, height, width }];
  return { images, categories, annotations, thresholds: classes.map(() => least), left_out };
}
