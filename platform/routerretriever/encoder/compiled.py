"""The query tower compiled by OpenVINO: the same vectors on a CPU, sooner.

PyTorch runs an encoder one operation after the other, and a lone query waits longer for that than for its
products. A compiled graph has no such steps in between. It has room for low-rank updates of linear layers.
They are inputs, so the experts of every release share one graph. With updates of rank 0 it is the bare base.

Going from one shape of batches to another takes a moment. So lengths are rounded up, and lone short queries
have graphs of their own, whose shapes are fixed. Batches are small: a larger one is no faster.

Shapes: B texts, L tokens, d dimensions, R the ranks of all updates together, i and o the widths into and out
of a layer.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from routerretriever.errors import EncoderError, first_line
from routerretriever.runtime import machine

if TYPE_CHECKING:
    from routerretriever.encoder.linear import OutputHook
    from routerretriever.encoder.settings import EngineSettings

log = logging.getLogger(__name__)
_one_conversion = threading.Lock()

MAX_ROWS = 16
"""Texts in one pass. MiniLM, one AVX-512 thread, ms a text of 16 tokens: 8 for one, 3.8 for each of 16."""
_PREPARED = "100"
"""Shapes of layers for which OpenVINO keeps what it prepared. With its own 5,000, 576 shapes of batches took
0.9 GB more than with 100, and were no faster."""
_LONE = (16, 32)
"""Lengths of lone queries that have a graph of their own. It takes 0.57 to 0.8 of the time of one for any
shape that has just run another (MiniLM, ms with 48 ranks: int8 7.3 for 12.8, fp32 8.2 for 11.8), and has
weights of its own: 30 MB in int8, 58 in fp32."""
_MOST_BYTES = 100e6
"""Of the linear layers' weights, above which lone queries have no graphs: a large encoder's pass takes so
long that the moment between two shapes matters little, and its weights take much."""
_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_GROUP = 64
"""Inputs of a layer that share a scale in int8. A pass of MiniLM takes 0.74 of the time of fp32 with 64,
0.78 with 32 and 0.70 with 128, which are more and less exact."""
_CHECKED = ("a", "how many words does a short query have", "one two three " * 12)
_LEAST_COSINE = {"fp32": 1 - 1e-5, "bf16": 0.99, "int8": 0.98}
"""Of a compiled vector with PyTorch's; below, the graph is not that of the encoder."""


Shape = tuple[int, int]
"""Rows and tokens."""
_ANY: Shape = (0, 0)


class Compilable(Protocol):
    """What is read of an encoder."""

    linear_layers: dict[str, nn.Linear]
    positions: int | None
    """Tokens that it can read, if there is a bound."""

    @property
    def tower(self) -> nn.Module:
        """Token ids [B, L] and mask [B, L] to vectors [B, d]."""

    def hooked(self, outputs: Mapping[str, OutputHook]) -> AbstractContextManager[None]:
        """Within, the linear layers that are named have their outputs changed."""

    def tokenize_queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each query."""

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and mask [B, L]."""


@dataclass(frozen=True)
class LowRank:
    """Updates of linear layers by their names: a layer's output x W gains ``(w_R * (x down^T)) up``."""

    down: Mapping[str, Tensor] = field(default_factory=dict)
    """[R, i]"""
    up: Mapping[str, Tensor] = field(default_factory=dict)
    """[R, o]"""


class CompiledTower:
    """An encoder's tower as a graph, with room for updates of some of its linear layers. Not thread-safe."""

    def __init__(self, encoder: Compilable, layers: Sequence[str], engine: EngineSettings) -> None:
        """Trace and compile, some seconds; then compare with PyTorch.

        Args:
            encoder: on a CPU, in fp32. Later changes of its weights do not reach the graph.
            layers: names of the linear layers that may be updated.
            engine: in what precision.

        Raises:
            EncoderError: OpenVINO is not installed or cannot compile this encoder.
        """
        self.layers = tuple(layers)
        self._encoder = encoder
        openvino = import_openvino()
        self._tensor = openvino.Tensor
        core = openvino.Core()
        if engine.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            log.warning("serving.engine.precision: this CPU has no bf16, fp32 is used")
        if reason := machine.why_slow(engine.precision):
            log.warning("serving.engine.precision: %s", reason)
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if engine.precision == "bf16" else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if engine.precision == "int8" else 0,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # every replica would be held to the same cores
            "CPU_RUNTIME_CACHE_CAPACITY": _PREPARED,
        }
        try:
            graph = self._trace(openvino)
            if engine.precision == "int8":
                _quantize(graph)
            compiling = partial(core.compile_model, device_name="CPU", config=properties)
            self._graphs = {_ANY: compiling(graph)}
            least = _LEAST_COSINE[engine.precision]
            cosine = self._cosine(self._encoder.tokenize_queries(_CHECKED))
            if not cosine >= least:
                raise EncoderError(f"its vectors differ from PyTorch's (cosine {cosine:.5f})")
            for length in self._wanted_alone(engine.precision):
                self._add_lone(graph.clone(), length, compiling, least)  # a clone shares most of its memory
            self._base = self.bind(self._nothing)
            _return_memory()
        except Exception as error:  # OpenVINO and tracing raise many kinds
            raise EncoderError(
                f"serving.engine: OpenVINO cannot run this encoder: {first_line(error)}"
            ) from error

    @property
    def lone_lengths(self) -> list[int]:
        """Tokens of the lone queries that have graphs of fixed shape."""
        return [length for rows, length in self._graphs if rows == 1]

    def base(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Vectors [B, d] of the bare base."""
        return self._base(ids_BL, mask_BL, torch.zeros(len(ids_BL), 0))

    def bind(self, updates: LowRank) -> BoundTower:
        """The graph with updates of its layers, one for each; they are not copied."""
        return BoundTower(self._graphs, self._tensor, self.layers, updates)

    def _add_lone(self, graph: Any, length: int, compiling: Callable[[Any], Any], least: float) -> None:
        """Compile a graph for one row of this length, and keep it if its vectors are PyTorch's."""
        graph.reshape({0: [1, length], 1: [1, length], 2: [1, -1]})
        self._graphs[1, length] = compiling(graph)
        (some,) = self._encoder.tokenize_queries(_CHECKED[-1:])
        tokens = some * length  # more than enough, however short queries are cut
        found = [self._cosine([tokens[: length - padding]]) for padding in (0, 3, 14)]
        if not min(found) >= least:  # Qwen3's, as OpenVINO 2026.4 reshapes it
            del self._graphs[1, length]

    def _wanted_alone(self, precision: str) -> list[int]:
        weights = sum(linear.weight.numel() for linear in self._encoder.linear_layers.values())
        if weights * _BYTES[precision] > _MOST_BYTES:
            return []
        positions = self._encoder.positions
        return [length for length in _LONE if positions is None or length <= positions]

    @property
    def _nothing(self) -> LowRank:
        linears = self._encoder.linear_layers
        return LowRank(
            {name: torch.zeros(0, linears[name].in_features) for name in self.layers},
            {name: torch.zeros(0, linears[name].out_features) for name in self.layers},
        )

    def _random(self) -> LowRank:
        made = torch.Generator().manual_seed(0)
        return LowRank(*(
            {name: torch.randn(3, matrix.shape[1], generator=made) * 0.02 for name, matrix in some.items()}
            for some in (self._nothing.down, self._nothing.up)
        ))  # fmt: skip

    def _trace(self, openvino: Any) -> Any:
        random = self._random()
        ids, mask = self._encoder.pad(self._encoder.tokenize_queries(_CHECKED[:2]))
        matrices = [*random.down.values(), *random.up.values()]
        with warnings.catch_warnings(), torch.no_grad(), _converting():
            warnings.simplefilter("ignore")
            return openvino.convert_model(
                _Updated(self._encoder, self.layers), example_input=(ids, mask, torch.ones(2, 3), *matrices)
            )

    def _cosine(self, rows: Sequence[Sequence[int]]) -> float:
        """The least of compiled vectors with PyTorch's, bare and updated."""
        updates = self._random()
        matrices = [*updates.down.values(), *updates.up.values()]
        weights = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.2, 0.3, 0.0]])[: len(rows)]
        ids, mask = self._encoder.pad(rows)
        with torch.no_grad():
            wanted = (
                self._encoder.tower(ids, mask),
                _Updated(self._encoder, self.layers)(ids, mask, weights, *matrices),
            )
        made = (
            self.bind(self._nothing)(ids, mask, weights[:, :0]),
            self.bind(updates)(ids, mask, weights),
        )
        return min(
            float(nn.functional.cosine_similarity(one.float(), other, dim=-1).min())
            for one, other in zip(wanted, made, strict=True)
        )


class BoundTower:
    """The graphs with updates."""

    def __init__(
        self, graphs: Mapping[Shape, Any], tensor: Any, layers: Sequence[str], updates: LowRank
    ) -> None:
        self._graphs, self._tensor = graphs, tensor
        self._requests: dict[Shape, Any] = {}
        # A request reads where the matrices lie, so they must live as long as it.
        self._held = [matrix[name] for matrix in (updates.down, updates.up) for name in layers]

    def __call__(self, ids_BL: Tensor, mask_BL: Tensor, weights_BR: Tensor) -> Tensor:
        """Vectors [B, d]: every row with the updates weighted as its own weights say."""
        rows, length = ids_BL.shape
        shape = (rows, length) if (rows, length) in self._graphs else _ANY
        if shape not in self._requests:
            self._requests[shape] = self._request(shape)
        request = self._requests[shape]
        for place, values in enumerate((ids_BL, mask_BL, weights_BR)):
            request.set_input_tensor(place, self._tensor(values.contiguous().numpy(), shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    def _request(self, shape: Shape) -> Any:
        request = self._graphs[shape].create_infer_request()
        for place, matrix in enumerate(self._held, start=3):
            request.set_input_tensor(place, self._tensor(matrix.numpy(), shared_memory=True))
        return request


class _Updated(nn.Module):
    """What is traced: the tower, its layers updated by low-rank products."""

    def __init__(self, encoder: Compilable, layers: Sequence[str]) -> None:
        super().__init__()
        self.tower = encoder.tower
        self._hooked = encoder.hooked
        self._layers = tuple(layers)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, weights_BR: Tensor, *matrices: Tensor) -> Tensor:
        """Vectors [B, d]; the matrices are down [R, i] of all layers, then up [R, o]."""
        down, up = matrices[: len(self._layers)], matrices[len(self._layers) :]
        adding = {
            name: partial(_add, weights_BR[:, None], down_Ri, up_Ro)
            for name, down_Ri, up_Ro in zip(self._layers, down, up, strict=True)
        }
        with self._hooked(adding):
            vectors: Tensor = self.tower(ids_BL, mask_BL)
        # A graph drops inputs that nothing reads.
        return vectors if adding else vectors + weights_BR.sum(dim=1, keepdim=True)


def _add(weights_B1R: Tensor, down_Ri: Tensor, up_Ro: Tensor, output_BLo: Tensor, input_BLi: Tensor) -> None:
    output_BLo.add_(((input_BLi @ down_Ri.T) * weights_B1R) @ up_Ro)


def rounded_length(tokens: int, rows: int, limit: int | None) -> int:
    """To what a batch's longest text is padded, so that there are few shapes.

    A pass of another shape than the last one takes some 3 ms more (MiniLM). A lone query comes to a length
    that has a graph of its own, if it is not too long for any.
    """
    if tokens > 128:
        step = 32
    elif rows == 1:
        step = 16
    else:
        step = 4 if rows > 4 and tokens <= 32 else 8
    rounded = -(-tokens // step) * step
    return rounded if limit is None else max(tokens, min(rounded, limit))


def _quantize(graph: Any) -> None:
    """Put the linear layers' weights into 8 bits, each output with a scale and a zero point of its own.

    OpenVINO then rounds their inputs to 8 bits too, by scales that it takes from the inputs themselves
    (https://docs.openvino.ai, "Dynamic quantization"). So nothing need be calibrated.
    """
    from openvino import opset13

    for product in graph.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        weight = product.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or weight.data.ndim != 2:
            continue
        axis = 1 if product.get_attributes()["transpose_b"] else 0
        rounded, zero, scale = in_8_bits(weight.data, axis)
        number, offset = (opset13.convert(opset13.constant(part), "f32") for part in (rounded, zero))
        made = opset13.multiply(opset13.subtract(number, offset), opset13.constant(scale))
        product.input(1).replace_source_output(made.output(0))


def in_8_bits(
    weight: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """A matrix as ``(rounded - zero) * scale``, with a zero point and a scale for what lies along an axis."""
    least, most = (
        np.minimum(weight.min(axis, keepdims=True), 0),
        np.maximum(weight.max(axis, keepdims=True), 0),
    )
    scale = np.maximum((most - least) / 255, np.float32(1e-12))
    zero = np.rint(-least / scale)
    rounded = np.clip(np.rint(weight / scale) + zero, 0, 255)
    return rounded.astype(np.uint8), zero.astype(np.uint8), scale.astype(np.float32)


def import_openvino() -> Any:
    """OpenVINO, without the package by which it reports its use to its makers.

    Raises:
        EncoderError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EncoderError("serving.engine: OpenVINO is not installed; pip install openvino") from error
    return openvino


def _return_memory() -> None:
    """Give back what tracing and compiling have left: 85 MB of MiniLM's 300. Only glibc can be asked."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def _converting() -> Iterator[None]:
    """One conversion at a time, without the remarks of transformers; the process's logging stays as it was.

    OpenVINO changes the root logger meanwhile. It leaves it so when a conversion fails or two overlap.
    """
    root, transformers = logging.getLogger(), logging.getLogger("transformers")
    with _one_conversion:
        state = root.level, list(root.filters), list(root.handlers)
        level = transformers.level
        transformers.setLevel(logging.ERROR)
        try:
            yield
        finally:
            transformers.setLevel(level)
            root.setLevel(state[0])
            root.filters, root.handlers = state[1:]
