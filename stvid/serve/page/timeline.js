// The segments of a video on a line of time: one tab stop, arrow keys move between them.
import { UNKNOWN, byId, clock, create, duration, paint, percent, visible } from "./dom.js";

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200]; // seconds
const MAX_TICKS = 8, MAX_POINTS = 4000;
const MAX_ZOOM = 64, MIN_SHOWN = 10; // seconds
const SVG = "http://www.w3.org/2000/svg";

export class Timeline {
  // segments: [{start, end, class, probability}]; windows: [{start, end, probabilities}]; onJump(seconds, segment)
  constructor(root, { segments, windows, threshold, onJump }) {
    this.start = segments[0].start;
    this.span = Math.max(segments.at(-1).end - this.start, 1e-6);
    this.segments = segments;
    this.buttons = segments.map((segment) => this.button(segment, onJump));
    this.buttons[0].tabIndex = 0;
    this.now = null;
    this.head = create("i", { className: "playhead" });
    this.head.style.left = "0%";
    const track = create("div", { className: "track", role: "group" }, ...this.buttons);
    track.setAttribute("aria-labelledby", "timeline-title");
    track.setAttribute("aria-describedby", "timeline-help");
    track.addEventListener("keydown", (event) => this.onKey(event));
    const body = create("div", { className: "timeline-body" }, this.curve(windows, threshold), track, this.head);
    body.firstChild.addEventListener("click", (event) => {
      const box = body.getBoundingClientRect();
      onJump(this.start + (this.span * (event.clientX - box.left)) / box.width, null);
    });
    this.inner = create("div", {}, body, create("div"));
    this.root = root;
    root.replaceChildren(this.inner);
    byId("zoom-in").onclick = () => this.zoom(2 * this.factor);
    byId("zoom-out").onclick = () => this.zoom(this.factor / 2);
    this.zoom(1);
  }

  zoom(factor) {
    const most = Math.min(MAX_ZOOM, Math.max(1, 2 ** Math.floor(Math.log2(this.span / MIN_SHOWN))));
    this.factor = Math.min(factor, most);
    this.inner.style.width = `${100 * this.factor}%`;
    this.inner.lastChild.replaceWith(this.ticks());
    this.scrollToHead(0.5, true);
    byId("zoom-in").disabled = this.factor >= most;
    byId("zoom-out").disabled = this.factor <= 1;
  }

  // Scrolls the timeline until the playing position is at `place`, 0 (left) to 1; only if it is hidden, or always.
  scrollToHead(place, always = false) {
    const { scrollLeft, clientWidth, scrollWidth } = this.root;
    const x = (parseFloat(this.head.style.left) / 100) * scrollWidth;
    if (always || x < scrollLeft || x > scrollLeft + clientWidth) this.root.scrollLeft = x - place * clientWidth;
  }

  share = (seconds) => (seconds - this.start) / this.span;

  button(segment, onJump) {
    const { start, end, probability } = segment, name = visible(segment.class);
    const text = name === UNKNOWN ? "no class is sure enough" : percent(probability);
    const title = `${name}, ${clock(start)} to ${clock(end)}, ${text}`;
    const button = create("button", { type: "button", tabIndex: -1, title });
    button.setAttribute("aria-label", title);
    if (name !== UNKNOWN) button.append(create("bdi", { textContent: name }));
    paint(button, segment.class);
    button.style.left = `${100 * this.share(start)}%`;
    button.style.width = `${(100 * (end - start)) / this.span}%`;
    button.addEventListener("click", () => onJump(start, segment));
    button.addEventListener("focus", () => this.makeTabStop(button));
    return button;
  }

  makeTabStop(button) {
    for (const other of this.buttons) other.tabIndex = other === button ? 0 : -1;
  }

  onKey(event) {
    const current = this.buttons.indexOf(event.target), last = this.buttons.length - 1;
    const after = current + 1, before = current - 1;
    const places = { ArrowRight: after, ArrowDown: after, ArrowLeft: before, ArrowUp: before, Home: 0, End: last };
    const next = places[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.buttons[Math.min(Math.max(next, 0), last)].focus();
  }

  // The highest probability over time, above the threshold's line.
  curve(windows, threshold) {
    const svg = document.createElementNS(SVG, "svg"), every = Math.ceil(windows.length / MAX_POINTS);
    const points = windows.flatMap((window, i) => {
      if (i % every) return [];
      const x = 1000 * this.share((window.start + window.end) / 2), y = 100 * (1 - Math.max(...window.probabilities));
      return [[x.toFixed(1), y.toFixed(1)]];
    });
    const line = [[0, points[0][1]], ...points, [1000, points.at(-1)[1]]].map((point) => point.join(",")).join(" ");
    svg.setAttribute("class", "curve");
    svg.setAttribute("viewBox", "0 0 1000 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const title = svg.appendChild(document.createElementNS(SVG, "title"));
    title.textContent = "Probability of the most probable class; the dashed line is the threshold";
    const shapes = [
      ["polygon", { points: `0,100 ${line} 1000,100`, class: "area" }],
      ["polyline", { points: line, class: "line" }],
      ["line", { x1: 0, x2: 1000, y1: 100 * (1 - threshold), y2: 100 * (1 - threshold), class: "limit" }],
    ];
    for (const [tag, attributes] of shapes) {
      const shape = svg.appendChild(document.createElementNS(SVG, tag));
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    }
    return svg;
  }

  ticks() {
    const most = MAX_TICKS * this.factor;
    const step = STEPS.find((one) => this.span / one <= most) ?? Math.ceil(this.span / most / 3600) * 3600;
    const list = create("div", { className: "ticks", ariaHidden: "true" });
    for (let n = Math.ceil(this.start / step); n * step <= this.start + this.span; n++) {
      const tick = create("span", { textContent: duration(n * step) });
      tick.style.left = `${100 * this.share(n * step)}%`;
      tick.classList.toggle("late", this.share(n * step) > 1 - 0.07 / this.factor);
      list.append(tick);
    }
    return list;
  }

  // Moves the line of the playing position, and marks the segment there.
  show(seconds) {
    const share = Math.min(Math.max(this.share(seconds), 0), 1);
    this.head.style.left = `${100 * share}%`;
    if (this.factor > 1) this.scrollToHead(0.1);
    let now = this.segments.findIndex((segment) => seconds < segment.end);
    if (now < 0) now = this.segments.length - 1;
    if (now !== this.now) {
      this.buttons[this.now ?? now].removeAttribute("aria-current");
      this.buttons[now].setAttribute("aria-current", "true");
      this.now = now;
    }
  }
}
