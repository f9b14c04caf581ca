"""One expert of a bundle as a folder that PEFT and sentence-transformers open on any machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from routerretriever.adapters.kinds import kind_of, merge_adapter
from routerretriever.bundle.card import expert_card
from routerretriever.bundle.manifest import bundle_encoder, expert_folder, read_manifest
from routerretriever.encoder.source import hub_id
from routerretriever.errors import NotFound, Refused


def export_expert(bundle: Path, name: str, to: Path, merged: bool = False) -> Path:
    """Write an expert with pooling, prompts, tokenizer and a model card; no path of this machine is in it.

    Args:
        bundle: a bundle's folder.
        name: the expert.
        to: the new folder.
        merged: add the adapter to the base's weights, which are then written too. Otherwise only the adapter
            is written, in PEFT's format, and the base is fetched by its name where the folder is opened.

    Raises:
        NotFound: the bundle has no such expert.
        Refused: the folder is there already, or nobody else could open what would be written.
    """
    from routerretriever.adapters.tower import load_tower
    from routerretriever.encoder.export import MODEL_FILES, save_sentence_transformer

    manifest = read_manifest(bundle)
    pins = {pin["name"]: pin for pin in manifest["experts"]}
    if name not in pins:
        raise NotFound(f"--expert {name}: no such expert; there are {', '.join(pins)}")
    if to.exists():
        raise Refused(f"--to {to}: is there already; name a new folder")
    folder = expert_folder(bundle, pins[name].get("folder", name))
    encoder, kind = bundle_encoder(bundle, manifest), kind_of(name, folder)
    if not kind.opens_elsewhere:
        raise Refused(
            f"expert {name!r} is of kind {kind.name!r}, which only RouterRetriever runs; `routerretriever "
            "export` writes the whole bundle"
        )
    if not merged and (encoder.adapter is not None or hub_id(encoder) is None):
        what = "a local folder or a fake" if encoder.adapter is None else "one with an adapter of its own"
        raise Refused(f"expert {name!r}: its base is {what}, which nobody can fetch; export it with --merged")
    tower = load_tower(encoder)
    if merged:
        merge_adapter(tower, name, folder)
    card = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    fresh = to.with_name(f".{to.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        save_sentence_transformer(tower, fresh)
        if not merged:
            for pattern in MODEL_FILES:
                for path in fresh.glob(pattern):
                    path.unlink()
            config = adapter_config(name, folder) | {"base_model_name_or_path": hub_id(encoder)}
            (fresh / ADAPTER_CONFIG).write_text(
                json.dumps(config, indent=2, sort_keys=True), encoding="utf-8"
            )
            shutil.copyfile(folder / ADAPTER_WEIGHTS, fresh / ADAPTER_WEIGHTS)
        (fresh / "README.md").write_text(expert_card(name, card, tower.settings, merged), encoding="utf-8")
        fresh.rename(to)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return to
