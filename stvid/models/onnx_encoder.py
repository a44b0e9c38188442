"""A frozen image network run by onnxruntime, which computes it about twice as fast as torch on a CPU.

N images   F features of an image (`num_features`)   H, W height and width
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stvid.terminal import silent

log = logging.getLogger(__name__)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `export`
OPSET = 18  # what torch's exporter writes without converting
ERRORS = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
NUM_COMPARED = 3  # images on which the features are compared with those of torch
MAX_DIFFERENCE = 1e-3  # of these features, relative to the largest one; rounding gives about 1e-5
MAX_BYTES = 2**31 - 2**24  # protobuf's limit for a file, less what is not weights


def onnx_runtime(encoder: nn.Module, *, precision: str, device: torch.device) -> str | None:
    """The name and version of onnxruntime if it should compute an encoder, else None.

    It is used on a CPU in float32, if the extra `export` is installed and the weights fit into one ONNX file. bfloat16
    stays with torch, which uses instructions for it where they exist.

    Args:
        encoder: an image network.
        precision: Lightning's name, such as `32-true`.
        device: of the encoder.
    """
    if device.type != "cpu" or precision != "32-true":
        return None
    if sum(value.numel() * value.element_size() for value in encoder.state_dict().values()) > MAX_BYTES:
        return None
    try:
        versions = [importlib.metadata.version(name) for name in PACKAGES]
    except importlib.metadata.PackageNotFoundError:
        log.info("a CPU computes features faster with onnxruntime: pip install 'stvid[export]'")
        return None
    return f"onnxruntime {versions[-1]}"


class NotConverted(Exception):
    """onnxruntime cannot compute an encoder; the message says why."""


class OnnxEncoder(nn.Module):
    """An encoder, converted at its first images. If onnxruntime cannot compute it, torch does, and a log line says so.

    Args:
        encoder: `N x 3 x H x W` -> `N x F`, in evaluation mode.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.num_features = encoder, encoder.num_features
        self.sessions: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x 3 x H x W` -> `N x F`, float32."""
        size = images_NCHW.shape[-2:]
        if size not in self.sessions:
            try:
                self.sessions[size] = _open_session(self.encoder, images_NCHW)
            except NotConverted as error:
                log.info("torch computes the encoder, not onnxruntime: %s", error)
                self.sessions[size] = self.encoder
        return self.sessions[size](images_NCHW)


def _open_session(encoder: nn.Module, images_NCHW: Tensor) -> Callable[[Tensor], Tensor]:
    """The encoder as a function that onnxruntime computes, after a comparison with torch on the first images.

    Raises:
        NotConverted: a package cannot be imported, no operator of ONNX computes a part of the encoder, onnxruntime
            cannot load or run it, or its features are others than those of torch.
    """
    try:
        import onnxruntime  # here: an import of stvid must not need it
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise NotConverted(f"it cannot be imported ({_first_line(error)})") from error
    example = torch.zeros(2, *images_NCHW.shape[1:])
    try:
        with torch.no_grad(), silent():
            exported = torch.onnx.export(
                encoder,
                (example,),
                dynamic_shapes=({0: torch.export.Dim("images")},),
                opset_version=OPSET,
                verbose=False,
            )
    except (ImportError, torch.onnx.OnnxExporterError) as error:
        raise NotConverted(f"the encoder cannot be converted ({_first_line(error)})") from error
    assert exported is not None  # None only for torch's older exporter
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it takes cores from the readers
    options.log_severity_level = 4  # errors are raised too
    file = exported.model_proto.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (name,) = (value.name for value in session.get_inputs())

        def run(images_NCHW: Tensor) -> Tensor:
            (features_NF,) = session.run(None, {name: images_NCHW.contiguous().numpy()})
            return torch.from_numpy(features_NF)

        images = images_NCHW[:NUM_COMPARED]
        expected_NF, found_NF = encoder(images), run(images)
    except tuple(getattr(state, name) for name in ERRORS) as error:
        raise NotConverted(f"it cannot compute the converted encoder ({_first_line(error)})") from error
    largest = expected_NF.abs().max()
    if found_NF.shape != expected_NF.shape or not (found_NF - expected_NF).abs().max() <= MAX_DIFFERENCE * largest:
        raise NotConverted("its features are others than those of torch")
    return run


def _first_line(error: BaseException) -> str:
    """Kind and first line of the error that an exporter's report of many lines is about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
