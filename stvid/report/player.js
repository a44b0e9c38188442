"use strict";
// Plays the clips of a report, opens the cells of its confusion matrix and sorts its tables. All data is in the page.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("page-data").textContent);
  const MIN_FRAME_TIME = 1000 / 30, LAST_FRAME_EXTRA = 600; // milliseconds; the last frame is shown longer

  // ---- boxes that scroll sideways: their hidden ends fade out ----
  const mark = (box) => {
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
  for (const box of document.querySelectorAll(".box, .contents ul")) {
    sizes.observe(box);
    box.addEventListener("scroll", () => mark(box), { passive: true });
  }

  // ---- players ----
  const players = new Set();
  let stopped = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let running = false;

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.target.player.visible = entry.isIntersecting;
    run();
  });

  class Player {
    constructor(container, clip, name) {
      Object.assign(this, { clip, name, frame: 0, playing: !stopped, visible: false, due: 0 });
      const parts = byId("player-template").content.cloneNode(true);
      for (const part of ["screen", "evidence", "look"]) this[part] = parts.querySelector(`.${part}`);
      this.counter = parts.querySelector(".frame");
      this.screen.style.aspectRatio = `${clip.width} / ${clip.height}`;
      this.screen.style.backgroundSize = `${100 * clip.frames}% 100%`;
      this.screen.addEventListener("click", () => this.play(!this.playing));
      this.screen.addEventListener("keydown", (event) => this.key(event));
      this.look.addEventListener("click", () => this.draw(this.look.getAttribute("aria-pressed") !== "true"));
      this.look.hidden = !clip.heat_sprite;
      this.drawEvidence();
      this.draw(false);
      container.replaceChildren(parts);
      this.screen.player = this;
      players.add(this);
      observer.observe(this.screen);
      this.play(this.playing);
      this.show(0);
    }

    draw(heat) {
      this.look.setAttribute("aria-pressed", heat);
      this.screen.style.backgroundImage = `url("${heat ? this.clip.heat_sprite : this.clip.sprite}")`;
    }

    drawEvidence() {
      const numbers = this.clip.evidence;
      this.evidence.hidden = !numbers;
      if (!numbers) return;
      const [low, high] = data.evidence, span = high - low || 1; // one scale for all clips
      for (const number of numbers) {
        const bar = document.createElement("i"), cell = document.createElement("span");
        bar.style.top = `${(100 * (high - Math.max(number, 0))) / span}%`;
        bar.style.bottom = `${(100 * (Math.min(number, 0) - low)) / span}%`;
        cell.classList.toggle("against", number < 0);
        cell.append(bar);
        this.evidence.append(cell);
      }
      const most = numbers.indexOf(Math.max(...numbers)), least = numbers.indexOf(Math.min(...numbers));
      const describe = (frame) => `frame ${frame + 1} (${numbers[frame].toFixed(2)})`;
      this.evidence.setAttribute("aria-label", `Evidence for the predicted class, ${numbers.reduce((a, b) => a + b, 0).toFixed(2)} in all: most in ${describe(most)}, least in ${describe(least)}`);
    }

    key(event) {
      const last = this.clip.frames - 1;
      const next = { ArrowRight: this.frame + 1, ArrowLeft: this.frame - 1, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      this.play(false);
      this.show((next + last + 1) % (last + 1));
    }

    play(playing) {
      this.playing = playing;
      this.screen.classList.toggle("paused", !playing);
      this.screen.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${this.name}`);
      this.due = performance.now() + this.pace();
      run();
    }

    pace() {
      const time = Math.max((1000 * this.clip.seconds) / this.clip.frames, MIN_FRAME_TIME);
      return this.frame === this.clip.frames - 1 ? time + LAST_FRAME_EXTRA : time;
    }

    show(frame) {
      this.evidence.children[this.frame]?.classList.remove("now");
      this.frame = frame;
      this.evidence.children[frame]?.classList.add("now");
      const share = this.clip.frames > 1 ? frame / (this.clip.frames - 1) : 0;
      this.screen.style.backgroundPositionX = `${100 * share}%`;
      this.counter.textContent = `${frame + 1}/${this.clip.frames}`;
    }

    advance(now) {
      this.show((this.frame + 1) % this.clip.frames);
      this.due = now + this.pace();
    }

    close() {
      observer.unobserve(this.screen);
      players.delete(this);
    }
  }

  const moves = (player) => player.playing && player.visible;

  function run() {
    if (running || ![...players].some(moves)) return;
    running = true;
    requestAnimationFrame(tick);
  }

  function tick(now) {
    running = false;
    for (const player of players) if (moves(player) && now >= player.due) player.advance(now);
    run();
  }

  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

  function fill(card, number) {
    const video = data.videos[number], container = card.querySelector(".player");
    const name = `the clip of ${video.name}, truth ${video.truth}, predicted ${video.predicted}`;
    if (container && data.clips[number]) return new Player(container, data.clips[number], name);
    return null;
  }

  for (const card of document.querySelectorAll(".card[data-video]")) fill(card, card.dataset.video);

  const pauseAll = byId("pause-all");
  function stopAll(stop) {
    stopped = stop;
    for (const player of players) player.play(!stop);
    pauseAll?.setAttribute("aria-pressed", stop);
    if (pauseAll) pauseAll.textContent = stop ? "Play all clips" : "Pause all clips";
  }
  pauseAll?.addEventListener("click", () => stopAll(!stopped));
  stopAll(stopped);

  // ---- clips of a cell ----
  const dialog = byId("cell");
  let opener = null, opened = [];

  // allows line breaks after _ and / in a long name
  const breakable = (name) => name.split(/(?<=[_/\\])(?=.)/s).flatMap((part) => [document.createElement("wbr"), part]);

  function newCard(number) {
    const card = byId("card-template").content.firstElementChild.cloneNode(true), video = data.videos[number];
    for (const element of card.querySelectorAll("[data-is]")) {
      const value = video[element.dataset.is];
      element.append(...(typeof value === "number" ? [percent(value)] : breakable(value)));
    }
    card.classList.toggle("wrong", video.truth !== video.predicted);
    return card;
  }

  function openCell(button) {
    const key = button.dataset.cell, [truth, predicted] = key.split("-").map((index) => data.classes[index]);
    const videos = data.cells[key] ?? [], total = data.totals[key];
    const withClip = videos.filter((number) => data.clips[number]), rest = videos.filter((number) => !data.clips[number]);
    byId("cell-title").textContent = truth === predicted ? `${truth}, correct` : `${truth}, predicted as ${predicted}`;
    const plural = total === 1 ? "video" : "videos";
    byId("cell-text").textContent = withClip.length === total ? `${total} ${plural}` : `${withClip.length} of ${total} ${plural} shown`;
    const cards = withClip.map((number) => [newCard(number), number]);
    byId("cell-cards").replaceChildren(...cards.map(([card]) => card));
    opened = cards.map(([card, number]) => fill(card, number));
    byId("cell-rest").replaceChildren(...videoList(rest, total - videos.length));
    opener = button;
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  function videoList(rest, more) {
    if (!rest.length && !more) return [];
    const title = document.createElement("h3"), list = document.createElement("ul");
    title.textContent = "Without a preview";
    for (const number of rest) {
      const line = document.createElement("li");
      line.textContent = `${data.videos[number].name} (${percent(data.videos[number].confidence)})`;
      list.append(line);
    }
    if (more) list.append(Object.assign(document.createElement("li"), { textContent: `${more} more, see predictions.csv` }));
    return [title, list];
  }

  for (const button of document.querySelectorAll("[data-cell]")) button.addEventListener("click", () => openCell(button));
  byId("cell-close")?.addEventListener("click", () => dialog.close());
  dialog?.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog?.addEventListener("close", () => {
    for (const player of opened) player?.close();
    byId("cell-cards").replaceChildren();
    opened = [];
    opener?.focus({ preventScroll: true });
  });

  // ---- confusion matrix: one tab stop, arrow keys move between cells ----
  const matrix = document.querySelector(".matrix");
  if (matrix) {
    const cells = [...matrix.querySelectorAll("button")], rows = new Map(), columns = new Map();
    const heads = [...matrix.tHead.rows[0].cells].slice(1), sides = [...matrix.tBodies[0].rows].map((row) => row.cells[0]);
    for (const cell of cells) {
      [cell.row, cell.column] = cell.dataset.cell.split("-").map(Number);
      rows.set(cell.row, [...(rows.get(cell.row) ?? []), cell]);
      columns.set(cell.column, [...(columns.get(cell.column) ?? []), cell]);
    }
    let current = cells[0];
    if (current) current.tabIndex = 0;

    const highlight = (cell, on) => {
      heads[cell.column].classList.toggle("on", on);
      sides[cell.row].classList.toggle("on", on);
    };
    const neighbour = (line, cell, step) => line[line.indexOf(cell) + step];

    matrix.addEventListener("keydown", (event) => {
      const cell = event.target;
      if (!cell.dataset?.cell) return;
      const row = rows.get(cell.row), column = columns.get(cell.column);
      const next = {
        ArrowRight: neighbour(row, cell, 1), ArrowLeft: neighbour(row, cell, -1), Home: row[0], End: row.at(-1),
        ArrowDown: neighbour(column, cell, 1), ArrowUp: neighbour(column, cell, -1),
      };
      if (!(event.key in next)) return;
      event.preventDefault();
      next[event.key]?.focus();
    });
    for (const [type, on] of [["focusin", true], ["focusout", false], ["mouseover", true], ["mouseout", false]]) {
      matrix.addEventListener(type, (event) => {
        const cell = event.target.closest("[data-cell]");
        if (!cell) return;
        highlight(cell, on);
        if (type !== "focusin") return;
        current.tabIndex = -1;
        current = cell;
        current.tabIndex = 0;
      });
    }
  }

  // ---- sortable tables ----
  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
      const value = (row) => row.cells[column].dataset.value;
      const isText = head.classList.contains("name");
      const up = head.getAttribute("aria-sort") === (isText ? "none" : "descending") || (isText && head.getAttribute("aria-sort") === "descending");
      const compare = (a, b) => {
        if (isText) return value(a).localeCompare(value(b));
        if (!value(a) || !value(b)) return 0;
        return value(a) - value(b);
      };
      const order = [...body.rows].sort((a, b) => {
        const missing = !isText && (value(a) === "") - (value(b) === "");
        return missing || (up ? compare(a, b) : compare(b, a));
      });
      for (const other of head.parentElement.cells) if (other.ariaSort) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.replaceChildren(...order);
    });
  }
})();
