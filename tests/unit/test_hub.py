"""Encoders from a model hub, against a small one of the tests: what is fetched, pinned, kept and refused."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.settings import EncoderSettings
from support.encoders import write_encoder
from support.hub import Hub

NAME = "team/tiny"
FIRST, SECOND = "1" * 40, "2" * 40
FETCH = """
import sys
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import encoder_folder
from routerretriever.errors import EncoderError
try:
    print(encoder_folder(EncoderSettings(name="team/tiny", revision=sys.argv[1] or None)))
except EncoderError as error:
    print("refused:", error)
"""


@pytest.fixture
def repository(tmp_path):
    """An encoder with Dense layers, in shards, with twins of its weights for other engines."""
    from transformers import AutoModel

    folder = write_encoder("gemma3-dense", tmp_path)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    for name in ("onnx/model.onnx", "onnx/config.json", "openvino/model.bin", "openvino/a.json",
                 "pytorch_model.bin", "tf_model.h5", "README.md", "original/a.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def fetch(url, home, revision="", **environment):
    """The folder that another process finds, or why it was refused; its cache is below ``home``."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        os.environ.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", FETCH, revision],
        env=os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.strip()


def test_only_what_is_needed_is_fetched_once_and_runs_without_a_hub(repository, tmp_path):
    with Hub(NAME, {FIRST: repository}) as hub:
        folder = fetch(hub.url, tmp_path / "home")
        fetched = set(hub.fetched)
        assert {name for name in fetched if name.startswith("model")} == {
            "model.safetensors.index.json",
            *(path.name for path in repository.glob("model-*.safetensors")),
        }
        assert {"1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/config.json"} <= fetched
        assert not [name for name in fetched if name.startswith(("onnx", "openvino", "original"))]
        assert not fetched & {"pytorch_model.bin", "tf_model.h5", "README.md"}
        hub.fetched.clear()
        assert fetch(hub.url, tmp_path / "home") == folder
        assert hub.fetched == []
    # The hub is gone, and then nobody may ask it.
    assert fetch(hub.url, tmp_path / "home") == folder
    assert fetch(hub.url, tmp_path / "home", HF_HUB_OFFLINE="1") == folder
    ours, theirs = (load_tower(EncoderSettings(name=str(one), device="cpu")) for one in (folder, repository))
    np.testing.assert_array_equal(ours.encode_queries(["a fox"]), theirs.encode_queries(["a fox"]))


def test_all_of_the_layout_of_old_is_fetched(tmp_path):
    new, old = write_encoder("bert-mean", tmp_path), tmp_path / "old"
    left_out = shutil.ignore_patterns("modules.json", "*_*", "*.safetensors")
    shutil.copytree(new, old / "0_Transformer", ignore=left_out)
    modules = json.loads((new / "modules.json").read_text())[:2]
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(new / "1_Pooling", old / "1_Pooling")
    needed = ("config.json", "vocab.txt", "merges.txt", "pytorch_model.bin")
    for name in needed[1:]:
        (old / "0_Transformer" / name).write_text(name)
    with Hub(NAME, {FIRST: old}) as hub:
        fetch(hub.url, tmp_path / "home")
        assert {f"0_Transformer/{name}" for name in needed} <= set(hub.fetched)


def test_a_pinned_revision_stays_what_it_is(repository, tmp_path):
    later = shutil.copytree(repository, tmp_path / "later")
    (later / "config_sentence_transformers.json").write_text('{"prompts": {"query": "find : "}}')
    with Hub(NAME, {FIRST: repository, SECOND: later}) as hub:
        pinned, newest = (fetch(hub.url, tmp_path / "home", revision) for revision in (FIRST, ""))
        assert (pinned.endswith(FIRST), newest.endswith(SECOND)) == (True, True)
        refused = fetch(hub.url, tmp_path / "home", "3" * 40)
    assert refused.startswith(
        "refused: encoder.name: 'team/tiny' is no local folder, and the model hub did not"
    )
    assert len(refused.splitlines()) == 1


def test_a_closed_repository_needs_a_token(repository, tmp_path):
    with Hub(NAME, {FIRST: repository}, token="hf_secret") as hub:
        refused = fetch(hub.url, tmp_path / "home")
        assert refused.startswith("refused: encoder.name: 'team/tiny'")
        assert "HF_TOKEN" in refused
        assert len(refused.splitlines()) == 1
        assert fetch(hub.url, tmp_path / "home", HF_TOKEN="hf_secret").endswith(FIRST)


def test_a_hub_that_is_not_there_is_told_in_one_line(tmp_path):
    refused = fetch("http://127.0.0.1:9", tmp_path / "home")
    assert refused.startswith(
        "refused: encoder.name: 'team/tiny' is no local folder, and the model hub did not"
    )
    assert len(refused.splitlines()) == 1
