// The page of stvid demo: videos go to the service one after another, their answers are shown.
import { announce, byId, create, nameElement, visible } from "./dom.js";
import { Result } from "./result.js";
import { ServiceError, requestJson, token } from "./service.js";
import { Webcam } from "./webcam.js";

const SHORT = 4; // clips; stvid predict divides longer videos into segments
const WORDS = { waiting: "waiting", working: "recognising…", done: "", failed: "", cancelled: "cancelled" };
// file; state; share: that was sent; answer, hasTimeline: see `requestAnswer`; error: message; opens: it is shown when
// it is ready; controller: cancels its requests; item: in the list
const entries = [];
let model = null, shown = null, webcam = null, busy = false;

// ---- the model ----
async function start() {
  try {
    model = await requestJson("GET", "model");
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    byId("page-error").textContent = error.message;
    byId("page-error").hidden = false;
    return;
  }
  document.title = `${visible(model.name)} · stvid demo`;
  byId("model-name").textContent = visible(model.name);
  const { num_frames: frames, size: [height, width] } = model.clip;
  const clips = `${frames ? `clips of ${frames} frames` : "whole videos"}, ${width} × ${height} pixels`;
  byId("model-text").textContent = `${model.class_names.length} classes, ${clips}`;
  byId("class-names").append(...model.class_names.map((name) => create("li", {}, nameElement(name))));
  byId("classes").hidden = false;
  byId("source-text").append(` A video may have up to ${megabytes(model.limits.max_upload_bytes)}.`);
  byId("version").textContent = model.version;
  if (token) byId("docs").href = `docs?token=${encodeURIComponent(token)}`;
  byId("choose").disabled = false;
  byId("camera").disabled = !model.limits.stream_mode;
  if (!model.limits.stream_mode) byId("source-text").append(" This model reads whole videos: no webcam.");
}

// ---- choosing videos ----
function add(files) {
  if (!model) return;
  stopWebcam();
  for (const file of files) {
    const entry = { file, state: "waiting", share: 0, answer: null, error: "", opens: file === files[0] };
    entry.controller = new AbortController();
    entries.push(entry);
    entry.item = makeItem(entry);
    byId("videos").append(entry.item);
    draw(entry);
  }
  byId("session").hidden = !entries.length;
  byId("drop").classList.toggle("small", entries.length);
  recogniseAll();
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
for (const [type, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    byId("drop").classList.toggle("over", over);
    if (type === "drop") add(event.dataTransfer.files);
  });
}

// ---- one video after another ----
async function recogniseAll() {
  if (busy) return;
  busy = true;
  for (let entry; (entry = entries.find((one) => one.state === "waiting")); ) await recognise(entry);
  busy = false;
}

async function recognise(entry) {
  try {
    await requestAnswer(entry);
    setState(entry, "done");
    if ((entry.opens || !shown) && !webcam) show(entry);
  } catch (error) {
    if (error.name === "AbortError") return setState(entry, "cancelled");
    const isOurs = !(error instanceof ServiceError);
    if (isOurs) console.error(error);
    entry.error = isOurs ? `The page has an error: ${error.message}` : error.message;
    setState(entry, "failed");
    announce(`${visible(entry.file.name)}: ${visible(entry.error)}`);
  }
}

// Fills in `answer`, and `hasTimeline`: whether it shows segments, or one answer for the whole video.
async function requestAnswer(entry) {
  const limit = model.limits.max_upload_bytes, { file } = entry;
  if (file.size > limit) {
    throw new ServiceError(`The video is too large: ${megabytes(file.size)}, and the limit is ${megabytes(limit)}.`);
  }
  if (!file.size) throw new ServiceError("The file is empty.");
  const onProgress = (share) => {
    entry.share = share;
    setState(entry, share < 1 ? "sending" : "working");
  };
  const options = { file, onProgress, signal: entry.controller.signal };
  setState(entry, "sending");
  const readsClips = model.clip.num_frames !== null;
  entry.answer = await requestJson("POST", readsClips ? "segments?windows=true" : "predict", options);
  entry.hasTimeline = readsClips && isLong(entry.answer);
}

// An answer without the end of the video has no probabilities for all of it.
function isLong({ duration, windows: [first], error }) {
  return Boolean(error) || duration > SHORT * (first.end - first.start);
}

const megabytes = (bytes) => `${Math.ceil(bytes / 2 ** 20).toLocaleString("en")} MiB`;

// ---- the list ----
function makeItem(entry) {
  const opener = create("button", { type: "button", className: "opener" }, nameElement(entry.file.name));
  opener.addEventListener("click", () => {
    show(entry);
    byId("result-title").focus({ preventScroll: true });
  });
  const state = create("span", { className: "state" }), progress = create("progress", { max: 1 });
  progress.setAttribute("aria-label", `Progress of ${visible(entry.file.name)}`);
  const action = create("button", { type: "button", className: "button" });
  action.addEventListener("click", () => {
    if (isOver(entry)) return retry(entry);
    entry.controller.abort();
    if (entry.state === "waiting") setState(entry, "cancelled");
  });
  return create("li", {}, opener, progress, state, action);
}

const isOver = ({ state }) => state === "failed" || state === "cancelled";

function retry(entry) {
  Object.assign(entry, { error: "", share: 0, opens: true, controller: new AbortController() });
  setState(entry, "waiting");
  recogniseAll();
}

function setState(entry, state) {
  entry.state = state;
  draw(entry);
}

function draw(entry) {
  const [opener, progress, state, action] = entry.item.children, { state: now } = entry;
  entry.item.className = now;
  opener.disabled = now !== "done";
  progress.hidden = now !== "sending" && now !== "working";
  if (now === "sending") progress.value = entry.share;
  else progress.removeAttribute("value");
  const word = now === "sending" ? `sending, ${Math.round(100 * entry.share)} %` : WORDS[now];
  state.textContent = visible(entry.error) || word;
  if (now === "done" && document.activeElement === action) opener.focus(); // not lost with the button
  action.hidden = now === "done";
  action.textContent = isOver(entry) ? "Try again" : "Cancel";
  action.setAttribute("aria-label", `${action.textContent}: ${visible(entry.file.name)}`);
}

function show(entry) {
  stopWebcam();
  close();
  shown = new Result(entry, model);
  entry.item.firstChild.setAttribute("aria-current", "true");
  byId("result").scrollIntoView({ block: "nearest" });
}

function close() {
  shown?.close();
  shown = null;
  for (const entry of entries) entry.item.firstChild.removeAttribute("aria-current");
}

// ---- the webcam ----
byId("camera").addEventListener("click", () => {
  if (webcam) return stopWebcam();
  close();
  byId("drop").classList.add("small");
  webcam = new Webcam(model, () => {
    webcam = null;
    byId("camera").textContent = "Use the webcam";
  });
  byId("camera").textContent = "Stop the webcam";
  webcam.start();
});

function stopWebcam() {
  webcam?.stop();
  byId("live").hidden = true;
}

for (const button of [byId("choose"), byId("camera")]) button.disabled = true; // until the model is there
start();
