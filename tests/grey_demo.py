"""What the tests of `stvid demo` share: a model that knows levels of grey, videos of them, a server for the page."""

import contextlib
import dataclasses
import threading

import av
import numpy as np
import torch

from stvid.models.base import VideoModel
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import load_checkpoint
from stvid.serve.options import MIB, address_text, bind_port
from stvid.serve.server import Server
from stvid.video.writer import write_video

FPS, K = 12, 12
HTML, LONG, REVERSED = "<img src=x onerror=\"document.title='hacked'\">", "bright" + " bright" * 27, "\u202egnp.exe"
NAMES = (HTML, *(f"grey {i}" for i in range(1, K - 2)), REVERSED, LONG)
FILE = "<b onmouseover=alert(1)>&amp;\u202e.mp4"
THRESHOLD = 0.9


class Brightness(VideoModel):
    """Class i is the grey level i / (K - 1) of a clip's last frame; between two levels no class is sure."""

    def __init__(self):
        super().__init__()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def forward(self, clips_BCTHW, lengths_B=None):
        assert self.may_answer.wait(60)
        level_B = (clips_BCTHW[:, 0, -1] * 0.229 + 0.485).mean(dim=(1, 2))
        return -800 * (level_B[:, None] - torch.linspace(0, 1, K, device=clips_BCTHW.device)) ** 2

    @contextlib.contextmanager
    def held(self):
        """Within this block the model does not answer."""
        self.may_answer.clear()
        try:
            yield
        finally:
            self.may_answer.set()


def grey_recognizer(run_folder):
    """The run with `Brightness` as its model."""
    trained = load_checkpoint(run_folder)
    clip = dataclasses.replace(trained.clip, normalize="fixed")
    changes = {"model": Brightness(), "clip": clip, "class_names": NAMES, "threshold": THRESHOLD}
    return Recognizer(dataclasses.replace(trained, **changes), device="cpu")


def video_of(path, *levels, seconds=2):
    """Grey pictures, one level after the other."""
    pictures = [np.full((48, 64, 3), round(255 * level), np.uint8) for level in levels]
    write_video(path, np.stack(pictures).repeat(seconds * FPS, axis=0), fps=FPS)
    return path


def avi_of(path, *, num_frames=12):
    """MPEG-4 Part 2 in AVI, which browsers do not play: grey pictures, each brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            picture = np.full((48, 64, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def grey_videos(folder):
    """Paths by name: `long` is dark, between two levels, and bright, 2 s each; `short`, `avi`, `text`, `large`."""
    (folder / "notes.txt").write_text("no video")
    (folder / "large.mp4").write_bytes(bytes(2 * MIB))
    return {
        "long": video_of(folder / FILE, 0, 6.5 / (K - 1), 1),
        "short": video_of(folder / "short.mp4", 1, seconds=1),
        "avi": avi_of(folder / "old.avi"),
        "text": folder / "notes.txt",
        "large": folder / "large.mp4",
    }


@contextlib.contextmanager
def serving(app):
    """Yields the address of an application that answers in a thread."""
    started = threading.Event()
    server, listener = Server(app, on_start=started.set), bind_port("127.0.0.1", 0)
    listener.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert started.wait(60)
        yield address_text(listener)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
