"""Bars on a real terminal (a pseudo-terminal of 80 columns), and their absence elsewhere."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

pty = pytest.importorskip("pty")

PATH = "/a/path/that/is/longer/than/the/terminal/is/wide" + "/and/longer" * 5 + "/video.mp4"
PROGRAM = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
from stvid import progress
progress.REDRAW_SECONDS = 0.0
logging.info("before")
with progress.Bar("epoch 1/2", total=6, unit="batches") as bar:
    for i in range(6):
        if i == 3:
            logging.info("logged {PATH} [bold]")
            print("printed")
            print("warned", file=sys.stderr)
        bar.advance(note=f"loss {{i}}")
    bar.note("validating")
logging.info("after")
print(sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
"""
LINES = ["before", f"logged {PATH} [bold]", "printed", "warned", "after", "True True"]


def on_a_terminal(code: str, **streams) -> str:
    """What the program wrote to a terminal that all streams but those given lead to."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams},
        env={**environment, "TERM": "xterm"},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that are left to see: carriage returns, cursor up and clearing a line are carried out."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[\d;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_lines_stand_above_the_bar_in_one_piece_and_the_bar_leaves_nothing():
    written = on_a_terminal(PROGRAM)
    assert "loss 2" in written
    assert "validating" in written
    assert [line for line in screen(written) if line] == LINES


def test_the_bar_is_drawn_in_one_line_under_what_was_written():
    written = on_a_terminal(PROGRAM).partition("validating")[0]
    assert [line[:9] for line in screen(written) if line][-2:] == ["warned", "epoch 1/2"]


def test_the_cursor_stays_visible():
    displayed = re.findall(r"\x1b\[\?25[lh]", on_a_terminal(PROGRAM).partition("loss 2")[0])
    assert displayed[-1] == "\x1b[?25h"


def test_what_goes_to_a_file_goes_there_while_the_bar_is_on_the_terminal(tmp_path):
    with (tmp_path / "out").open("w") as out:
        written = on_a_terminal(PROGRAM, stdout=out)
    assert (tmp_path / "out").read_text().splitlines() == [line for line in LINES if line != "warned"]
    assert "epoch 1/2" in written
    assert [line for line in screen(written) if line] == ["warned"]


def test_without_a_terminal_there_is_no_bar_and_no_control_character():
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [line for line in LINES if line != "warned"]
    assert done.stderr == "warned\n"
