import pytest
from routerretriever.config.loading import load_recipe, parse_recipe
from routerretriever.config.serving import ServingSettings
from routerretriever.errors import RecipeError

GOOD = {"name": "r", "domains": {"a": {"path": "sample:kitchen"}}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"training": {"batch_size": -1}}, "training.batch_size"),
        ({"training": {"batch_size": "32"}}, "training.batch_size"),
        ({"training": {"seed": True}}, "training.seed"),
        ({"encoder": {"pooling": "median"}}, "encoder.pooling"),
        ({"training": {"batch_size": 5, "workers": 2}}, "does not divide"),
        ({"training": {"max_steps": None}}, "max_steps or max_epochs"),
        ({"domains": {}}, "domains"),
        ({"domains": {"a": {"path": "x", "expert": False}}}, "at least one domain"),
        ({"domains": {"base": {"path": "x"}}}, "domains.base"),
        ({"domains": {"Bad Name": {"path": "x"}}}, "Bad Name"),
        ({"scoring": {"source": "held_out"}}, "held_out_fraction"),
        ({"routing": {"router": "fixed"}}, "expert"),
        ({"routing": {"router": "fixed", "expert": "b"}}, "no expert 'b'"),
        ({"serving": {"collections": ["b"]}}, "serving.collections"),
        ({"serving": {"placement": "dedicated"}}, "(?s)serving.placement.*set routing.merge to 'embeddings'"),
        ({"serving": {"expert": {"min_replicas": 3}}}, "max_replicas"),
        ({"training": {"adapter": {"kind": "prefix", "length": 0}}}, r"training\.adapter\..*length"),
        (
            {"training": {"adapter": {"kind": "prefix"}}},
            "(?s)training.adapter.*set routing.merge to 'embeddings'",
        ),
        ({"deploy": "ddr"}, "needs settings under ddr"),
        ({"ddr": {"general": {"domains": []}}}, "ddr.general.domains"),
        ({"ddr": {"general": {"domains": ["b"]}}}, "ddr.general.domains: no such domain as 'b'"),
        (
            {"ddr": {"general": {"domains": ["a"]}, "labels": {"b": ["x"]}}},
            "ddr.labels: no such domain as 'b'",
        ),
        ({"ddr": {"general": {"domains": ["a"]}, "labels": {"a": []}}}, "ddr.labels.a"),
        (
            {
                "ddr": {"general": {"domains": ["a"]}},
                "deploy": "ddr",
                "routing": {"merge": "embeddings"},
                "serving": {"placement": "dedicated"},
            },
            "set serving.placement to 'shared'",
        ),
    ],
)
def test_a_wrong_setting_is_named(change, named):
    with pytest.raises(RecipeError, match=named):
        parse_recipe({**GOOD, **change})


def test_setting_one_field_of_a_deployment_leaves_the_others_their_defaults():
    expert = ServingSettings.model_validate({"expert": {"min_replicas": 0}}).expert
    assert (expert.min_replicas, expert.cpus) == (0, ServingSettings().expert.cpus)


def test_all_wrong_settings_are_listed_at_once():
    with pytest.raises(RecipeError) as error:
        parse_recipe({**GOOD, "foo": 1, "encoder": {"dtype": "fp8"}})
    assert "2 wrong setting(s)" in str(error.value)


def test_overrides_and_yaml_1_2_numbers(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains:\n  a: {path: 'sample:kitchen'}\ntraining: {learning_rate: 1e-3}\n")
    recipe = load_recipe(path, ["training.batch_size=16", "encoder.name=fake"])
    assert (recipe.training.learning_rate, recipe.training.batch_size) == (1e-3, 16)
    assert recipe.encoder.name == "fake"


@pytest.mark.parametrize("override", ["novalue", "=1", "name.x=1"])
def test_a_malformed_override_is_refused(tmp_path, override):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains:\n  a: {path: 'sample:kitchen'}\n")
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(path, [override])


def test_missing_and_unreadable_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match="mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_identity_of_training_ignores_resources():
    one = parse_recipe(GOOD).training
    assert one.identity() == one.model_copy(update={"gpus_per_worker": 1.0}).identity()
    assert one.identity() != one.model_copy(update={"seed": 1}).identity()
