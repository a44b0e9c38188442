"""Explanations of a prediction: Grad-CAM heat maps, and the evidence of each frame by integrated gradients.

T frames   C channels   H, W height and width   F features of a frame   N images, one or two per frame   S steps
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.models.base import VideoModel
from stvid.preprocess import Preprocess
from stvid.run.checkpoint import TrainedModel

CHUNK_FRAMES = 16  # frames encoded at once, so that memory does not grow with the length of the clip
QUADRATURE_STEPS = 32  # points of Gauss-Legendre quadrature between baseline and clip
STEP_CHUNK = 8
MAX_EXTRA_TOKENS = 8  # tokens of a vision transformer without a position in the image: class, distillation, registers


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Explanation of one class for one clip.

    Attributes:
        heat_THW: float32 in [0, 1], Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), scaled so that the maximum of
            the clip is 1; all 0 if nothing supports the class, or if no layer of the network has spatial positions.
        evidence_T: contribution of each frame to the logit of the class, by integrated gradients (Sundararajan et al.
            2017, arXiv:1703.01365); None for models that do not encode frame by frame. See `frame_evidence`.
    """

    heat_THW: Tensor
    evidence_T: Tensor | None


def explain(trained: TrainedModel, clip_TCHW: Tensor, class_index: int) -> Explanation:
    """Explains the logit of one class for one clip. The model is not changed and stays on its device.

    Grad-CAM is `relu(sum_c a_c * A_c)`. A are the activations of the last layer with spatial positions (and, in a 3D
    network and for several frames, with temporal ones); a_c is the mean over all positions of the gradient of the logit
    with respect to channel c. An image network has separate weights a_c for each frame; if a frame consists of two
    images (`clip.input=rgb_diff`), their sums are added. In a vision transformer, A are the image tokens at the last
    layer where they still influence the output.

    Args:
        trained: the model.
        clip_TCHW: uint8 `T x clip.channels x H x W`, as returned by `stvid.preprocess.as_input`; T >= 1,
            without padding.
        class_index: index in `trained.class_names`.
    """
    model = trained.model
    device = next(model.parameters()).device
    preprocess, clip_TCHW = Preprocess(clip=trained.clip).to(device), clip_TCHW.to(device)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _eval_mode(model),
    ):
        if model.supports_feature_cache:
            heat_THW, evidence_T = _explain_frame_model(model, preprocess, clip_TCHW, class_index)
        else:
            heat_THW, evidence_T = _explain_volume_model(model, preprocess, clip_TCHW, class_index), None
    maximum = heat_THW.max()
    if maximum > 0:
        heat_THW = heat_THW / maximum
    return Explanation(
        heat_THW=heat_THW.float().clamp(0, 1).cpu(), evidence_T=None if evidence_T is None else evidence_T.cpu()
    )


def frame_evidence(
    classify: Callable[[Tensor], Tensor], features_TF: Tensor, class_index: int, *, steps: int = QUADRATURE_STEPS
) -> Tensor:
    """Contribution of each frame to the logit of a class, by integrated gradients over the features of the frames.

    `e_t = sum_f (x - b)_tf * integral over a in [0, 1] of d logit(b + a (x - b)) / d x_tf`, and the sum over the frames
    is `logit(x) - logit(b)`. The baseline b repeats the mean feature vector of the clip at every frame, like a still
    image. The evidence therefore shows which moments change the prediction. (With a baseline of zeros, most of the
    evidence would only show that there is an image at all.) If the clip has one frame or does not move, the evidence
    is 0.

    Args:
        classify: features `S x T x F` -> logits `S x K`.
        features_TF: features of the clip.
        class_index: index of the logit.
        steps: points of the Gauss-Legendre quadrature.

    Returns:
        Evidence `T`, in units of the logit.
    """
    baseline_F = features_TF.mean(dim=0)
    offset_TF = features_TF - baseline_F
    points, weights = (torch.from_numpy(x).to(features_TF) for x in np.polynomial.legendre.leggauss(steps))
    points_S, weights_S = (points + 1) / 2, weights / 2  # from [-1, 1] to [0, 1]
    gradient_TF = torch.zeros_like(features_TF)
    for point, weight in zip(points_S.split(STEP_CHUNK), weights_S.split(STEP_CHUNK), strict=True):
        interpolated_STF = baseline_F + point[:, None, None] * offset_TF
        gradient_TF += (_logit_gradient(classify, interpolated_STF, class_index) * weight[:, None, None]).sum(dim=0)
    return (gradient_TF * offset_TF).sum(dim=1)


def _logit_gradient(classify: Callable[[Tensor], Tensor], features_STF: Tensor, class_index: int) -> Tensor:
    """Gradient of a logit with respect to the features; without cuDNN, whose RNNs have no backward in eval mode."""
    features_STF = features_STF.detach().requires_grad_()
    with torch.backends.cudnn.flags(enabled=False):
        logits_S = classify(features_STF)[:, class_index]
        return torch.autograd.grad(logits_S.sum(), features_STF)[0]


def _explain_frame_model(
    model: VideoModel, preprocess: Preprocess, clip_TCHW: Tensor, class_index: int
) -> tuple[Tensor, Tensor]:
    """Heat map and evidence of a model that encodes frames and classifies their features.

    The chain rule limits memory to the activations of a few frames: first the gradient of the logit with respect to the
    features, then, chunk by chunk, from the features to the layer of the heat map.
    """
    chunks = torch.arange(len(clip_TCHW)).split(min(CHUNK_FRAMES, model.max_chunk or CHUNK_FRAMES))
    whole = preprocess(clip_TCHW[None]) if preprocess.normalize == "clip" else None
    size, images_per_frame = (clip_TCHW.shape[-2], clip_TCHW.shape[-1]), max(model.in_channels // 3, 1)

    def classify(features_BTF: Tensor) -> Tensor:
        return model.forward_head(model.aggregate(features_BTF))

    def encode(chunk: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = preprocess(clip_TCHW[None, chunk]) if whole is None else whole[:, :, chunk]
        with _record_outputs(model.backbone) as outputs:
            return model.encode(x.requires_grad_(torch.is_grad_enabled())), outputs

    only = encode(chunks[0]) if len(chunks) == 1 else None
    with torch.no_grad():
        features_TF = torch.cat([only[0].detach()] if only else [encode(chunk)[0] for chunk in chunks], dim=1)[0]
    feature_gradient_TF = _logit_gradient(classify, features_TF[None], class_index)[0]
    heat, layer = [], None
    for chunk in chunks:
        features_1TF, outputs = only or encode(chunk)
        if layer is None:
            layer = _last_spatial_layer(outputs, features_1TF, size, features_TF.shape[1] // images_per_frame)
            if layer is None:
                heat = [torch.zeros_like(clip_TCHW[:, 0], dtype=torch.float32)]
                break
        name, to_spatial = layer
        (gradient,) = torch.autograd.grad(features_1TF, outputs[name], grad_outputs=feature_gradient_TF[None, chunk])
        heat_Nhw = _gradient_weighted_sum(to_spatial(outputs[name].detach()), to_spatial(gradient))
        heat_Thw = heat_Nhw.unflatten(0, (len(chunk), -1)).sum(dim=1).relu()
        heat.append(F.interpolate(heat_Thw[:, None], size=size, mode="bilinear")[:, 0])
    return torch.cat(heat), frame_evidence(classify, features_TF, class_index)


def _explain_volume_model(model: VideoModel, preprocess: Preprocess, clip_TCHW: Tensor, class_index: int) -> Tensor:
    """Heat map of a 3D network."""
    with _record_outputs(model.backbone) as outputs:
        logit = model(preprocess(clip_TCHW[None]).requires_grad_())[0, class_index]
    spatial = [x for x in outputs.values() if x.ndim == 5 and math.prod(x.shape[3:]) > 1]
    temporal = [x for x in spatial if x.shape[2] > 1]
    if not spatial:
        return torch.zeros_like(clip_TCHW[:, 0], dtype=torch.float32)
    activations = (temporal or spatial)[-1]
    (gradient,) = torch.autograd.grad(logit, activations)
    heat = _gradient_weighted_sum(activations.detach(), gradient).relu()
    return F.interpolate(heat[:, None], size=(len(clip_TCHW), *clip_TCHW.shape[-2:]), mode="trilinear")[0, 0]


def _gradient_weighted_sum(activations: Tensor, gradient: Tensor) -> Tensor:
    """`N x C x ...` each -> `N x ...`: sum over the channels, weighted by the mean of their gradient."""
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    return (weights * activations).sum(dim=1)


ToSpatial = Callable[[Tensor], Tensor]


def _last_spatial_layer(
    outputs: dict[str, Tensor], features_1TF: Tensor, size: tuple[int, int], width: int
) -> tuple[str, ToSpatial] | None:
    """The last layer with spatial positions that influence the features, and the conversion to `N x C x h x w`.

    A gradient tests the influence: after the last attention of a vision transformer, only the class token has one.
    """
    probe = torch.arange(features_1TF.numel(), device=features_1TF.device).cos().view_as(features_1TF)
    for name, x in reversed(outputs.items()):
        to_spatial = _spatial_layout(tuple(x.shape), size, width)
        if to_spatial is None or len(x) % features_1TF.shape[1]:
            continue
        (gradient,) = torch.autograd.grad(features_1TF, x, probe, retain_graph=True, allow_unused=True)
        if gradient is not None and to_spatial(gradient).any():
            return name, to_spatial
    return None


def _spatial_layout(shape: tuple[int, ...], size: tuple[int, int], width: int) -> ToSpatial | None:
    """Converts the output of a layer to `N x C x h x w`; None if it has no spatial positions.

    Args:
        shape: of the output: `N x C x h x w`, `N x h x w x C`, or tokens `N x (extra + h * w) x C`.
        size: H and W of the image.
        width: C of tokens; other sequences are not image tokens.
    """

    def is_grid(height: int, width: int) -> bool:
        return height * width > 1 and height <= size[0] and abs(width - size[1] * height / size[0]) < 1.5

    if len(shape) == 4 and is_grid(*shape[2:]):
        return lambda x: x
    if len(shape) == 4 and is_grid(*shape[1:3]):
        return lambda x: x.permute(0, 3, 1, 2)
    if len(shape) != 3 or shape[2] != width:
        return None
    for extra in range(min(MAX_EXTRA_TOKENS, shape[1] - 1) + 1):
        tokens = shape[1] - extra
        height = max(round(math.sqrt(tokens * size[0] / size[1])), 1)
        if tokens % height == 0 and is_grid(height, tokens // height):
            return partial(_tokens_to_grid, extra=extra, height=height)
    return None


@contextlib.contextmanager
def _record_outputs(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of all modules with parameters: name -> output, in the order of execution."""
    outputs: dict[str, Tensor] = {}
    handles = []

    def record(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, arguments: tuple, result: object) -> None:
            outputs.pop(name, None)
            if isinstance(result, Tensor) and result.requires_grad:
                outputs[name] = result

        handles.append(module.register_forward_hook(hook))

    for name, module in network.named_modules():
        if next(module.parameters(), None) is not None:
            record(name, module)
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is back in its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _tokens_to_grid(x: Tensor, *, extra: int, height: int) -> Tensor:
    return x[:, extra:].transpose(1, 2).unflatten(2, (height, -1))
