"""`stvid export`: a trained model as a file that runs without stvid, compared with the model before it is kept."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path

from stvid.device import set_up_cpu
from stvid.export.checked_file import export_record, export_text, write_checked
from stvid.export.clip_form import clip_form
from stvid.export.int8 import MAX_LOSS, int8_text, write_int8
from stvid.export.metadata import metadata
from stvid.export.parity import Parity, check_parity
from stvid.export.stream_form import stream_form, stream_metadata
from stvid.export.stream_parity import check_stream_parity
from stvid.export.triton import MODEL, write_triton_model
from stvid.files import write_json
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import display_path
from stvid.terminal import show


def run(options: argparse.Namespace) -> None:
    set_up_cpu("cpu")
    trained = load_checkpoint(options.run, trust=options.trust)
    is_stream = options.stream or options.triton
    form = stream_form(trained) if is_stream else clip_form(trained)
    check = functools.partial(check_stream_parity if is_stream else check_parity, trained, form)
    notes = metadata(trained, stream=stream_metadata(form) if is_stream else None)

    def write(path: Path) -> Parity:
        return write_checked(form, path, notes, file_format=options.format, check=check)

    show("writing the file and comparing it with the model")
    out, int8 = Path(options.triton) / MODEL if options.triton else Path(options.out), None
    if options.triton:
        parity = write_triton_model(Path(options.triton), form, trained.class_names, write)
    elif options.int8:
        max_loss = MAX_LOSS if options.max_loss is None else options.max_loss
        parity, int8 = write_int8(trained, form, out, notes, max_loss=max_loss)
    else:
        parity = write(out)
    record = export_record(trained, form, parity, out, file_format=options.format)
    show(export_text(record))
    if int8 is not None:
        record["int8"] = dataclasses.asdict(int8)
        show(int8_text(int8))
    if options.json:
        write_json(options.json, record)
    show(f"\nwritten to {display_path(out.absolute())} ({record['bytes'] / 1e6:.1f} MB)")
