// The viewer of both pages. On the page of `serve` Gradio runs this script when the viewer is there, with `element` and its
// `props`; in a folder of `export --web` page.js sets these names. Each image is predicted once, with nearly all instances,
// by the server's /predict or by `props.ask`, and filtered here: moving the threshold costs the model nothing.

const settings = props.settings; // of `viewer_page.viewer_settings`
const $ = (selector) => element.querySelector(selector);
const state = {
  files: [], file: null, answer: null, shapes: [], hidden: new Set(), picked: null, original: false,
  threshold: settings.threshold, tile: null, byClass: settings.classes.length > 1, sort: "score",
};
const answers = new Map(); // file -> answer with its seconds, of the files on the strip
const view = { zoom: 1, x: 0, y: 0 };
let running = null; // AbortController of the request on its way

// ---- masks -------------------------------------------------------------------------------------------------------

/** COCO's compressed counts to run lengths (maskApi.c, rleFrString). */
function runLengths(counts) {
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let value = 0, shift = 0, more = true, group = 0;
    while (more) {
      group = counts.charCodeAt(place++) - 48;
      value += (group & 31) * 2 ** shift;
      shift += 5;
      more = (group & 32) !== 0;
    }
    if (group & 16) value -= 2 ** shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** The pixels of a mask inside its box, with a border of one empty pixel: {x, y, width, height, inside}. */
function pixelsOf(annotation) {
  const height = annotation.segmentation.size[0];
  const [left, top, boxWidth, boxHeight] = annotation.bbox.map(Math.round);
  const width = boxWidth + 2, inside = new Uint8Array(width * (boxHeight + 2));
  let place = 0;
  runLengths(annotation.segmentation.counts).forEach((run, index) => {
    if (index % 2) {
      for (let at = place; at < place + run; at++) {
        inside[((at % height) - top + 1) * width + Math.floor(at / height) - left + 1] = 1;
      }
    }
    place += run;
  });
  return { x: left - 1, y: top - 1, width, height: boxHeight + 2, inside };
}

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up

/** Outlines along the pixels' edges, inside on the right: closed loops of [x, y], one point per edge (its middle). */
function outlines({ x, y, width, height, inside }) {
  const stride = width + 1, edges = new Uint8Array(stride * (height + 1)); // bit d: an edge leaves in direction d
  for (let row = 1; row < height - 1; row++) {
    for (let column = 1; column < width - 1; column++) {
      const at = row * width + column;
      if (!inside[at]) continue;
      const corner = row * stride + column;
      if (!inside[at - width]) edges[corner] |= 1;
      if (!inside[at + 1]) edges[corner + 1] |= 2;
      if (!inside[at + width]) edges[corner + stride + 1] |= 4;
      if (!inside[at - 1]) edges[corner + stride] |= 8;
    }
  }
  const loops = [];
  for (let start = 0; start < edges.length; start++) {
    while (edges[start]) {
      const loop = [];
      let at = start, direction = Math.log2(edges[start] & -edges[start]);
      do {
        edges[at] &= ~(1 << direction);
        const [dx, dy] = STEPS[direction];
        loop.push([x + (at % stride) + dx / 2, y + Math.floor(at / stride) + dy / 2]);
        at += dx + dy * stride;
        // Right first: pixels that touch at a corner alone are two shapes.
        direction = [1, 0, 3].map((turn) => (direction + turn) % 4).find((next) => edges[at] & (1 << next));
      } while (direction !== undefined);
      loops.push(loop);
    }
  }
  return loops;
}

/** A loop without the stairs of its pixels, and without the points that a straight line does not need. */
function smooth(loop) {
  let points = loop;
  for (let pass = 0; pass < 3; pass++) {
    const last = points.length - 1;
    points = points.map(([x, y], i) => {
      const [ax, ay] = points[i ? i - 1 : last], [bx, by] = points[i < last ? i + 1 : 0];
      return [(ax + 2 * x + bx) / 4, (ay + 2 * y + by) / 4];
    });
  }
  const kept = [points[0]];
  for (let i = 1; i < points.length - 1; i++) {
    const [ax, ay] = kept[kept.length - 1], [bx, by] = points[i + 1], [x, y] = points[i];
    const length = Math.hypot(bx - ax, by - ay) || 1;
    const off = Math.abs((bx - ax) * (ay - y) - (ax - x) * (by - ay)) / length;
    if (off > 0.03 || length > 24) kept.push(points[i]);
  }
  return kept;
}

function pathOf(annotation) {
  return outlines(pixelsOf(annotation))
    .map((loop) => "M" + smooth(loop).map((point) => point.map((value) => +value.toFixed(2)).join(" ")).join("L") + "Z")
    .join("");
}

/** A colour for every annotation: of its class, or other than its neighbours'. */
function colours(answer) {
  const palette = settings.palette, order = new Map(answer.categories.map(({ id }, index) => [id, index]));
  if (state.byClass) {
    return answer.annotations.map((one) => palette[order.get(one.category_id) % palette.length]);
  }
  const chosen = [], used = palette.map(() => 0);
  answer.annotations.forEach(({ bbox: [x, y, w, h] }, index) => {
    const reach = 0.5 * Math.max(w, h) + 4, near = palette.map(() => 0);
    for (let other = 0; other < index; other++) {
      const [ox, oy, ow, oh] = answer.annotations[other].bbox;
      if (ox < x + w + reach && ox + ow > x - reach && oy < y + h + reach && oy + oh > y - reach) near[chosen[other]]++;
    }
    let best = 0;
    palette.forEach((_, colour) => {
      if (near[colour] < near[best] || (near[colour] === near[best] && used[colour] < used[best])) best = colour;
    });
    used[best]++;
    chosen.push(best);
  });
  return chosen.map((colour) => palette[colour]);
}

// ---- drawing -----------------------------------------------------------------------------------------------------

function draw(answer) {
  const names = new Map(answer.categories.map(({ id, name }) => [id, name])), palette = colours(answer);
  state.shapes = answer.annotations.map((annotation, index) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", pathOf(annotation));
    path.style.color = palette[index];
    const shape = { annotation, path, name: names.get(annotation.category_id), colour: palette[index] };
    path.shape = shape;
    return shape;
  });
  state.picked = null;
  const [{ width, height }] = answer.images, layer = $(".m2f-shapes");
  layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
  // Small ones on top, or they could not be pointed at.
  layer.replaceChildren(...[...state.shapes].sort((a, b) => b.annotation.area - a.annotation.area).map((one) => one.path));
  filter();
}

const isShown = ({ annotation, name }) => annotation.score >= state.threshold && !state.hidden.has(name);

function filter() {
  for (const shape of state.shapes) shape.path.classList.toggle("off", !isShown(shape));
  const shown = state.shapes.filter(isShown).length;
  if (state.answer) {
    const [{ width, height }] = state.answer.images;
    // Without tiles the model gives no more than this; the answer was for all scores above `least`.
    const most = `; the most it can find${settings.max_bytes ? ": try tiles" : ""}`; // which the server alone has
    const isCut = state.tile || (settings.whole && (height > settings.whole[0] || width > settings.whole[1]));
    const full = !isCut && shown >= settings.max_detections ? most : "";
    const size = `${width} × ${height} pixels, ${state.seconds.toFixed(1)} s`;
    say(`${shown} ${shown === 1 ? "instance" : "instances"}${full}`, size);
  }
  listClasses();
  listInstances();
  drawHistogram();
  document.querySelectorAll(".m2f-save").forEach((button) => (button.disabled = !state.answer));
  if (state.picked && !isShown(state.picked)) pick(null);
}

/** One row a class that was found: swatch, name, how many are above the threshold. A click takes it out or back in. */
function listClasses() {
  const list = document.querySelector("#m2f-classes .m2f-list");
  if (!list) return;
  const counts = new Map();
  for (const { name, annotation, colour } of state.shapes) {
    const row = counts.get(name) ?? { count: 0, colour };
    row.count += annotation.score >= state.threshold;
    counts.set(name, row);
  }
  const mixed = !state.byClass;
  const rows = [...counts].sort(([, a], [, b]) => b.count - a.count).map(([name, { count, colour }]) => {
    const row = document.createElement("button");
    row.type = "button";
    row.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    const swatch = Object.assign(document.createElement("i"), { className: mixed ? "mixed" : "" });
    swatch.style.color = colour;
    const [text, number] = [document.createElement("span"), document.createElement("b")];
    text.textContent = name;
    number.textContent = count;
    row.append(swatch, text, number);
    row.onclick = () => {
      state.hidden.has(name) ? state.hidden.delete(name) : state.hidden.add(name);
      filter();
    };
    return row;
  });
  if (rows.length) list.replaceChildren(...rows);
  else if (state.answer) list.textContent = "Nothing was found.";
}

/** An element with a class and a text. */
function make(tag, className, text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

const ORDERS = {
  score: (a, b) => b.annotation.score - a.annotation.score,
  class: (a, b) => a.name.localeCompare(b.name) || ORDERS.score(a, b),
  area: (a, b) => b.annotation.area - a.annotation.area,
};

/** One row an instance that is shown, in the order of the heading that was clicked. A click finds it in the image. */
function listInstances() {
  const list = document.querySelector("#m2f-instances .m2f-rows"), heads = document.querySelector("#m2f-instances .m2f-heads");
  if (!list) return;
  if (!state.answer && !state.files.length) return; // what it says at first stays
  heads.hidden = !state.shapes.length;
  for (const head of heads.children) head.setAttribute("aria-pressed", String(head.dataset.sort === state.sort));
  list.replaceChildren(...state.shapes.filter(isShown).sort(ORDERS[state.sort]).map((shape) => {
    const row = make("button", ""), swatch = make("i", "");
    row.type = "button";
    row.shape = shape;
    row.setAttribute("aria-pressed", String(shape === state.picked));
    swatch.style.color = shape.colour;
    row.append(swatch, make("span", "", shape.name), " ", make("b", "", shape.annotation.score.toFixed(2)), " ",
      make("b", "", `${shape.annotation.area} px`));
    row.onclick = () => pick(shape === state.picked ? null : shape, true);
    return row;
  }));
  reach(list, [...list.children].find((row) => row.shape === state.picked) ?? list.firstElementChild);
}

/** One row of the list is in the order of the Tab key; the arrow keys reach the others. */
function reach(list, row, focus = false) {
  for (const one of list.children) one.tabIndex = one === row ? 0 : -1;
  if (focus) row.focus();
}

/** Marks an instance in the image and in the list, and names it; null for none. find: zoom to it. */
function pick(shape, find = false) {
  state.picked?.path.classList.remove("picked");
  state.picked = shape;
  shape?.path.classList.add("picked");
  for (const row of document.querySelectorAll("#m2f-instances .m2f-rows button")) {
    row.setAttribute("aria-pressed", String(row.shape === shape));
    if (row.shape !== shape) continue;
    reach(row.parentElement, row);
    // The list alone: scrolling to the row would move the image away on a phone.
    const list = row.parentElement, top = row.getBoundingClientRect().top - list.getBoundingClientRect().top;
    if (!find) list.scrollTop += top - (list.clientHeight - row.clientHeight) / 2;
  }
  if (shape && find) focusOn(shape);
  shape ? point(shape) : (tip.hidden = true);
}

/** How many instances have which score, above all thresholds that can be set; those that are shown stand out. */
function drawHistogram() {
  const place = document.querySelector("#m2f-histogram svg");
  if (!place) return;
  const first = settings.least, bins = 19, counts = Array(bins).fill(0), wide = 100 / bins;
  for (const { annotation, name } of state.shapes) {
    if (!state.hidden.has(name)) counts[Math.min(bins - 1, Math.floor(((annotation.score - first) / (1 - first)) * bins))]++;
  }
  const most = Math.max(1, ...counts);
  place.replaceChildren(...counts.map((count, index) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect"), tall = (count / most) * 30;
    const middle = first + ((index + 0.5) / bins) * (1 - first);
    const values = { x: index * wide + 0.4, width: wide - 0.8, y: 30 - tall, height: tall };
    for (const [key, value] of Object.entries(values)) bar.setAttribute(key, value);
    bar.classList.toggle("off", middle < state.threshold);
    return bar;
  }));
  const shown = state.shapes.filter(isShown).length;
  place.setAttribute("aria-label", `Histogram of scores: ${shown} of ${state.shapes.length} instances are above the minimum`);
  place.parentElement.classList.toggle("empty", !state.shapes.length);
}

/** A small picture for every image, where there are several; the one that is shown is marked. */
function listFiles() {
  const strip = $(".m2f-strip");
  strip.hidden = state.files.length < 2;
  if (strip.children.length !== state.files.length || [...strip.children].some((one, i) => one.file !== state.files[i])) {
    for (const picture of strip.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    strip.replaceChildren(...state.files.map((file) => {
      const button = make("button", ""), picture = document.createElement("img");
      button.type = "button";
      button.file = file;
      button.title = file.name;
      picture.alt = file.name;
      picture.onerror = () => picture.replaceWith(make("span", "", file.name)); // a kind that browsers do not show
      picture.src = URL.createObjectURL(file);
      button.append(picture);
      button.onclick = () => open(file);
      return button;
    }));
  }
  for (const button of strip.children) button.setAttribute("aria-pressed", String(button.file === state.file));
}

function say(main, rest = "") {
  const status = $(".m2f-status");
  status.textContent = main;
  if (rest) status.append(Object.assign(document.createElement("span"), { textContent: rest }));
}

function complain(message) {
  $(".m2f-error").textContent = message;
  $(".m2f-error").hidden = !message;
}

/** The image with what is found in it, or the place to drop one. */
function show(image) {
  $(".m2f-start").hidden = image;
  $(".m2f-window").hidden = $(".m2f-other").hidden = $(".m2f-original").hidden = !image;
}

/** The image alone, or with what is found in it. */
function showOriginal(on) {
  state.original = on;
  $(".m2f-shapes").classList.toggle("off", on);
  $(".m2f-original").setAttribute("aria-pressed", String(on));
  if (on) pick(null);
}

// ---- pixels as stored ---------------------------------------------------------------------------------------------

/** The places [begin, end] of the metadata (Exif) of a JPEG, PNG or WebP, which may ask for a turn. */
function exifPlaces(bytes) {
  const view = new DataView(bytes.buffer), text = (at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
  const places = [], add = (found, begin, end) => found && places.push([begin, end]);
  if (text(0, 2) === "\xff\xd8") { // segments: FF, kind, length with its own two bytes; after FF DA come the pixels
    for (let at = 2, end; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; at = end) {
      end = bytes[at + 1] === 0xff ? at + 1 : at + 2 + view.getUint16(at + 2);
      add(bytes[at + 1] === 0xe1 && text(at + 4, 4) === "Exif", at, end);
    }
  } else if (text(1, 3) === "PNG") { // chunks: length, kind, data, checksum
    for (let at = 8, end; at + 12 <= bytes.length; at = end) {
      add(text(at + 4, 4) === "eXIf", at, (end = at + 12 + view.getUint32(at)));
    }
  } else if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") { // chunks: kind, length, data, up to an even place
    for (let at = 12, end; at + 8 <= bytes.length; at = end) {
      end = at + 8 + view.getUint32(at + 4, true);
      add(text(at, 4) === "EXIF", at, (end += end % 2));
    }
  }
  return places;
}

/**
 * A file whose pixels a browser shows as they are stored: without the turn that EXIF asks for, since the masks are those
 * of the stored pixels. (`imageOrientation: "none"` of createImageBitmap turns them all the same in Chromium 156.)
 */
async function asStored(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), isWebp = bytes[0] === 0x52;
  const parts = [];
  let place = 0;
  for (const [begin, end] of exifPlaces(bytes)) {
    parts.push(bytes.subarray(place, begin));
    if (isWebp) parts.push("NONE", bytes.subarray(begin + 4, end)); // its length is stored: a kind that nobody reads
    place = end;
  }
  return place ? new Blob([...parts, bytes.subarray(place)], { type: file.type }) : file;
}

// ---- asking ------------------------------------------------------------------------------------------------------

const pause = (seconds, signal) =>
  new Promise((done, failed) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), failed(signal.reason)));
  });

/** The server's answer for a file; rejected with a message for people. */
async function askServer(file, signal) {
  const query = new URLSearchParams({ threshold: settings.least, max_detections: settings.max_detections });
  if (state.tile) query.set("tile", state.tile);
  if (state.blank) query.set("preview", true); // the browser cannot show the file itself
  for (let attempt = 1; ; attempt++) {
    const body = new FormData();
    body.append("image", file, file.name || "image");
    const response = await fetch(`predict?${query}`, { method: "POST", body, signal }).catch((error) => {
      throw error instanceof TypeError ? new Error("The server cannot be reached.") : error;
    });
    if (response.status === 503 && attempt < 6) {
      const seconds = Number(response.headers.get("Retry-After")) || 2;
      say(`The server is busy; next try in ${seconds} s`);
      await pause(seconds, signal);
      continue;
    }
    const answer = await response.json().catch(() => ({ error: `the server answered with status ${response.status}` }));
    if (!response.ok) throw Object.assign(new Error(answer.error), { isRefused: response.status < 500 });
    return answer;
  }
}

const ask = props.ask ?? askServer;

/** The server's picture of a file that the browser cannot show, such as TIFF. */
async function preview(text) {
  const canvas = $("canvas"), bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

function beBusy(on) {
  $(".m2f-progress").hidden = $(".m2f-stop").hidden = !on;
}

async function predict() {
  const file = state.file;
  running?.abort();
  const control = (running = new AbortController()), begun = performance.now();
  const told = ({ tile, tiles }) => say(`Finding instances: tile ${tile} of ${tiles}`);
  complain("");
  beBusy(true);
  say("Finding instances …");
  try {
    if (!answers.has(file)) {
      const waited = await ask(file, control.signal, state.stored, told);
      answers.set(file, { seconds: (performance.now() - begun) / 1000, ...waited });
    }
    const { preview: picture, seconds, ...answer } = answers.get(file); // the first two are no part of a COCO file
    if (picture) await preview(picture);
    state.answer = answer;
    state.seconds = seconds;
    show(true);
    fit(answer.images[0].width, answer.images[0].height); // also where the browser cannot show the picture itself
    draw(answer);
  } catch (error) {
    if (control.signal.aborted) return;
    say("");
    complain(error.message);
    if (error.isRefused || state.blank) show(false); // else the same image may be tried again
  }
  beBusy(false);
}

/** Takes images instead of those before, and shows the first. */
async function openAll(files) {
  if (!files.length) return;
  answers.clear();
  state.files = [...files];
  state.hidden = new Set();
  await open(state.files[0]);
}

async function open(file) {
  running?.abort();
  beBusy(false);
  say("");
  Object.assign(state, { file, stored: file, answer: null, blank: false, shapes: [] });
  pick(null);
  showOriginal(false);
  listFiles();
  $(".m2f-shapes").replaceChildren();
  filter();
  if (settings.max_bytes && file.size > settings.max_bytes) {
    say("");
    show(false);
    return complain(`${file.name}: the server takes files of at most ${(settings.max_bytes / 1e6).toFixed(0)} MB`);
  }
  $(".m2f-progress").hidden = false;
  const canvas = $("canvas");
  try {
    const stored = await asStored(file);
    if (state.file === file) state.stored = stored;
    const picture = await createImageBitmap(stored);
    if (state.file !== file) return;
    [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.getContext("2d").drawImage(picture, 0, 0);
    show(true);
    fit(picture.width, picture.height);
  } catch {
    if (state.file !== file) return;
    [canvas.width, canvas.height] = [4, 3]; // a kind that browsers do not show, such as TIFF, or no image at all
    state.blank = true;
  }
  await predict();
}

// ---- zoom --------------------------------------------------------------------------------------------------------

function fit(width, height) {
  $(".m2f-window").style.setProperty("--aspect", width / height);
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  move();
}

function move() {
  const stage = $(".m2f-stage"), frame = $(".m2f-window").getBoundingClientRect();
  for (const [axis, size, room] of [["x", stage.offsetWidth, frame.width], ["y", stage.offsetHeight, frame.height]]) {
    const spare = Math.max(0, (size * view.zoom - room) / 2);
    view[axis] = Math.min(spare, Math.max(-spare, view[axis]));
  }
  stage.style.setProperty("--zoom", view.zoom);
  stage.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  $(".m2f-window").classList.toggle("zoomed", view.zoom > 1);
  if (state.picked) point(state.picked);
}

/** Zooms so far that an instance takes a third of the window, at most 8 times, with the instance in the middle. */
function focusOn({ annotation: { bbox: [x, y, w, h] } }) {
  const [{ width, height }] = state.answer.images, frame = $(".m2f-window").getBoundingClientRect();
  view.zoom = Math.min(8, Math.max(1, 0.33 / Math.max(w / width, h / height)));
  view.x = (0.5 - (x + w / 2) / width) * frame.width * view.zoom;
  view.y = (0.5 - (y + h / 2) / height) * frame.height * view.zoom;
  move();
}

/** In or out, keeping what is under (x, y) of the page where it is. */
function zoom(factor, x, y) {
  const frame = $(".m2f-window").getBoundingClientRect(), before = view.zoom;
  view.zoom = Math.min(32, Math.max(1, before * factor));
  const [dx, dy] = [x - frame.left - frame.width / 2, y - frame.top - frame.height / 2];
  view.x = dx - ((dx - view.x) * view.zoom) / before;
  view.y = dy - ((dy - view.y) * view.zoom) / before;
  move();
}

// ---- downloads ---------------------------------------------------------------------------------------------------

function save(content, type, ending) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = (state.file.name || "image").replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const chosen = () => state.shapes.filter(isShown);

const downloads = {
  coco() {
    const annotations = chosen().map(({ annotation }, index) => ({ ...annotation, id: index + 1 }));
    const thresholds = state.answer.thresholds.map(() => state.threshold); // of each class; here one for all
    save(JSON.stringify({ ...state.answer, annotations, thresholds }), "application/json", ".coco.json");
  },
  csv() {
    const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
    const rows = chosen().map(({ annotation: { score, area, bbox }, name }, index) =>
      [index + 1, quoted(name), score, area, ...bbox].join(","));
    save(["id,class,score,area,x,y,width,height", ...rows].join("\r\n") + "\r\n", "text/csv", ".csv");
  },
  overlay() {
    const source = $("canvas"), [{ width, height }] = state.answer.images;
    const scale = Math.max(1, Math.min(4, Math.floor(1600 / Math.max(width, height))));
    const canvas = Object.assign(document.createElement("canvas"), { width: width * scale, height: height * scale });
    const pen = canvas.getContext("2d"), fill = Number(getComputedStyle(element).getPropertyValue("--m2f-fill")) || 0.35;
    pen.drawImage(source, 0, 0, canvas.width, canvas.height);
    pen.scale(scale, scale);
    pen.lineWidth = Math.max(1, Math.max(width, height) / 900);
    for (const { path } of chosen().sort((a, b) => b.annotation.area - a.annotation.area)) {
      const shape = new Path2D(path.getAttribute("d"));
      pen.fillStyle = pen.strokeStyle = path.style.color;
      pen.globalAlpha = fill;
      pen.fill(shape, "evenodd");
      pen.globalAlpha = 1;
      pen.stroke(shape);
    }
    canvas.toBlob((blob) => save(blob, "image/png", ".overlay.png"));
  },
};

// ---- events ------------------------------------------------------------------------------------------------------

element.addEventListener("change", (event) => {
  if (event.target.type === "file") openAll(event.target.files).finally(() => (event.target.value = ""));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element.classList.add("m2f-over");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => (event.preventDefault(), element.classList.remove("m2f-over")));
}
document.addEventListener("drop", (event) => openAll(event.dataTransfer.files));
document.addEventListener("paste", (event) => openAll([...event.clipboardData.files].filter((file) => file.type.startsWith("image/"))));
$(".m2f-sample").addEventListener("click", async () => {
  const answer = await fetch("sample.png").catch(() => null);
  if (!answer?.ok) return complain("The sample image cannot be loaded.");
  openAll([new File([await answer.blob()], "sample.png", { type: "image/png" })]);
});
$(".m2f-stop").addEventListener("click", () => {
  running.abort();
  beBusy(false);
  say("Stopped");
});
$(".m2f-original").addEventListener("click", () => showOriginal(!state.original));

const tip = $(".m2f-tip"), shapes = $(".m2f-shapes");

/** Names an instance: beside (x, y) of the page, or else beside its box. Never outside the frame, nor on the buttons. */
function point({ annotation, name }, x, y) {
  const frame = $(".m2f-frame").getBoundingClientRect(), buttons = $(".m2f-zoom").getBoundingClientRect();
  tip.hidden = false;
  tip.replaceChildren(make("b", "", name), ` ${annotation.score.toFixed(2)}`, make("span", "", `${annotation.area} px`));
  if (x === undefined) {
    const own = state.picked.path.getBoundingClientRect();
    [x, y] = [own.right - 14, own.bottom - 18];
  }
  let left = Math.max(4, Math.min(x - frame.left + 14, frame.width - tip.offsetWidth - 4));
  let top = y - frame.top + 18;
  if (top + tip.offsetHeight > frame.height) top = Math.min(y - frame.top, frame.height) - tip.offsetHeight - 8;
  top = Math.max(4, top);
  const edge = buttons.left - frame.left - 8;
  if (left + tip.offsetWidth > edge && top + tip.offsetHeight > buttons.top - frame.top - 8) left = edge - tip.offsetWidth;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

shapes.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" || state.picked) return; // a finger picks by a tap
  event.target.shape ? point(event.target.shape, event.clientX, event.clientY) : (tip.hidden = true);
});
shapes.addEventListener("pointerleave", (event) => {
  if (event.pointerType !== "touch" && !state.picked) tip.hidden = true;
});
shapes.addEventListener("click", (event) => {
  if (!dragged) pick(event.target.shape === state.picked ? null : event.target.shape ?? null);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") pick(null);
});
document.addEventListener("click", ({ target }) => {
  const head = target.closest("#m2f-instances [data-sort]");
  if (head) (state.sort = head.dataset.sort), listInstances();
});
document.addEventListener("keydown", (event) => {
  const row = event.target.closest?.("#m2f-instances .m2f-rows button"), list = row?.parentElement;
  const to = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling,
    Home: list?.firstElementChild, End: list?.lastElementChild }[event.key];
  if (!row || !to) return;
  event.preventDefault();
  reach(list, to, true);
});

const box = $(".m2f-window");
box.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return; // pinching is a wheel with Ctrl as well
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 200), event.clientX, event.clientY);
}, { passive: false });
let dragged = false; // whether the pointer that is down has moved the image
box.addEventListener("pointerdown", () => (dragged = false));
box.addEventListener("pointermove", (event) => {
  if (!event.buttons || view.zoom === 1) return;
  dragged ||= Math.hypot(event.movementX, event.movementY) > 2;
  view.x += event.movementX;
  view.y += event.movementY;
  move();
});
$(".m2f-zoom").addEventListener("click", (event) => {
  const { left, top, width, height } = box.getBoundingClientRect();
  if (event.target.dataset.zoom) zoom(Number(event.target.dataset.zoom), left + width / 2, top + height / 2);
});

// What the controls call, Gradio's and those of page.js.
window.m2f = {
  threshold: (value) => ((state.threshold = value), filter()),
  opacity: (value) => document.body.style.setProperty("--m2f-fill", value),
  tile(on, size) {
    const tile = on && size ? Math.round(size) : null;
    if (tile === state.tile) return;
    state.tile = tile;
    answers.clear();
    if (state.file) predict();
  },
  colours(byClass) {
    state.byClass = byClass;
    if (state.answer) draw(state.answer);
  },
  download: (kind) => state.answer && downloads[kind](),
  dark() {
    const dark = document.body.classList.toggle("dark");
    localStorage.setItem("m2f-dark", dark ? "1" : "0");
  },
};
const remembered = localStorage.getItem("m2f-dark");
if (remembered !== null) document.body.classList.toggle("dark", remembered === "1");
const { classes } = settings;
const named = classes.length > 8 ? `${classes.slice(0, 8).join(", ")} and ${classes.length - 8} more` : classes.join(", ");
$(".m2f-finds").textContent = `This model finds ${classes.length > 1 ? `${classes.length} classes: ` : ""}${named}. It outlines each one, with a score.`;
$(".m2f-limits").textContent = settings.accepted;
filter();
