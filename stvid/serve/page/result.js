// One finished video: it plays, its segments lie on a timeline, its probabilities move with it.
import { Bars } from "./bars.js";
import {
  UNKNOWN, announce, background, byId, clock, create, duration, nameElement, paint, percent, toggleBackground, visible,
} from "./dom.js";
import { ServiceError, request } from "./service.js";
import { subtitles } from "./subtitles.js";
import { Timeline } from "./timeline.js";

const video = byId("video");
const AFTER = 0.001; // seconds; a jump lands behind the start of a segment, not before it

export class Result {
  // entry: {file, answer: of /segments or /predict, hasTimeline}; model: of /model
  constructor(entry, model) {
    Object.assign(this, { entry, offset: 0, time: 0, url: null, copying: null, closed: false });
    const { answer, hasTimeline } = entry;
    byId("result").hidden = false;
    byId("result-title").textContent = visible(entry.file.name);
    this.bars = new Bars(byId("bars"), model.class_names, model.threshold);
    this.timeline = null;
    if (hasTimeline) this.showSegments(answer);
    else this.showOneAnswer(answer, model);
    byId("answer").hidden = hasTimeline;
    byId("over-time").hidden = byId("save-srt").hidden = !hasTimeline;
    byId("save-json").onclick = () => this.save(JSON.stringify(answer, null, 2), "json");
    byId("save-srt").onclick = () => this.save(subtitles(answer.segments, answer.clock_start), "srt");
    this.listen();
    this.open(entry.file);
  }

  showOneAnswer({ top: [best], duration: seconds, probabilities }, model) {
    byId("answer").firstChild.textContent = visible(best.class);
    byId("answer").lastChild.textContent = percent(best.probability);
    byId("result-text").textContent = `A short video (${duration(seconds)}): one answer for all of it.`;
    this.bars.time.textContent = "of the whole video";
    this.bars.show(model.class_names.map((name) => probabilities[name]), true);
    announce(`${visible(this.entry.file.name)}: ${visible(best.class)}, ${percent(best.probability)}`);
  }

  showSegments({ segments, windows, threshold }) {
    this.centres = windows.map((window) => (window.start + window.end) / 2);
    const onJump = (...at) => this.jump(...at);
    this.timeline = new Timeline(byId("timeline"), { segments, windows, threshold, onJump });
    byId("legend").replaceChildren(...this.legend(segments));
    byId("segments").tBodies[0].replaceChildren(...segments.map((segment) => this.tableRow(segment)));
    this.summarise();
    this.time = segments[0].start;
    this.draw(true);
    announce(`${visible(this.entry.file.name)}: ${byId("result-text").textContent}`);
  }

  summarise() {
    const { segments, duration: seconds, threshold, error } = this.entry.answer;
    const found = segments.filter((segment) => !background.has(segment.class));
    const names = new Set(found.map((segment) => segment.class));
    const counted = `${count(found.length, "segment")} of ${count(names.size, "class", "classes")}`;
    const text = `${found.length ? counted : "No class is found"} in ${duration(seconds)}`;
    const broken = error ? ` The video could not be read to its end: ${error}.` : "";
    byId("result-text").textContent = `${text}. A class begins at a probability of ${percent(threshold)}.${broken}`;
  }

  // A button for each class; a click makes it background.
  legend(segments) {
    const names = new Set(segments.map((segment) => segment.class)), hasUnknown = names.delete(UNKNOWN);
    const items = [...names].map((name) => {
      const title = "Make this class background, or an ordinary class again";
      const button = paint(create("button", { type: "button", title }, nameElement(name)), name);
      button.setAttribute("aria-pressed", !background.has(name));
      button.addEventListener("click", () => {
        toggleBackground(name);
        button.setAttribute("aria-pressed", !background.has(name));
        this.summarise();
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
    const name = create("td", { className: "class" }, paint(create("i"), segment.class), nameElement(segment.class));
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
    if (segment) announce(`${visible(segment.class)}, ${clock(segment.start)} to ${clock(segment.end)}`);
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

  draw(reorder = false) {
    if (!this.timeline) return;
    this.timeline.show(this.time);
    this.bars.time.textContent = `at ${clock(this.time)}`;
    this.bars.show(this.probabilitiesAt(this.time), reorder);
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
