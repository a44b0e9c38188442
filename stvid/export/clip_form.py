"""The form of a trained model that takes whole clips: uint8 frames in, class probabilities out.

B batch   T frames   C channels   H, W height and width   K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stvid.clip import ClipSpec
from stvid.export.form import Form, TensorSpec
from stvid.models.cnn_lstm import CNNLSTM
from stvid.preprocess import Preprocess, with_differences
from stvid.run.checkpoint import TrainedModel

# T of the clips that a model is traced with, where T may differ: cnn_lstm has no stride in time; with 33 frames the
# last volume of every 3D network here has more than one step, which a tracer would take for a constant
TRACED_FRAMES, TRACED_FRAMES_3D = 3, 33


def clip_form(trained: TrainedModel) -> Form:
    """The form of a model for whole clips, with preprocessing, softmax and temperature inside.

    Inputs: `frames`, uint8 `B x T x H x W x 3`, RGB, cropped and resized to `clip.size`; for difference images also
    `earlier`, the frames `clip.diff_seconds` before these, of the same shape; and where clips of different lengths can
    be in one batch `lengths`, int64 `B`, the number of valid frames of each clip, 1 to T. The frames after them have no
    influence. Output: `probabilities`, float32 `B x K`.

    T is any number for a cnn_lstm, which also takes `lengths`, and for a 3D network whose clips have different lengths
    (`clip.num_frames=null`, `clip.short=pad`); of these conv3d and eco take `lengths`, the others clips of one length
    per batch. Otherwise T is `clip.num_frames`.

    Args:
        trained: the model; the form shares its weights.
    """
    clip = trained.clip
    is_recurrent = isinstance(trained.model, CNNLSTM)
    any_length = is_recurrent or clip.num_frames is None or clip.short == "pad"
    takes_lengths = any_length and trained.model.exports_lengths
    fixed = None if any_length else clip.num_frames
    num_frames = fixed or (TRACED_FRAMES if is_recurrent else TRACED_FRAMES_3D)
    frames = TensorSpec("frames", torch.uint8, ("batch", fixed or "time", *clip.size, 3))
    inputs = [frames]
    if clip.input != "rgb":
        inputs.append(TensorSpec("earlier", torch.uint8, frames.shape))
    if takes_lengths:
        inputs.append(TensorSpec("lengths", torch.int64, ("batch",)))
    pictures = torch.randint(0, 256, (2, num_frames, *clip.size, 3), generator=torch.Generator().manual_seed(0))
    example = {
        "frames": pictures.to(torch.uint8),
        "earlier": pictures.flip(1).to(torch.uint8),
        "lengths": torch.tensor([num_frames, num_frames - 1]),
    }
    return Form(
        module=ClipClassifier(trained, inputs=[spec.name for spec in inputs]).eval(),
        inputs=tuple(inputs),
        outputs=(TensorSpec("probabilities", torch.float32, ("batch", len(trained.class_names))),),
        example=tuple(example[spec.name] for spec in inputs),
    )


class ClipClassifier(nn.Module):
    """A trained model from uint8 frames to probabilities.

    Args:
        trained: the model.
        inputs: names of the inputs, in the order of `forward`'s arguments.
    """

    def __init__(self, trained: TrainedModel, *, inputs: list[str]):
        super().__init__()
        self.model, self.preprocess = trained.model, Preprocess(clip=trained.clip)
        self.clip: ClipSpec = trained.clip
        self.temperature, self.inputs = trained.temperature, inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `clip_form`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        lengths_B = given.get("lengths")
        clips_BTCHW = given["frames"].permute(0, 1, 4, 2, 3)
        if "earlier" in given:
            clips_BTCHW = with_differences(given["earlier"].permute(0, 1, 4, 2, 3), clips_BTCHW, self.clip)
        # not `run_model`: an exported model preprocesses all frames at once
        logits_BK = self.model(self.preprocess(clips_BTCHW, lengths_B), lengths_B)
        return (logits_BK.float() / self.temperature).softmax(dim=1)
