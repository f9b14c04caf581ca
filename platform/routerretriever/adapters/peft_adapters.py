"""What kinds share whose adapters PEFT trains: it wraps the encoder's layers, and reads and writes files."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from routerretriever.adapters.base import AdapterKind
from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from routerretriever.errors import EncoderError

if TYPE_CHECKING:
    from peft import PeftConfig

    from routerretriever.encoder.encoder import Encoder

LAYER_PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's modules."""

# PEFT asks transformers for it, whoever wraps a model; it is not the caller's to mend.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


class PeftKind(AdapterKind):
    """A kind of PEFT's. Subclasses say how it is configured, and how it is run without PEFT."""

    peft_type: ClassVar[str]
    opens_elsewhere = True

    @abstractmethod
    def peft_config(self, encoder: Encoder, settings: Any) -> PeftConfig:
        """The settings in PEFT's words.

        Raises:
            EncoderError: the encoder has no such modules.
        """

    def wrote(self, config: Mapping[str, Any]) -> bool:
        """Whether PEFT's type is this kind's."""
        return config.get("peft_type") == self.peft_type

    def loaded(self, encoder: Encoder) -> list[str]:
        """Names of the adapters of this kind that PEFT holds."""
        there = getattr(encoder.tower.model, "peft_config", {})
        return [name for name, config in there.items() if config.peft_type == self.peft_type]

    def attach(self, encoder: Encoder, name: str, settings: Any, modules: Sequence[str] = ()) -> None:
        """Add a fresh adapter; see ``AdapterKind.attach``."""
        from peft import get_peft_model

        if modules:
            raise EncoderError(f"an adapter of kind {self.name!r} cannot have modules")
        config = self.peft_config(encoder, settings)
        tower = encoder.tower
        if self._is_first(tower.model):
            tower.model = get_peft_model(tower.model, config, adapter_name=name)
        else:
            tower.model.add_adapter(name, config)
        tower.model.set_adapter(name)
        tower.eval()  # or what PEFT put in would drop out

    def load(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Load a saved adapter; see ``AdapterKind.load``."""
        from peft import PeftModel

        adapter_config(name, folder)  # says which file is missing
        tower, loaded = encoder.tower, self.loaded(encoder)
        if name in loaded and len(loaded) > 1:
            tower.model.delete_adapter(name)
        elif name in loaded:
            tower.model = tower.model.unload()
        try:
            if self._is_first(tower.model):
                tower.model = PeftModel.from_pretrained(
                    tower.model, str(folder), adapter_name=name, torch_device=str(encoder.device)
                )
            else:
                tower.model.load_adapter(str(folder), adapter_name=name, torch_device=str(encoder.device))
        except (RuntimeError, ValueError, KeyError) as error:
            raise EncoderError(
                f"expert {name!r}: {folder} does not fit this base encoder: {error}"
            ) from error
        tower.model.eval().requires_grad_(False)

    def _is_first(self, model: Any) -> bool:
        there = getattr(model, "peft_config", {})
        for name, config in there.items():
            if config.peft_type != self.peft_type:
                raise EncoderError(
                    f"an adapter of kind {self.name!r} cannot be put beside {name!r}, of PEFT's kind "
                    f"{str(config.peft_type.value)!r}; an encoder takes one of the two"
                )
        return not there

    def save(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Write an adapter in PEFT's own format."""
        with tempfile.TemporaryDirectory() as scratch:
            encoder.tower.model.save_pretrained(scratch, selected_adapters=[name])
            nested = Path(scratch) / name
            source = nested if nested.is_dir() else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                shutil.copyfile(source / file, folder / file)

    @contextmanager
    def active(self, encoder: Encoder, name: str) -> Iterator[None]:
        """Within, the tower runs with an adapter or without any; see ``AdapterKind.active``."""
        loaded, model = self.loaded(encoder), encoder.tower.model
        if name in loaded:
            model.set_adapter(name)
            yield
        elif loaded:
            with model.disable_adapter():
                yield
        else:
            yield
