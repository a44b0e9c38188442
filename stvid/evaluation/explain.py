"""What in a clip speaks for a class: where a model looked, and which frames counted.

T frames   C channels   H, W height and width   F features of a frame   N images, one or two a frame   S steps
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.models.base import VideoModel
from stvid.preprocess import Preprocess
from stvid.run.checkpoint import TrainedModel

FRAMES = 16  # encoded at once; memory does not grow with longer clips
STEPS = 32  # points of Gauss-Legendre quadrature between baseline and clip
STEPS_AT_ONCE = 8
MOST_EXTRA = 8  # tokens of a vision transformer that are no part of the picture: class, distillation, registers


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What speaks for a class in one clip.

    Attributes:
        heat_THW: float32 in [0, 1], where the model looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), the
            greatest value of the clip being 1; all 0 where nothing speaks for the class, or where the network has no
            layer that keeps the places of a picture.
        evidence_T: what each frame adds to the class's logit, by integrated gradients (Sundararajan et al. 2017,
            arXiv:1703.01365); None for models that do not read frame by frame. See `frame_evidence`.
    """

    heat_THW: Tensor
    evidence_T: Tensor | None


def explain(trained: TrainedModel, clip_TCHW: Tensor, class_index: int) -> Explanation:
    """Explains one class's logit for one clip. The model stays as it is, on the device where it is.

    Grad-CAM: `relu(sum_c a_c * A_c)` with the activations A of the last layer whose result has places (and times, in
    a 3D network and a clip of several frames), and a_c the mean over these of the logit's gradient for channel c. Image
    networks on single frames have weights a_c for every frame; where a frame is two images (`clip.input=rgb_diff`), the
    sums of both are added. Of a vision transformer the tokens of the picture are taken where they last have a say.

    Args:
        trained: the model.
        clip_TCHW: uint8 `T x clip.channels x H x W`, as `stvid.preprocess.as_input` gives it; any T of at least 1,
            all of them the clip's own frames.
        class_index: position among `trained.class_names`.
    """
    model = trained.model
    device = next(model.parameters()).device
    preprocess, clip_TCHW = Preprocess(clip=trained.clip).to(device), clip_TCHW.to(device)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _evaluating(model),
    ):
        if model.supports_feature_cache:
            heat_THW, evidence_T = _of_frames(model, preprocess, clip_TCHW, class_index)
        else:
            heat_THW, evidence_T = _of_volume(model, preprocess, clip_TCHW, class_index), None
    greatest = heat_THW.max()
    if greatest > 0:
        heat_THW = heat_THW / greatest
    return Explanation(
        heat_THW=heat_THW.float().clamp(0, 1).cpu(), evidence_T=None if evidence_T is None else evidence_T.cpu()
    )


def frame_evidence(
    classify: Callable[[Tensor], Tensor], features_TF: Tensor, class_index: int, *, steps: int = STEPS
) -> Tensor:
    """What each frame adds to a class's logit, `T`; integrated gradients over the frames' features.

    `e_t = sum_f (x - b)_tf * integral over a in [0, 1] of d logit(b + a (x - b)) / d x_tf`, and the sum over the frames
    is `logit(x) - logit(b)`. The baseline b is the clip's mean feature vector, at every frame: the same picture all the
    time. Zero features would be no picture at all, so that much of the evidence would only say that there is one; this
    way it tells the moments that make the answer another from those that are like all others. Of a clip of one frame,
    or one that stands still, all evidence is 0.

    Args:
        classify: features `S x T x F` -> logits `S x K`.
        features_TF: of the clip.
        class_index: of the logit.
        steps: points of the quadrature (Gauss-Legendre).
    """
    baseline_F = features_TF.mean(dim=0)
    away_TF = features_TF - baseline_F
    points, weights = (torch.from_numpy(x).to(features_TF) for x in np.polynomial.legendre.leggauss(steps))
    points_S, weights_S = (points + 1) / 2, weights / 2  # from [-1, 1] to [0, 1]
    gradient_TF = torch.zeros_like(features_TF)
    for point, weight in zip(points_S.split(STEPS_AT_ONCE), weights_S.split(STEPS_AT_ONCE), strict=True):
        between_STF = baseline_F + point[:, None, None] * away_TF
        gradient_TF += (_slope(classify, between_STF, class_index) * weight[:, None, None]).sum(dim=0)
    return (gradient_TF * away_TF).sum(dim=1)


def _slope(classify: Callable[[Tensor], Tensor], features_STF: Tensor, class_index: int) -> Tensor:
    """The gradient of a class's logit. cuDNN's recurrent layers have none in evaluation mode, torch's own have."""
    features_STF = features_STF.detach().requires_grad_()
    with torch.backends.cudnn.flags(enabled=False):
        logits_S = classify(features_STF)[:, class_index]
        return torch.autograd.grad(logits_S.sum(), features_STF)[0]


def _of_frames(model: VideoModel, preprocess: Preprocess, clip_TCHW: Tensor, class_index: int) -> tuple[Tensor, Tensor]:
    """Heat and evidence of a model that encodes frames and classifies their features.

    By the chain rule, so that the activations of a few frames are held at once: the logit's gradient for the features,
    then, chunk by chunk, from the features to the layer that is looked at.
    """
    parts = torch.arange(len(clip_TCHW)).split(min(FRAMES, model.max_chunk or FRAMES))
    whole = preprocess(clip_TCHW[None]) if preprocess.normalize == "clip" else None
    size, images_a_frame = tuple(clip_TCHW.shape[-2:]), max(model.in_channels // 3, 1)

    def classify(features_BTF: Tensor) -> Tensor:
        return model.forward_head(model.aggregate(features_BTF))

    def encoded(part: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = preprocess(clip_TCHW[None, part]) if whole is None else whole[:, :, part]
        with _watching(model.backbone) as seen:
            return model.encode(x.requires_grad_(torch.is_grad_enabled())), seen

    only = encoded(parts[0]) if len(parts) == 1 else None
    with torch.no_grad():
        features_TF = torch.cat([only[0].detach()] if only else [encoded(part)[0] for part in parts], dim=1)[0]
    slope_TF = _slope(classify, features_TF[None], class_index)[0]
    heat, layer = [], None
    for part in parts:
        found_1TF, seen = only or encoded(part)
        if layer is None:
            layer = _layer_with_places(seen, found_1TF, size, features_TF.shape[1] // images_a_frame)
            if layer is None:
                heat = [torch.zeros_like(clip_TCHW[:, 0], dtype=torch.float32)]
                break
        activations, places = seen[layer[0]], layer[1]
        (gradient,) = torch.autograd.grad(found_1TF, activations, grad_outputs=slope_TF[None, part])
        heat_Nhw = _weighted(places(activations.detach()), places(gradient))
        heat_Thw = heat_Nhw.unflatten(0, (len(part), -1)).sum(dim=1).relu()
        heat.append(F.interpolate(heat_Thw[:, None], size=size, mode="bilinear")[:, 0])
    return torch.cat(heat), frame_evidence(classify, features_TF, class_index)


def _of_volume(model: VideoModel, preprocess: Preprocess, clip_TCHW: Tensor, class_index: int) -> Tensor:
    """Heat of a 3D network."""
    with _watching(model.backbone) as seen:
        logit = model(preprocess(clip_TCHW[None]).requires_grad_())[0, class_index]
    spacious = [x for x in seen.values() if x.ndim == 5 and math.prod(x.shape[3:]) > 1]
    timed = [x for x in spacious if x.shape[2] > 1]
    if not spacious:
        return torch.zeros_like(clip_TCHW[:, 0], dtype=torch.float32)
    activations = (timed or spacious)[-1]
    (gradient,) = torch.autograd.grad(logit, activations)
    heat = _weighted(activations.detach(), gradient).relu()
    return F.interpolate(heat[:, None], size=(len(clip_TCHW), *clip_TCHW.shape[-2:]), mode="trilinear")[0, 0]


def _weighted(activations: Tensor, gradient: Tensor) -> Tensor:
    """`N x C x ...` each -> `N x ...`: channels by the mean of their gradient."""
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    return (weights * activations).sum(dim=1)


Places = Callable[[Tensor], Tensor]


def _layer_with_places(
    seen: dict[str, Tensor], features_1TF: Tensor, size: tuple[int, int], width: int
) -> tuple[str, Places] | None:
    """The last layer whose result has places that the features depend on, and how it becomes `N x C x h x w`.

    Behind the last attention of a vision transformer only its class token has a say, so it is tried out.
    """
    trial = torch.arange(features_1TF.numel(), device=features_1TF.device).cos().view_as(features_1TF)
    for name, x in reversed(seen.items()):
        places = _places(tuple(x.shape), size, width)
        if places is None or len(x) % features_1TF.shape[1]:
            continue
        (gradient,) = torch.autograd.grad(features_1TF, x, trial, retain_graph=True, allow_unused=True)
        if gradient is not None and places(gradient).any():
            return name, places
    return None


def _places(shape: tuple[int, ...], size: tuple[int, int], width: int) -> Places | None:
    """How a layer's result becomes `N x C x h x w`; None: it has no places.

    Args:
        shape: of the result: `N x C x h x w`, `N x h x w x C`, or tokens `N x (extra + h * w) x C`.
        size: H and W of the image.
        width: C of tokens; other sequences are none of the image's own.
    """

    def is_grid(height: int, width: int) -> bool:
        return height * width > 1 and height <= size[0] and abs(width - size[1] * height / size[0]) < 1.5

    if len(shape) == 4 and is_grid(*shape[2:]):
        return lambda x: x
    if len(shape) == 4 and is_grid(*shape[1:3]):
        return lambda x: x.permute(0, 3, 1, 2)
    if len(shape) != 3 or shape[2] != width:
        return None
    for extra in range(min(MOST_EXTRA, shape[1] - 1) + 1):
        tokens = shape[1] - extra
        height = max(round(math.sqrt(tokens * size[0] / size[1])), 1)
        if tokens % height == 0 and is_grid(height, tokens // height):
            return lambda x, extra=extra, height=height: x[:, extra:].transpose(1, 2).unflatten(2, (height, -1))
    return None


@contextlib.contextmanager
def _watching(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects what the parts of a network that have parameters give, by name, in the order in which they are done."""
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def keep(module: nn.Module, arguments: tuple, result: object) -> None:
            seen.pop(name, None)
            if isinstance(result, Tensor) and result.requires_grad:
                seen[name] = result

        handles.append(module.register_forward_hook(keep))

    for name, module in network.named_modules():
        if next(module.parameters(), None) is not None:
            watch(name, module)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every part back in its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
