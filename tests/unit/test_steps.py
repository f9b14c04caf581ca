"""Steps: inputs first, together where they can be, once however many runs ask, and whole in the end."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.artifacts import store as storage
from routerretriever.artifacts.step import Status, Step, build_missing, groups_in_order
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import ArtifactDamaged, BadInput


def writing(text):
    return lambda path: path.write_text(text)


@dataclass(frozen=True, kw_only=True, eq=False)
class Made(Step):
    """Writes its inputs' texts and its own name; ``built`` collects who was built together."""

    built: list[list[str]] = field(default_factory=list)

    @classmethod
    def build_all(cls, steps, store):
        steps[0].built.append([step.name for step in steps])
        for step in steps:
            texts = [(store.fetch(each.key) / "text").read_text() for each in step.inputs]
            store.put(step.key, "text", writing("+".join([*texts, step.name])))
            store.commit(step.key, {"kind": "test"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Encode(Made):
    stage = "encode"


@dataclass(frozen=True, kw_only=True, eq=False)
class Train(Made):
    stage = "train"


@dataclass(frozen=True, kw_only=True, eq=False)
class Score(Made):
    stage = "score"


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold(Made):
    stage = "train"
    builds_inputs = True


def chain():
    built = []
    corpora = [Encode(name=f"c{i}", key=f"corpora/c{i}", built=built) for i in range(2)]
    experts = [Train(name="e", key="experts/e", inputs=tuple(corpora), built=built)]
    scores = [
        Score(name="base", key="scores/base", inputs=tuple(corpora), built=built),
        Score(name="s", key="scores/s", inputs=(*corpora, *experts), built=built),
    ]
    return scores, built


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_POLL_SECONDS", 0.02)
    return ArtifactStore.open(str(tmp_path / "storage"))


def test_inputs_come_first_and_steps_of_a_class_are_built_together(store):
    scores, built = chain()
    timed = []

    @contextmanager
    def clock(stage):
        timed.append(stage)
        yield

    build_missing(scores, store, clock)
    assert built == [["c0", "c1"], ["e"], ["base", "s"]]
    assert timed[:3] == ["encode", "train", "score"]
    assert (store.fetch("scores/s") / "text").read_text() == "c0+c1+c0+c1+e+s"
    build_missing(scores, store)
    assert len(built) == 3


def test_steps_that_build_their_inputs_are_built_with_them(store):
    built = []
    corpus = Encode(name="c", key="corpora/c", built=built)
    folds = tuple(Fold(name=f"f{i}", key=f"folds/f{i}", inputs=(corpus,), built=built) for i in range(2))
    build_missing([Fold(name="e", key="experts/e", inputs=(corpus, *folds), built=built)], store)
    assert built == [["c"], ["f0", "f1", "e"]]


def test_the_status_says_what_is_there_and_changes_nothing(store):
    (step,) = (Encode(name="c", key="corpora/c"),)
    assert step.status(store) is Status.MISSING
    store.put(step.key, "text", lambda path: path.write_text("half"))
    assert step.status(store) is Status.STARTED
    build_missing([step], store)
    assert step.status(store) is Status.PRESENT
    text = store.fetch(step.key) / "text"
    text.write_text("other")
    assert step.status(store) is Status.DAMAGED
    assert step.status(store) is Status.DAMAGED
    assert text.read_text() == "other"


@pytest.mark.parametrize("damaged", ["corpora/c1", "experts/e", "scores/base"])
def test_a_damaged_artifact_alone_is_made_again(store, damaged):
    scores, built = chain()
    build_missing(scores, store)
    del built[:]
    path = store.fetch(damaged) / "text"
    before = path.read_bytes()
    path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    build_missing(scores, store)
    assert path.read_bytes() == before
    assert built == [[damaged.split("/")[1]]]


def test_an_input_that_is_damaged_while_others_are_built_from_it_is_mended(store):
    damage = [True]

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Unlucky(Made):
        stage = "score"

        @classmethod
        def build_all(cls, steps, store):
            if damage and damage.pop():
                (store.fetch("corpora/c") / "text").write_text("?")
            super().build_all(steps, store)

    corpus = Encode(name="c", key="corpora/c")
    score = Unlucky(name="s", key="scores/s", inputs=(corpus,))
    build_missing([score], store)
    assert corpus.built == [["c"], ["c"]]
    assert (store.fetch("scores/s") / "text").read_text() == "c+s"


def test_a_step_that_fails_for_a_reason_of_its_own_says_so_once(store):
    calls = []

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Failing(Made):
        stage = "train"

        @classmethod
        def build_all(cls, steps, store):
            calls.append(1)
            raise BadInput("domains.fruit: no train split")

    corpus = Encode(name="c", key="corpora/c")
    with pytest.raises(BadInput, match="no train split"):
        build_missing([Failing(name="e", key="experts/e", inputs=(corpus,))], store)
    assert calls == [1]
    assert not store.files.list_files("leases")


def test_an_input_that_fails_in_the_group_it_is_built_in_is_tried_once(store):
    calls = []

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Failing(Fold):
        @classmethod
        def build_all(cls, steps, store):
            calls.append([step.name for step in steps])
            raise BadInput("f: the loss is nan")

    corpus = Encode(name="c", key="corpora/c")
    fold = Failing(name="f", key="folds/f", inputs=(corpus,))
    with pytest.raises(BadInput, match="the loss is nan"):
        build_missing([Failing(name="e", key="experts/e", inputs=(corpus, fold))], store)
    assert calls == [["f", "e"]]


def test_storage_that_loses_what_is_written_ends_with_an_error(store):
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Rotting(Made):
        stage = "score"

        @classmethod
        def build_all(cls, steps, store):
            (store.fetch("corpora/c") / "text").write_text("?")
            super().build_all(steps, store)

    corpus = Encode(name="c", key="corpora/c")
    with pytest.raises((ArtifactDamaged, storage.ArtifactMissing), match="check the disk"):
        build_missing([Rotting(name="s", key="scores/s", inputs=(corpus,))], store)


def test_of_many_runs_one_builds_and_what_a_dead_maker_leaves_is_taken_over(store):
    gate = threading.Barrier(4)
    died = threading.Event()
    failures = []

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Dying(Made):
        stage = "train"

        @classmethod
        def build_all(cls, steps, store):
            if not died.is_set():
                died.set()
                store.put(steps[0].key, "text", lambda path: path.write_text("half"))
                raise RuntimeError("its machine went away")
            super().build_all(steps, store)

    corpus = Encode(name="c", key="corpora/c")
    expert = Dying(name="e", key="experts/e", inputs=(corpus,))

    def run():
        gate.wait()
        try:
            build_missing([expert], store)
        except RuntimeError as error:
            failures.append(str(error))
        else:
            assert expert.status(store) is Status.PRESENT

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == ["its machine went away"]
    assert corpus.built == [["c"]]
    assert expert.built == [["e"]]
    assert (store.fetch(expert.key) / "text").read_text() == "c+e"


@st.composite
def graphs(draw):
    steps = []
    for number in range(draw(st.integers(1, 12))):
        inputs = draw(st.lists(st.sampled_from(steps), max_size=3)) if steps else []
        kind = draw(st.sampled_from([Encode, Train, Score, Fold]))
        steps.append(kind(name=str(number), key=f"kind/{number}", inputs=tuple(inputs)))
    return steps


@given(graphs())
def test_groups_hold_every_step_once_one_class_each_and_after_its_inputs(steps):
    groups = groups_in_order(steps)
    done = set()
    for group in groups:
        assert len({type(step) for step in group}) == 1
        for step in group:
            assert all(each.key in done for each in step.inputs)
            if step.builds_inputs:
                done.add(step.key)
        done |= {step.key for step in group}
    assert sorted(done) == sorted(step.key for step in steps)
    assert sum(map(len, groups)) == len(steps)
