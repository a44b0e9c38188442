"""An ONNX clip form whose convolutions and matrix products compute with 8-bit integers.

Static quantisation by onnxruntime: weights have one scale per output channel. Activations have one scale per tensor,
from its least and greatest value on training clips (Jacob et al. 2018, arXiv:1712.05877). The rest stays in float32;
inputs and outputs are those of the clip form.

N clips   T frames   K classes
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stvid.data.dataset import Views
from stvid.data.manifest import Manifest
from stvid.errors import InputError, VideoError
from stvid.export.clips import clip_inputs, read_clips
from stvid.export.form import Form
from stvid.export.onnx_file import open_onnx, write_onnx
from stvid.export.parity import TIMED_FRAMES, Exported, Parity, check_parity, milliseconds, original
from stvid.files import replacing
from stvid.progress import Bar
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder
from stvid.video.probe import probe

if TYPE_CHECKING:
    from onnx import GraphProto

MAX_LOSS = 0.01  # of accuracy, unless the user allows another
ROUNDING = 1e-9  # 0.5 - 0.49 is above 0.01
MAX_CLIPS, MAX_BYTES = 100, 2**28  # for calibration
LAYERS = ("Conv", "Gemm", "MatMul")
# Operators between convolutions, whose inputs and outputs then stay integers. Not in transformers: there, Add sums what
# all layers wrote, with a few channels hundreds of times greater than the others.
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "MaxPool", "Relu")


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What quantisation costs and gains. Pairs hold the value of the float file first, that of the int8 file second.

    Attributes:
        num_clips: of the train split, for calibration.
        num_videos: of the val split, for the accuracies.
        accuracy: share of these videos that is classified correctly, in [0, 1], with the views of the evaluation.
        num_bytes: sizes of the files.
        timed_frames: T of the clips below.
        milliseconds: per clip, with onnxruntime on the CPU, one clip at a time.
    """

    num_clips: int
    num_videos: int
    accuracy: tuple[float, float]
    num_bytes: tuple[int, int]
    timed_frames: int
    milliseconds: tuple[float, float]


def write_int8(
    trained: TrainedModel, form: Form, path: Path, metadata: Mapping[str, str], *, max_loss: float
) -> tuple[Parity, Int8]:
    """Writes a clip form in int8; returns the comparison of its float file with the model, and of both files.

    Args:
        trained: the model; the videos of its run must be there.
        form: its `clip_form`.
        path: the file. One that exists is not replaced.
        metadata: see `stvid.export.metadata`.
        max_loss: of accuracy on the val split, in [0, 1]; what loses more is refused.

    Raises:
        InputError: the float file differs from the model, see `check_parity`; no train or val video can be read; the
            accuracy falls by more than `max_loss`. Then there is no file.
    """
    clips_NTCHW = _calibration_clips(trained)
    with tempfile.TemporaryDirectory() as folder:
        float_file, int8_file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        write_onnx(form, float_file, metadata)
        parity = check_parity(trained, form, open_onnx(float_file))
        quantize(float_file, int8_file, (clip_inputs(form, clip_TCHW[None]) for clip_TCHW in clips_NTCHW))
        files = open_onnx(float_file), open_onnx(int8_file)
        num_videos, accuracy = _accuracies(trained, form, files)
        if accuracy[0] - accuracy[1] > max_loss + ROUNDING:
            raise InputError(
                f"the int8 file classifies {accuracy[1]:.1%} of {num_videos} val videos correctly, the float file "
                f"{accuracy[0]:.1%}; --max-loss allows a loss of {max_loss:.1%}. No file was written. Allow more, or "
                "export without --int8"
            )
        inputs = clip_inputs(form, clips_NTCHW[:1])
        model_ms, float_ms, int8_ms = milliseconds(
            lambda: original(trained, clips_NTCHW[:1]), lambda: files[0](inputs), lambda: files[1](inputs)
        )
        with replacing(path, overwrite=False) as partial:
            shutil.copyfile(int8_file, partial)
        # the times of one measurement, so that the report has one for the float file
        return replace(parity, milliseconds_model=model_ms, milliseconds_file=float_ms), Int8(
            num_clips=len(clips_NTCHW),
            num_videos=num_videos,
            accuracy=accuracy,
            num_bytes=(float_file.stat().st_size, int8_file.stat().st_size),
            timed_frames=inputs[0].shape[1],
            milliseconds=(float_ms, int8_ms),
        )


def int8_text(int8: Int8) -> str:
    """The same for the terminal."""
    (size, small_size), (accuracy, int8_accuracy) = int8.num_bytes, int8.accuracy
    speed, int8_speed = int8.milliseconds
    not_faster = "" if int8_speed < speed else ": not faster on this CPU"
    return f"""int8      calibrated on {int8.num_clips} clips of the run's train split
          {int8_accuracy:.1%} of {int8.num_videos} val videos correct, {accuracy:.1%} with the float file
          {small_size / 1e6:.1f} MB instead of {size / 1e6:.1f} MB
          {int8_speed:.1f} ms a clip of {int8.timed_frames} frames instead of {speed:.1f} ms{not_faster}"""


def _calibration_clips(trained: TrainedModel) -> Tensor:
    num_frames = trained.clip.num_frames or TIMED_FRAMES
    height, width = trained.clip.size
    num_bytes = num_frames * height * width * 3 * (1 if trained.clip.input == "rgb" else 2)
    number = min(max(MAX_BYTES // num_bytes, 1), MAX_CLIPS)
    clips_NTCHW = read_clips(trained, "train", number=number, num_frames=num_frames)
    if clips_NTCHW is None:
        raise InputError(
            f"--int8 needs clips of the run's train split to calibrate with, and {trained.folder} lists no train video "
            "that can be read. Put the videos back to where manifest.csv says they are, or export without --int8"
        )
    return clips_NTCHW


def quantize(source: Path, target: Path, calibration: Iterator[Sequence[Tensor]]) -> None:
    """Writes the int8 form of an ONNX file, with its metadata.

    Args:
        source: the float file.
        target: is replaced.
        calibration: inputs of the file, one clip at a time.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Clips(CalibrationDataReader):
        def get_next(self) -> dict | None:
            inputs = next(calibration, None)
            return None if inputs is None else {n: x.numpy() for n, x in zip(names, inputs, strict=True)}

    with tempfile.TemporaryDirectory() as folder, _silent():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared)  # shapes; batch norms are folded into the convolutions before them
        graph = onnx.load(prepared).graph
        names = [value.name for value in graph.input]
        is_transformer = any(node.op_type == "LayerNormalization" for node in graph.node)
        quantize_static(
            prepared,
            target,
            Clips(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LAYERS if is_transformer else (*LAYERS, *BETWEEN),
            nodes_to_exclude=_float_nodes(graph),
            per_channel=True,
            # 7 of the 8 bits of a weight: x86 CPUs without VNNI add pairs of products in 16 bits, and would overflow
            reduce_range=True,
            activation_type=QuantType.QUInt8,  # onnxruntime's fast kernels, unlike int8
        )
        model = onnx.load(target)
        onnx.helper.set_model_props(model, {p.key: p.value for p in onnx.load(source).metadata_props})
        onnx.save(model, target)


def _float_nodes(graph: GraphProto) -> list[str]:
    """Nodes that stay in float: preprocessing, the first layer, and products of two activations.

    The first layer is the one that loses most by it, and with its 3 channels onnxruntime's int8 kernel for 3D
    convolutions is many times slower than the one for float32.
    """
    first = next((i for i, node in enumerate(graph.node) if node.op_type in LAYERS), len(graph.node))
    constants = {value.name for value in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and constants.isdisjoint(node.input)]
    return [node.name for node in (*graph.node[: first + 1], *products)]


def _accuracies(trained: TrainedModel, form: Form, files: Sequence[Exported]) -> tuple[int, tuple[float, float]]:
    """Number of val videos that can be read, and the share that each of two files classifies correctly."""
    manifest = RunFolder(trained.folder).manifest_csv
    names = trained.class_names
    items = Manifest.read_csv(manifest, class_names=names).with_paths(trained.moved).select("val")
    views_of = {key: trained.protocol[key] for key in ("num_clips", "num_crops")}
    correct, num_videos = [0, 0], 0
    with Bar("comparing on val videos", total=len(items), unit="videos") as bar:
        for item in items:
            bar.advance()
            try:
                info = probe(item.path, decode_all=False, max_pixels=trained.max_pixels)
                views = Views(items=[item], infos=[info], class_names=names, clip=trained.clip, **views_of)
                inputs = [clip_inputs(form, pictures_TCHW[None]) for pictures_TCHW in views.pictures(0)]
            except VideoError:
                continue
            num_videos += 1
            for i, file in enumerate(files):
                mean_K = torch.cat([file(view)[0] for view in inputs]).mean(dim=0)
                correct[i] += names[int(mean_K.argmax())] == item.label
    if not num_videos:
        raise InputError(f"--int8 needs the run's val videos, and none of those that {manifest} lists can be read")
    return num_videos, (correct[0] / num_videos, correct[1] / num_videos)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the notes of onnxruntime's quantisation, which recommend the preparation that was just done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
