"""The query tower compiled by OpenVINO: the same vectors on a CPU, sooner.

PyTorch runs an encoder one operation after the other, and a lone query waits longer for that than for its
products. A compiled graph has no such steps in between. It has room for low-rank updates of linear layers.
They are inputs, so the experts of every release share one graph. With updates of rank 0 it is the bare base.

Shapes of batches are prepared and kept, and going from one to another takes a moment. So lengths are rounded
up. Batches are small: a larger one is no faster.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from routerretriever.errors import EncoderError

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
_CHECKED = ("a", "how many words does a short query have", "one two three " * 7)
_LEAST_COSINE = {"fp32": 1 - 1e-5, "bf16": 0.99}
"""Of a compiled vector with PyTorch's; below, the graph is not that of the encoder."""


class Compilable(Protocol):
    """What is read of an encoder."""

    linear_layers: dict[str, nn.Linear]

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
        openvino = _import_openvino()
        self._tensor = openvino.Tensor
        core = openvino.Core()
        if engine.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            log.warning("serving.engine.precision: this CPU has no bf16, fp32 is used")
        try:
            self._compiled = core.compile_model(
                self._trace(openvino),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[engine.precision],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,  # every replica would be held to the same cores
                    "CPU_RUNTIME_CACHE_CAPACITY": _PREPARED,
                },
            )
            _return_memory()
            self._base = self.bind(self._nothing)
            self._check(_LEAST_COSINE[engine.precision])
        except Exception as error:  # OpenVINO and tracing raise many kinds
            first = str(error).strip().split("\n")[0]
            raise EncoderError(f"serving.engine: OpenVINO cannot run this encoder: {first}") from error

    def base(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Vectors [B, d] of the bare base."""
        return self._base(ids_BL, mask_BL, torch.zeros(len(ids_BL), 0))

    def bind(self, updates: LowRank) -> BoundTower:
        """The graph with updates of its layers, one for each; they are not copied."""
        return BoundTower(self._compiled.create_infer_request(), self._tensor, self.layers, updates)

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

    def _check(self, least: float) -> None:
        """Compare with PyTorch, on texts of other lengths than were traced, bare and updated."""
        ids, mask = self._encoder.pad(self._encoder.tokenize_queries(_CHECKED))
        weights = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.2, 0.3, 0.0]])
        updates = self._random()
        matrices = [*updates.down.values(), *updates.up.values()]
        with torch.no_grad():
            bare = self._encoder.tower(ids, mask)
            updated = _Updated(self._encoder, self.layers)(ids, mask, weights, *matrices)
        found = (self.base(ids, mask), self.bind(updates)(ids, mask, weights))
        for wanted, made in zip((bare, updated), found, strict=True):
            cosine = float(nn.functional.cosine_similarity(wanted.float(), made, dim=-1).min())
            if not cosine >= least:
                raise EncoderError(f"its vectors differ from PyTorch's (cosine {cosine:.5f})")


class BoundTower:
    """A graph with updates."""

    def __init__(self, request: Any, tensor: Any, layers: Sequence[str], updates: LowRank) -> None:
        self._request, self._tensor = request, tensor
        # The request reads where the matrices lie, so they must live as long as it.
        self._held = [matrix[name] for matrix in (updates.down, updates.up) for name in layers]
        for place, matrix in enumerate(self._held, start=3):
            request.set_input_tensor(place, tensor(matrix.numpy(), shared_memory=True))

    def __call__(self, ids_BL: Tensor, mask_BL: Tensor, weights_BR: Tensor) -> Tensor:
        """Vectors [B, d]: every row with the updates weighted as its own weights say."""
        for place, values in enumerate((ids_BL, mask_BL, weights_BR)):
            self._request.set_input_tensor(
                place, self._tensor(values.contiguous().numpy(), shared_memory=True)
            )
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())


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

    A pass of another shape than the last one takes 5 ms more (MiniLM). For a lone query that is more than
    padding costs: 14.3 ms with 16 tokens, 16.7 with 32.
    """
    if tokens > 128:
        step = 32
    elif rows == 1:
        step = 16
    else:
        step = 4 if rows > 4 and tokens <= 32 else 8
    rounded = -(-tokens // step) * step
    return rounded if limit is None else max(tokens, min(rounded, limit))


def _import_openvino() -> Any:
    # OpenVINO reports its use to its makers unless this package is missing; a service must not.
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
