// The webcam: its frames go over the socket as JPEG, the answers come back as JSON.
import { Bars } from "./bars.js";
import { UNKNOWN, announce, background, byId, percent, visible } from "./dom.js";
import { openSocket } from "./service.js";

const MAX_FPS = 30;
const MEASURED = 1; // seconds; what cameras state and what they deliver differ
const MAX_BUFFERED = 2 ** 20; // bytes that wait to be sent
const PIXELS = 2; // short side of the sent frames, in short sides of the model's clips; not more than the camera has
const QUALITY = 0.9;
const video = byId("live-video");

export class Webcam {
  // model: of /model; onStop(): called once, when it ends for any reason
  constructor(model, onStop) {
    Object.assign(this, { model, onStop, stream: null, socket: null, stopped: false, encoding: false, label: null });
    this.canvas = document.createElement("canvas");
    this.bars = new Bars(byId("live-bars"), model.class_names, model.threshold);
    byId("live-error").hidden = true;
    byId("live-numbers").textContent = "";
    this.answer("Waiting for the camera…", "");
    byId("live").hidden = false;
  }

  async start() {
    try {
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      if (!video.requestVideoFrameCallback) throw new DOMException("", "NotSupportedError");
      const wishes = { width: { ideal: 640 }, frameRate: { ideal: 25 } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video: wishes });
      if (this.stopped) return this.release();
      this.stream.getVideoTracks()[0].onended = () => this.fail("The camera was unplugged or switched off.");
      video.srcObject = this.stream;
      await video.play();
      const fps = await this.measure();
      if (!this.stopped) this.connect(Math.min(fps, MAX_FPS));
    } catch (error) {
      this.fail(cameraError(error));
    }
  }

  // Frames per second that the camera really delivers.
  measure() {
    return new Promise((resolve) => {
      let first = null, frames = 0;
      const next = (now) => {
        first ??= now;
        const seconds = (now - first) / 1000;
        if (seconds >= MEASURED || this.stopped) resolve(Math.max(Math.round(frames / seconds), 1));
        else video.requestVideoFrameCallback(next);
        frames += 1;
      };
      video.requestVideoFrameCallback(next);
    });
  }

  connect(fps) {
    this.socket = openSocket("stream");
    this.period = 1000 / fps;
    const first = { fps, format: "jpeg", realtime: true };
    first.background = this.model.class_names.filter((name) => name !== UNKNOWN && background.has(name));
    this.socket.onopen = () => this.socket.send(JSON.stringify(first));
    this.socket.onmessage = (event) => this.receive(JSON.parse(event.data), fps);
    this.socket.onclose = () => this.fail("The service closed the connection. Is stvid demo still running?");
  }

  receive(message, fps) {
    if (message.event === "error") return this.fail(message.detail);
    if (message.event === "start") {
      this.answer("Waiting for the first answer…", "");
      this.due = performance.now();
      video.requestVideoFrameCallback(() => this.frame());
    }
    if (message.event === "answer") {
      if (message.probabilities) this.bars.show(message.probabilities);
      if (message.class !== null) {
        const isClass = message.class !== UNKNOWN;
        this.answer(message.class, isClass ? percent(message.probability) : "", isClass);
      }
      const dropped = message.dropped ? `, dropped frames: ${message.dropped}` : "";
      byId("live-numbers").textContent = `${fps} frames/s, latency ${Math.round(message.latency_ms)} ms${dropped}`;
    }
  }

  answer(name, number, isClass = false) {
    byId("live-answer").classList.toggle("none", !isClass);
    byId("live-answer").firstChild.textContent = visible(name);
    byId("live-answer").lastChild.textContent = number;
    if (name !== this.label) announce(visible(name));
    this.label = name;
  }

  frame() {
    if (this.stopped) return;
    video.requestVideoFrameCallback(() => this.frame());
    const now = performance.now(), isLate = this.encoding || this.socket.bufferedAmount > MAX_BUFFERED;
    if (isLate || now < this.due - this.period / 2) return;
    this.due = Math.max(this.due + this.period, now - this.period);
    const { videoWidth, videoHeight } = video, [height, width] = this.model.clip.size;
    const scale = Math.min((PIXELS * Math.max(height, width)) / Math.min(videoWidth, videoHeight), 1);
    this.canvas.width = Math.round(scale * videoWidth);
    this.canvas.height = Math.round(scale * videoHeight);
    this.canvas.getContext("2d").drawImage(video, 0, 0, this.canvas.width, this.canvas.height);
    this.encoding = true;
    this.canvas.toBlob((blob) => {
      this.encoding = false;
      if (blob && this.socket.readyState === WebSocket.OPEN) this.socket.send(blob);
    }, "image/jpeg", QUALITY);
  }

  fail(text) {
    if (this.stopped) return;
    byId("live-error").textContent = text;
    byId("live-error").hidden = false;
    this.answer("Stopped", "");
    this.stop();
  }

  stop() {
    if (this.stopped) return;
    this.stopped = true;
    this.release();
    this.onStop();
  }

  release() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.socket?.close();
    video.srcObject = null;
  }
}

function cameraError(error) {
  const words = {
    NotAllowedError: "The browser was not allowed to use the camera. Allow it beside the address, then try again.",
    NotFoundError: "No camera was found.",
    NotReadableError: "The camera is used by another program.",
    NotSupportedError: "This browser is too old for the webcam: it lacks requestVideoFrameCallback.",
    SecurityError: "Browsers give the camera only to pages on localhost or over https.",
  };
  return words[error.name] ?? `The camera cannot be opened: ${error.message}`;
}
