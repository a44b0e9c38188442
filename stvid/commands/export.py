"""`stvid export`: a trained model as a file that runs without stvid, compared with the model before it is kept."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from stvid.device import limit_cpu_threads
from stvid.export.checked_file import export_record, export_text, write_checked
from stvid.export.clip_form import clip_form
from stvid.export.metadata import metadata
from stvid.export.parity import check_parity
from stvid.files import write_json
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import display_path
from stvid.terminal import show


def run(options: argparse.Namespace) -> None:
    limit_cpu_threads("cpu")
    trained, out = load_checkpoint(options.run, trust=options.trust), Path(options.out)
    form = clip_form(trained)
    check = functools.partial(check_parity, trained, form)
    parity = write_checked(form, out, metadata(trained), file_format=options.format, check=check)
    record = export_record(trained, form, parity, out, file_format=options.format)
    show(export_text(record))
    if options.json:
        write_json(options.json, record)
    show(f"\nwritten to {display_path(out.absolute())} ({record['bytes'] / 1e6:.1f} MB)")
