"""Who trains what: nothing is trained twice or forgotten, whatever fails."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from routerretriever.artifacts.leases import Leases
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.training.checkpoints import checkpoints_key, last_checkpoint, save_checkpoint
from routerretriever.training.queue import TrainingQueue
from routerretriever.training.trainers import remove_abandoned

EVENTS = st.sampled_from(["work on", "finish", "fail", "fail for good", "lose"])


@given(
    count=st.integers(1, 6),
    groups=st.integers(1, 3),
    max_failures=st.integers(0, 2),
    events=st.lists(EVENTS, max_size=60),
)
def test_every_adapter_ends_once_and_is_held_by_one_group(count, groups, max_failures, events):
    queue = TrainingQueue([str(number) for number in range(count)], max_failures)
    at_work: dict[int, str] = {}
    begun: dict[str, int] = {}
    ended: list[str] = []
    turn = 0
    # Whatever happened, groups that only finish their work come to an end.
    while len(ended) < count:
        event = events[turn] if turn < len(events) else "finish"
        group = turn % groups
        turn += 1
        if group not in at_work:
            name = queue.take(group)
            if name is None:
                continue
            assert name not in ended
            assert name not in at_work.values()
            at_work[group] = name
            begun[name] = begun.get(name, 0) + 1
        if event == "work on":
            continue
        name = at_work.pop(group)
        if event == "finish":
            queue.finish(group)
        elif event != "lose":
            queue.fail(group, "because", event == "fail for good")
        course = queue.courses()[name]
        # One that was lost for the last time is given up when its group asks for more.
        if course.finished or course.failed or (event == "lose" and course.restarts >= max_failures):
            ended.append(name)
    assert [queue.take(group) for group in range(groups)] == [None] * groups
    assert max(begun.values()) <= max_failures + 1
    for course in queue.courses().values():
        assert course.finished == (course.failed is None)


def test_steps_that_were_taken_again_count_again():
    queue = TrainingQueue(["a"], 1)
    assert queue.take(0) == "a"
    for step in (0, 2, 4):
        queue.advance(0, step, 10, 0.5)
    assert queue.take(0) == "a"
    for step in (2, 4, 6):
        queue.advance(0, step, 10, 0.5)
    course = queue.courses()["a"]
    assert (course.step, course.steps_taken, course.restarts) == (6, 8, 1)


def test_a_worker_that_is_lost_too_often_says_so_and_frees_its_group():
    queue = TrainingQueue(["a", "b"], 1)
    assert [queue.take(0), queue.take(0), queue.take(0)] == ["a", "a", "b"]
    assert "worker was lost" in queue.courses()["a"].failed
    assert not queue.fail(0, "broken", final=True)
    assert queue.courses()["b"].failed == "broken"


def test_the_last_whole_checkpoint_is_the_one_that_is_kept(tmp_path):
    store, folder = ArtifactStore.open(str(tmp_path / "storage")), tmp_path / "made"
    folder.mkdir()
    assert last_checkpoint(store, "experts/a-1") is None
    for step in (2, 10):
        (folder / "state.pt").write_text(str(step))
        save_checkpoint(store, "experts/a-1", step, folder)
    # Half of a later one, as a worker leaves it that is lost meanwhile.
    store.put_folder(f"{checkpoints_key('experts/a-1')}/12", folder)
    assert (last_checkpoint(store, "experts/a-1") / "state.pt").read_text() == "10"
    assert not store.holds(f"{checkpoints_key('experts/a-1')}/2")


def test_what_killed_runs_have_left_goes_and_what_live_ones_hold_stays(tmp_path):
    store = ArtifactStore.open(str(tmp_path))
    dead, live = "adapters-0123abcd-0/state.json", "adapters-4567cdef-1/state.json"
    # The checkpoint of a domain that is called adapters.
    own = "adapters-0123456789abcdef/5/state.pt"
    for name in (dead, live, own):
        store.files.write(f"training/{name}", b"{}")
    with Leases(store.files).hold(["training/adapters-4567cdef-1"]):
        remove_abandoned(store)
    assert store.files.list_files("training") == [own, live]
    remove_abandoned(store)
    assert store.files.list_files("training") == [own]
