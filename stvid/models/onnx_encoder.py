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


class OnnxEncoder(nn.Module):
    """An encoder, converted at its first images. If it cannot be converted, torch computes it, and a log line says so.

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
            except torch.onnx.OnnxExporterError as error:
                log.info("torch computes the encoder: it cannot be converted for onnxruntime: %s", error)
                self.sessions[size] = self.encoder
        return self.sessions[size](images_NCHW)


def _open_session(encoder: nn.Module, images_NCHW: Tensor) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # here: an import of stvid must not need it

    example = torch.zeros(2, *images_NCHW.shape[1:])
    with torch.no_grad(), silent():
        exported = torch.onnx.export(
            encoder,
            (example,),
            dynamic_shapes=({0: torch.export.Dim("images")},),
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None  # None only for torch's older exporter
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it takes cores from the readers
    options.log_severity_level = 4  # errors are raised too
    file = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())

    def run(images_NCHW: Tensor) -> Tensor:
        (features_NF,) = session.run(None, {name: images_NCHW.contiguous().numpy()})
        return torch.from_numpy(features_NF)

    return run
