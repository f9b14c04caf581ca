"""The base's linear layers, whose weights never change: faster on a CPU, and open to what experts change.

PyTorch's own linear layer multiplies in MKL, which on AMD's processors does without AVX-512, and lays the
weights out anew in every call. oneDNN, which PyTorch brings along and its compiler uses for frozen layers,
keeps them as it wants them: with AVX-512 1.7 to 2.4 times as fast from 20 tokens on, with AVX2 1.1 to 1.4
times (MiniLM's layers, one thread of an AMD EPYC).

Shapes: i and o are the widths into and out of a layer.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN keeps code for every shape that it has multiplied, 1,024 of them by default, and texts have many
# lengths. It reads this when it multiplies for the first time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

# glibc returns a block above 32 MB to the system when it is freed, and gets it back page by page: a tenth of
# the CPU time of encoding long documents. With these it is kept for the next pass. Others have no mallopt.
with suppress(AttributeError, OSError):
    _GIBIBYTE, _TRIM_THRESHOLD, _MMAP_THRESHOLD = 1 << 30, -1, -3
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _GIBIBYTE)
    ctypes.CDLL(None).mallopt(_TRIM_THRESHOLD, _GIBIBYTE)

OutputHook = Callable[[Tensor, Tensor], None]
"""Changes a layer's output, its first argument, in place; the second is the layer's input."""
InputHook = Callable[[Tensor], Tensor]
"""Makes the input that a layer is run on in place of its own, which stays what it is."""


class Hooks(threading.local):
    """What is done on either side of a layer, by the thread that set it alone.

    A service prepares the next release on the encoder that answers for the last one meanwhile.
    """

    input: InputHook | None = None
    output: OutputHook | None = None


class FrozenLinear:
    """Runs a linear layer in its stead, with a hook on either side.

    PyTorch's own hooks would do, but calling them takes longer than what a LoRA adds.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.hooks = Hooks()
        self._linear = linear
        self._packed: _Packed | None = None
        linear.__dict__["forward"] = self._forward

    def _forward(self, values: Tensor) -> Tensor:
        hooks = self.hooks
        if hooks.input is not None:
            values = hooks.input(values)
        weight_oi, bias_o = self._linear.weight, self._linear.bias
        if not _packable(values) or weight_oi.dtype != torch.float32:
            output = F.linear(values, weight_oi, bias_o)
        else:
            if self._packed is None or self._packed.version != weight_oi._version:
                self._packed = _Packed(weight_oi, bias_o)
            if values.requires_grad and torch.is_grad_enabled():
                output = _Differentiable.apply(values, self._packed)
            else:
                output = self._packed(values)
        if hooks.output is not None:
            hooks.output(output, values)
        return output


class _Packed:
    """A layer's weights as oneDNN wants them, as long as they stay what they are."""

    def __init__(self, weight_oi: Tensor, bias_o: Tensor | None) -> None:
        self.version = weight_oi._version
        """PyTorch counts the changes of a tensor: an expert that is merged into the base is one."""
        self._weight_oi = weight_oi
        self._bias_o = bias_o
        self._forwards = _pack(weight_oi)
        self._backwards: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """The layer's output [..., o]."""
        return _multiply(values, self._forwards, self._bias_o)

    def gradient(self, gradient: Tensor) -> Tensor:
        """That of the layer's input [..., i], by that of its output."""
        if self._backwards is None:
            self._backwards = _pack(self._weight_oi.T.contiguous())
        return _multiply(gradient, self._backwards, None)


class _Differentiable(torch.autograd.Function):
    """A frozen layer in training: gradients pass through to the experts in the layers before it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, packed: _Packed) -> Tensor:
        ctx.packed = packed
        return packed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.packed.gradient(gradient), None


def _packable(values: Tensor) -> bool:
    return (
        values.dtype == torch.float32
        and values.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not torch.jit.is_tracing()  # whoever traces wants the layer, not how it is run here
    )


def _pack(weight_oi: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight_oi.detach())
    return packed


def _multiply(values: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise.default(values, weight_oi, bias_o, "none", [], "")
    # oneDNN's is a view, which autograd lets no model change in place, as Falcon does.
    owned: Tensor = torch.ops.aten._unsafe_view.default(output, output.shape)
    return owned
