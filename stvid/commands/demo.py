"""`stvid demo`: a page to try a model, in the browser."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import webbrowser
from urllib.parse import quote

from stvid.commands.serve import leave_threads_behind, load_recognizer
from stvid.serve.demo import create_demo
from stvid.serve.options import serve_options
from stvid.serve.server import run_server
from stvid.terminal import show


def run(options: argparse.Namespace) -> None:
    recognizer = load_recognizer(options)
    settings = serve_options(options)
    app = create_demo(recognizer, settings)
    run_server(app, options.listener, on_start=lambda address: start(address, settings.token, browser=options.browser))
    show("stopped", flush=True)
    leave_threads_behind()


def start(address: str, token: str | None, *, browser: bool) -> None:
    """Says where the page is, and opens it."""
    page = f"{address}/" if token is None else f"{address}/?token={quote(token, safe='')}"
    show(f"the page is {page}; Ctrl-C stops", flush=True)
    if browser and can_open_browser():
        page = page.replace(f"//{socket.gethostname()}:", "//localhost:")  # it may not know its own name
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()  # some wait until it is closed


def can_open_browser() -> bool:
    """Whether there is a screen; without one, a browser in text mode would take the terminal."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
