// The model, in a thread of its own so that the page stays responsive. Messages in: {id, file, name, least, max_detections}, or
// {cancel: id}. Messages out: {ready: text} or {failed: text} once, then {id, tile, tiles} for each of several tiles, and
// {id, answer, seconds} or {id, error}; no answer for what was cancelled.

import { ImageError, fittedSize, openImage, resizeImage, toInput } from "./pixels.js";
import { networkScore, postProcess, toCoco } from "./instances.js";
import { Merger, makeGrid } from "./tiles.js";

const OUTPUTS = ["class_queries_logits", "masks_queries_logits"];
const cancelled = new Set();
let model = null, runtime = null, session = null;

/** A file of this folder. Throws with a sentence if it cannot be read. */
async function read(name) {
  const response = await fetch(new URL(name, import.meta.url)).catch((error) => ({ ok: false, status: error.message }));
  if (!response.ok) throw new Error(`${name}: this file of the page cannot be read (${response.status})`);
  return response;
}

/** onnxruntime-web from a file of runtime/, and a session of the model with one of its providers. */
async function open(file, provider, bytes) {
  runtime = await import(`./runtime/${file}`);
  runtime.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
  if (!self.crossOriginIsolated) runtime.env.wasm.numThreads = 1; // browsers share memory between threads only then
  session = await runtime.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
}

async function run({ values, mask }, [height, width]) {
  const feed = {
    pixel_values: new runtime.Tensor("float32", values, [1, 3, height, width]),
    pixel_mask: new runtime.Tensor("bool", mask, [1, height, width]),
  };
  const results = await session.run(feed, OUTPUTS);
  const [classes, masks] = OUTPUTS.map((name) => ({ data: results[name].data, dims: results[name].dims }));
  if (!classes.data.every(Number.isFinite)) throw new Error("the model's numbers are not finite on this device");
  return { classes, masks };
}

/** Why not WebGPU; empty if it can be used. wanted: "webgpu" takes an adapter without a GPU, "wasm" takes none. */
async function whyNoWebgpu(wanted) {
  if (wanted === "wasm") return "as asked for";
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return "WebGPU finds no GPU";
  return adapter.info?.isFallbackAdapter && wanted !== "webgpu" ? "WebGPU finds no GPU, and would compute on the CPU" : "";
}

/** An image of numbers of which the outputs are known: that of `expected_numbers` in web_folder.py. */
function checkImage([height, width]) {
  const values = Float32Array.from({ length: 3 * height * width }, (_, index) => ((index * 7919) % 257) / 128 - 1);
  return { values, mask: new Uint8Array(height * width).fill(1) };
}

/** Whether nine of ten numbers of an output are as expected: rounding may exchange a few queries with equal scores. */
function agrees(found, expected) {
  const step = Math.max(1, Math.floor(found.length / expected.length));
  const same = expected.filter((value, index) => Math.abs(found[index * step] - value) <= 0.1 + 0.05 * Math.abs(value));
  return same.length >= 0.9 * expected.length;
}

/** Loads the model: with WebGPU where the browser has a GPU and the model runs on it, otherwise with WebAssembly. */
async function load() {
  model = await (await read("model.json")).json();
  const bytes = new Uint8Array(await (await read("model.onnx")).arrayBuffer());
  let reason = await whyNoWebgpu(new URL(import.meta.url).searchParams.get("device"));
  if (!reason) {
    try {
      await open("ort.webgpu.min.mjs", "webgpu", bytes);
      const { classes, masks } = await run(checkImage(model.padded), model.padded); // compiles the shaders, too
      if (!agrees(classes.data, model.check[OUTPUTS[0]]) || !agrees(masks.data, model.check[OUTPUTS[1]]))
        throw new Error("it gives other numbers than onnxruntime on a CPU");
      return "with WebGPU";
    } catch (error) {
      reason = `WebGPU failed: ${error.message}`;
    }
  }
  await open("ort.wasm.min.mjs", "wasm", bytes);
  const threads = self.crossOriginIsolated ? "" : ", in one thread";
  return `on the CPU, with WebAssembly${threads} (${reason})`;
}

/** What the model finds in a part of an image that fits into the canvas, at the part's own size. */
async function predictPart(image, part, asked) {
  const size = [part.y1 - part.y0, part.x1 - part.x0], real = fittedSize(...size, model.canvas, model.factor);
  const rgb = resizeImage(image.rowsOf(part), size, real);
  const { classes, masks } = await run(toInput(rgb, real, model.padded, model.mean, model.std), model.padded);
  return postProcess(classes, masks, { canvas: model.padded, real, size }, asked);
}

/** The answer for an image, which is one tile where the model fits images into its canvas; null if it was cancelled. */
async function predict({ id, file, name, least, max_detections }) {
  const image = await openImage(file, model);
  try {
    const { whole } = model.settings, grid = makeGrid(image.size, whole ?? image.size, model.overlap);
    const tiles = grid.rows.length * grid.rows[0].length, merger = new Merger(grid, model.copy_overlap, model.score_calibration);
    if (tiles > model.max_tiles) {
      const [limit, got] = [model.max_tiles, tiles].map((count) => count.toLocaleString("en"));
      const [height, width] = image.size, kind = `tiles of ${whole[1]} x ${whole[0]} pixels`;
      throw new ImageError(`expected at most ${limit} ${kind}, got ${got} in ${width} x ${height}; use predict for it`);
    }
    const asked = { least: networkScore(least, model.score_calibration), max_detections };
    let tile = 0;
    for (const row of grid.rows) {
      const found = [];
      for (const part of row) {
        if (tiles > 1) postMessage({ id, tile: ++tile, tiles });
        await new Promise((done) => setTimeout(done)); // lets a message in that cancels this
        if (cancelled.delete(id)) return null;
        found.push(await predictPart(image, part, asked));
      }
      merger.addRow(found);
    }
    return toCoco(merger.instances(least), name, image.size, { ...model, least });
  } finally {
    image.close();
  }
}

const loading = load();
loading.then((ready) => postMessage({ ready }), (error) => postMessage({ failed: error.message }));
let last = loading; // images are predicted one after the other

onmessage = ({ data }) => {
  if ("cancel" in data) return cancelled.add(data.cancel);
  last = last.catch(() => {}).then(async () => {
    if (cancelled.delete(data.id)) return;
    try {
      await loading;
      const begun = performance.now(), answer = await predict(data);
      if (answer) postMessage({ id: data.id, answer, seconds: (performance.now() - begun) / 1000 });
    } catch (error) {
      const message = error instanceof ImageError ? `${data.name}: ${error.message}` : `the model failed: ${error.message}`;
      postMessage({ id: data.id, error: message, isRefused: error instanceof ImageError });
    }
  });
};
