// Starts the page of a folder that `export --web` wrote: the viewer of `serve`, with answers from a worker of this page.

const $ = (selector) => document.querySelector(selector);
const where = $("#m2f-where");

/** Sends images to the worker. */
function startModel() {
  // From a blob: only such a worker has the policy of index.html, which allows no connection to another machine.
  const address = new URL(`worker.js${location.search}`, import.meta.url); // ?device=wasm or webgpu chooses where it runs
  const script = new Blob([`import ${JSON.stringify(address.href)};`], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(script), { type: "module" }), waiting = new Map();
  let number = 0, failure = null;
  const fail = (message) => {
    failure = new Error(message);
    where.textContent = message;
    where.classList.add("m2f-error");
    for (const { failed } of waiting.values()) failed(failure);
    waiting.clear();
  };
  worker.onmessage = ({ data }) => {
    if (data.failed) return fail(`The model cannot be loaded: ${data.failed}`);
    if (data.ready) return (where.textContent = `The model runs in this browser ${data.ready}. No image leaves this machine.`);
    const { done, failed, told } = waiting.get(data.id) ?? {};
    if (data.tiles) return told?.(data);
    waiting.delete(data.id);
    if (data.error) failed?.(Object.assign(new Error(data.error), { isRefused: data.isRefused }));
    else done?.({ ...data.answer, seconds: data.seconds });
  };
  worker.onerror = (event) => fail(`The model stopped: ${event.message || "its thread cannot be started"}. Load the page again.`);
  return (file, signal, stored, told) =>
    new Promise((done, failed) => {
      if (failure) return failed(failure);
      const id = ++number, { least, max_detections } = settings;
      waiting.set(id, { done, failed, told });
      worker.postMessage({ id, file: stored, name: file.name || "image", least, max_detections });
      signal.addEventListener("abort", () => {
        if (waiting.delete(id)) worker.postMessage({ cancel: id });
        failed(signal.reason);
      });
    });
}

const response = await fetch("model.json");
const { settings } = await response.json();
$("#m2f-not-served").remove();
document.body.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches); // until the button is used
// What Gradio gives the viewer's script on the page of `serve`.
globalThis.element = $("#m2f-viewer");
globalThis.props = { settings, ask: startModel() };
await import("./viewer.js");

/** A number and a slider that show the same value. */
function link(selector, changed) {
  const [number, slider] = ["number", "range"].map((type) => $(`${selector} input[type=${type}]`));
  slider.addEventListener("input", () => changed(Number((number.value = slider.value))));
  number.addEventListener("change", () => {
    slider.value = number.value; // which keeps it in its range
    changed(Number((number.value = slider.value)));
  });
}
link("#m2f-threshold", m2f.threshold);
link("#m2f-opacity", m2f.opacity);
$("#m2f-colours").addEventListener("change", ({ target }) => m2f.colours(target.value === "class"));
for (const button of document.querySelectorAll(".m2f-save")) button.addEventListener("click", () => m2f.download(button.value));
$("#m2f-dark").addEventListener("click", m2f.dark);
