// Segments as SubRip, as stvid predict --srt writes them.
import { background, visible } from "./dom.js";

// start: seconds of the file's clock that players show as 0
export function subtitles(segments, start) {
  const shown = segments.filter((segment) => !background.has(segment.class));
  const blocks = shown.map((segment, i) => {
    const times = [segment.start, segment.end].map((seconds) => time(seconds - start)).join(" --> ");
    return `${i + 1}\n${times}\n${visible(segment.class)} ${Math.round(100 * segment.probability)}%\n`;
  });
  return blocks.join("\n");
}

function time(seconds) {
  const pad = (number, digits = 2) => String(number).padStart(digits, "0");
  const ms = Math.max(Math.round(1000 * seconds), 0);
  const [hours, minutes, rest] = [ms / 3_600_000, (ms / 60_000) % 60, (ms / 1000) % 60].map(Math.floor);
  return `${pad(hours)}:${pad(minutes)}:${pad(rest)},${pad(ms % 1000, 3)}`;
}
