"""A base encoder, as it is now, as a folder that sentence-transformers opens."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from routerretriever.encoder.encoder import Encoder
from routerretriever.encoder.source import FAKE, TRANSFORMER_FILES, transformer_options
from routerretriever.errors import Refused

MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json")
"""What an adapter's folder has adapter files instead of."""


def save_sentence_transformer(encoder: Encoder, folder: Path) -> None:
    """Write transformer, tokenizer, pooling, prompts and lengths; queries then embed as here.

    Raises:
        Refused: the encoder has no files to write.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    settings = encoder.settings
    if settings.name == FAKE:
        raise Refused("encoder.name: fake is for tests and has no files that others could open")
    tokenizer, transformer, dense = encoder.parts
    with tempfile.TemporaryDirectory() as scratch:
        transformer.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        first = Transformer(scratch, max_seq_length=settings.query_max_length)
        modules = [first, Pooling(encoder.width, settings.pooling), *dense]
        if settings.similarity == "cosine":
            modules.append(Normalize())
        prompts = {"query": settings.query_prompt or "", "document": settings.document_prompt or ""}
        model = SentenceTransformer(
            modules=modules, prompts=prompts, similarity_fn_name=settings.similarity, device="cpu"
        )
        model.save_pretrained(str(folder), create_model_card=False)
    if encoder.card.is_lowered:
        # sentence-transformers does not write it, and some tokenizers forget their normalizer when loaded.
        options = transformer_options(folder) | {"do_lower_case": True}
        (folder / TRANSFORMER_FILES[0]).write_text(json.dumps(options, indent=2), encoding="utf-8")
