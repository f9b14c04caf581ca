"""What an installed package has with it: recipes by their names, the sample, the marker of its types."""

import tomllib

import pytest
from routerretriever.config import shipped
from routerretriever.config.loading import load_recipe
from routerretriever.config.shipped import recipe_file, shipped_recipes
from routerretriever.errors import RecipeError
from routerretriever.pipeline.domains import remove_domain
from support.paths import RECIPES, ROOT

WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_the_wheel_and_the_image_take_the_recipes_to_where_they_are_looked_for(tmp_path, monkeypatch):
    assert WHEEL["force-include"] == {"jobs/recipes": "routerretriever/recipes"}
    assert "jobs/recipes jobs/recipes" in (ROOT / "Dockerfile").read_text()
    assert shipped.shipped_folder() == RECIPES
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    (tmp_path / "recipes").mkdir()
    assert shipped.shipped_folder() == tmp_path / "recipes"


def test_a_shipped_recipe_is_found_by_name_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("sample").name == "sample"
    assert recipe_file("sample") == shipped_recipes()["sample"]
    (tmp_path / "sample").write_text("{}")
    assert str(recipe_file("sample")) == "sample"
    with pytest.raises(RecipeError, match=r"^nowhere: no such file.*sample"):
        load_recipe("nowhere")


def test_a_shipped_recipe_is_not_edited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"comes with the package.*sample\.yaml first"):
        remove_domain(shipped_recipes()["sample"].with_suffix("").relative_to(RECIPES), "kitchen")


def test_types_are_marked():
    assert (ROOT / "platform/routerretriever/py.typed").exists()
