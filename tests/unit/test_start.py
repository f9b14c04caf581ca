"""The first hour: a recipe for collections that are there, and what would fail on this machine."""

import re
import socket
import time
from pathlib import Path

import pytest
from routerretriever.cli import start
from routerretriever.config.loading import load_recipe
from routerretriever.config.starter import write_recipe
from routerretriever.datasets.preflight import preflight
from routerretriever.errors import DatasetError, RecipeError, Refused, Unavailable
from routerretriever.pipeline import doctor
from routerretriever.pipeline.doctor import Verdict, examine
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime import machine
from support.collections import WORDS, write_collection
from support.recipes import tiny_recipe


def found(findings):
    return {one.name: one for one in findings}


@pytest.fixture
def data(tmp_path):
    """Two collections below one folder, and one with a test split only."""
    write_collection(tmp_path / "data" / "Fruit & more", WORDS["fruit"], ("train", "test"))
    write_collection(tmp_path / "data" / "router", WORDS["metal"])
    write_collection(tmp_path / "sport", WORDS["sport"], ("test",))
    return tmp_path


def test_a_recipe_is_written_for_what_is_found(data):
    path = write_recipe([data / "data", data / "sport"], data / "mine.yaml")
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert list(recipe.domains) == ["fruit-more", "router-2", "sport"]
    assert recipe.expert_domains == ["fruit-more", "router-2"]
    assert recipe.question.startswith("where is ")
    text = path.read_text()
    assert re.search(r"28 documents; queries: \d+ train, \d dev \(held out of train\), 7 test; few", text)
    assert "no train split, so no expert" in text
    assert Pipeline(recipe).collections["sport"].folder == data / "sport"
    assert recipe.training.gpus_per_worker == 0
    assert (
        load_recipe(write_recipe([data / "data"], data / "g.yaml", has_gpu=True)).scoring.gpus_per_worker == 1
    )


def test_commands_to_type_next_can_be_copied_whatever_the_file_is_called(data, capsys):
    path = data / "my recipe.yaml"
    start.init([str(data / "data")], path)
    assert f"#   routerretriever run '{path}' --dry-run  " in path.read_text()
    assert capsys.readouterr().out.rstrip().endswith(f"next: routerretriever run '{path}' --dry-run")


def test_documents_without_queries_are_a_domain_without_an_expert(data):
    documents = write_collection(data / "data" / "notes", WORDS["sport"], ())
    (documents / "queries.jsonl").write_text("")
    recipe = load_recipe(write_recipe([data / "data"], data / "mine.yaml"))
    assert (list(recipe.domains)[1], recipe.domains["notes"].expert) == ("notes", False)
    assert "queries: none; no train split, so no expert" in (data / "mine.yaml").read_text()
    report = preflight(Pipeline(recipe).collections.values(), {"notes": ()})
    assert report.checks["notes"].documents == 28
    (documents / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    with pytest.raises(DatasetError, match=r"queries\.jsonl: no usable line"):
        preflight(Pipeline(recipe).collections.values(), {"notes": ("test",)})


@pytest.mark.parametrize("name", ["2024", "1e3", "2024-01-31", "null", "true"])
def test_names_that_yaml_reads_as_something_else_are_quoted(data, name):
    write_collection(data / name, WORDS["fruit"])
    recipe = load_recipe(write_recipe([data / name], data / f"{name}.yaml"))
    assert (recipe.name, recipe.storage, list(recipe.domains)) == (name, f"runs/{name}", [name])
    assert load_recipe(write_recipe([data / name], data / "given.yaml", name=name)).name == name


@pytest.mark.parametrize("name", ["two  spaces", "Ünï: #1", 'a "quote"', "back\\slash"])
def test_paths_are_written_as_they_are(data, name):
    write_collection(data / name / name, WORDS["fruit"])
    recipe = load_recipe(write_recipe([data / name], data / "mine.yaml"))
    assert [one.folder for one in Pipeline(recipe).collections.values()] == [data / name / name]


def test_a_name_that_no_recipe_can_have_is_refused(data):
    for name in ("a: b", "[", "a #b"):
        with pytest.raises(RecipeError, match=r"name: String should match"):
            write_recipe([data / "data"], data / "mine.yaml", name=name)
    assert not (data / "mine.yaml").exists()


def test_nothing_is_overwritten_and_what_cannot_be_trained_is_said(data):
    with pytest.raises(DatasetError, match="no collection has a train split"):
        write_recipe([data / "sport"], data / "mine.yaml")
    (data / "mine.yaml").touch()
    with pytest.raises(Refused, match="--to"):
        write_recipe([data / "data"], data / "mine.yaml")
    with pytest.raises(DatasetError, match="no folder"):
        write_recipe([data / "nowhere"], data / "other.yaml")
    assert not (data / "other.yaml").exists()


def test_the_sample_needs_no_folder(tmp_path):
    recipe = load_recipe(write_recipe(["sample:kitchen", "sample:garden"], tmp_path / "s.yaml"))
    assert recipe.domain_path("kitchen") == "sample:kitchen"


def test_a_sound_machine_fails_nothing_and_nothing_is_written(tiny_data, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    findings = examine(tiny_recipe(tiny_data))
    assert [one for one in findings if one.verdict is Verdict.FAIL] == []
    assert not (tiny_data / "storage").exists()


def test_storage_may_be_named_as_a_file_uri(tiny_data):
    plain, uri = (
        found(examine(tiny_recipe(tiny_data, storage=f"{scheme}{tiny_data}/storage")))
        for scheme in ("", "file://")
    )
    assert "for storage" in uri["disk"].text
    for check in ("storage", "MLflow"):
        assert uri[check] == plain[check]
    assert f"sqlite:///{tiny_data}/storage/mlflow.db: " in uri["MLflow"].text
    assert not (tiny_data / "storage").exists()


def test_what_would_fail_is_named_with_what_to_do(tiny_data, monkeypatch):
    monkeypatch.setattr(machine, "torch_gpus", lambda: 0)
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: 2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    recipe = tiny_recipe(
        tiny_data,
        storage="/proc/nowhere",
        encoder={"name": "nobody/nothing"},
        training={"gpus_per_worker": 1},
        registry={"tracking_uri": "http://anna:planted@127.0.0.1:1"},
        domains={"fruit": {"path": "fruit"}, "lost": {"path": "lost"}},
    )
    monkeypatch.setattr(doctor, "why_silent", lambda *_: "unreachable")
    monkeypatch.setattr(machine, "goes_through_proxy", lambda _: False)
    failed = {name: one.text for name, one in found(examine(recipe)).items() if one.verdict is Verdict.FAIL}
    assert "planted" not in str(failed)
    assert "RAY_ADDRESS" in failed["Ray"]
    assert "CUDA build of torch" in failed["gpu"]
    assert "set encoder.name to a folder" in failed["model hub"]
    assert "domains.lost.path" in failed["collections"]
    assert "no server answers" in failed["MLflow"]
    assert "storage" in failed


def test_a_model_hub_behind_a_proxy_is_within_reach(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, encoder={"name": "nobody/nothing"})
    monkeypatch.setattr(doctor, "why_silent", lambda *_: "unreachable")
    for proxy, verdict in ((False, Verdict.FAIL), (True, Verdict.NOTE)):
        monkeypatch.setattr(machine, "goes_through_proxy", lambda _, proxy=proxy: proxy)
        assert doctor.check_hub(recipe)[0] is verdict


def test_gpus_that_are_asked_for_and_those_that_are_not(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: 0)
    asking, modest = tiny_recipe(tmp_path, serving={"router": {"gpus": 1}}), tiny_recipe(tmp_path)
    monkeypatch.setattr(machine, "torch_gpus", lambda: 0)
    verdict, text = doctor.check_gpu(asking)
    assert (verdict, "serving.router.gpus" in text) == (Verdict.FAIL, True)
    assert doctor.check_gpu(modest)[0] is Verdict.OK
    monkeypatch.setattr(machine, "torch_gpus", lambda: 1)
    verdict, text = doctor.check_gpu(modest)
    assert (verdict, "share its first" in text) == (Verdict.NOTE, True)
    on_cpu = modest.model_copy(update={"encoder": modest.encoder.model_copy(update={"device": "cpu"})})
    verdict, text = doctor.check_gpu(on_cpu)
    assert (verdict, "leaves unused" in text) == (Verdict.NOTE, True)
    assert doctor.check_gpu(asking)[0] is Verdict.OK


@pytest.mark.parametrize(
    ("flags", "units", "advised"),
    [
        ("fpu avx2 avx_vnni avx512f avx512_vnni", ["AVX2", "AVX-512", "VNNI"], True),
        ("fpu avx2", ["AVX2"], False),
    ],
)
def test_int8_is_advised_where_the_processor_has_the_units_for_it(monkeypatch, flags, units, advised):
    monkeypatch.setattr(Path, "read_text", lambda *_: f"processor: 0\nflags: {flags}\n")
    assert machine.vector_units() == units
    assert ("int8" in doctor.check_processor()[1]) is advised


@pytest.mark.parametrize(
    ("flags", "precision", "slow"),
    [("avx2", "int8", True), ("avx2", "fp32", False), ("avx2 avx_vnni", "int8", False), ("", "int8", False)],
)
def test_int8_is_called_slow_where_the_processor_is_known_to_lack_the_units(
    monkeypatch, tmp_path, flags, precision, slow
):
    recipe = tiny_recipe(tmp_path, serving={"engine": {"precision": precision}})
    monkeypatch.setattr(Path, "read_text", lambda *_: f"flags: fpu {flags}\n")
    verdict, text = doctor.check_processor(recipe)
    assert verdict is (Verdict.NOTE if slow else Verdict.OK)
    assert ("int8 may be slower than fp32, since this CPU has no VNNI" in text) is slow


def test_a_port_that_is_taken_and_storage_whose_package_is_missing(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert doctor.check_port("127.0.0.1", taken.getsockname()[1])[0] is Verdict.NOTE
    assert doctor.check_port("127.0.0.1", 0)[0] is Verdict.OK
    with monkeypatch.context() as bare:
        bare.setattr(doctor.importlib.util, "find_spec", lambda name: None)
        verdict, text = doctor.check_storage("s3://bucket/x")
    assert (verdict, "routerretriever[s3]" in text) == (Verdict.FAIL, True)


def test_storage_below_a_file_fails_with_what_to_do(tmp_path):
    (tmp_path / "taken").write_text("")
    verdict, text = doctor.check_storage(str(tmp_path / "taken" / "run"))
    assert verdict is Verdict.FAIL
    assert text == f"{tmp_path}/taken/run: Not a directory; name a folder that can be written"


def test_a_call_that_hangs_is_given_up():
    with pytest.raises(Unavailable, match=r"storage: no answer within 0\.01 seconds"):
        machine.within(0.01, lambda: time.sleep(2), "storage")
    assert machine.within(60, lambda: 7, "storage") == 7
    with pytest.raises(KeyError):
        machine.within(60, lambda: {}["x"], "storage")
