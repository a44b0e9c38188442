// The most probable classes as bars. Rows keep their places while the numbers move.
import { byId, create, nameElement, paint, percent } from "./dom.js";

const ROWS = 8;
const MARGIN = 0.02; // a class takes the row of another one if it is more probable by this much

export class Bars {
  // root: an empty element; threshold: the probability at which a class begins
  constructor(root, classNames, threshold) {
    Object.assign(this, { classNames, probabilities: null, shown: [], rows: new Map(), wanted: "" });
    root.replaceChildren(byId("bars-template").content.cloneNode(true));
    this.list = root.querySelector(".bars");
    this.list.style.setProperty("--threshold", `${100 * threshold}%`);
    this.title = root.querySelector(".panel-title");
    this.time = root.querySelector(".panel-time");
    this.more = root.querySelector(".more");
    const find = root.querySelector(".find");
    find.hidden = classNames.length <= ROWS;
    find.querySelector("input").addEventListener("input", (event) => this.find(event.target.value));
    this.lower = classNames.map((name) => name.toLowerCase());
  }

  find(text) {
    this.wanted = text.trim().toLowerCase();
    this.shown = [];
    this.draw();
  }

  // probabilities: K numbers in the order of the class names; reorder: the rows may change places
  show(probabilities, reorder = false) {
    this.probabilities = probabilities;
    if (reorder) this.shown = [];
    this.draw();
  }

  draw() {
    const p = this.probabilities;
    if (!p) return;
    const matches = this.classNames.flatMap((_, i) => (this.lower[i].includes(this.wanted) ? [i] : []));
    this.choose(matches, p);
    const best = p.indexOf(Math.max(...p));
    const rows = this.shown.map((index) => this.row(index, p[index], index === best));
    if (rows.some((row, i) => this.list.children[i] !== row) || this.list.children.length !== rows.length) {
      this.list.replaceChildren(...rows);
    }
    const hidden = matches.length - rows.length;
    this.more.textContent = !rows.length ? "No class has such a name." : hidden ? `and ${hidden} less probable` : "";
  }

  choose(matches, p) {
    if (matches.length <= ROWS) {
      this.shown = matches; // all of them, in the order of the model
      return;
    }
    const byProbability = matches.toSorted((a, b) => p[b] - p[a]);
    if (!this.shown.length) {
      this.shown = byProbability.slice(0, ROWS);
      return;
    }
    for (const index of byProbability.slice(0, ROWS).filter((i) => !this.shown.includes(i))) {
      const least = this.shown.reduce((a, b) => (p[b] < p[a] ? b : a));
      if (p[index] > p[least] + MARGIN) this.shown[this.shown.indexOf(least)] = index;
    }
  }

  row(index, probability, isBest) {
    let row = this.rows.get(index);
    if (!row) {
      row = create("li", {}, nameElement(this.classNames[index]), create("span", { className: "number" }), create("i"));
      row.lastChild.append(create("b"));
      paint(row, this.classNames[index]);
      this.rows.set(index, row);
    }
    row.classList.toggle("best", isBest);
    row.children[1].textContent = percent(probability);
    row.lastChild.firstChild.style.transform = `scaleX(${probability})`;
    return row;
  }
}
