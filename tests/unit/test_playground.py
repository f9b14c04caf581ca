"""The page to try the service on, in a real browser: by keyboard alone, and on a telephone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.client.schemas import (
    CollectionState,
    ExpertState,
    LexicalOptions,
    SearchRequest,
    ServiceState,
)
from routerretriever.datasets.collection import Document
from routerretriever.datasets.feedback import FeedbackLog
from routerretriever.serving.access import Access
from routerretriever.serving.deployments.run import free_port
from support.browser import CHROMIUM, Browser, open_browser
from support.service import StandIn, application

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
]
LONG = "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 3


class Shown(StandIn):
    """A service whose answers are as unwieldy as they come."""

    lexical: LexicalOptions | None = None
    """How the words of its collections are indexed."""
    keeps_feedback = False

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str, str, str | None]] = []
        self.stored = {
            f"d{row}": Document(f"d{row}-{LONG}", f"A title, {row}", f"{LONG} and text. " * 20)
            for row in range(5)
        }

    async def search(self, request: SearchRequest, access: Access) -> Any:
        self.asked.append((request.query, request.collection or "", request.model, request.mode))
        return await super().search(request, access)

    async def state(self, access: Access) -> ServiceState:
        return ServiceState(
            version=7, encoder="fake", placement="shared", challenger=8, challenger_share=0.1,
            shadow_share=0, routed_queries=3, drift=0.25, refused={}, feedback=self.keeps_feedback,
        )  # fmt: skip

    async def require_readable(self, name: str, access: Access) -> None:
        pass

    async def collection_state(self, name: str, access: Access) -> CollectionState:
        state = await super().collection_state(name, access)
        return state.model_copy(update={"lexical": self.lexical, "examples": self.examples.get(name, [])})

    async def experts(self) -> list[ExpertState]:
        common = {"version": "0123", "registered_version": 3, "expected_share": 0.4, "live_share": 0.6}
        replicas = {"fruit": None, f"metal-{LONG}": {"STARTING": 1}, "stone": {}, "wood": {"RUNNING": 2}}
        return [ExpertState(name=name, replicas=own, **common) for name, own in replicas.items()]


@contextmanager
def served(shown: Shown, log: FeedbackLog | None = None) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application(shown, feedback=log), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def service() -> Iterator[tuple[str, Shown]]:
    shown = Shown()
    with served(shown) as url:
        yield url, shown


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(tmp_path / "chromium") as opened:
        yield opened


HEARD = "document.querySelectorAll('#collection option').length > 1"
RESULTS = "!document.getElementById('results').hidden"
LEAST_CONTRAST = """(() => {
  const channel = (part) => {
    const s = part / 255;
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  };
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (at) => {
    const own = getComputedStyle(at).backgroundColor;
    return parts(own)[3] === 0 && at.parentElement ? ground(at.parentElement) : own;
  };
  const shown = [...document.querySelectorAll("main *")].filter((at) =>
    at.offsetParent && [...at.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...shown.map((at) => {
    const [a, b] = [light(getComputedStyle(at).color), light(ground(at))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()"""
FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at), list = at.closest("ol");
  const text = at.querySelector(".text");
  return {
    where: list ? list.id : at.id,
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    cut: text !== null && (!text.clientHeight || text.scrollHeight > text.clientHeight),
  };
})()"""


def test_it_can_be_used_by_keyboard_alone(service, browser):
    url, shown = service
    browser.open(url, 1280, 900, HEARD)
    assert browser.run(FOCUS)["where"] == "query"
    browser.do("Input.insertText", text="a fig?")
    places = []

    def tab(times: int = 1, shift: bool = False) -> str:
        for _ in range(times):
            browser.press("Tab", shift)
            found = browser.run(FOCUS)
            assert found["outline"] >= 2, found
            assert not found["cut"], "what has the focus shows its whole text"
            places.append(found["where"])
        return places[-1]

    assert tab() == "collection"
    browser.press("ArrowDown")
    assert tab() == "mode"
    browser.press("ArrowDown")
    assert tab() == "go"
    browser.press("Enter")
    browser.wait(RESULTS)
    ways = [("base", "dense"), ("router", "dense"), ("router", "hybrid")]
    assert sorted(shown.asked) == [("a fig?", "fruit", *way) for way in ways]
    assert browser.run(FOCUS)["where"] == "go"
    tab(15)
    assert places[-15:] == ["routed"] * 5 + ["dense"] * 5 + ["base"] * 5
    assert tab(18, shift=True) == "query"
    browser.press("Enter")
    browser.wait(f"{RESULTS} && document.getElementById('ask').ariaBusy === 'false'")
    assert len(shown.asked) == 6


def test_everything_that_can_be_used_or_read_has_a_name(service, browser):
    url, _ = service
    browser.open(f"{url}?q=a+fig&in=fruit", 1280, 900, HEARD)
    browser.wait(RESULTS)
    named = {}
    for node in browser.do("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert named["textbox"] == ["Query"]
    assert named["combobox"] == ["Collection", "Search mode"]
    assert named["button"] == ["Search"]
    assert named["search"] == ["Documents"]
    assert named["list"] == named["article"] == ["Routed, in fruit", "Base encoder alone"]
    assert named["region"] == ["Who answered", "Experts"]
    assert named["image"][:3] == ["fruit: 100 %", "base: 0 %", "fruit v3: 60 %, expected 40 %"]
    assert [name.partition(":")[0] for name in named["image"][3:]] == [
        f"metal-{LONG} v3 (starting)",
        "stone v3 (asleep)",
        "wood v3",
    ]


def test_the_question_chooses_the_collection_and_an_unknown_one_is_told(service, browser):
    url, shown = service
    browser.open(f"{url}?q=a+fig", 1280, 900, HEARD)
    browser.wait(RESULTS)
    assert {(collection, mode) for _, collection, _, mode in shown.asked} == {
        ("fruit", None), ("fruit", "dense")
    }  # fmt: skip
    for name, unknown in (("in", "collection stamps"), ("mode", "mode fuzzy")):
        browser.open(f"{url}?q=a+fig&{name}={unknown.split()[1]}", 1280, 900, HEARD)
        browser.wait(f"document.getElementById('problem').textContent === 'There is no {unknown}.'")


@pytest.mark.parametrize(("mode", "heading"), [("dense", "Routed"), ("lexical", "Words only")])
def test_the_mode_is_sent_and_stays_in_the_address(service, browser, mode, heading):
    url, shown = service
    browser.open(f"{url}?q=a+fig&in=fruit&mode={mode}", 1280, 900, HEARD)
    browser.wait(RESULTS)
    assert sorted(shown.asked) == [("a fig", "fruit", "base", "dense"), ("a fig", "fruit", "router", mode)]
    assert browser.run("document.getElementById('mode').value") == mode
    assert browser.run("location.search") == f"?q=a+fig&in=fruit&mode={mode}"
    assert browser.run("document.getElementById('routed-heading').textContent") == f"{heading}, in fruit"


def test_three_ways_stand_side_by_side_where_words_are_indexed(service, browser):
    url, shown = service
    shown.lexical = LexicalOptions()
    browser.open(f"{url}?q=a+fig&in=fruit", 1440, 900, HEARD)
    browser.wait(RESULTS)
    ways = [("base", "dense"), ("router", "dense"), ("router", None)]
    assert sorted(((model, mode) for _, _, model, mode in shown.asked), key=str) == ways
    headings = "[...document.querySelectorAll('.columns h2')].map((one) => [one.textContent, one.offsetTop])"
    named = browser.run(headings)
    assert [name for name, _ in named] == [
        "Hybrid, in fruit", "Routed vectors alone", "Base encoder alone"
    ]  # fmt: skip
    assert len({top for _, top in named}) == 1


def test_a_hit_shows_the_part_that_has_the_query_s_words_and_all_of_it_with_the_focus(service, browser):
    url, shown = service
    shown.stored = {"d": Document("d", "", "😀 sheep " * 60 + "have wool 😀 on them")}
    browser.open(f"{url}?q=what+has+wool&in=fruit", 1280, 900, HEARD)
    browser.wait(RESULTS)
    marked = "[...document.querySelectorAll('#routed mark')].map((one) => one.innerText)"
    assert browser.run(marked) == ["wool"]
    seen = "document.querySelector('#routed li').innerText"
    assert "… " in browser.run(seen)
    assert browser.run(seen).endswith("sheep have wool 😀 on them")
    for _ in range(4):
        browser.press("Tab")
    assert browser.run(FOCUS)["where"] == "routed"
    assert browser.run(seen).count("sheep") == 60


def test_hebrew_begins_at_the_right(service, browser):
    url, shown = service
    shown.stored = {"d": Document("d", "", "שלום עולם"), "e": Document("e", "", "hello")}
    browser.open(f"{url}?q=a+fig&in=fruit", 1280, 900, HEARD)
    browser.wait(RESULTS)
    room = """[...document.querySelectorAll('#routed .part')].map((part) => {
      const first = document.createRange(), box = part.getBoundingClientRect();
      const text = [...part.childNodes].find((node) => node.textContent);
      first.setStart(text, 0);
      first.setEnd(text, 1);
      const letter = first.getBoundingClientRect();
      return [letter.left - box.left, box.right - letter.right];
    })"""
    (left, right), (left_of_latin, right_of_latin) = browser.run(room)
    assert right < 1 < left
    assert left_of_latin < 1 < right_of_latin


def test_questions_to_try_are_offered_and_asked(service, browser):
    url, shown = service
    shown.examples = {"fruit": ["a question about fruit?", "another?"], "metal": ["one about metal?"]}
    browser.open(url, 1280, 900, HEARD)
    offered = "[...document.querySelectorAll('#examples button')].map((one) => one.textContent)"
    assert browser.run(offered) == ["a question about fruit?", "one about metal?"]
    chosen = "document.getElementById('collection')"
    browser.run(f"{chosen}.value = 'fruit'; {chosen}.dispatchEvent(new Event('change'))")
    assert browser.run(offered) == ["a question about fruit?", "another?"]
    browser.run("document.querySelectorAll('#examples button')[1].click()")
    browser.wait(RESULTS)
    assert {(query, collection) for query, collection, _, _ in shown.asked} == {("another?", "fruit")}


def test_marks_are_kept_where_the_service_keeps_feedback(browser, tmp_path):
    shown, log = Shown(), FeedbackLog(FileSystem.open(str(tmp_path / "storage")))
    shown.keeps_feedback = True
    with served(shown, log) as url:
        browser.open(f"{url}?q=a+fig&in=fruit", 1280, 900, HEARD)
        browser.wait(RESULTS)
        browser.run("document.querySelectorAll('#routed .marks')[1].children[0].click()")
        browser.run("document.querySelectorAll('#base .marks')[0].children[1].click()")
        browser.wait("document.querySelectorAll('[aria-pressed=true]').length === 2")
    liked, disliked = sorted(log.read(), key=lambda report: report.not_relevant)
    assert liked.user == disliked.user != ""
    assert (liked.query, liked.collection, len(liked.shown)) == ("a fig", "fruit", 5)
    assert liked.relevant == liked.shown[1:2]
    assert (len(disliked.not_relevant), disliked.relevant) == (1, ())


def test_without_feedback_there_is_nothing_to_mark(service, browser):
    url, _ = service
    browser.open(f"{url}?q=a+fig&in=fruit", 1280, 900, HEARD)
    browser.wait(RESULTS)
    assert browser.run("document.querySelectorAll('.marks').length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_told_from_its_ground(service, browser, dark):
    url, _ = service
    browser.open(f"{url}?q=a+fig&in=fruit", 1440, 900, HEARD, dark=dark)
    browser.wait(RESULTS)
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert browser.run(LEAST_CONTRAST) >= 4.5, "WCAG 2.1's level AA for text"


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_sticks_out_on_a_telephone(service, browser, width, tmp_path):
    url, _ = service
    browser.open(f"{url}?q=a+fig&in=fruit", width, 700, HEARD)
    browser.wait(RESULTS)
    browser.screenshot(tmp_path / "telephone.png")
    assert browser.run("document.documentElement.scrollWidth") <= width
    right = "[...document.querySelectorAll('main *')].map((one) => one.getBoundingClientRect().right)"
    assert browser.run(f"Math.max(...{right})") <= width
