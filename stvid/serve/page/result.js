// One finished video: it plays, its segments lie on a timeline, its probabilities move with it.
import { Bars } from "./bars.js";
import { UNKNOWN, byId, clock, create, duration, named, percent, speak, visible } from "./dom.js";
import { paint, pauses, togglePause } from "./dom.js";
import { ServiceError, request } from "./service.js";
import { subtitles } from "./subtitles.js";
import { Timeline } from "./timeline.js";

const video = byId("video");
const AFTER = 0.001; // seconds; a jump lands behind the start of a segment, not before it

export class Result {
  // entry: {file, answer: of /segments, or null; whole: of /predict, or null}; model: of /model
  constructor(entry, model) {
    Object.assign(this, { entry, offset: 0, time: 0, url: null, copying: null, closed: false });
    const { answer, whole } = entry, threshold = answer?.threshold ?? model.threshold ?? 0.5;
    byId("result").hidden = false;
    byId("result-title").textContent = visible(entry.file.name);
    this.bars = new Bars(byId("bars"), model.class_names, threshold);
    this.timeline = null;
    if (whole) this.showWhole(whole, model);
    else this.showSegments(answer, threshold);
    byId("answer").hidden = !whole;
    byId("over-time").hidden = byId("save-srt").hidden = Boolean(whole);
    byId("save-json").onclick = () => this.save(JSON.stringify(whole ?? answer, null, 2), "json");
    byId("save-srt").onclick = () => this.save(subtitles(answer.segments, answer.clock_start), "srt");
    this.listen();
    this.open(entry.file);
  }

  showWhole(whole, model) {
    const [best] = whole.top;
    byId("answer").firstChild.textContent = visible(best.class);
    byId("answer").lastChild.textContent = percent(best.probability);
    byId("result-text").textContent = `A short video (${duration(whole.duration)}): one answer for all of it.`;
    this.bars.time.textContent = "of the whole video";
    this.bars.show(model.class_names.map((name) => whole.probabilities[name]), true);
    speak(`${visible(this.entry.file.name)}: ${visible(best.class)}, ${percent(best.probability)}`);
  }

  showSegments(answer, threshold) {
    const { segments, windows } = answer;
    this.centres = windows.map((window) => (window.start + window.end) / 2);
    const onJump = (...at) => this.jump(...at);
    this.timeline = new Timeline(byId("timeline"), { segments, windows, threshold, onJump });
    byId("legend").replaceChildren(...this.legend(segments));
    byId("segments").tBodies[0].replaceChildren(...segments.map((segment) => this.tableRow(segment)));
    this.summarise(threshold);
    this.time = segments[0].start;
    this.draw(true);
    speak(`${visible(this.entry.file.name)}: ${byId("result-text").textContent}`);
  }

  summarise(threshold) {
    const { segments, duration: seconds, error } = this.entry.answer;
    const found = segments.filter((segment) => !pauses.has(segment.class));
    const names = new Set(found.map((segment) => segment.class));
    const counted = `${count(found.length, "segment")} of ${count(names.size, "class", "classes")}`;
    const text = `${found.length ? counted : "No class is found"} in ${duration(seconds)}`;
    const broken = error ? ` The video could not be read to its end: ${error}.` : "";
    byId("result-text").textContent = `${text}. A class begins at a probability of ${percent(threshold)}.${broken}`;
  }

  // A button for each class; a click makes it a pause.
  legend(segments) {
    const names = new Set(segments.map((segment) => segment.class)), hasUnknown = names.delete(UNKNOWN);
    const items = [...names].map((name) => {
      const title = "Show as a pause, or as a class again";
      const button = paint(create("button", { type: "button", title }, named(name)), name);
      button.setAttribute("aria-pressed", !pauses.has(name));
      button.addEventListener("click", () => {
        togglePause(name);
        button.setAttribute("aria-pressed", !pauses.has(name));
        this.summarise(this.entry.answer.threshold);
      });
      return create("li", {}, button);
    });
    if (hasUnknown) items.push(create("li", {}, paint(create("span", {}, "no class is sure enough"), UNKNOWN)));
    return items;
  }

  tableRow(segment) {
    const row = create("tr"), start = clock(segment.start);
    const jump = create("button", { type: "button", className: "jump", textContent: start });
    jump.setAttribute("aria-label", `Jump to ${start}`);
    jump.addEventListener("click", () => this.jump(segment.start, segment));
    const name = create("td", { className: "class" }, paint(create("i"), segment.class), named(segment.class));
    const cells = [create("td", {}, jump), create("td", { textContent: clock(segment.end) }), name];
    row.append(...cells, create("td", { className: "n", textContent: percent(segment.probability) }));
    return row;
  }

  // ---- the picture ----
  open(blob) {
    URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(blob);
    this.isCopy = blob !== this.entry.file;
    byId("video-text").hidden = true;
    video.src = this.url;
  }

  listen() {
    video.onerror = () => this.cannotPlay();
    video.onloadedmetadata = () => {
      if (!video.videoWidth) return this.cannotPlay(); // only its sound can be played
      if (this.time - this.offset > AFTER) video.currentTime = this.time - this.offset; // chosen before it was loaded
    };
    video.onplay = () => this.follow();
    video.ontimeupdate = video.onseeking = video.onseeked = () => this.moved();
  }

  // Most browsers play neither XVID nor MPEG-TS: the service makes a copy as H.264.
  async cannotPlay() {
    if (this.closed || this.copying) return;
    const text = byId("video-text");
    text.hidden = false;
    if (this.isCopy) {
      text.textContent = "This browser cannot play the video.";
      return;
    }
    text.textContent = "This browser cannot play the format. Making a copy that it can play…";
    this.copying = new AbortController();
    try {
      const options = { file: this.entry.file, signal: this.copying.signal };
      const copy = (this.entry.copy ??= await request("POST", "playable", options));
      this.offset = Number(copy.getResponseHeader("Stvid-Offset") ?? 0);
      if (!this.closed) this.open(copy.response);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ServiceError)) throw error;
      text.textContent = `The video cannot be shown. ${error.message}`;
    } finally {
      this.copying = null;
    }
  }

  jump(seconds, segment) {
    this.time = seconds + AFTER;
    if (video.readyState) video.currentTime = this.time - this.offset;
    this.draw(true);
    if (segment) speak(`${visible(segment.class)}, ${clock(segment.start)} to ${clock(segment.end)}`);
  }

  moved() {
    if (this.closed || !video.readyState) return;
    this.time = video.currentTime + this.offset;
    this.draw();
  }

  follow() {
    if (this.closed || video.paused || video.ended) return;
    this.moved();
    requestAnimationFrame(() => this.follow());
  }

  draw(anew = false) {
    if (!this.timeline) return;
    this.timeline.show(this.time);
    this.bars.time.textContent = `at ${clock(this.time)}`;
    this.bars.show(this.probabilitiesAt(this.time), anew);
  }

  // Between the middles of two windows linearly; before the first and after the last one theirs.
  probabilitiesAt(seconds) {
    const { windows } = this.entry.answer, after = this.centres.findIndex((centre) => centre > seconds);
    if (after <= 0) return windows.at(after).probabilities;
    const share = (seconds - this.centres[after - 1]) / (this.centres[after] - this.centres[after - 1]);
    const before = windows[after - 1].probabilities;
    return windows[after].probabilities.map((p, i) => share * p + (1 - share) * before[i]);
  }

  save(text, suffix) {
    const link = create("a", { download: `${this.entry.file.name.replace(/\.[^.]*$/, "")}.${suffix}` });
    link.href = URL.createObjectURL(new Blob([text], { type: suffix === "json" ? "application/json" : "text/plain" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  close() {
    this.closed = true;
    this.copying?.abort();
    video.onerror = video.onloadedmetadata = video.onplay = null;
    video.ontimeupdate = video.onseeking = video.onseeked = null;
    video.pause();
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(this.url);
    byId("result").hidden = true;
  }
}

const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
