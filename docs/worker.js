// Enlarges pictures off the page's own thread: ONNX Runtime Web, tile by tile, and the result written
// as PNG row by row, so that memory stays bounded and the page stays alive whatever the picture's size.

const VERSION = "1.30.0";
const CDN = `https://cdn.jsdelivr.net/npm/onnxruntime-web@${VERSION}/dist/`;
// sha384 of the files in the npm package: the browser refuses any other content
const BUILDS = {
  webgpu: {
    "ort.webgpu.bundle.min.mjs": "sha384-1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    "ort-wasm-simd-threaded.asyncify.wasm": "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
  },
  wasm: {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
  },
};
// Side of a tile in pixels of the result; layer 1 makes 64 numbers of each, and some graphics cards give 128 MB at most
const TILE = {webgpu: 512, wasm: 384};
const PATIENCE = 20_000; // ms for a graphics card's first small picture; a slower one is of no help
const FIRST_LOOK = 9; // tiles around the middle that come first where there are many

let runtime; // promise of {ort, provider}
const sessions = new Map(); // of each model file
let job = 0; // the latest; an older one stops at its next tile
let turn = Promise.resolve(); // when the one before has ended

onmessage = ({data}) => {
  job = data.id;
  // One after the other: the runtime can neither load nor run two models at a time
  if (data.type === "enlarge") turn = turn.then(() => attempt(data));
};

async function attempt(data) {
  try {
    await enlarge(data);
  } catch (error) {
    if (data.id === job) postMessage({type: "error", id: data.id, message: error.message || String(error)});
  } finally {
    data.bitmap.close();
  }
}

async function enlarge(data) {
  if (data.id !== job) return;
  const {provider} = await prepare(data.id, data.scale, data.network);
  try {
    await enlargeBy(provider, data);
  } catch (error) {
    if (provider !== "webgpu" || data.id !== job) throw new Error(`This picture could not be enlarged (${error.message || error}). If memory is short, a smaller one may do.`);
    sessions.clear(); // the graphics card failed half-way: out of memory, or taken away
    runtime = build(data.id, "wasm");
    await enlarge(data);
  }
}

async function enlargeBy(provider, {id, bitmap, opaque, scale, network, shown}) {
  const {width, height} = bitmap;
  const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const alpha = !opaque && hasAlpha(bitmap, context);
  const run = {id, bitmap, scale, network, shown, alpha, context, provider};
  const side = Math.floor(TILE[provider] / scale);
  const columns = parts(width, side), rows = parts(height, side);
  const first = firstLook(width, height, columns, rows);
  const area = ([[left, right], [top, bottom]]) => (right - left) * (bottom - top);
  const total = width * height + first.reduce((sum, place) => sum + area(place), 0);
  const started = performance.now(), elapsed = () => (performance.now() - started) / 1000;
  let done = 0;
  const work = async place => {
    const pixels = await tile(run, ...place);
    done += area(place);
    if (id === job) postMessage({type: "progress", id, done: done / total, left: elapsed() * (total / done - 1)});
    return pixels;
  };

  for (const place of first) {
    await work(place);
    if (id !== job) return;
  }
  const png = new Png(width * scale, height * scale, alpha ? 4 : 3);
  for (const row of rows) {
    const strip = new Uint8Array(width * scale * (row[1] - row[0]) * scale * png.channels);
    for (const column of columns) {
      const pixels = await work([column, row]);
      if (id !== job) return;
      paste(strip, width * scale, png.channels, pixels, column[0] * scale);
    }
    await png.add(strip);
  }
  const blob = await png.end();
  if (id === job) postMessage({type: "done", id, blob, seconds: elapsed()});
}

// Of many tiles, those around the middle, nearest first: there is something to see at once.
// They are made again when their turn comes in the file.
function firstLook(width, height, columns, rows) {
  const tiles = rows.flatMap(row => columns.map(column => [column, row]));
  const distance = ([column, row]) => Math.max(
    Math.abs(column[0] + column[1] - width), Math.abs(row[0] + row[1] - height));
  if (tiles.length <= 2 * FIRST_LOOK) return [];
  return tiles.sort((a, b) => distance(a) - distance(b)).slice(0, FIRST_LOOK);
}

// [start, end) of as few and as equal parts as possible, none longer than the limit
function parts(size, limit) {
  const count = Math.ceil(size / limit);
  return Array.from({length: count}, (_, i) => [Math.floor(i * size / count), Math.floor((i + 1) * size / count)]);
}

// One tile of the result as ImageData. What it depends on around it is read too, and cut off again:
// only at the picture's own border do the models see a border.
async function tile({id, bitmap, scale, network, shown, alpha, context, provider}, [left, right], [top, bottom]) {
  const margin = Math.ceil((network.split("-").reduce((sum, f) => sum + Number(f), -3)) / (2 * scale)) + 3;
  const x0 = Math.max(0, left - margin), x1 = Math.min(bitmap.width, right + margin);
  const y0 = Math.max(0, top - margin), y1 = Math.min(bitmap.height, bottom + margin);
  const part = [bitmap, context, x0, y0, x1 - x0, y1 - y0];
  const small = alpha ? readFilled(...part, margin) : read(...part);
  const cut = {x: (left - x0) * scale, y: (top - y0) * scale, width: (right - left) * scale, height: (bottom - top) * scale};
  const bicubic = new ImageData(cut.width, cut.height), srcnn = new ImageData(cut.width, cut.height);

  const image = tensorOf(small, [0, 1, 2]);
  fill(srcnn, await infer(`srcnn_${network}_x${scale}`, image), [0, 1, 2], cut);
  const visible = left < shown.x + shown.width && right > shown.x && top < shown.y + shown.height && bottom > shown.y;
  if (visible) fill(bicubic, await infer(`bicubic_x${scale}`, image), [0, 1, 2], cut);
  if (alpha) {
    const enlarged = await infer(`bicubic_x${scale}`, tensorOf(small, [3, 3, 3]));
    for (const picture of [bicubic, srcnn]) fill(picture, enlarged, [3], cut);
  } else {
    for (const picture of [bicubic, srcnn]) for (let i = 3; i < picture.data.length; i += 4) picture.data[i] = 255;
  }
  await new Promise(resolve => setTimeout(resolve)); // messages come in here, a cancel among them
  if (visible && id === job) {
    postMessage({type: "tile", id, x: (left - shown.x) * scale, y: (top - shown.y) * scale, bicubic, srcnn});
  }
  return srcnn;
}

function read(bitmap, context, x, y, width, height) {
  context.canvas.width = width;
  context.canvas.height = height;
  context.drawImage(bitmap, -x, -y);
  return context.getImageData(0, 0, width, height);
}

// As read, with colours from around in the hidden pixels (alpha 0), so many rings of them:
// the models would mix the hidden colours into visible pixels. The same as images/transparency.py.
function readFilled(bitmap, context, x, y, width, height, rings) {
  const left = Math.max(0, x - rings), right = Math.min(bitmap.width, x + width + rings);
  const top = Math.max(0, y - rings), bottom = Math.min(bitmap.height, y + height + rings);
  const around = read(bitmap, context, left, top, right - left, bottom - top);
  fillHidden(around, rings);
  const result = new ImageData(width, height);
  for (let row = 0; row < height; row++) {
    const from = 4 * ((y - top + row) * around.width + x - left);
    result.data.set(around.data.subarray(from, from + 4 * width), 4 * row * width);
  }
  return result;
}

function fillHidden({data, width, height}, rings) {
  const colours = Float32Array.from(data), known = new Uint8Array(width * height);
  let hidden = [];
  for (let i = 0; i < known.length; i++) data[4 * i + 3] ? known[i] = 1 : hidden.push(i);
  for (let ring = 0; ring < rings && hidden.length; ring++) {
    const filled = [], left = [];
    for (const i of hidden) {
      const row = Math.floor(i / width), column = i % width, sum = [0, 0, 0];
      let count = 0;
      for (let r = Math.max(0, row - 1); r <= Math.min(height - 1, row + 1); r++) {
        for (let c = Math.max(0, column - 1); c <= Math.min(width - 1, column + 1); c++) {
          if (!known[r * width + c]) continue;
          count++;
          for (let k = 0; k < 3; k++) sum[k] += colours[4 * (r * width + c) + k];
        }
      }
      if (count) filled.push([i, sum.map(value => value / count)]);
      else left.push(i);
    }
    for (const [i, mean] of filled) {
      known[i] = 1;
      colours.set(mean, 4 * i);
      for (let k = 0; k < 3; k++) data[4 * i + k] = Math.floor(mean[k] + 0.5);
    }
    hidden = left;
  }
}

function hasAlpha(bitmap, context) {
  for (const [top, bottom] of parts(bitmap.height, Math.ceil(2 ** 20 / bitmap.width))) {
    const {data} = read(bitmap, context, 0, top, bitmap.width, bottom - top);
    for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return true;
  }
  return false;
}

// Channels of an ImageData as 1×3×h×w in [0, 1]
function tensorOf({data, width, height}, channels) {
  const area = width * height, values = new Float32Array(3 * area);
  channels.forEach((channel, c) => {
    for (let i = 0; i < area; i++) values[c * area + i] = data[4 * i + channel] / 255;
  });
  return {values, shape: [1, 3, height, width]};
}

// Channels of an ImageData from the first ones of 1×3×H×W in [0, 1], cut out of it
function fill({data}, {values, shape}, channels, {x, y, width, height}) {
  const [, , rows, columns] = shape;
  channels.forEach((channel, c) => {
    for (let row = 0, to = channel; row < height; row++) {
      let from = (c * rows + y + row) * columns + x;
      for (let column = 0; column < width; column++, to += 4) data[to] = Math.floor(values[from++] * 255 + 0.5);
    }
  });
}

function paste(strip, stripWidth, channels, {data, width, height}, left) {
  for (let row = 0, from = 0; row < height; row++) {
    let to = (row * stripWidth + left) * channels;
    for (let column = 0; column < width; column++, from += 4, to += channels) {
      for (let c = 0; c < channels; c++) strip[to + c] = data[from + c];
    }
  }
}

// The runtime and the two models, loaded when first needed
async function prepare(id, scale, network) {
  runtime ??= load(id).catch(error => {
    runtime = undefined; // the next picture tries again
    throw error;
  });
  const loaded = await runtime;
  const names = [`srcnn_${network}_x${scale}`, `bicubic_x${scale}`];
  for (const name of names) await sessionOf(loaded, name);
  return loaded;
}

async function load(id) {
  if (await navigator.gpu?.requestAdapter().then(adapter => adapter && !adapter.info?.isFallbackAdapter, () => false)) {
    try {
      const loaded = await build(id, "webgpu");
      const tooLong = new Promise(resolve => setTimeout(resolve, PATIENCE, false));
      if (await Promise.race([agrees(loaded), tooLong])) return loaded;
    } catch { /* no matter why: without a graphics card it works too */ }
  }
  return build(id, "wasm");
}

async function build(id, provider) {
  postMessage({type: "loading", id, provider});
  const [script, binary] = Object.entries(BUILDS[provider]).map(([name, integrity]) => get(CDN + name, {integrity}));
  const source = URL.createObjectURL(new Blob([await (await script).arrayBuffer()], {type: "text/javascript"}));
  const ort = await import(source);
  URL.revokeObjectURL(source);
  ort.env.wasm.wasmBinary = await (await binary).arrayBuffer();
  ort.env.wasm.numThreads = 1; // more need HTTP headers that GitHub Pages does not send
  postMessage({type: "runtime", id, provider});
  return {ort, provider};
}

async function get(url, options) {
  const response = await fetch(url, options).catch(() => undefined);
  if (!response?.ok) throw new Error(`${url} could not be loaded. Is this computer online?`);
  return response;
}

// Whether the graphics card computes what the processor does, on a small random picture
async function agrees(loaded) {
  const values = Float32Array.from({length: 3 * 32 * 32}, Math.random);
  const image = {values, shape: [1, 3, 32, 32]};
  const model = await (await get("models/srcnn_9-1-5_x2.onnx")).arrayBuffer();
  const results = [];
  for (const provider of ["webgpu", "wasm"]) {
    const session = await loaded.ort.InferenceSession.create(model, {executionProviders: [provider]});
    results.push((await inferWith(loaded.ort, session, image)).values);
    await session.release();
  }
  return results[0].every((value, i) => Math.abs(value - results[1][i]) < 0.5 / 255);
}

function sessionOf({ort, provider}, name) {
  if (!sessions.has(name)) {
    const session = get(`models/${name}.onnx`).then(response => response.arrayBuffer())
      .then(model => ort.InferenceSession.create(model, {executionProviders: [provider]}));
    session.catch(() => sessions.delete(name));
    sessions.set(name, session);
  }
  return sessions.get(name);
}

async function infer(name, image) {
  return inferWith((await runtime).ort, await sessions.get(name), image);
}

async function inferWith(ort, session, {values, shape}) {
  const image = new ort.Tensor("float32", values, shape);
  const {restored} = await session.run({image});
  return {values: await restored.getData(true), shape: restored.dims};
}

// A PNG file of 8 bits, written a strip of rows at a time: deflate is the browser's own.
class Png {
  constructor(width, height, channels) {
    this.channels = channels;
    this.stride = width * channels;
    this.above = new Uint8Array(this.stride);
    const header = new DataView(new ArrayBuffer(13));
    header.setUint32(0, width);
    header.setUint32(4, height);
    header.setUint8(8, 8);
    header.setUint8(9, channels === 4 ? 6 : 2);
    this.pieces = [
      new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]),
      ...chunk("IHDR", new Uint8Array(header.buffer)),
      ...chunk("sRGB", new Uint8Array([0])),
    ];
    const stream = new CompressionStream("deflate");
    this.writer = stream.writable.getWriter();
    this.collected = this.collect(stream.readable.getReader());
  }

  async collect(reader) {
    for (let {done, value} = await reader.read(); !done; {done, value} = await reader.read()) {
      this.pieces.push(new Blob(chunk("IDAT", value))); // blobs can go to disk
    }
  }

  // Whole rows, each filtered by Paeth's predictor (PNG's filter 4)
  async add(strip) {
    const {stride, channels} = this;
    const filtered = new Uint8Array(strip.length / stride * (stride + 1));
    for (let row = 0, to = 0; row < strip.length / stride; row++) {
      const line = strip.subarray(row * stride, (row + 1) * stride), above = this.above;
      filtered[to++] = 4;
      for (let i = 0; i < stride; i++) {
        const a = i < channels ? 0 : line[i - channels], b = above[i], c = i < channels ? 0 : above[i - channels];
        const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2 * c);
        filtered[to++] = line[i] - (pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
      }
      this.above = line;
    }
    await this.writer.write(filtered);
  }

  async end() {
    await this.writer.close();
    await this.collected;
    return new Blob([...this.pieces, ...chunk("IEND", new Uint8Array(0))], {type: "image/png"});
  }
}

const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(type, data) {
  const head = new Uint8Array(8), tail = new Uint8Array(4);
  new DataView(head.buffer).setUint32(0, data.length);
  head.set(new TextEncoder().encode(type), 4);
  let crc = 0xffffffff;
  for (const bytes of [head.subarray(4), data]) for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  new DataView(tail.buffer).setUint32(0, ~crc >>> 0);
  return [head, data, tail];
}
