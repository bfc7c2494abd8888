// The page: which picture, how, and the two results under a slider. The work itself is worker.js.
// No module: from disk browsers refuse those, and the page could not even say why it does not run.
"use strict";

const SHOWN = 4096; // the comparison's longest side in pixels of the result: browsers' canvases end somewhere
const $ = id => document.getElementById(id);
const layers = {bicubic: $("bicubic"), srcnn: $("srcnn")};

let source = {name: "sample.png", blob: () => fetch("sample.png").then(response => response.blob())};
let worker, job = 0, fresh = true;

// ---------------------------------------------------------------- the work

async function enlarge() {
  const id = ++job, scale = Number(choice("scale")), network = choice("network");
  stop();
  say("Opening the picture …");
  busy(true);
  try {
    const blob = await source.blob();
    const bitmap = await createImageBitmap(blob, {imageOrientation: "from-image", premultiplyAlpha: "none"}).catch(() => {
      throw new Error(`${source.name}: this browser cannot open it. It may be damaged; JPEG, PNG and WebP work everywhere, HEIC only in Safari.`);
    });
    if (id !== job) return bitmap.close();
    const shown = middle(bitmap, scale);
    await begin(bitmap, shown, scale);
    const part = shown.width < bitmap.width || shown.height < bitmap.height;
    tell(`${size(bitmap.width, bitmap.height)} to ${size(bitmap.width * scale, bitmap.height * scale)}`
      + (part ? "; shown here: its middle" : ""));
    start().postMessage({type: "enlarge", id, bitmap, opaque: blob.type === "image/jpeg", scale, network, shown}, [bitmap]);
  } catch (error) {
    if (id === job) fail(error.message);
  }
}

function start() {
  if (!worker) {
    worker = new Worker("worker.js", {type: "module"});
    worker.onmessage = ({data}) => data.id === job && receive[data.type](data);
    worker.onerror = event => receive.error({message: event.message || "This browser cannot run the page's program; a newer one can."});
  }
  return worker;
}

const receive = {
  loading: ({provider}) => say(`Loading the program (${provider === "webgpu" ? 7 : 4} MB, once) …`),
  runtime: () => say("Starting …"),
  tile({x, y, bicubic, srcnn}) {
    compared(true);
    layers.bicubic.getContext("2d").putImageData(bicubic, x, y);
    layers.srcnn.getContext("2d").putImageData(srcnn, x, y);
  },
  progress({done, left}) {
    $("progress").value = done;
    say(done < 1 ? `${Math.floor(100 * done)} %, ${duration(left)} left` : "Writing the file …");
  },
  done({blob, seconds}) {
    busy(false);
    $("save").href = URL.createObjectURL(blob);
    $("save").download = `${source.name.replace(/\.[^.]*$/, "")}_x${choice("scale")}.png`;
    $("save").hidden = false;
    say(`Done in ${duration(seconds)}: a PNG of ${(blob.size / 1e6).toFixed(1)} MB.`);
  },
  error({message}) {
    worker.terminate(); // whatever state it is in, and however much memory it holds: the next picture gets a new one
    worker = undefined;
    fail(message);
  },
};

function stop() {
  worker?.postMessage({type: "cancel", id: job}); // what runs there is of another id
  if ($("save").href) URL.revokeObjectURL($("save").href);
  $("save").removeAttribute("href");
  $("save").hidden = true;
}

function cancel() {
  job++;
  stop();
  busy(false);
  say("Cancelled.");
  $("file").focus();
}

function fail(message) {
  job++;
  stop();
  busy(false);
  say(message, true);
}

function busy(is) {
  $("progress").hidden = $("cancel").hidden = !is;
  if (is) $("save").hidden = true;
  $("progress").removeAttribute("value");
}

// The status is read out by screen readers: not every percent of it
let spoken = "";
function say(text, bad = false) {
  const step = text.replace(/^(\d*)\d %.*/, "$1");
  $("status").setAttribute("aria-live", step === spoken ? "off" : "polite");
  spoken = step;
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function tell(text) {
  const name = document.createElement("b");
  name.textContent = source.name;
  $("about").replaceChildren(name, " ", text);
}

const choice = name => document.querySelector(`input[name=${name}]:checked`).value;
const size = (width, height) => `${width} × ${height}`;
const duration = seconds => seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`;

// What of the small picture the comparison shows: all, or the middle of a large one
function middle({width, height}, scale) {
  const [w, h] = [width, height].map(side => Math.min(side, Math.floor(SHOWN / scale)));
  return {x: (width - w) >> 1, y: (height - h) >> 1, width: w, height: h};
}

// Name the two halves only if there is something to compare: before the first tile, and after an
// error, both show the small picture
function compared(is) {
  $("view").classList.toggle("empty", !is);
  for (const [method, canvas] of Object.entries(layers)) {
    canvas.ariaLabel = is ? `The picture enlarged by ${method === "srcnn" ? "SRCNN" : "bicubic"}` : "The picture, not enlarged";
  }
}

// Draw the small picture, pale, until its tiles come
async function begin(bitmap, {x, y, width, height}, scale) {
  compared(false);
  for (const canvas of Object.values(layers)) {
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.globalAlpha = 0.45;
    context.drawImage(bitmap, x, y, width, height, 0, 0, canvas.width, canvas.height);
  }
  zoom.reset();
}

// ---------------------------------------------------------------- choosing a picture

function take(file) {
  if (!file) return;
  // What is there stays. No type: a name that the system does not know, which says nothing
  if (file.type && !file.type.startsWith("image/")) return say(`${file.name} is not a picture.`, true);
  source = {name: file.name || "pasted.png", blob: () => Promise.resolve(file)};
  fresh = false;
  enlarge();
}

$("file").addEventListener("change", event => {
  take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(file => file.type.startsWith("image/"));
  if (file) take(file);
});
document.addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", event => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  else say("That was a link, not a file: save the picture first, or copy and paste it.", true);
});
document.querySelector("form").addEventListener("change", event => {
  if (event.target.type === "radio") enlarge();
});
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
$("cancel").addEventListener("click", cancel);

// ---------------------------------------------------------------- the comparison: wipe, move, zoom

const view = $("view");
const zoom = {
  scale: 1, x: 0, y: 0, // CSS pixels for each pixel of the result; where its corner lies in the view
  fitting() {
    return Math.min(view.clientWidth / layers.srcnn.width, view.clientHeight / layers.srcnn.height);
  },
  reset() {
    // Pixel for pixel, or so that a small picture fills the view
    const cover = Math.max(view.clientWidth / layers.srcnn.width, view.clientHeight / layers.srcnn.height);
    this.to(Math.min(Math.max(cover, 1), 4), true);
  },
  // Zoom about a point of the view (its middle unless given)
  to(scale, centre = false, px = view.clientWidth / 2, py = view.clientHeight / 2) {
    scale = Math.min(Math.max(scale, Math.min(this.fitting(), 1)), 16);
    const [width, height] = [layers.srcnn.width, layers.srcnn.height];
    this.x = centre ? (view.clientWidth - width * scale) / 2 : px - (px - this.x) * scale / this.scale;
    this.y = centre ? (view.clientHeight - height * scale) / 2 : py - (py - this.y) * scale / this.scale;
    this.scale = scale;
    this.move(0, 0);
  },
  move(dx, dy) {
    const place = (at, length, space) => length <= space ? (space - length) / 2 : Math.min(0, Math.max(space - length, at));
    const [width, height] = [layers.srcnn.width * this.scale, layers.srcnn.height * this.scale];
    this.x = place(this.x + dx, width, view.clientWidth);
    this.y = place(this.y + dy, height, view.clientHeight);
    this.movable = width > view.clientWidth + 1 || height > view.clientHeight + 1;
    view.classList.toggle("movable", this.movable);
    for (const canvas of Object.values(layers)) {
      canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
      canvas.style.imageRendering = this.scale > 1 ? "pixelated" : "auto";
    }
    $("actual").textContent = `${Math.round(100 * this.scale)} %`;
  },
};

function wipe(percent) {
  $("wipe").value = percent;
  view.style.setProperty("--x", `${$("wipe").value}%`);
}
$("wipe").addEventListener("input", () => wipe($("wipe").value));
$("in").addEventListener("click", () => zoom.to(zoom.scale * 1.5));
$("out").addEventListener("click", () => zoom.to(zoom.scale / 1.5));
$("actual").addEventListener("click", () => zoom.to(1));
$("fit").addEventListener("click", () => zoom.to(zoom.fitting(), true));
view.addEventListener("keydown", event => {
  if (event.target !== view || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]}[event.key];
  if (step && zoom.movable) zoom.move(...step);
  else if (event.key === "+" || event.key === "=") zoom.to(zoom.scale * 1.5);
  else if (event.key === "-") zoom.to(zoom.scale / 1.5);
  else return;
  event.preventDefault();
});
view.addEventListener("wheel", event => { // pinching on a touchpad arrives as this, too
  if (!event.ctrlKey) return;
  event.preventDefault();
  const box = view.getBoundingClientRect();
  zoom.to(zoom.scale * Math.exp(-event.deltaY / 100), false, event.clientX - box.left, event.clientY - box.top);
}, {passive: false});

const pointers = new Map();
let wiping = false;
view.addEventListener("pointerdown", event => {
  if (event.button) return;
  view.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  wiping = pointers.size === 1 && (!zoom.movable || event.target.className === "line");
  view.classList.toggle("moving", !wiping);
  if (wiping) follow(event);
});
view.addEventListener("pointermove", event => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  if (pointers.size === 2) {
    const other = [...pointers.values()].find(pointer => pointer.pointerId !== event.pointerId);
    const apart = pointer => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
    const box = view.getBoundingClientRect();
    zoom.to(zoom.scale * apart(event) / Math.max(apart(before), 1), false,
      (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
  } else if (wiping) {
    follow(event);
  } else {
    zoom.move(event.clientX - before.clientX, event.clientY - before.clientY);
  }
  pointers.set(event.pointerId, event);
});
for (const kind of ["pointerup", "pointercancel"]) {
  view.addEventListener(kind, event => {
    pointers.delete(event.pointerId);
    view.classList.remove("moving");
    if (wiping && kind === "pointerup") $("wipe").focus({preventScroll: true});
  });
}
function follow(event) {
  const box = view.getBoundingClientRect();
  wipe(100 * (event.clientX - box.left) / box.width);
}
new ResizeObserver(() => fresh ? zoom.reset() : zoom.to(zoom.scale)).observe(view);

// ---------------------------------------------------------------- at the start: the sample, as it was made beforehand

for (const kind of ["bicubic", "srcnn"]) {
  const image = new Image();
  image.src = `sample_${kind}.webp`;
  image.decode().then(() => {
    if (job) return;
    [layers[kind].width, layers[kind].height] = [image.width, image.height];
    layers[kind].getContext("2d").drawImage(image, 0, 0);
    tell(`${size(image.width / 3, image.height / 3)} to ${size(image.width, image.height)} (photograph: NASA)`);
    zoom.reset();
  });
}
if (location.protocol === "file:") {
  say("From disk, browsers do not let a page load its models. Run: python -m http.server -d docs, then open http://localhost:8000", true);
} else if (!window.OffscreenCanvas || !window.CompressionStream) {
  say("This browser is too old for this page: it needs Chrome 111, Firefox 115, Safari 16.4 or newer.", true);
}
