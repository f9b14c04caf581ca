"""The page to try the service on, in a real browser: by keyboard alone, and on a telephone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from routerretriever.client.schemas import ExpertState, SearchRequest, ServiceState
from routerretriever.datasets.collection import Document
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

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, str, str | None]] = []
        self.stored = {
            f"d{row}": Document(f"d{row}-{LONG}", f"A title, {row}", f"{LONG} and text. " * 20)
            for row in range(5)
        }

    async def search(self, request: SearchRequest, access: Access) -> Any:
        self.asked.append((request.query, request.collection or "", request.model, request.mode))
        return await super().search(request, access)

    async def state(self) -> ServiceState:
        return ServiceState(
            version=7, encoder="fake", placement="shared", challenger=8, challenger_share=0.1,
            shadow_share=0, routed_queries=3, drift=0.25, refused={},
        )  # fmt: skip

    async def experts(self) -> list[ExpertState]:
        common = {"version": "0123", "registered_version": 3, "expected_share": 0.4, "live_share": 0.6}
        replicas = {"fruit": None, f"metal-{LONG}": {"STARTING": 1}, "stone": {}, "wood": {"RUNNING": 2}}
        return [ExpertState(name=name, replicas=own, **common) for name, own in replicas.items()]


@pytest.fixture
def service() -> Iterator[tuple[str, Shown]]:
    shown, port = Shown(), free_port()
    server = uvicorn.Server(uvicorn.Config(application(shown), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/", shown
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(tmp_path / "chromium") as opened:
        yield opened


HEARD = "document.querySelectorAll('#collection option').length > 1"
RESULTS = "!document.getElementById('results').hidden"
FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at), list = at.closest("ol");
  const text = at.querySelector(".text");
  return {
    where: list ? list.id : at.id,
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    cut: text !== null && text.scrollHeight > text.clientHeight,
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
    expected = [("a fig?", "fruit", "base", "dense"), ("a fig?", "fruit", "router", "hybrid")]
    assert sorted(shown.asked) == expected
    assert browser.run(FOCUS)["where"] == "go"
    tab(10)
    assert places[-10:] == ["routed"] * 5 + ["base"] * 5
    assert tab(13, shift=True) == "query"
    browser.press("Enter")
    browser.wait(f"{RESULTS} && document.getElementById('ask').ariaBusy === 'false'")
    assert len(shown.asked) == 4


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
    assert named["image"][:3] == ["fruit: 100 %", "base: 0.0 %", "fruit v3: 60 %, expected 40 %"]
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


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_sticks_out_on_a_telephone(service, browser, width, tmp_path):
    url, _ = service
    browser.open(f"{url}?q=a+fig&in=fruit", width, 700, HEARD)
    browser.wait(RESULTS)
    browser.screenshot(tmp_path / "telephone.png")
    assert browser.run("document.documentElement.scrollWidth") <= width
    right = "[...document.querySelectorAll('main *')].map((one) => one.getBoundingClientRect().right)"
    assert browser.run(f"Math.max(...{right})") <= width
