"""What an exported file holds beside the model: class names, the clip's geometry, and which checkpoint it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping

from stvid.run.checkpoint import TrainedModel, checkpoint_sha256
from stvid.run.provenance import versions

FORMAT = 1  # raise it when older readers can no longer use the record
KEY = "stvid"  # of the only entry


def metadata(trained: TrainedModel, *, stream: Mapping | None = None) -> dict[str, str]:
    """The entry `stvid` of an exported file: one JSON object, in ASCII.

    Its keys: `format`; `form`, which is `clip` or `stream`; `class_names`, in the order of the outputs; `clip`, the
    arguments of a `ClipSpec`; `protocol`, the views of a held-out video; `temperature`, by which the file already
    divides the logits; `threshold`, or null; `versions` of the packages; `fingerprint`, the SHA-256 of the checkpoint's
    file; and for a stream `stream`.

    Args:
        trained: the model.
        stream: what a caller of a streaming form needs to know, plain data; None: the form takes whole clips.
    """
    record = {
        "format": FORMAT,
        "form": "clip" if stream is None else "stream",
        "class_names": list(trained.class_names),
        "clip": trained.clip.to_dict(),
        "protocol": dict(trained.protocol),
        "temperature": trained.temperature,
        "threshold": trained.threshold,
        "versions": versions(),
        "fingerprint": checkpoint_sha256(trained.path),
    }
    return {KEY: json.dumps(record if stream is None else record | {"stream": dict(stream)})}
