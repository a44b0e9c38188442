"""What a pricing says, as plain data, with the formula behind every number."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer, for one clip. Sums over all layers are the report's totals.

    Attributes:
        name: dotted place in the model; empty for the model itself.
        type: its class.
        output_shape: without the batch. A layer that sees every frame as an image of its own has the number of images
            in front: a 2D convolution of an encoder gives `T x C x H x W`.
        parameters: its own, not its children's. A 3D convolution: `C_out * (C_in / groups * kT * kH * kW + 1)`.
        activation_bytes: memory that it filled in the forward pass of a training step and that is still held when this
            pass ends, for the backward pass (or as the model's result). What an in-place layer (ReLU) writes belongs
            to the layer that made it; what another layer recomputes or throws away is 0, and so is a frozen part.
        macs: multiply-adds of a forward pass, see `CostReport.macs`.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    activation_bytes: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """What a model needs in the four senses: parameters, bytes of the model, operational space, operational compute.

    Compute and kept activations are for one clip; peaks say what they are for. All bytes are of the device's memory.

    Attributes:
        input_shape: of one clip, `C x T x H x W`, as the model gets it.
        batch_size: clips in the step that was simulated.
        precision: as Lightning calls it.
        device: whose ways with memory were simulated, `cpu` or `cuda`.
        parameters: all of them, a shared one once.
        trainable_parameters: those of them that have a gradient.
        model_bytes: parameters and buffers.
        train_state_bytes: what a training holds between two steps: model, gradients, optimizer, and moving averages of
            the model where there are any. `model_bytes + n * 4 * trainable_parameters (+ model_bytes)` in float32, with
            n = 3 for AdamW (gradient, two moments) and 2 for SGD with momentum. Step counters are not counted.
        input_bytes: what a training step holds of one clip itself when its forward pass ends: the clip as it was
            delivered (uint8), and as float where the first layer needs it for its gradient.
        activation_bytes: for one clip, the sum over `layers`; those of a batch are `batch_size` times as much.
            Copies of weights in low precision are not among them, as they do not grow with the batch.
        peak_train_bytes: the most that is held at once in a training step on the whole batch, once the optimizer has
            its state: `train_state_bytes` with the last step's gradients (Lightning frees them after the forward
            pass), batch, activations, gradients of activations and other temporary memory.
        peak_inference_bytes: likewise for one clip that is just answered: weights, clip, temporary memory.
        peak_inference_batch_bytes: for a batch that is just answered.
        macs: multiply-adds of convolutions and matrix products for one clip, forward. Nothing else is counted: no bias,
            no norm, no activation, no pooling. A convolution: `C_out * T' * H' * W' * C_in / groups * kT * kH * kW`; a
            linear layer: `in * out`; an LSTM: `T * 4 * H * (I + H)` per layer and direction with I inputs and H
            states, a GRU `T * 3 * H * (I + H)`; attention: `2 * L * S * D` per head.
        flops_forward: `2 * macs`.
        flops_train_step: forward and backward for one clip, counted as they happen. A layer's backward is twice its
            forward (gradients of input and of weights); the first layer needs none for its input, a frozen part none
            at all, and what is recomputed counts again.
        layers: in the order they compute.
    """

    input_shape: tuple[int, ...]
    batch_size: int
    precision: str
    device: str
    parameters: int
    trainable_parameters: int
    model_bytes: int
    train_state_bytes: int
    input_bytes: int
    activation_bytes: int
    peak_train_bytes: int
    peak_inference_bytes: int
    peak_inference_batch_bytes: int
    macs: int
    flops_forward: int
    flops_train_step: int
    layers: tuple[LayerCost, ...]

    def to_dict(self) -> dict:
        """As plain data, for JSON."""
        return asdict(self)
