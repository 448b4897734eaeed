// The page: a picture with boxes to name and phrases to find, and a search over the index.
// No library and no build step. All state is in `state`; `draw` shows it.

const COLOURS = ["#c81e2d", "#146ec8", "#0f7d32", "#9632aa", "#be5a00", "#00787d", "#6e5032", "#c82882"];
const SMALLEST = 4; // pixels of the picture: less is a click
const $ = (id) => document.getElementById(id);

const state = {
  file: null, // the picture as it was given
  size: [0, 0], // [width, height]
  boxes: [], // {box, kind: "drawn" | "found", text, score, names}
  selected: -1,
  token: sessionStorage.getItem("token") || "",
  info: null,
};

// --- talking to the server ---------------------------------------------------------------------------

async function ask(path, form, file) {
  const options = { method: form ? "POST" : "GET", headers: {} };
  if (state.token) options.headers.Authorization = `Bearer ${state.token}`;
  if (form && file) {
    options.body = new FormData();
    options.body.append("image", file, "picture");
    options.body.append("request", JSON.stringify(form));
  } else if (form) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(form);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.status === 401) $("token-form").hidden = false;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `The server answers with ${answer.status}.`);
  }
  return answer;
}

const askJson = async (...given) => (await ask(...given)).json();

let hiding;
function say(text, isBad = false) {
  clearTimeout(hiding);
  $("status").textContent = text;
  $("status").classList.toggle("bad", isBad);
  if (text) hiding = setTimeout(() => say(""), isBad ? 8000 : 3000);
}

// Run something that may fail, with a word while it lasts.
async function attempt(word, work) {
  say(word);
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
    if ($("status").textContent === word) say("");
  } catch (error) {
    say(error.message, true);
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

// --- the picture ---------------------------------------------------------------------------------------

async function openPicture(file) {
  if (!file) return;
  if (state.info && file.size > state.info.limits.megabytes * 2 ** 20) {
    say(`The picture has more than ${state.info.limits.megabytes} MiB.`, true);
    return;
  }
  const image = $("picture");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    say("This file is no picture that a browser can show.", true);
    return;
  }
  // Browsers turn a photo as its EXIF says; boxes are of the picture as it is stored.
  state.file = await asShown(image, file);
  Object.assign(state, { size: [image.naturalWidth, image.naturalHeight], boxes: [], selected: -1 });
  $("drop").hidden = true;
  for (const id of ["stage", "tools", "help"]) $(id).hidden = false;
  // As large as the window lets it be whole.
  $("stage").style.maxWidth = `calc(72vh * ${state.size[0] / state.size[1]})`;
  draw();
  $("add-box").focus({ preventScroll: true });
}

async function asShown(image, file) {
  if (file.type !== "image/jpeg" && file.type !== "image/webp") return file;
  const bitmap = await createImageBitmap(file, { imageOrientation: "none" }).catch(() => null);
  if (bitmap && bitmap.width === image.naturalWidth && bitmap.height === image.naturalHeight) return file;
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

function lines(text) {
  return [...new Set(text.split(/[\n,]/).map((part) => part.trim()).filter(Boolean))];
}

async function nameBox(index) {
  const labels = lines($("labels").value);
  const own = state.boxes[index];
  if (!own || own.kind !== "drawn" || !labels.length) return;
  await attempt("Naming the box …", async () => {
    const answer = await askJson("/v1/classify", { labels, boxes: [own.box], top_k: 6 }, state.file);
    own.names = answer.regions[0].labels;
    own.text = own.names[0].label;
    own.score = own.names[0].score;
  });
  draw();
}

async function find(event) {
  event.preventDefault();
  const phrases = lines($("phrases").value);
  if (!phrases.length || !state.file) {
    say(state.file ? "Type what to find." : "Choose a picture first.", true);
    return;
  }
  await attempt("Looking …", async () => {
    const answer = await askJson("/v1/ground", { phrases }, state.file);
    const chosen = state.boxes[state.selected];
    state.boxes = state.boxes.filter((box) => box.kind !== "found");
    for (const { phrase, box, score } of answer.phrases) {
      state.boxes.push({ box, kind: "found", text: phrase, score });
    }
    state.selected = state.boxes.indexOf(chosen);
  });
  draw();
}

// --- drawing --------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const isSvg = ["g", "rect", "title"].includes(name);
  const made = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const colourOf = (index) => COLOURS[index % COLOURS.length];

function draw() {
  const [width, height] = state.size;
  const overlay = $("overlay");
  const focused = overlay.contains(document.activeElement) ? state.selected : -1;
  overlay.setAttribute("viewBox", `0 0 ${width || 1} ${height || 1}`);
  overlay.replaceChildren(...state.boxes.map(drawBox));
  for (const tag of $("stage").querySelectorAll(".tag")) tag.remove();
  state.boxes.forEach(drawTag);
  if (focused >= 0 && overlay.children[focused]) overlay.children[focused].focus({ preventScroll: true });
  drawNames();
  drawFound();
  const chosen = state.boxes[state.selected];
  $("search-box").hidden = !(chosen && state.info && state.info.index);
}

function drawBox(own, index) {
  const [x1, y1, x2, y2] = own.box;
  const rect = element("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, stroke: colourOf(index) });
  const said = own.text ? `${own.text}, ${own.score.toFixed(2)}` : "not named yet";
  const group = element("g", { class: "box", tabindex: "0", role: "button", "aria-label": `Box ${index + 1}: ${said}` }, rect);
  group.classList.toggle("selected", index === state.selected);
  group.addEventListener("focus", () => select(index));
  group.addEventListener("keydown", (event) => moveByKeys(event, index));
  return group;
}

function drawTag(own, index) {
  if (!own.text) return;
  const [width, height] = state.size;
  const tag = element("div", { class: "tag" }, own.text);
  tag.style.left = `${(100 * own.box[0]) / width}%`;
  tag.style.top = `${(100 * own.box[1]) / height}%`;
  tag.style.background = colourOf(index);
  tag.classList.toggle("inside", own.box[1] / height < 0.06);
  $("stage").append(tag);
}

function row(name, score, share, colour) {
  const bar = element("span", { class: "bar" });
  bar.style.width = `${Math.round(100 * Math.max(0, Math.min(1, share)))}%`;
  const label = element("span", { class: "name" });
  if (colour) {
    const dot = element("span", { class: "dot" });
    dot.style.background = colour;
    label.append(dot);
  }
  label.append(name);
  return element("li", {}, bar, label, element("span", { class: "score" }, score));
}

function drawNames() {
  const chosen = state.boxes[state.selected];
  const names = (chosen && chosen.names) || [];
  $("named").replaceChildren(...names.map(({ label, score }) => row(label, `${Math.round(100 * score)} %`, score)));
}

function drawFound() {
  const rows = [];
  state.boxes.forEach((own, index) => {
    if (own.kind === "found") rows.push(row(own.text, own.score.toFixed(2), own.score, colourOf(index)));
  });
  $("found").replaceChildren(...rows);
}

function select(index) {
  if (state.selected === index) return;
  state.selected = index;
  [...$("overlay").children].forEach((group, other) => group.classList.toggle("selected", other === index));
  drawNames();
  $("search-box").hidden = !(state.boxes[index] && state.info && state.info.index);
}

// --- boxes by mouse, finger and keys ---------------------------------------------------------------------

function pointOf(event) {
  const frame = $("overlay").getBoundingClientRect();
  const inside = (value, size) => Math.max(0, Math.min(size, value));
  return [
    inside(((event.clientX - frame.left) / frame.width) * state.size[0], state.size[0]),
    inside(((event.clientY - frame.top) / frame.height) * state.size[1], state.size[1]),
  ];
}

let drag = null; // {from, box element}

function startDrag(event) {
  if (!state.file || event.button > 0) return;
  drag = { from: pointOf(event), rect: null, hit: event.target.closest("g.box") };
  $("overlay").setPointerCapture(event.pointerId);
}

function goOnDragging(event) {
  if (!drag) return;
  const box = between(drag.from, pointOf(event));
  if (!drag.rect) {
    drag.rect = element("rect", { stroke: colourOf(state.boxes.length) });
    $("overlay").append(drag.rect);
  }
  const [x1, y1, x2, y2] = box;
  for (const [key, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 })) {
    drag.rect.setAttribute(key, value);
  }
}

function endDrag(event) {
  if (!drag) return;
  const box = between(drag.from, pointOf(event));
  const { rect, hit } = drag;
  drag = null;
  if (rect) rect.remove();
  if (box[2] - box[0] >= SMALLEST && box[3] - box[1] >= SMALLEST) {
    addBox(box);
  } else if (hit) {
    hit.focus({ preventScroll: true });
  }
}

const between = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];

function addBox(box) {
  state.boxes.push({ box, kind: "drawn", text: "", score: 0 });
  state.selected = state.boxes.length - 1;
  draw();
  nameBox(state.selected);
}

function addCentralBox() {
  const [width, height] = state.size;
  addBox([width * 0.3, height * 0.3, width * 0.7, height * 0.7]);
  $("overlay").children[state.selected].focus({ preventScroll: true });
}

let renaming;
function moveByKeys(event, index) {
  const own = state.boxes[index];
  const step = Math.max(1, Math.round(Math.min(...state.size) * 0.02));
  const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] || [0, 0];
  if (event.key === "Delete" || event.key === "Backspace") {
    state.boxes.splice(index, 1);
    state.selected = -1;
    draw();
    $("add-box").focus({ preventScroll: true });
  } else if (dx || dy) {
    const [width, height] = state.size;
    let [x1, y1, x2, y2] = own.box;
    if (event.shiftKey) {
      x2 = Math.max(x1 + SMALLEST, Math.min(width, x2 + dx));
      y2 = Math.max(y1 + SMALLEST, Math.min(height, y2 + dy));
    } else {
      const mx = Math.max(-x1, Math.min(width - x2, dx));
      const my = Math.max(-y1, Math.min(height - y2, dy));
      [x1, y1, x2, y2] = [x1 + mx, y1 + my, x2 + mx, y2 + my];
    }
    state.boxes[index] = { box: [x1, y1, x2, y2], kind: "drawn", text: "", score: 0 };
    draw();
    clearTimeout(renaming);
    renaming = setTimeout(() => nameBox(index), 400);
  } else {
    return;
  }
  event.preventDefault();
}

// --- search ----------------------------------------------------------------------------------------------

async function search(form, file, words) {
  show("search");
  await attempt("Searching …", async () => {
    const where = $("where").value.trim();
    const { hits } = await askJson("/v1/search", where ? { ...form, where } : form, file);
    $("searched").textContent = hits.length ? `${hits.length} hits for ${words}` : `Nothing found for ${words}`;
    $("hits").replaceChildren(...hits.map(drawHit));
    await Promise.all(hits.map((hit, index) => loadThumbnail(hit, $("hits").children[index])));
  });
}

function searchWords(event) {
  event.preventDefault();
  const text = $("query").value.trim();
  const minus = $("minus").value.trim();
  if (!text) {
    say("Type what to look for.", true);
    return;
  }
  search(minus ? { text, minus } : { text }, null, `“${text}”${minus ? ` without “${minus}”` : ""}`);
}

function drawHit(hit) {
  const name = hit.text || hit.caption || hit.key;
  const frame = element("span", { class: "frame" });
  const button = element("button", { type: "button", "aria-label": `${name}, score ${hit.score.toFixed(2)}: more like this box` }, frame);
  button.addEventListener("click", () => {
    $("query").value = ""; // it is no longer what the hits are for
    search({ like: hit.id }, null, `more like ${name}`);
  });
  const what = element("span", { class: "what", title: hit.key }, name);
  return element("li", { class: "hit" }, button, element("p", {}, what, element("span", { class: "score" }, hit.score.toFixed(2))));
}

async function loadThumbnail(hit, item) {
  const frame = item.querySelector(".frame");
  try {
    const answer = await ask(`/v1/index/pictures/${encodeURIComponent(hit.picture)}`);
    const image = element("img", { alt: "" });
    image.src = URL.createObjectURL(await answer.blob());
    await image.decode();
    const mark = element("i");
    const [width, height] = hit.size;
    const [x1, y1, x2, y2] = hit.box;
    Object.assign(mark.style, {
      left: `${(100 * x1) / width}%`,
      top: `${(100 * y1) / height}%`,
      width: `${(100 * (x2 - x1)) / width}%`,
      height: `${(100 * (y2 - y1)) / height}%`,
    });
    frame.replaceChildren(image, mark);
  } catch {
    frame.textContent = "no small picture";
  }
}

// --- the frame of it all -----------------------------------------------------------------------------------

function show(name) {
  for (const each of ["picture", "search"]) {
    $(`view-${each}`).hidden = each !== name;
    $(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
}

async function start() {
  await attempt("", async () => {
    state.info = await askJson("/v1/info");
    $("token-form").hidden = true;
    $("model").textContent = `${state.info.model} · ${state.info.image_size.join(" × ")}`;
    $("limits").textContent = `Up to ${state.info.limits.megabytes} MiB. It stays between you and this server.`;
    const index = state.info.index;
    $("tab-search").hidden = !index;
    if (index) {
      const more = Object.keys(index.columns);
      $("columns").textContent = `Columns: area, score, source, text, key${more.length ? `, ${more.join(", ")}` : ""}. ${index.regions.toLocaleString()} regions of ${index.pictures.toLocaleString()} pictures.`;
    }
  });
}

$("choose").addEventListener("click", () => $("file").click());
$("another").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => openPicture($("file").files[0]));
for (const target of [$("drop"), $("stage")]) {
  target.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  target.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    openPicture(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => openPicture([...event.clipboardData.files][0]));
$("overlay").addEventListener("pointerdown", startDrag);
$("overlay").addEventListener("pointermove", goOnDragging);
$("overlay").addEventListener("pointerup", endDrag);
$("overlay").addEventListener("pointercancel", () => { drag = null; draw(); });
$("add-box").addEventListener("click", addCentralBox);
$("clear").addEventListener("click", () => { Object.assign(state, { boxes: [], selected: -1 }); draw(); });
$("labels").addEventListener("change", () => nameBox(state.selected));
$("find-form").addEventListener("submit", find);
$("search-form").addEventListener("submit", searchWords);
$("search-box").addEventListener("click", () => {
  const own = state.boxes[state.selected];
  $("query").value = "";
  search({ box: own.box }, state.file, own.text ? `the box of “${own.text}”` : "the box");
});
for (const name of ["picture", "search"]) {
  $(`tab-${name}`).addEventListener("click", () => show(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "picture" ? "search" : "picture";
    if ($(`tab-${other}`).hidden) return;
    show(other);
    $(`tab-${other}`).focus();
  });
}
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value;
  sessionStorage.setItem("token", state.token);
  start();
});

start();
