"""The window of `stvid stream --show`, with a stand-in for Tk: machines that test have no display."""

import sys
from types import SimpleNamespace

import numpy as np
import PIL
import pytest

from stvid.deploy import display
from stvid.deploy.display import Display
from stvid.errors import InputError


class Widget:
    """A window or a label that remembers what it was told."""

    def __init__(self, *arguments, **options):
        self.handlers, self.options, self.updates, self.destroyed = {}, options, 0, False

    def title(self, text):
        self.text = text

    def resizable(self, *sides):
        pass

    def protocol(self, name, handler):
        self.handlers[name] = handler

    def pack(self):
        pass

    def configure(self, **options):
        self.options.update(options)

    def update(self):
        assert not self.destroyed
        self.updates += 1

    def destroy(self):
        self.destroyed = True


class TclError(Exception):
    pass


@pytest.fixture
def tk(monkeypatch):
    module = SimpleNamespace(Tk=Widget, Label=Widget, TclError=TclError)
    monkeypatch.setitem(sys.modules, "tkinter", module)
    monkeypatch.setattr(display, "check_display", lambda: None)
    image_tk = SimpleNamespace(PhotoImage=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "PIL.ImageTk", image_tk)
    monkeypatch.setattr(PIL, "ImageTk", image_tk, raising=False)
    return module


def test_frames_are_shown_and_large_ones_shrunk(tk):
    window = Display("camera")
    for (height, width), shown in (((48, 64), (64, 48)), ((2160, 3840), (1280, 720))):
        window.show(np.full((height, width, 3), 7, np.uint8))
        assert window.label.options["image"].size == shown
        assert window.label.options["image"].getpixel((0, 0)) == (7, 7, 7)
    assert window.root.updates == 2
    assert window.root.text == "camera"


def test_the_user_can_close_the_window(tk):
    window = Display("camera")
    assert window.is_open
    window.root.handlers["WM_DELETE_WINDOW"]()
    assert not window.is_open
    assert window.root.destroyed
    window.update()  # nothing more
    window.close()


def test_a_display_that_cannot_be_opened_is_told(tk):
    def refuse():
        raise TclError("couldn't connect to display")

    tk.Tk = refuse
    with pytest.raises(InputError, match="--show: no window can be opened: couldn't connect"):
        Display("camera")
