// An image file to the model's input: the pixels as stored, resized as `data/fitting.py` does, normalised, padded.

const STRIP = 256; // rows that are read from a bitmap at one time: a canvas of the whole image may be larger than allowed
const KINDS = { PNG: "\x89PNG", JPEG: "\xff\xd8\xff", BMP: "BM", GIF: "GIF8", WebP: "RIFF" }; // how a file begins
const PNG_BITS = 24; // the place of the number of bits in a PNG

/** A message for the user; the same kind for all that is wrong with an image. */
export class ImageError extends Error {}

/** The size in whole pixels [height, width] of an image fitted into the canvas, or times a factor (`fitted_size`). */
export function fittedSize(height, width, [canvasHeight, canvasWidth], factor = null) {
  const scale = factor ?? Math.min(canvasHeight / height, canvasWidth / width);
  const side = (length, most) => Math.min(most, Math.max(1, Math.floor(length * scale + 0.5)));
  return [side(height, canvasHeight), side(width, canvasWidth)];
}

/**
 * The weights that resize an axis of `length` to `size` pixels: {first, weights}, one entry per new pixel; it is the sum
 * of weights[k] times the old pixel first + k. Reduced by the average over the area that a new pixel covers, enlarged
 * bilinearly with the edge pixels continued, at places in single precision as OpenCV has them.
 */
export function resizeAxis(length, size) {
  const scale = length / size;
  return Array.from({ length: size }, (_, i) => {
    if (size < length) {
      const begin = i * scale, end = Math.min((i + 1) * scale, length), first = Math.floor(begin), weights = [];
      for (let j = first; j < end - 1e-9; j++) weights.push((Math.min(end, j + 1) - Math.max(begin, j)) / (end - begin));
      return { first, weights };
    }
    const place = Math.fround(Math.fround(i * Math.fround(scale)) + Math.fround(0.5 * scale - 0.5));
    const low = Math.floor(place), share = place - low;
    const first = Math.max(0, low), last = Math.min(length - 1, low + 1);
    return first === last ? { first, weights: [1] } : { first, weights: [1 - share, share] };
  });
}

/** A value rounded as OpenCV does: a half to the even number, but up where two by two pixels become one. */
export function roundValue(value, isHalved = false) {
  const up = Math.floor(value + 0.5);
  return up - value === 0.5 && up % 2 && !isHalved ? up - 1 : up;
}

/**
 * Resizes an image, or a part of it: readRows(first, count) gives `count` rows of RGBA. Returns RGB, (newHeight x newWidth x 3) bytes.
 * Rows are read once, in order, and only those that a new row needs are kept.
 */
export function resizeImage(readRows, [height, width], [newHeight, newWidth]) {
  const down = resizeAxis(height, newHeight), along = resizeAxis(width, newWidth), rows = new Map();
  const result = new Uint8Array(newHeight * newWidth * 3), sum = new Float64Array(newWidth * 3);
  const isHalved = height === 2 * newHeight && width === 2 * newWidth;
  let strip = null, stripStart = 0, stripEnd = 0;
  const resizedRow = (y) => {
    if (rows.has(y)) return rows.get(y);
    if (y >= stripEnd) {
      [stripStart, stripEnd] = [y, Math.min(height, y + STRIP)];
      strip = readRows(stripStart, stripEnd - stripStart);
    }
    const row = new Float64Array(newWidth * 3), start = (y - stripStart) * width;
    along.forEach(({ first, weights }, x) => {
      let red = 0, green = 0, blue = 0, at = 4 * (start + first);
      for (const weight of weights) {
        red += weight * strip[at];
        green += weight * strip[at + 1];
        blue += weight * strip[at + 2];
        at += 4;
      }
      [row[3 * x], row[3 * x + 1], row[3 * x + 2]] = [red, green, blue];
    });
    rows.set(y, row);
    return row;
  };
  down.forEach(({ first, weights }, y) => {
    for (const old of rows.keys()) if (old < first) rows.delete(old);
    sum.fill(0);
    weights.forEach((weight, k) => {
      const row = resizedRow(first + k);
      for (let i = 0; i < sum.length; i++) sum[i] += weight * row[i];
    });
    for (let i = 0; i < sum.length; i++) result[y * sum.length + i] = roundValue(sum[i], isHalved);
  });
  return result;
}

/** RGB bytes as {values, mask}: (3, H, W) floats (value / 255 - mean) / std and (H, W) bytes, both 0 in the padding. */
export function toInput(rgb, [height, width], [paddedHeight, paddedWidth], mean, std) {
  const plane = paddedHeight * paddedWidth, values = new Float32Array(3 * plane), mask = new Uint8Array(plane);
  for (let channel = 0; channel < 3; channel++) {
    const table = Float32Array.from({ length: 256 }, (_, byte) => (byte / 255 - mean[channel]) / std[channel]);
    for (let y = 0; y < height; y++) {
      const target = channel * plane + y * paddedWidth, source = 3 * y * width + channel;
      for (let x = 0; x < width; x++) values[target + x] = table[rgb[source + 3 * x]];
    }
  }
  for (let y = 0; y < height; y++) mask.fill(1, y * paddedWidth, y * paddedWidth + width);
  return { values, mask };
}

/**
 * Decodes a file without colour profile: {size: [height, width], rowsOf, close}. rowsOf({y0, x0, y1, x1}) is the `readRows`
 * of this part. The caller has removed what would turn the image (`asStored` of viewer.js). Throws ImageError for what the browser cannot decode, or not as the model reads it.
 */
export async function openImage(file, { max_pixels: maxPixels, value_range: valueRange }) {
  const start = String.fromCharCode(...new Uint8Array(await file.slice(0, 32).arrayBuffer()));
  const kind = Object.keys(KINDS).find((one) => start.startsWith(KINDS[one]));
  if (valueRange !== "full" && kind === "PNG" && start.charCodeAt(PNG_BITS) === 16) {
    throw new ImageError(
      `expected a PNG of 8 bits, got one of 16: browsers read 8 bits of it, and this model scales all 16 (value_range ` +
        `${valueRange}); use predict or serve for it`,
    );
  }
  let bitmap = null;
  try {
    if (kind) bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    bitmap = null;
  }
  if (!bitmap) {
    throw new ImageError(
      "expected an image that this browser can decode (JPEG, PNG, WebP, BMP or GIF, not TIFF), got a file of another " +
        "kind, or one that is damaged; save it as PNG, or use predict or serve for it",
    );
  }
  const { width, height } = bitmap;
  if (width * height > maxPixels) {
    bitmap.close();
    const limit = maxPixels.toLocaleString("en");
    throw new ImageError(`expected at most ${limit} pixels, got ${width} x ${height}; use predict or serve for it`);
  }
  const read = partReader(bitmap), rowsOf = ({ y0, x0, x1 }) => (first, count) => read(x0, y0 + first, x1 - x0, count);
  return { size: [height, width], rowsOf, close: () => bitmap.close() };
}

/** A function (left, top, width, count) that reads rows as RGBA, with the colours of transparent pixels as stored. */
function partReader(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, STRIP);
  const pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  let stored = null; // reads with WebGL, once a pixel is transparent: a 2D canvas multiplies colours by alpha
  return (left, top, width, count) => {
    if (stored) return stored(left, top, width, count);
    pen.clearRect(0, 0, width, count);
    pen.drawImage(bitmap, -left, -top);
    const rgba = pen.getImageData(0, 0, width, count).data;
    for (let i = 3; i < rgba.length; i += 4) {
      if (rgba[i] !== 255) return (stored = storedColours(bitmap))(left, top, width, count);
    }
    return rgba;
  };
}

/** As `partReader`, by a texture, which keeps the colours of transparent pixels. */
function storedColours(bitmap) {
  const { width, height } = bitmap, gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new ImageError(
      "expected an image without transparent pixels, got some: this browser cannot read their colours (no WebGL, or the " +
        "image is too large for it); save it without transparency",
    );
  }
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  return (left, top, columns, count) => {
    const rgba = new Uint8Array(4 * columns * count);
    gl.readPixels(left, top, columns, count, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    return rgba;
  };
}
