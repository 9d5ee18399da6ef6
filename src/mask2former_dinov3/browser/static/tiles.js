// Images at their own scale: cut into overlapping tiles, whose instances are merged, as `inference/tiles/grid.py` and
// `merging.py` do it; the rules and their reasons are there. A region is {y0, x0, y1, x1}, y1 and x1 not in it.

import { areaOf, reportedScore, shared, withoutCopies } from "./instances.js";
import { roundValue } from "./pixels.js";

const SAME_IOU = 0.5; // above it two masks show the same object
const INSIDE = 0.8; // a piece belongs to another one if it shares more than this fraction of its pixels
const EDGE = 2; // pixels: a mask that comes this close to an edge of its tile counts as cut by it

/** The first pixels of the tiles of `tile` pixels on an axis of `length` pixels. */
function startsOf(length, tile, overlap) {
  const steps = Math.ceil((length - tile) / Math.max(1, tile - Math.ceil(tile * overlap)));
  return Array.from({ length: steps + 1 }, (_, step) => roundValue((step * (length - tile)) / Math.max(steps, 1)));
}

/**
 * The fewest tiles of [tileHeight, tileWidth] pixels that cover an image and share at least the fraction `overlap` with
 * each neighbour: {height, width, rows}, rows from the top, each with its regions from left to right.
 */
export function makeGrid([height, width], [tileHeight, tileWidth], overlap) {
  const [h, w] = [Math.min(tileHeight, height), Math.min(tileWidth, width)], lefts = startsOf(width, w, overlap);
  const rows = startsOf(height, h, overlap).map((y0) => lefts.map((x0) => ({ y0, x0, y1: y0 + h, x1: x0 + w })));
  return { height, width, rows };
}

const intersection = (a, b) => ({
  y0: Math.max(a.y0, b.y0), x0: Math.max(a.x0, b.x0), y1: Math.min(a.y1, b.y1), x1: Math.min(a.x1, b.x1),
});

const meet = (a, b) => a.y0 < b.y1 && b.y0 < a.y1 && a.x0 < b.x1 && b.x0 < a.x1;

/** Whether a tile holds a box, away from its edges that lie inside the image. */
const holds = (tile, box, { height, width }) =>
  box.y0 >= tile.y0 + (tile.y0 > 0 ? EDGE : 0) && box.y1 <= tile.y1 - (tile.y1 < height ? EDGE : 0) &&
  box.x0 >= tile.x0 + (tile.x0 > 0 ? EDGE : 0) && box.x1 <= tile.x1 - (tile.x1 < width ? EDGE : 0);

/** An instance of a tile in the coordinates of the image: its runs, each within a column, in a group of its own. */
function pieceOf({ label, score, runs: inside }, tile, grid) {
  const rows = tile.y1 - tile.y0, runs = [], box = { y0: Infinity, x0: Infinity, y1: 0, x1: 0 };
  for (let i = 0; i < inside.length; i += 2) {
    for (let place = inside[i]; place < inside[i + 1]; ) {
      const column = Math.floor(place / rows), top = place - column * rows;
      const bottom = Math.min(rows, top + inside[i + 1] - place), [x, y] = [tile.x0 + column, tile.y0];
      runs.push(x * grid.height + y + top, x * grid.height + y + bottom);
      [box.y0, box.y1] = [Math.min(box.y0, y + top), Math.max(box.y1, y + bottom)];
      [box.x0, box.x1] = [Math.min(box.x0, x), x + 1];
      place += bottom - top;
    }
  }
  const piece = { label, score, runs, box, isWhole: holds(tile, box, grid), isOpen: true, isRepeated: false, group: [] };
  piece.group.push(piece); // all pieces of its object; they share the list
  return piece;
}

/** The part of runs, each within a column, inside a region of an image of `height` rows. */
function within(runs, { y0, x0, y1, x1 }, height) {
  const parts = [];
  for (let i = 0; i < runs.length; i += 2) {
    const column = Math.floor(runs[i] / height), top = column * height;
    const [begin, end] = [Math.max(runs[i], top + y0), Math.min(runs[i + 1], top + y1)];
    if (column >= x0 && column < x1 && begin < end) parts.push(begin, end);
  }
  return parts;
}

/** Whether runs in the overlap of two tiles reach an edge of `tile` that lies inside the other tile. */
function reaches(runs, tile, other, height) {
  for (let i = 0; i < runs.length; i += 2) {
    const column = Math.floor(runs[i] / height), [top, bottom] = [runs[i] - column * height, runs[i + 1] - column * height];
    if (other.y0 < tile.y0 && top < tile.y0 + EDGE) return true;
    if (other.x0 < tile.x0 && column < tile.x0 + EDGE) return true;
    if (tile.y1 < other.y1 && bottom > tile.y1 - EDGE) return true;
    if (tile.x1 < other.x1 && column >= tile.x1 - EDGE) return true;
  }
  return false;
}

/** How similar the pieces of two tiles are, for each pair that may be one object; pairs that cannot are left out. */
function comparePieces(tile, pieces, other, earlier, height) {
  const overlap = intersection(tile, other), isBeside = tile.y0 === other.y0 || tile.x0 === other.x0, pairs = [];
  for (const one of pieces) {
    if (!meet(one.box, overlap)) continue;
    for (const two of earlier) {
      if (one.label !== two.label || !meet(one.box, two.box)) continue;
      const areWhole = one.isWhole && two.isWhole;
      let first = one.runs, second = two.runs, isCrossing = false;
      if (!areWhole) {
        [first, second] = [within(first, overlap, height), within(second, overlap, height)];
        const ends = [reaches(first, tile, other, height), reaches(second, other, tile, height)];
        isCrossing = ends[0] && ends[1];
        // Tiles that meet at a corner share few pixels: only objects that pass through all of them count.
        if (!(isCrossing || (isBeside && (ends[0] || ends[1])))) continue;
      }
      const common = shared(first, second), [area, otherArea] = [areaOf(first), areaOf(second)];
      if (!common) continue;
      const parts = { ofOne: common / area, ofTwo: common / otherArea };
      pairs.push({ one, two, iou: common / (area + otherArea - common), ...parts, isCrossing, areWhole });
    }
  }
  return pairs;
}

/** Marks repeated pieces of two tiles, and puts the pieces of one object into one group. */
function link(pairs) {
  const best = new Map(); // piece -> the piece of the other tile that is most similar
  for (const { one, two } of [...pairs].sort((a, b) => a.iou - b.iou)) best.set(one, two).set(two, one);
  for (const { one, two, iou, ofOne, ofTwo, isCrossing, areWhole } of pairs) {
    if (areWhole) {
      if (iou > SAME_IOU) (one.score <= two.score ? one : two).isRepeated = true;
      continue;
    }
    const [isBest, isBestOfTwo] = [best.get(one) === two, best.get(two) === one];
    const isSame = isBest && isBestOfTwo && iou > SAME_IOU;
    const isArm = isCrossing && ((isBest && ofOne > INSIDE) || (isBestOfTwo && ofTwo > INSIDE));
    if (!(isSame || isArm) || one.group === two.group) continue;
    const [small, large] = one.group.length <= two.group.length ? [one.group, two.group] : [two.group, one.group];
    large.push(...small);
    for (const piece of small) piece.group = large;
  }
}

/** The union of several masks; runs that touch become one, also from one column to the next. */
function joinRuns(masks) {
  const pairs = masks.flatMap((runs) => Array.from({ length: runs.length / 2 }, (_, i) => [runs[2 * i], runs[2 * i + 1]]));
  const joined = [];
  for (const [begin, end] of pairs.sort((a, b) => a[0] - b[0])) {
    const last = joined.length - 1;
    if (joined.length && begin <= joined[last]) joined[last] = Math.max(joined[last], end);
    else joined.push(begin, end);
  }
  return joined;
}

/** One object from its pieces; its score is the mean over their pixels. */
function mergePieces(group) {
  const areas = group.map(({ runs }) => areaOf(runs)), total = areas.reduce((sum, area) => sum + area, 0);
  const score = Math.fround(group.reduce((sum, piece, i) => sum + piece.score * areas[i], 0) / total);
  const runs = joinRuns(group.map((piece) => piece.runs));
  return { label: group[0].label, score, runs, area: areaOf(runs) };
}

/** Takes what `postProcess` finds in each tile, row by row from the top, and gives the instances of the whole image. */
export class Merger {
  constructor(grid, copyOverlap, calibration = [1, 0]) {
    Object.assign(this, { grid, copyOverlap, calibration, row: 0, tiles: [], finished: [] });
    this.left_out = { limit: 0, full: 0, copies: 0, best_score: 0 };
  }

  /** The results of the tiles of the next row, from left to right. */
  addRow(results) {
    const { grid, left_out: sum } = this;
    results.forEach(({ found, left_out }, place) => {
      for (const key of ["limit", "full", "copies"]) sum[key] += left_out[key];
      sum.best_score = Math.max(sum.best_score, left_out.best_score);
      const tile = grid.rows[this.row][place];
      const isSeenBetter = ({ box }) => grid.rows.some((row) => row.some((other) => holds(other, box, grid)));
      const pieces = found.map((one) => pieceOf(one, tile, grid)).filter((one) => one.isWhole || !isSeenBetter(one));
      for (const [other, earlier] of this.tiles) {
        if (meet(other, tile)) link(comparePieces(tile, pieces, other, earlier, grid.height));
      }
      this.tiles.push([tile, pieces]);
    });
    this.row++;
    this.finishAbove(this.row < grid.rows.length ? grid.rows[this.row][0].y0 : grid.height);
  }

  /** Merges the objects that only tiles above `top` have seen; no later tile begins above it. */
  finishAbove(top) {
    const closed = this.tiles.filter(([tile]) => tile.y1 <= top).flatMap(([, pieces]) => pieces);
    this.tiles = this.tiles.filter(([tile]) => tile.y1 > top);
    for (const piece of closed) piece.isOpen = false;
    for (const group of new Set(closed.map((piece) => piece.group))) {
      if (group.some((piece) => piece.isOpen)) continue;
      const kept = group.filter((piece) => !piece.isRepeated);
      if (kept.length) this.finished.push(mergePieces(kept));
    }
  }

  /**
   * All instances as `postProcess` returns them, best first, with calibrated scores of at least `least`, without copies;
   * every row must have been added.
   */
  instances(least = 0) {
    const order = [...this.finished].sort((a, b) => b.score - a.score);
    const calibrated = order.map((one) => ({ ...one, score: reportedScore(one.score, this.calibration) }));
    const merged = calibrated.filter(({ score }) => score >= least), found = withoutCopies(merged, this.copyOverlap);
    const copies = this.left_out.copies + merged.length - found.length;
    const best_score = merged.length ? 0 : reportedScore(this.left_out.best_score, this.calibration);
    return { found, left_out: { ...this.left_out, copies, best_score } };
  }
}
