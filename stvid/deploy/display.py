"""A window that shows live frames (Tk, which comes with most Pythons, and Pillow)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from stvid.errors import InputError

if TYPE_CHECKING:  # options are checked before it is imported
    import numpy as np

MAX_SIDE = 1280  # pixels; larger frames are shrunk


def check_display() -> None:
    """Raises InputError if no window can be opened here."""
    try:
        import tkinter
    except ImportError as error:
        message = f"--show: this Python has no Tk ({error}); on Debian and Ubuntu: apt install python3-tk"
        raise InputError(message) from error
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise InputError("--show: there is no display (DISPLAY is not set); leave it out, or record with --out F.mp4")
    del tkinter


class Display:
    """Shows one frame after the other; `is_open` is False after the user has closed the window.

    Args:
        title: of the window.

    Raises:
        InputError: there is no display.
    """

    def __init__(self, title: str):
        check_display()
        import tkinter

        try:
            self.root = tkinter.Tk()
        except tkinter.TclError as error:
            raise InputError(f"--show: no window can be opened: {error}") from error
        self.root.title(title)
        self.root.resizable(False, False)
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        self.label = tkinter.Label(self.root, borderwidth=0)
        self.label.pack()
        self.is_open = True

    def show(self, frame_HWC: np.ndarray) -> None:
        """Shows a frame: uint8 `H x W x 3`, RGB."""
        from PIL import Image, ImageTk

        picture = Image.fromarray(frame_HWC)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        self.picture = ImageTk.PhotoImage(picture)  # Tk shows it only as long as it is referenced
        self.label.configure(image=self.picture)
        self.update()

    def update(self) -> None:
        """Lets the window react to the user."""
        if self.is_open:
            self.root.update()

    def close(self) -> None:
        """Closes the window; may be called twice."""
        if self.is_open:
            self.is_open = False
            self.root.destroy()
