// Elements, and times in words. Names of classes and files reach the page only as text nodes.

export const UNKNOWN = "unknown"; // label of a segment in which no class is sure enough
export const byId = (id) => document.getElementById(id);

export function create(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Characters that are not seen, or turn the text around them, as escapes: "\\u202e". Joiners stay: scripts need them.
export function visible(text) {
  const escape = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;
  return text.replace(/(?![\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]/gu, escape);
}

export function nameElement(text) {
  const shown = visible(text);
  return create("bdi", { className: "name", textContent: shown, title: shown });
}

export const percent = (share) => `${(100 * share).toFixed(share >= 0.9995 || share < 0.0005 ? 0 : 1)}\u00a0%`;

// Seconds as 3.2 s, 1:03.2 or 1:02:03.2
export function clock(seconds) {
  const tenths = Math.round(10 * Math.max(seconds, 0));
  const pad = (number) => String(number).padStart(2, "0");
  const rest = `${Math.floor(tenths / 10) % 60}.${tenths % 10}`;
  if (tenths < 600) return `${rest}\u00a0s`;
  const minutes = Math.floor(tenths / 600), hours = Math.floor(minutes / 60);
  return `${hours ? `${hours}:${pad(minutes % 60)}` : minutes}:${rest.padStart(4, "0")}`;
}

export const duration = (seconds) => clock(seconds).replace(".0", "");

// Tells screen readers; sighted users see it elsewhere on the page.
export function announce(text) {
  byId("spoken").textContent = text;
}

const order = new Map(); // class -> its place in the order in which classes were seen
export const background = new Set([UNKNOWN]); // classes that are grey, and left out of subtitles

// Gives an element the colour of a class, the same for all videos of the session; background is grey.
export function paint(element, name) {
  element.dataset.class = name;
  element.classList.toggle("background", background.has(name));
  if (name === UNKNOWN) return element;
  if (!order.has(name)) order.set(name, order.size);
  const number = order.get(name);
  element.style.setProperty("--hue", ((250 + 137.508 * number) % 360).toFixed(1)); // the golden angle
  element.style.setProperty("--shade", [0, 0.1, -0.06][number % 3]);
  return element;
}

// Makes a class background, or an ordinary class again.
export function toggleBackground(name) {
  if (!background.delete(name)) background.add(name);
  const painted = [...document.querySelectorAll("[data-class]")];
  for (const element of painted.filter((one) => one.dataset.class === name)) paint(element, name);
}
