"use strict";
// The script of a page that `jaxvit export --to=page` writes. It runs ONNX graphs with ONNX Runtime Web, and reads
// images as jaxvit does with Pillow. Everything it needs is in the page: `facts` and compressed parts in base64.
(() => {
const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const TOP = 5, MOST_SHOWN = 100;

// A mistake of the user, or something that this browser lacks: its message is shown on the page.
class Problem extends Error {}

// ---- Decoding and resizing, as in Pillow ----------------------------------------------------------------------------

// An image file as {width, height, data}: RGBA bytes, upright, without conversion of colours, on white.
async function decoded(blob, what) {
  if (!blob.size) throw new Problem(`${what} is empty.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image",
    });
  } catch {
    throw new Problem(`${what} is not an image that this browser can read.`);
  }
  const { width, height } = bitmap;
  if (width * height > facts.max_pixels) {
    bitmap.close();
    throw new Problem(`${what} has ${width} × ${height} pixels; at most ${shownNumber(facts.max_pixels)} are read.`);
  }
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let data = context.getImageData(0, 0, width, height).data;
  if (hasTransparency(data)) data = withExactAlpha(bitmap) || data;
  bitmap.close();
  onWhite(data);
  return { width, height, data };
}

function hasTransparency(data) {
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return true;
  return false;
}

// A canvas stores colours multiplied by alpha, which rounds them. A texture does not. Returns null without WebGL.
function withExactAlpha(bitmap) {
  const { width, height } = bitmap;
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  const fine = gl.getError() === gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return fine ? data : null;
}

// Pillow's alpha_composite over opaque white, in its fixed-point arithmetic.
function onWhite(data) {
  for (let i = 0; i < data.length; i += 4) {
    const alpha = data[i + 3];
    if (alpha === 255) continue;
    const over = alpha * 128, under = 255 * 128 - over;
    for (let c = i; c < i + 3; c++) {
      const sum = alpha ? data[c] * over + 255 * under + 128 * 128 : 0;
      data[c] = alpha ? ((sum >> 8) + sum) >> 8 >> 7 : 255;
    }
    data[i + 3] = 255;
  }
}

// The channels that a model takes: RGB, or grey by ITU-R 601 in Pillow's fixed-point arithmetic.
function channelsOf({ width, height, data }, channels) {
  const out = new Uint8Array(width * height * channels);
  for (let i = 0, o = 0; i < data.length; i += 4) {
    if (channels === 1) {
      out[o++] = (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 32768) >> 16;
    } else {
      out[o++] = data[i];
      out[o++] = data[i + 1];
      out[o++] = data[i + 2];
    }
  }
  return { width, height, channels, data: out };
}

// Python's round: halves go to the even neighbour.
function round(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
}

// The part [left, top, right, bottom] of an image that covers height × width, and the size to resize it to first.
function covering(image, height, width) {
  const scale = Math.max(width / image.width, height / image.height);
  const wide = Math.max(width, round(image.width * scale)), high = Math.max(height, round(image.height * scale));
  return { wide, high, left: (wide - width) >> 1, top: (high - height) >> 1 };
}

// Resized until it just covers height × width, and cut to its centre: Uint8Array [height, width, channels].
function cover(image, height, width) {
  if (image.width === width && image.height === height) return image.data;
  const { wide, high, left, top } = covering(image, height, width);
  if (wide * high > 16 * width * height) { // a very long image is cut before it is resized
    const x = image.width / wide, y = image.height / high;
    const box = [left * x, top * y, (left + width) * x, (top + height) * y];
    const across = axis(image.width, box[0], box[2], width), down = axis(image.height, box[1], box[3], height);
    return resized(image, across, down, downFirst(image, width, height));
  }
  const across = axis(image.width, 0, image.width, wide), down = axis(image.height, 0, image.height, high);
  return resized(image, across.slice(left, left + width), down.slice(top, top + height), downFirst(image, wide, high));
}

// Whether Pillow's pass down the columns comes first, which changes roundings: its releases have different rules.
function downFirst({ width, height }, wide, high) {
  if (high >= height) return false;
  if (facts.passes === "by rows saved") return height - high > 2 * (width - wide);
  return facts.passes === "by shape" && height > 100 * width;
}

const BITS = 22; // fixed-point bits of a coefficient

// Pillow's coefficients of an antialiased bilinear filter along one axis: for each output, its first input and the
// weights of that and the following inputs. `null` = the axis is copied.
function axis(size, from, to, count) {
  from = Math.fround(from);
  to = Math.fround(to);
  const scale = Math.fround(to - from) / count, filter = Math.max(scale, 1), inverse = 1 / filter;
  const same = count === size && from === 0 && to === size;
  const out = [];
  for (let i = 0; i < count; i++) {
    if (same) {
      out.push({ first: i, weights: null });
      continue;
    }
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - filter + 0.5));
    const last = Math.min(size, Math.trunc(centre + filter + 0.5));
    const weights = [];
    let total = 0;
    for (let x = first; x < last; x++) {
      const weight = Math.max(0, 1 - Math.abs((x - centre + 0.5) * inverse));
      weights.push(weight);
      total += weight;
    }
    out.push({ first, weights: weights.map((w) => Math.trunc(0.5 + (total ? w / total : w) * (1 << BITS))) });
  }
  return out;
}

const HALF = 1 << (BITS - 1);

// Two passes, each rounded to 8 bits: across and then down, or the other way round.
function resized(image, across, down, first) {
  return (first ? passAcross(passDown(image, down), across) : passDown(passAcross(image, across, down), down)).data;
}

// `down`, if given, limits the pass to the rows that it reads.
function passAcross({ width, height, channels, data }, across, down) {
  const end = ({ first, weights }) => first + (weights ? weights.length : 1);
  const top = down ? Math.min(...down.map((each) => each.first)) : 0;
  const bottom = down ? Math.max(...down.map(end)) : height;
  const out = new Uint8Array(height * across.length * channels);
  for (let y = top, o = top * across.length * channels; y < bottom; y++) {
    for (const { first, weights } of across) {
      const start = (y * width + first) * channels;
      for (let c = 0; c < channels; c++) {
        out[o++] = weights ? weighted(data, start + c, channels, weights) : data[start + c];
      }
    }
  }
  return { width: across.length, height, channels, data: out };
}

function passDown({ width, channels, data }, down) {
  const row = width * channels, out = new Uint8Array(down.length * row);
  let o = 0;
  for (const { first, weights } of down) {
    for (let i = first * row; i < (first + 1) * row; i++) out[o++] = weights ? weighted(data, i, row, weights) : data[i];
  }
  return { width, height: down.length, channels, data: out };
}

function weighted(data, start, step, weights) {
  let sum = HALF;
  for (let k = 0, i = start; k < weights.length; k++, i += step) sum += data[i] * weights[k];
  sum >>= BITS;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

// ---- The models -----------------------------------------------------------------------------------------------------

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text), out = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

async function part(id) {
  const element = byId(id);
  const stream = new Blob([bytesOf(element.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  element.remove(); // megabytes that are not needed twice
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const models = facts.models.map((about, index) => ({ ...about, index, session: null, card: null, shown: null }));
let ort;

async function start() {
  if (typeof DecompressionStream === "undefined" || typeof WebAssembly === "undefined") {
    throw new Problem("This browser is too old for this page: a release of 2023 or later is needed.");
  }
  const script = URL.createObjectURL(new Blob([await part("runtime-script")], { type: "text/javascript" }));
  ort = await import(script);
  URL.revokeObjectURL(script);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await part("runtime-wasm");
  for (const model of models) {
    const graph = await part(`model-${model.index}`);
    model.session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    const [height, width, channels] = model.image_shape;
    await run(model, new Uint8Array(height * width * channels)); // the first call is slower than the others
  }
}

// The outputs of a model for the pixels of one image, in the order of the graph.
async function run(model, pixels) {
  const [input] = model.session.inputNames;
  const found = await model.session.run({ [input]: new ort.Tensor("uint8", pixels, [1, ...model.image_shape]) });
  return model.session.outputNames.map((name) => found[name]);
}

// Outputs and milliseconds: the median of three runs, or of one where a run is slow.
async function timed(model, pixels) {
  const times = [];
  let found;
  while (times.length < 3 && !(times[0] > 150)) {
    const began = performance.now();
    found = await run(model, pixels);
    times.push(performance.now() - began);
  }
  times.sort((a, b) => a - b);
  return { found, milliseconds: times[times.length >> 1] };
}

// ---- Words and elements ---------------------------------------------------------------------------------------------

const shownNumber = (value) => value.toLocaleString("en");
const shownShare = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

function element(name, settings = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(settings)) {
    if (key in made && !key.startsWith("aria")) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function bar(name, share) {
  const filled = element("span");
  filled.style.width = `${Math.max(100 * share, share > 0 ? 0.5 : 0)}%`;
  const track = element("span", { className: "track", "aria-hidden": "true" }, filled);
  const label = element("bdi", { className: "name", textContent: name });
  return element("li", {}, label, element("span", { className: "value", textContent: shownShare(share) }), track);
}

function cardOf(model) {
  const id = `model-title-${model.index}`;
  const card = element("article", { className: models.length === 1 ? "card wide" : "card", "aria-labelledby": id });
  const title = element("h2", { id }, element("bdi", { textContent: model.title }));
  const head = element("div", {}, title, element("p", { className: "facts", textContent: model.about.join(" · ") }));
  const body = element("div", { className: "body" });
  body.append(element("p", { className: "waiting", textContent: "Choose a picture, and the answer appears here." }));
  card.append(head, body);
  byId("cards").append(card);
  return { card, body, wanted: "", open: false, map: 0, choice: null, playing: !stillness.matches, stage: 0 };
}

const stillness = window.matchMedia("(prefers-reduced-motion: reduce)");

// Puts the answer of a model on its card.
function show(model, { found, milliseconds }) {
  const card = model.card, probabilities = found[0].data, names = model.class_names;
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  model.shown = { found, order, probabilities };
  card.card.querySelectorAll(".body, .looks").forEach((old) => old.remove());
  const best = order[0], body = element("div", { className: "body" });
  const name = element("bdi", { className: names[best].length > 24 ? "name long" : "name", textContent: names[best] });
  const value = element("span", { className: "value", textContent: shownShare(probabilities[best]) });
  body.append(element("p", { className: "answer" }, name, value));
  const top = order.slice(0, TOP).map((k) => bar(names[k], probabilities[k]));
  body.append(element("ol", { className: "bars", "aria-label": "Most probable classes" }, ...top));
  if (order.length > TOP) body.append(allClasses(model));
  const time = milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0);
  const per = `${time} ms per image in this browser, on one thread`;
  body.append(element("p", { className: "time", textContent: per }));
  card.card.append(body);
  if (model.maps.length) card.card.append(looks(model));
}

// All classes, the most probable first, and a field that filters them.
function allClasses(model) {
  const { order, probabilities } = model.shown, names = model.class_names, card = model.card;
  const list = element("ol", { className: "bars", tabIndex: 0, "aria-label": "Classes, the most probable first" });
  const count = element("p", { className: "muted", role: "status" });
  const search = element("input", { type: "search", value: card.wanted, autocomplete: "off" });
  const fill = () => {
    card.wanted = search.value;
    const wanted = search.value.trim().toLocaleLowerCase();
    const fitting = order.filter((k) => names[k].toLocaleLowerCase().includes(wanted));
    list.replaceChildren(...fitting.slice(0, MOST_SHOWN).map((k) => bar(names[k], probabilities[k])));
    list.hidden = !fitting.length;
    const first = fitting.length > MOST_SHOWN ? `; the ${MOST_SHOWN} most probable are shown` : "";
    const classes = fitting.length === 1 ? "1 class" : `${shownNumber(fitting.length)} classes`;
    count.textContent = fitting.length ? `${classes}${first}` : "No class has this in its name.";
  };
  search.addEventListener("input", fill);
  const field = element("label", { className: "field" }, `Filter ${shownNumber(order.length)} classes by name`, search);
  const box = element("details", { className: "all", open: card.open });
  box.append(element("summary", { textContent: `All ${shownNumber(order.length)} classes` }), field, count, list);
  box.addEventListener("toggle", () => { card.open = box.open; if (box.open) fill(); });
  if (card.open) fill();
  return box;
}

// ---- What a model looks at ------------------------------------------------------------------------------------------

// Matplotlib's 'inferno' at nine places: lightness rises steadily.
const HEAT = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10],
  [249, 201, 50], [252, 255, 164]];

function heat(value) {
  const place = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1), low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((from, i) => Math.round(from + (place - low) * (HEAT[low + 1][i] - from)));
}

// An output [1, count, rows, columns] as arrays, each with its largest value.
function mapsOf(output, relative) {
  const [, count, rows, columns] = output.dims, size = rows * columns;
  return Array.from({ length: count }, (_, i) => {
    const values = output.data.slice(i * size, (i + 1) * size), largest = Math.max(...values, 1e-12);
    const scaled = relative ? values.map((value) => value / largest) : values;
    return { rows, columns, values: scaled };
  });
}

// The model's input as a canvas of its own size; `dim` = dark grey, so that no bright pixel looks like heat.
function pictureOf(output, dim) {
  const [, height, width, channels] = output.dims, canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const at = (c) => output.data[i * channels + (channels > 1 ? c : 0)];
    const grey = 0.1 + 0.5 * (at(0) + at(1) + at(2)) / 3;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * (dim ? grey : at(c)));
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Draws the model's input and, over it, a map; `map` = null draws the input alone.
function overlay(canvas, side, picture, map, covered) {
  const scale = side / Math.max(picture.width, picture.height);
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = picture.width >= 96;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (!map) return;
  const cellWidth = canvas.width * covered[1] / map.columns, cellHeight = canvas.height * covered[0] / map.rows;
  map.values.forEach((value, i) => {
    context.globalAlpha = 0.35 + 0.45 * value; // cold places leave the picture visible
    const column = i % map.columns, row = (i - column) / map.columns;
    const x = Math.round(column * cellWidth), y = Math.round(row * cellHeight);
    context.fillStyle = `rgb(${heat(value).join(" ")})`;
    context.fillRect(x, y, Math.round((column + 1) * cellWidth) - x, Math.round((row + 1) * cellHeight) - y);
  });
}

function described(name, map) {
  const i = map.values.indexOf(Math.max(...map.values));
  const row = Math.floor(i / map.columns) + 1, column = (i % map.columns) + 1;
  return `${name}: strongest in row ${row} of ${map.rows}, column ${column} of ${map.columns}`;
}

function looks(model) {
  const section = element("section", { className: "looks" });
  const still = model.maps.filter((about) => about.kind !== "shift");
  const moving = model.maps.filter((about) => about.kind === "shift");
  if (still.length) heatMaps(model, section, still);
  if (moving.length) shiftMaps(model, section, moving);
  return section;
}

function chooser(label, groups, chosen, changed) {
  const select = element("select", {}, ...groups.map((about, i) => element("option", { value: i, textContent: about.title })));
  select.value = chosen;
  select.addEventListener("change", () => changed(Number(select.value)));
  return element("label", { className: "field" }, label, select);
}

function heatMaps(model, section, groups) {
  const card = model.card, id = `looks-${model.index}`;
  section.setAttribute("aria-labelledby", id);
  const place = element("div", { className: "maps" });
  const title = element("h3", { id });
  section.append(title);
  if (groups.length > 1) {
    section.append(chooser("Maps", groups, card.map, (i) => { card.map = i; card.choice = null; fill(); }));
  }
  section.append(place);
  const fill = () => {
    const about = groups[card.map], { found } = model.shown;
    title.textContent = groups.length > 1 ? "What it looks at" : `What it looks at: ${about.title}`;
    const raw = found[2 + model.maps.indexOf(about)];
    const maps = mapsOf(raw, about.relative).map((map, i) => ({ ...map, name: about.names[i] }));
    if (maps.length > 1 && about.kind === "tokens") maps.unshift({ ...sumOf(raw), name: "sum" });
    const plain = pictureOf(found[1], false), dark = pictureOf(found[1], true);
    const big = element("canvas", { className: "big", role: "img" });
    const shown = [{ name: "input", values: null }, ...maps];
    if (card.choice === null || card.choice >= shown.length) card.choice = 1;
    const buttons = shown.map((map, i) => {
      const small = element("canvas", { "aria-hidden": "true" });
      overlay(small, 96, map.values ? dark : plain, map.values && map, about.covered);
      const button = element("button", { type: "button" }, small, map.name);
      button.addEventListener("click", () => choose(i));
      return button;
    });
    const choose = (i) => {
      card.choice = i;
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
      const map = shown[i];
      overlay(big, 480, map.values ? dark : plain, map.values && map, about.covered);
      big.setAttribute("aria-label", map.values ? described(map.name, map) : "the image as the model sees it");
    };
    choose(card.choice);
    const list = element("ul", { className: "thumbs" }, ...buttons.map((button) => element("li", {}, button)));
    const scale = about.relative ? ["0", "largest of the map"] : ["0", "1"];
    place.replaceChildren(big, list, legend(...scale), element("p", { className: "muted", textContent: about.note }));
  };
  fill();
}

function sumOf(output) {
  const [, count, rows, columns] = output.dims, size = rows * columns, values = new Float32Array(size);
  for (let i = 0; i < count * size; i++) values[i % size] += output.data[i];
  const largest = Math.max(...values, 1e-12);
  return { rows, columns, values: values.map((value) => value / largest) };
}

function legend(low, high) {
  const canvas = element("canvas", { width: 64, height: 1, "aria-hidden": "true" }), context = canvas.getContext("2d");
  for (let i = 0; i < 64; i++) {
    context.fillStyle = `rgb(${heat(i / 63).join(" ")})`;
    context.fillRect(i, 0, 1, 1);
  }
  return element("div", { className: "legend" }, low, canvas, high);
}

const MOVES = { left: [0, -1, "←"], right: [0, 1, "→"], up: [-1, 0, "↑"], down: [1, 0, "↓"], stays: [0, 0, "•"] };
const LOST = { left: "right", right: "left", up: "bottom", down: "top" };
const HOLD = 900, SLIDE = 1100; // milliseconds

// One frame of a group: at 0 before the shift, at 1 after it. Pixels that enter are black, which is zero.
function frame(canvas, map, direction, about, progress) {
  const cell = Math.max(1, Math.floor(160 / Math.max(map.rows, map.columns)));
  canvas.width = cell * map.columns;
  canvas.height = cell * map.rows;
  const context = canvas.getContext("2d"), [down, right] = MOVES[direction];
  const steps = Math.min(about.pixels, down ? map.rows : map.columns);
  const far = about.border ? 0 : progress * steps;
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  map.values.forEach((value, i) => {
    const column = i % map.columns, row = (i - column) / map.columns;
    const y = down, x = right; // a border is lost where the shift leaves pixels empty
    const lost = (x < 0 && column >= map.columns - steps) || (x > 0 && column < steps) ||
      (y < 0 && row >= map.rows - steps) || (y > 0 && row < steps);
    const strength = about.border && lost ? value * (1 - progress) : value;
    const shade = Math.round(255 * Math.sqrt(strength));
    context.fillStyle = `rgb(${shade} ${shade} ${shade})`;
    context.fillRect(Math.round((column + right * far) * cell), Math.round((row + down * far) * cell), cell, cell);
  });
}

function shiftMaps(model, section, groups) {
  const card = model.card, id = `shift-${model.index}`;
  section.setAttribute("aria-labelledby", id);
  const tiles = element("ul", { className: "tiles" }), note = element("p", { className: "muted" });
  const play = element("button", { type: "button" });
  const named = () => { play.textContent = card.playing ? "Pause" : "Play the shift"; };
  const row = element("div", { className: "row" });
  row.append(chooser("Stage", groups, card.stage, (i) => { card.stage = i; fill(); }), play);
  section.append(element("h3", { id, textContent: "The shift, on this picture" }), row, tiles, note);
  let drawn = [], about;
  const fill = () => {
    about = groups[card.stage];
    const maps = mapsOf(model.shown.found[2 + model.maps.indexOf(about)], true);
    drawn = maps.map((map, i) => {
      const [direction, share] = about.names[i].split(": ");
      const canvas = element("canvas", { role: "img" });
      const what = direction === "stays" ? "stays" : about.border ? `${LOST[direction]} border → 0` : direction;
      canvas.setAttribute("aria-label", described(`strength of the group ${what}`, map));
      return { map, canvas, direction, what, share };
    });
    tiles.replaceChildren(...drawn.map(({ canvas, direction, what, share }) => {
      const sign = about.border && direction !== "stays" ? "" : `${MOVES[direction][2]} `;
      return element("li", {}, canvas, element("span", {}, element("b", { textContent: `${sign}${what}` }), element("br"), share));
    }));
    note.textContent = about.note;
    draw(card.playing ? 0 : 1);
  };
  const draw = (progress) => drawn.forEach(({ canvas, map, direction }) => frame(canvas, map, direction, about, progress));
  let began = null;
  const tick = (now) => {
    if (!section.isConnected || !card.playing) return;
    began ??= now;
    const at = (now - began) % (2 * HOLD + SLIDE), t = Math.min(Math.max((at - HOLD) / SLIDE, 0), 1);
    draw(t * t * (3 - 2 * t));
    requestAnimationFrame(tick);
  };
  play.addEventListener("click", () => {
    card.playing = !card.playing;
    named();
    began = null;
    if (card.playing) requestAnimationFrame(tick); else draw(1);
  });
  named();
  fill();
  if (card.playing) setTimeout(() => requestAnimationFrame(tick)); // after the section is on the page
}

// ---- Pictures: files, the clipboard, the camera, samples ------------------------------------------------------------

function complain(error) {
  const known = error instanceof Problem;
  if (!known) console.error(error);
  byId("problem").textContent = known ? error.message : `The page failed: ${error.message || error}`;
  byId("problem").hidden = false;
  byId("status").textContent = "";
}

let turn = 0, busy = Promise.resolve();

// Classifies an image, {width, height, data}, with every model. A newer picture overtakes those that wait.
function classify(image, quietly = false) {
  const mine = ++turn;
  busy = busy.then(async () => {
    if (mine !== turn) return;
    await ready;
    const said = [];
    for (const model of models) {
      const [height, width, channels] = model.image_shape;
      const pixels = cover(channelsOf(image, channels), height, width);
      show(model, await timed(model, pixels));
      const best = model.shown.order[0], share = shownShare(model.shown.probabilities[best]);
      said.push(`${models.length > 1 ? `${model.title}: ` : ""}${model.class_names[best]}, ${share}`);
      await new Promise((done) => setTimeout(done)); // lets the browser paint
    }
    byId("problem").hidden = true;
    if (!quietly) byId("status").textContent = `Answer: ${said.join("; ")}`;
  }).catch(complain);
  return busy;
}

let address = "";

async function open(blob, what, button = null) {
  stopCamera();
  const mine = ++turn;
  try {
    byId("status").textContent = models.every((model) => model.session) ? "Classifying…" : "Loading the model…";
    const image = await decoded(blob, what);
    if (mine !== turn) return;
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(blob);
    const picture = byId("picture");
    picture.src = address;
    picture.alt = what === "The sample" ? "the chosen sample" : "your picture";
    picture.className = Math.max(image.width, image.height) < 100 ? "small" : "";
    picture.hidden = false;
    byId("hint").hidden = true;
    document.querySelectorAll(".samples button").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
    await classify(image);
  } catch (error) {
    complain(error);
  }
}

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file, `“${file.name}”`);
  event.target.value = ""; // so that the same file can be chosen again
});

let inside = 0;
const dragging = (on) => document.body.classList.toggle("dragging", on);
document.addEventListener("dragenter", (event) => { event.preventDefault(); inside++; dragging(true); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("dragleave", () => { inside = Math.max(0, inside - 1); if (!inside) dragging(false); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  dragging(false);
  const [file] = event.dataTransfer.files;
  if (file) open(file, `“${file.name}”`);
  else complain(new Problem("That was no file. Save the picture first, and drop the file here."));
});

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  const file = files.find((each) => each.type.startsWith("image/")) || files[0];
  if (file) open(file, "What you pasted");
  else if (!(event.target instanceof HTMLInputElement)) complain(new Problem("The clipboard contains no picture."));
});

let stream = null;

function cameraOn(on) {
  for (const id of ["video", "take", "stop", "live-row"]) byId(id).hidden = !on;
  byId("camera").hidden = on;
  byId("picture").hidden = on || !byId("picture").src;
  byId("hint").hidden = on || !byId("picture").hidden;
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("live").checked = false;
  cameraOn(false);
}

function snapshot() {
  const video = byId("video"), width = video.videoWidth, height = video.videoHeight;
  if (!width) throw new Problem("The camera has not sent a picture yet. Try again in a moment.");
  const canvas = element("canvas", { width, height }), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(video, 0, 0);
  return { canvas, image: { width, height, data: context.getImageData(0, 0, width, height).data } };
}

byId("camera").addEventListener("click", async () => {
  try {
    if (!navigator.mediaDevices?.getUserMedia) throw new Problem("This browser gives no camera to a page from a file.");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    byId("problem").hidden = true;
    byId("video").srcObject = stream;
    cameraOn(true);
    await byId("video").play();
    byId("take").focus();
  } catch (error) {
    stopCamera();
    const reasons = {
      NotAllowedError: "The camera was refused. Allow it in the browser's settings for this page, or choose a file.",
      NotFoundError: "There is no camera. Choose a file instead.",
      NotReadableError: "Another program uses the camera. Close it, or choose a file.",
    };
    complain(error instanceof Problem ? error : new Problem(reasons[error.name] || `The camera failed: ${error.message}`));
  }
});

byId("take").addEventListener("click", () => {
  try {
    const { canvas } = snapshot();
    canvas.toBlob((blob) => open(blob, "The camera's picture"), "image/png");
  } catch (error) {
    complain(error);
  }
});

byId("stop").addEventListener("click", () => { stopCamera(); byId("camera").focus(); });

byId("live").addEventListener("change", async () => {
  while (byId("live").checked && stream) {
    try {
      await classify(snapshot().image, true);
    } catch (error) {
      complain(error);
    }
    await new Promise((done) => setTimeout(done, 250));
  }
});

facts.samples.forEach(({ name, image }, i) => {
  const label = name || `sample ${i + 1}`;
  const picture = element("img", { src: `data:image/png;base64,${image}`, alt: "" });
  picture.addEventListener("load", () => { if (picture.naturalWidth < 100) picture.className = "small"; });
  const button = element("button", { type: "button", "aria-pressed": "false", title: label }, picture,
    element("bdi", { className: "name", textContent: label }));
  button.addEventListener("click", () => open(new Blob([bytesOf(image)], { type: "image/png" }), "The sample", button));
  byId("sample-list").append(element("li", {}, button));
});
byId("samples").hidden = !facts.samples.length;

byId("cards").classList.toggle("several", models.length > 1);
for (const model of models) model.card = cardOf(model);
const ready = start();
ready.then(() => {
  byId("status").textContent = "Ready.";
  if (!turn) document.querySelector(".samples button")?.click();
}, complain);

// For tests: the probabilities of uint8 pixels in base64, and the pixels that an image file becomes.
globalThis.jaxvit = {
  ready,
  probabilities: async (index, pixels) => [...(await run(models[index], bytesOf(pixels)))[0].data],
  pixels: async (file, [height, width, channels]) =>
    [...cover(channelsOf(await decoded(new Blob([bytesOf(file)]), "The file"), channels), height, width)],
};
})();
