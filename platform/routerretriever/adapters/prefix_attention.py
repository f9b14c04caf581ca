"""Prefixes: trained keys and values that every token of a query also attends to (prefix tuning).

An adapter of this kind is a set of modules, each with keys and values for some layers, and the rule by which
a query's prefix is put together from them. A single-domain expert has one module. Dynamic Dense Retrieval
(arXiv 2602.22547) has one for every domain label, and a router in each layer that weighs them; its *general*
prefix lies under all of them, on queries and documents alike.

Keys and values are added where attention is computed, so positions are not shifted and an encoder without a
prefix stays what it was. (PEFT's prefix tuning shifts them, and cannot mix adapters in a batch.)

Shapes: B queries, L tokens, P prefix tokens, N modules, n layers with a prefix, d hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from routerretriever.adapters.files import ADAPTER_WEIGHTS, write_weights
from routerretriever.adapters.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.errors import EncoderError

_ATTENTION = "with_prefix"
_OWNER = "_prefix_attention"
_ROUTER_SPREAD = 0.02


@dataclass(frozen=True)
class Mixture:
    """Which modules each row of a batch uses; one row stands for all."""

    shares_BN: Tensor
    """Weights where the router is not asked; where it is, zero for the modules that may not be used."""
    top_k_B: Tensor

    def rows(self, batch: Sequence[int]) -> Mixture:
        """The rows at some places."""
        return Mixture(self.shares_BN[batch], self.top_k_B[batch])

    def to(self, device: torch.device) -> Mixture:
        """The same on a device."""
        return Mixture(self.shares_BN.to(device), self.top_k_B.to(device))


class Prefixes(nn.Module):
    """The modules of one adapter, and its routers."""

    def __init__(self, shape: PrefixShape) -> None:
        super().__init__()
        self.shape = shape
        count = len(shape.modules)
        self.keys_and_values = nn.Parameter(
            torch.zeros(len(shape.layers), count, 2, shape.length, shape.width)
        )
        self.router = nn.Parameter(torch.empty(len(shape.layers), count, shape.width).normal_(
            std=_ROUTER_SPREAD)) if shape.routed else None  # fmt: skip
        self._place = {layer: place for place, layer in enumerate(shape.layers)}

    @classmethod
    def load(cls, name: str, folder: Path, shape: PrefixShape) -> Prefixes:
        """Read an adapter's weights.

        Raises:
            EncoderError: they are not of this shape.
        """
        made = cls(shape)
        try:
            made.load_state_dict(load_file(folder / ADAPTER_WEIGHTS))
        except RuntimeError as error:
            raise EncoderError(
                f"expert {name!r}: {folder} does not hold what its settings say: {error}"
            ) from error
        return made

    @classmethod
    def stacked(cls, experts: Mapping[str, Prefixes]) -> Prefixes:
        """Single-module prefixes as the modules of one.

        Raises:
            EncoderError: they are not alike, or one has several modules.
        """
        first = next(iter(experts.values())).shape
        for name, prefixes in experts.items():
            shape = prefixes.shape
            if len(shape.modules) > 1 or (shape.length, shape.layers) != (first.length, first.layers):
                raise EncoderError(
                    f"expert {name!r}: {len(shape.modules)} module(s) of {shape.length} tokens in layers "
                    f"{list(shape.layers)} cannot be run beside prefixes of {first.length} tokens in layers "
                    f"{list(first.layers)}; train all with the same training.adapter"
                )
        made = cls(replace(first, modules=tuple(experts), routed=False, views={}))
        made.keys_and_values.data = torch.cat([one.keys_and_values.data for one in experts.values()], dim=1)
        return made.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the adapter as safetensors with its settings beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        write_weights(weights, folder / ADAPTER_WEIGHTS)
        self.shape.write(folder)

    def mixture(self, view: View) -> Mixture:
        """A view as one row."""
        allowed = torch.tensor([[float(module in view.modules) for module in self.shape.modules]])
        if view.top_k == UNIFORM and view.modules:
            allowed /= allowed.sum()
        return Mixture(allowed, torch.tensor([view.top_k]))

    def at(
        self, layer: int, hidden_BLd: Tensor, padding_BL: Tensor, mixture: Mixture
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values [B, 2, P, d] for a layer, and the weights [B, N]; None where it has no prefix.

        A layer's router reads the mean over a query's tokens of what enters the layer. Of the weights that
        are not among the largest ``top_k`` nothing is given to the others, as in the paper.
        """
        place = self._place.get(layer)
        if place is None:
            return None
        weights_BN = mixture.shares_BN
        if self.router is not None:
            weights_BN = self._routed(self.router[place], hidden_BLd, padding_BL, mixture)
        modules = self.keys_and_values[place]
        made = weights_BN.to(modules.dtype) @ modules.flatten(1)
        return made.view(-1, *modules.shape[1:]), weights_BN

    def _routed(self, router_Nd: Tensor, hidden_BLd: Tensor, padding_BL: Tensor, mixture: Mixture) -> Tensor:
        mask = padding_BL.unsqueeze(-1).float()
        mean_Bd = (hidden_BLd.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        logits_BN = mean_Bd @ router_Nd.float().T
        shut_BN = (mixture.shares_BN == 0).expand_as(logits_BN)
        # A row that may use no module has no weights, rather than no numbers.
        weights_BN = logits_BN.masked_fill(shut_BN, float("-inf")).softmax(dim=1).masked_fill(shut_BN, 0.0)
        top_k_B1 = mixture.top_k_B.unsqueeze(1)
        rank_BN = weights_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept_BN = torch.where(rank_BN < top_k_B1, weights_BN, 0.0)
        return torch.where(top_k_B1 == UNIFORM, mixture.shares_BN, kept_BN)


class PrefixAttention(nn.Module):
    """Lets prefixes into a model's self-attention. One for a model; without a prefix it changes nothing."""

    def __init__(self, model: Any, layers: Sequence[nn.Module]) -> None:
        """Take over a model's attention.

        Raises:
            EncoderError: the model's attention cannot be taken over.
        """
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.general: Prefixes | None = None
        self.padding_BL: Tensor | None = None
        """Mask of the batch that is being run."""
        self.current: tuple[Tensor, Tensor | None] | None = None
        """Keys and values [B, 2, P, d] of the layer that is being run; rows with a prefix (None: all)."""
        self.active: Prefixes | None = None
        """What the tower is run with."""
        self._mixture: Mixture | None = None
        self.calls = 0
        """Attentions that were computed here."""
        AttentionInterface.register(_ATTENTION, _attend)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        model.register_forward_pre_hook(self._starting, with_kwargs=True)
        for number, layer in enumerate(layers):
            for module in layer.modules():
                # Not as a submodule: the layer would then hold the model's parameters twice.
                module.__dict__[_OWNER] = self
            layer.register_forward_pre_hook(self._entering(number), with_kwargs=True)
            layer.register_forward_hook(self._leaving)
        model.set_attn_implementation(_ATTENTION)
        if self._calls_of_a_pass(model) != len(layers):
            raise EncoderError(
                f"training.adapter: {type(model).__name__} computes its attention in a way of its own, which "
                "takes no prefix; use a LoRA, or another encoder"
            )

    def _calls_of_a_pass(self, model: Any) -> int:
        self.calls = 0
        ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return self.calls

    def use(self, prefixes: Prefixes | None, mixture: Mixture | None = None) -> None:
        """What queries are run with from now on; by default with every module."""
        if prefixes is not None and mixture is None:
            mixture = prefixes.mixture(prefixes.shape.view(""))
        self.active = prefixes
        self._mixture = (
            None if mixture is None or prefixes is None else mixture.to(prefixes.keys_and_values.device)
        )

    @contextmanager
    def using(self, prefixes: Prefixes | None, mixture: Mixture | None = None) -> Iterator[None]:
        """``use`` for a while."""
        before = self.active, self._mixture
        self.use(prefixes, mixture)
        try:
            yield
        finally:
            self.active, self._mixture = before

    def _starting(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.padding_BL = kwargs["attention_mask"]

    def _entering(self, number: int) -> Any:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_BLd = args[0] if args else kwargs["hidden_states"]
            self.current = self._prefix(number, hidden_BLd)

        return enter

    def _leaving(self, *_: Any) -> None:
        self.current = None

    def _prefix(self, number: int, hidden_BLd: Tensor) -> tuple[Tensor, Tensor | None] | None:
        assert self.padding_BL is not None
        general = own = None
        if self.general is not None:
            place = self.general.mixture(self.general.shape.view("")).to(hidden_BLd.device)
            general = self.general.at(number, hidden_BLd, self.padding_BL, place)
        if self.active is not None and self._mixture is not None:
            own = self.active.at(number, hidden_BLd, self.padding_BL, self._mixture)
        rows = len(hidden_BLd)
        if own is None:
            return None if general is None else (general[0].expand(rows, -1, -1, -1), None)
        prefix, weights_BN = own
        if general is not None:
            return (prefix + general[0]).expand(rows, -1, -1, -1), None
        return prefix.expand(rows, -1, -1, -1), (weights_BN.sum(dim=1) > 0).expand(rows)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention [B, heads, L, d/heads] with the prefix of the layer that is being run."""
    owner: PrefixAttention = module.__dict__[_OWNER]
    owner.calls += 1
    if owner.current is not None:
        prefix_B2Pd, present_B = owner.current
        heads = key.shape[1]
        prefix_B2Pd = prefix_B2Pd.to(key.dtype)
        key = torch.cat([_split_heads(prefix_B2Pd[:, 0], heads), key], dim=2)
        value = torch.cat([_split_heads(prefix_B2Pd[:, 1], heads), value], dim=2)
        is_causal = kwargs.get("is_causal")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)  # as transformers has it
        if attention_mask is not None or present_B is not None or is_causal:
            attention_mask = _widened(attention_mask, present_B, query, prefix_B2Pd.shape[2], is_causal)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _widened(
    mask: Tensor | None, present_B: Tensor | None, query: Tensor, length: int, is_causal: bool
) -> Tensor:
    """The mask [B, 1, L, P + L], True where a token may look: a causal one back, and at the whole prefix."""
    rows, _, tokens, _ = query.shape
    if mask is None:
        mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool, device=query.device)
        mask = mask.tril() if is_causal else mask
    if present_B is None:
        present_B = torch.ones(rows, dtype=torch.bool, device=query.device)
    prefix = present_B.view(-1, 1, 1, 1).expand(-1, 1, mask.shape[2], length)
    return torch.cat([prefix, mask], dim=3)


def _split_heads(states_BPd: Tensor, heads: int) -> Tensor:
    rows, length, width = states_BPd.shape
    return states_BPd.view(rows, length, heads, width // heads).transpose(1, 2)
