"""The streaming form of a model: the next frames and the state in, probabilities and the new state out.

All states are 0 before the first frame, and their first axis is the batch, so that a server can keep them for many
streams and put streams that began at different times into one batch.

B batch   T frames   C channels   H, W height and width   K classes   F features   D size of a pooled state
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.export.form import Form, TensorSpec
from stvid.models.branches import BranchState, HasBranch
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.continual import ContinualModel
from stvid.models.continual_chunks import ContinualChunks
from stvid.models.recurrent import Pooled
from stvid.preprocess import Preprocess, with_differences
from stvid.run.checkpoint import TrainedModel

RECURRENT_STATES = ("hidden", "cell")  # a GRU has only the first
COUNT = "count"  # the state with the number of chunks so far
# before the name of a state: the output with its next value. A prefix keeps the alphabetical order, by which Triton
# (25.12) assigns outputs to states: issue 8586 of triton-inference-server/server
NEW = "new_"
States = dict[str, Tensor]


def stream_form(trained: TrainedModel) -> Form:
    """The model of a run as one step of a stream, with its state as inputs and outputs.

    Inputs:

    - `frame`, uint8 `B x H x W x 3` (cnn_lstm), or `frames`, uint8 `B x T x H x W x 3` (3D networks; T is the period of
      the network): the next frames that the clip takes of a stream, as its `frame_stride` or `fps` says; RGB, cropped
      and resized to `clip.size`.
    - `earlier`, of the same shape, with difference images only: for each of them the frame `clip.diff_seconds` before;
      at the start, the first frame.
    - the states, 0 before the first frame.

    Outputs:

    - `probabilities`, float32 `B x K`: what `CNNLSTM.stream_step` or `ContinualModel.stream_step` answers, the latter
      for the last of these frames that brings an answer.
    - `valid`, bool `B x 1`, 3D networks only: whether there is an answer yet. Before, the probabilities are 0.
    - for each state its value for the next call, named `new_` and the state's name.

    Raises:
        InputError: a model that cannot read a stream.
    """
    reason = _why_not(trained)
    if reason is not None:
        raise InputError(f"{trained.path} has no streaming form: {reason}")
    clip = trained.clip
    step: CarriedStateStep | ContinualStep
    if isinstance(trained.model, ContinualModel):
        step = ContinualStep(trained.model, num_frames=clip.num_frames, size=clip.size)
        pixels = TensorSpec("frames", torch.uint8, ("batch", step.chunks.period, *clip.size, 3))
    else:
        assert isinstance(trained.model, CNNLSTM)  # see `_why_not`
        step = CarriedStateStep(trained.model)
        pixels = TensorSpec("frame", torch.uint8, ("batch", *clip.size, 3))
    earlier = () if clip.input == "rgb" else (replace(pixels, name="earlier"),)
    inputs = (pixels, *earlier, *step.states)
    probabilities = TensorSpec("probabilities", torch.float32, ("batch", len(trained.class_names)))
    valid = (TensorSpec("valid", torch.bool, ("batch", 1)),) if isinstance(step, ContinualStep) else ()
    new = (replace(state, name=f"{NEW}{state.name}") for state in step.states)
    return Form(
        module=StreamStep(trained, step).eval(),
        inputs=inputs,
        outputs=(probabilities, *valid, *new),
        example=tuple(spec.zeros(batch=2) for spec in inputs),
    )


def stream_states(form: Form) -> dict[str, str]:
    """Name of each state of a streaming form -> name of the output that holds its next value."""
    outputs = [spec.name for spec in form.outputs]
    return {spec.name: NEW + spec.name for spec in form.inputs if NEW + spec.name in outputs}


def stream_metadata(form: Form) -> dict:
    """What a caller of a streaming form needs to know, as plain data.

    `period`: frames of a call. `first`: frames until the first answer, with that one. `states`: see `stream_states`.
    """
    step: Any = form.module.step
    return {"period": step.period, "first": step.first, "states": stream_states(form)}


class StreamStep(nn.Module):
    """Pixels and states in one list, as a file takes them: see `stream_form`.

    Args:
        trained: the model.
        step: its `CarriedStateStep` or `ContinualStep`.
    """

    def __init__(self, trained: TrainedModel, step: CarriedStateStep | ContinualStep):
        super().__init__()
        self.preprocess, self.step = Preprocess(clip=trained.clip), step
        self.clip, self.temperature = trained.clip, trained.temperature

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `stream_form`."""
        names = [state.name for state in self.step.states]
        pixels = [x if x.ndim == 5 else x[:, None] for x in inputs[: len(inputs) - len(names)]]
        states = dict(zip(names, inputs[len(pixels) :], strict=True))
        pictures = [x_BTHWC.permute(0, 1, 4, 2, 3) for x_BTHWC in pixels]
        clips_BTCHW = pictures[0] if len(pictures) == 1 else with_differences(pictures[1], pictures[0], self.clip)
        logits_BK, valid_B1, new = self.step(self.preprocess(clips_BTCHW), states)
        probabilities_BK = (logits_BK / self.temperature).softmax(dim=1)
        answer = (probabilities_BK,) if valid_B1 is None else (torch.where(valid_B1, probabilities_BK, 0.0), valid_B1)
        return *answer, *(new[name] for name in names)


class CarriedStateStep(nn.Module):
    """One frame of a cnn_lstm: `CNNLSTM.stream_step` with a state that begins with 0.

    Attributes:
        period, first: 1, see `ContinualStep`.
        states: of each branch `hidden` and, of an LSTM, `cell`, `B x layers x D`; of the pooling over time what
            `Pooled` holds: `vector` `B x D`, `weight` and `score` `B x 1`; of them only those that the pooling needs.
            The names of the second branch begin with `branch2_`, and so on.
    """

    period, first = 1, 1

    def __init__(self, model: CNNLSTM):
        super().__init__()
        self.model = model
        shapes: dict[str, tuple[int, ...]] = {}
        for prefix, branch in self._branches():
            if branch.recurrent is not None:
                layers = branch.recurrent.layers
                shapes[f"{prefix}hidden"] = (layers.num_layers, layers.hidden_size)
                if isinstance(layers, nn.LSTM):
                    shapes[f"{prefix}cell"] = shapes[f"{prefix}hidden"]
            if branch.pooling.kind != "last":
                shapes |= {f"{prefix}vector": (branch.pooling.num_features,), f"{prefix}weight": (1,)}
            if branch.pooling.kind == "attention":
                shapes[f"{prefix}score"] = (1,)
        self.states = tuple(TensorSpec(name, torch.float32, ("batch", *shape)) for name, shape in shapes.items())

    def forward(self, clips_BCTHW: Tensor, states: States) -> tuple[Tensor, None, States]:
        """Clips of one frame -> logits `B x K`, no flag (every frame has an answer), and the new states."""
        before = tuple(_branch_state(branch, states, prefix) for prefix, branch in self._branches())
        # `contiguous`: for channels-last images, torch.export would keep whether the batch of the example is 1
        logits_BK, after = self.model.stream_step(clips_BCTHW[:, :, 0].contiguous(), before)
        new: dict[str, Tensor] = {}
        for (prefix, _), state in zip(self._branches(), after, strict=True):
            new |= {f"{prefix}{name}": value for name, value in _named_tensors(state).items()}
        return logits_BK, None, {spec.name: new[spec.name] for spec in self.states}

    def _branches(self) -> list[tuple[str, HasBranch]]:
        return [(f"branch{i + 1}_" if i else "", branch) for i, branch in enumerate(self.model.branches)]


def _branch_state(branch: HasBranch, states: States, prefix: str) -> BranchState:
    """The state of a branch from tensors by name."""
    # layers first, as torch has them; not by `transpose`, with which torch.export would refuse a batch of 1
    names = [prefix + name for name in RECURRENT_STATES if prefix + name in states]
    given = tuple(torch.stack(states[name].unbind(1)) for name in names)
    recurrent = None if not given else given if len(given) > 1 else given[0]
    if f"{prefix}weight" not in states:
        return BranchState(recurrent, None)
    # a weight of 0 means: no step so far, so that the next one replaces the state
    vector_BD, weight_B1 = states[f"{prefix}vector"], states[f"{prefix}weight"]
    score_B1 = states.get(f"{prefix}score", torch.ones_like(weight_B1)).masked_fill(weight_B1 == 0, -torch.inf)
    if branch.pooling.kind == "max":
        vector_BD = vector_BD.masked_fill(weight_B1 == 0, -torch.inf)
    return BranchState(recurrent, Pooled(vector_BD, weight_B1, score_B1))


def _named_tensors(state: BranchState) -> dict[str, Tensor]:
    """What `_branch_state` takes; also what the pooling does not need."""
    after: Any = state.recurrent if isinstance(state.recurrent, tuple) else [state.recurrent]
    pairs = zip(RECURRENT_STATES, after, strict=False)
    new = {name: torch.stack(x.unbind(0), 1) for name, x in pairs if x is not None}
    assert state.pooled is not None
    vector_BD, weight_B1, score_B1 = state.pooled
    return {**new, "vector": vector_BD, "weight": weight_B1, "score": score_B1}


class ContinualStep(nn.Module):
    """The next frames of a continual 3D network, see `ContinualChunks`.

    Attributes:
        period: frames of a call.
        first: frames until the first answer.
        states: those of `ContinualChunks`, and int64 `count`, `B x 1`: chunks so far.
    """

    def __init__(self, model: ContinualModel, *, num_frames: int | None, size: tuple[int, int]):
        super().__init__()
        self.chunks, self.head = ContinualChunks(model, num_frames=num_frames, size=size), model.head
        self.period, self.first = self.chunks.period, self.chunks.first
        shapes = self.chunks.states.items()
        steps = (TensorSpec(name, torch.float32, ("batch", *shape)) for name, shape in shapes)
        self.states = (TensorSpec(COUNT, torch.int64, ("batch", 1)), *steps)

    def forward(self, clips_BCTHW: Tensor, states: States) -> tuple[Tensor, Tensor, States]:
        """`period` frames -> logits `B x K`, whether they are an answer `B x 1`, and the new states."""
        features_BF, valid_B1, new = self.chunks(clips_BCTHW, states[COUNT], states)
        return self.head(features_BF), valid_B1, {**new, COUNT: states[COUNT] + 1}


def _why_not(trained: TrainedModel) -> str | None:
    """Why a model has no streaming form, and what to do; None: it has one."""
    model, clip = trained.model, trained.clip
    if not isinstance(model, CNNLSTM | ContinualModel):
        return (
            f"{type(model).__name__} has no step for one frame whose state is known; use cnn_lstm or a 3D network of "
            "stvid, or export the clip form"
        )
    if not model.supports_streaming:
        return (
            "the model is bidirectional, so it needs the end of a video before its first answer; train with "
            "model.bidirectional=false, or export the clip form"
        )
    if clip.normalize == "clip":
        return (
            "clip.normalize=clip scales pixels by the mean of a whole clip, which is not known while it is read; train "
            "with clip.normalize=frame or fixed, or export the clip form"
        )
    return None
