from pathlib import Path

import pytest
from routerretriever.config.loading import load_recipe
from routerretriever.errors import RecipeError, RouterRetrieverError
from routerretriever.studies.reproduction import load_reproduction, reproduce, verdict
from routerretriever.types import BASE
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "jobs" / "reproduction.yaml"
CASE = {
    "recipe": "recipe.yaml",
    "tolerance": 0.5,
    "wide_tolerance": 2.0,
    "expected": {BASE: {"kitchen": 27.1}},
}
RECIPE = {"name": "r", "domains": {"kitchen": {"path": "sample:kitchen"}, "far": {"path": "far"}}}


def written(folder, **changes):
    for name, content in (("recipe", RECIPE), ("figures", {"cases": {"one": {**CASE, **changes}}})):
        with (folder / f"{name}.yaml").open("w") as file:
            YAML().dump(content, file)
    return folder / "figures.yaml"


@pytest.mark.parametrize(
    ("found", "expected"),
    [(64.0, "OK"), (64.5, "OK"), (63.5, "OK"), (64.51, "OKish"), (66.0, "OKish"), (62.0, "OKish"),
     (66.01, "FAIL"), (61.9, "FAIL"), (0.0, "FAIL"), (None, "FAIL")],
)  # fmt: skip
def test_a_figure_is_judged_by_its_distance_up_or_down(found, expected, tmp_path):
    case = load_reproduction(written(tmp_path))["one"]
    assert verdict(case, 64.0, found) == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tolerance": 0}, "cases.one.tolerance"),
        ({"wide_tolerance": 0.1}, "wide_tolerance"),
        ({"measure": "ndcg"}, "cases.one.measure"),
        ({"expected": {}}, "cases.one.expected"),
        ({"colour": 1}, "cases.one.colour: unknown key"),
        ({"recipe": "none.yaml"}, "none.yaml: no such file"),
        ({"expected": {"oracle": {"kitchen": 1.0}}}, "no system is named 'oracle'"),
        ({"expected": {BASE: {"cellar": 1.0}}}, "no 'cellar'; there are kitchen, far"),
        ({"expected": {"RouterRetriever": {"kitchen": 1.0}}}, "domains.far.path: no folder"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(changes, named, tmp_path):
    with pytest.raises(RouterRetrieverError, match=named):
        reproduce(written(tmp_path, **changes), [], [f"storage={tmp_path}", f"data_root={tmp_path}"])


def test_a_case_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no case 'two'; there are one"):
        reproduce(written(tmp_path), ["two"], [])


def test_the_shipped_figures_belong_to_shipped_recipes():
    for name, case in load_reproduction(SHIPPED).items():
        recipe = load_recipe(SHIPPED.parent / case.recipe, list(case.changes))
        for way, figures in case.expected.items():
            assert set(figures) <= set(recipe.domains), f"{name}: {way}"
