import logging

import pytest
from routerretriever.config.loading import load_recipe, parse_recipe
from routerretriever.config.renamed import RENAMED, Renamed, rename_old_keys
from routerretriever.config.serving import ServingSettings
from routerretriever.errors import RecipeError
from routerretriever.routing.settings import FallbackSettings
from routerretriever.settings import Settings

GOOD = {"name": "r", "domains": {"a": {"path": "sample:kitchen"}}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour: unknown key; there are corpus, data_root, deploy"),
        ({"trainig": {}}, r"trainig: unknown key; did you mean training\?"),
        ({"training": {"batchsize": 1}}, r"batchsize: unknown key; did you mean batch_size\?"),
        ({"domains": {"a": {"path": "x", "exprt": True}}}, r"a.exprt: unknown key; did you mean expert\?"),
        ({"training": {"adapter": {"kind": "lora", "rnk": 4}}}, r"rnk: unknown key; did you mean rank\?"),
        ({"training": {"adapter": {"rank": 4}}}, "adapter.kind: missing; choose from ia3, lora, prefix"),
        ({"training": {"adapter": {"kind": "lorra"}}}, r"kind: choose from 'lora', .*found 'lorra'"),
        (
            {"training": {"adapter": {"kind": "ia3", "rank": 4}}},
            "training.adapter.rank: unknown key; there are input_modules, kind, output_modules",
        ),
        (
            {"routing": {"features": "x"}},
            r"1 wrong setting.*\n  routing.features: Input should be 'embedding' \(found 'x'\), or .*integer",
        ),
        (
            {"domains": {"a": {"path": "x", "lexical": {"k1": -1}}}},
            r"1 wrong setting.*\n  domains.a.lexical.k1: .*\(found -1\)",
        ),
        ({"domains": {"Bad": {"pth": "x"}}}, r"(?s)3 wrong.*domains\.Bad: .*domains\.Bad\.pth: unknown key"),
        ({"training": None}, r"training: needs a group of settings \(found null\)"),
        ({"storage": "${HOME}/runs"}, r"storage: .*\$\{HOME\} is not filled in here"),
        ({"data_root": "$HOME"}, r"data_root: .*\$HOME is not filled in"),
        ({"registry": {"alias": "a b"}}, "registry.alias: 'a b' cannot be an alias"),
        ({"registry": {"alias": "v1"}}, "registry.alias: 'v1' cannot be an alias"),
        ({"registry": {"alias": "previous"}}, "registry.alias: 'previous' cannot be an alias"),
        ({"registry": {"alias": "challenger"}}, "challenger_alias: 'challenger' is registry.alias too"),
        ({"training": {"batch_size": -1}}, "training.batch_size"),
        ({"training": {"batch_size": "32"}}, "training.batch_size"),
        ({"training": {"seed": True}}, "training.seed"),
        ({"scoring": {"cpus_per_worker": 1e-5}}, "scoring.cpus_per_worker: 1e-05: Ray counts no less"),
        ({"serving": {"index": {"gpus": 1e-5}}}, "serving.index.gpus: 1e-05: Ray counts no less than 0.0001"),
        ({"training": {"query_max_length": 2}}, r"training.query_max_length: .*greater than or equal to 4"),
        ({"corpus": {"shard_size": 10**18}}, r"corpus.shard_size: .*less than or equal to 1000000"),
        ({"corpus": {"index": {"hnsw_links": 1}}}, r"corpus.index.hnsw_links: .*greater than or equal to 2"),
        ({"corpus": {"lexical": {"k1": 1e300}}}, r"corpus.lexical.k1: .*less than or equal to 1000"),
        ({"training": {"seed": -1}}, r"training.seed: .*greater than or equal to 0 \(found -1\)"),
        ({"training": {"seed": 2**64}}, r"training.seed: .*less than"),
        ({"routing": {"temperature": 1e-320}}, r"routing.temperature: .*greater than or equal to 0.000001"),
        ({"routing": {"fallback": {"slack": 1e300}}}, r"routing.fallback.slack: .*less than or equal"),
        ({"routing": {"seed": 2**32}}, r"routing.seed: .*less than"),
        ({"training": {"learning_rate": 1e38}}, r"training.learning_rate: .*less than or equal to 10"),
        ({"training": {"scales": [1e300]}}, r"training.scales.0: .*less than or equal to 10"),
        (
            {"training": {"adapter": {"kind": "lora", "target_modules": []}}},
            r"training.adapter.target_modules: .*at least 1 item",
        ),
        ({"encoder": {"pooling": "median"}}, "encoder.pooling"),
        ({"training": {"batch_size": 5, "workers": 2}}, "does not divide"),
        ({"training": {"max_steps": None, "max_epochs": None}}, "max_steps or max_epochs"),
        ({"domains": {}}, "domains"),
        ({"domains": {"a": {"path": "x", "expert": False}}}, "at least one domain"),
        ({"domains": {"base": {"path": "x"}}}, "domains.base"),
        ({"domains": {"Bad Name": {"path": "x"}}}, "Bad Name"),
        ({"scoring": {"source": "held_out"}}, "held_out_fraction"),
        ({"routing": {"router": "fixed"}}, "expert"),
        ({"routing": {"router": "fixed", "expert": "b"}}, "no expert 'b'"),
        ({"serving": {"collections": ["b"]}}, "serving.collections"),
        (
            {"serving": {"host": "::"}},
            "serving.host: '::' has a colon, but the service listens on IPv4 alone",
        ),
        (
            {"serving": {"host": "localhost:80"}},
            "serving.host: 'localhost:80' has a colon, .*port is a setting",
        ),
        ({"serving": {"collections": []}}, "serving.collections: is an empty list; name collections, or"),
        (
            {"serving": {"cors_origins": ["a.com"]}},
            "cors_origins: 'a.com' is what no .* write 'https://a.com'",
        ),
        (
            {"serving": {"cors_origins": ["http://A.com:80/x"]}},
            "serving.cors_origins: .* write 'http://a.com'",
        ),
        ({"serving": {"cors_origins": ["https://a.com/"]}}, "serving.cors_origins: .* write 'https://a.com'"),
        (
            {"serving": {"cors_origins": ["https://*.a.com"]}},
            "serving.cors_origins: .*name each origin in full",
        ),
        (
            {"training": {"adapter": {"kind": "prefix", "layers": [1, 0, 0]}}},
            r"training\.adapter\.layers: names layer 0 more than once",
        ),
        (
            {
                "methods": {"experts": {}, "baselines": {"mean": {"kind": "average"}}},
                "routing": {"merge": "embeddings"},
                "training": {"adapter": {"kind": "prefix"}},
            },
            r"baselines\.mean\.kind: average, but adapters of kind .prefix. are not averaged: .*joint",
        ),
        ({"serving": {"placement": "dedicated"}}, "(?s)serving.placement.*set routing.merge to 'embeddings'"),
        ({"serving": {"expert": {"min_replicas": 3, "max_replicas": 2}}}, "max_replicas"),
        ({"training": {"adapter": {"kind": "prefix", "length": 0}}}, r"training\.adapter\.length"),
        (
            {"training": {"adapter": {"kind": "prefix"}}},
            "(?s)training.adapter.*set routing.merge to 'embeddings'",
        ),
        ({"methods": {"baselines": {"base": {}}}}, "methods.baselines.base: this name is taken"),
        (
            {"domains": {"ddr-prior": {"path": "x"}}, "methods": {"ddr": {}}},
            "domains.ddr-prior: methods.ddr calls a model of its own so",
        ),
        ({"deploy": "ddr"}, "needs settings under methods.ddr"),
        ({"methods": {"ddr": {"general": {"domains": []}}}}, "ddr.general.domains"),
        ({"methods": {"ddr": {"general": {"domains": ["b"]}}}}, "ddr.general.domains: no such domain as 'b'"),
        (
            {"methods": {"ddr": {"general": {"domains": ["a"]}, "labels": {"b": ["x"]}}}},
            "ddr.labels: no such domain as 'b'",
        ),
        ({"methods": {"ddr": {"general": {"domains": ["a"]}, "labels": {"a": []}}}}, "ddr.labels.a"),
        (
            {
                "methods": {"ddr": {"general": {"domains": ["a"]}}},
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


def test_origins_that_browsers_send_are_taken():
    origins = (
        "*",
        "null",
        "https://a.com",
        "http://localhost:3000",
        "http://[::1]:8080",
        "app://obsidian.md",
    )
    assert ServingSettings(cors_origins=origins).cors_origins == origins


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


@pytest.mark.parametrize("override", ["novalue", "=1", "name.x=1", "name=[a", "name=a: b: c"])
def test_a_malformed_override_is_refused(tmp_path, override):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains:\n  a: {path: 'sample:kitchen'}\n")
    with pytest.raises(RecipeError, match="--set") as error:
        load_recipe(path, [override])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["none.yaml", "n" * 300, "."])
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(RecipeError, match=r"no such file|directory"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"- a\n", r"r\.yaml: needs a mapping"),
        (b"# nothing\n", r"r\.yaml: is empty"),
        (b"name: r\n\tdomains: {}\n", r"r\.yaml:2: .*indent with spaces, not tabs"),
        (b"name: r\nname: s\n", r'r\.yaml:2: .*duplicate key "name"'),
        (b"name: r\n---\nname: r\n", r"r\.yaml:2: .*expected a single document"),
        (b"name: a\0b\n", r"r\.yaml: not readable as YAML"),
        (b"name: caf\xe9\n", r"r\.yaml: is no UTF-8 text"),
        (b"name: &a [*a]\n", r"r\.yaml: .*anchor"),
        (b"name: !!set {a}\n", r"r\.yaml: found a set"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, content, told):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=told) as error:
        load_recipe(tmp_path / "r.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_what_yaml_takes_for_a_date_is_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains: {a: {path: 'sample:kitchen'}}\nquestion: 2026-01-31\n")
    assert load_recipe(path).question == "2026-01-31"
    with pytest.raises(RecipeError, match=r"training\.seed: .*found '2026-01-31'"):
        load_recipe(path, ["training.seed=2026-01-31"])


@pytest.mark.parametrize("name", ["0123", "1_000", "2026-01-31", "1e3", "no", "null"])
def test_a_domain_is_called_as_it_is_written(tmp_path, name):
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\ndomains: {{{name}: {{path: 'sample:kitchen'}}}}\n")
    assert list(load_recipe(path).domains) == [name]
    assert load_recipe(path, [f"domains.{name}.copies=alike"]).domains[name].copies == "alike"


def test_two_domains_of_one_name_are_refused_however_they_are_written(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains:\n  1: {path: x}\n  '1': {path: y}\n")
    with pytest.raises(RecipeError, match=r'r\.yaml:4: .*duplicate key "1"'):
        load_recipe(path)


def test_a_merge_key_is_no_name(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains:\n  a: &a {path: x, copies: alike}\n  b: {<<: *a, path: y}\n")
    domain = load_recipe(path).domains["b"]
    assert (domain.path, domain.copies) == ("y", "alike")


def test_identity_of_training_ignores_resources():
    one = parse_recipe(GOOD).training
    assert one.identity() == one.model_copy(update={"gpus_per_worker": 1.0}).identity()
    assert one.identity() != one.model_copy(update={"seed": 1}).identity()


def test_old_keys_are_read_with_one_warning_each_that_names_the_new_one(tmp_path, monkeypatch):
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    # Whatever other tests of this process have made of the logger.
    monkeypatch.setattr(logging.getLogger("routerretriever"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("routerretriever"), "propagate", False)
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\ndomains: {a: {path: 'sample:kitchen'}}\n"
        "routing: {mix: vectors, gate: {fallback: uniform, shut_quantile: 0.02, slack: 0.5}}\n"
        "serving: {placement: per_expert, index_parts: 2, releases: {max_canary_loss: 0.1}}\n"
    )
    recipe = load_recipe(path, ["serving.fold_changes=7", "routing.gate.open_quantile=0.3"])
    assert recipe.routing.merge == "embeddings"
    assert recipe.routing.fallback == FallbackSettings(
        answer="uniform", unfamiliar_quantile=0.02, familiar_quantile=0.3, slack=0.5
    )
    serving = recipe.serving
    assert (serving.placement, serving.index_shards, serving.compact_every) == ("dedicated", 2, 7)
    assert serving.releases.max_validation_loss == 0.1
    told = "\n".join(messages)
    for key in (
        "routing.merge", "routing.fallback", "routing.fallback.answer",
        "routing.fallback.unfamiliar_quantile",
        "routing.fallback.familiar_quantile", "serving.index_shards", "serving.compact_every",
        "serving.releases.max_validation_loss",
    ):  # fmt: skip
        assert told.count(f"is now {key};") == 1, key
    assert "'per_expert' is now 'dedicated'" in told


def test_an_old_override_replaces_what_the_file_says_by_the_new_name(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains: {a: {path: 'sample:kitchen'}}\nrouting: {merge: weights}\n")
    assert load_recipe(path, ["routing.mix=vectors"]).routing.merge == "embeddings"
    assert load_recipe(path, ["routing.gate=null"]).routing.fallback is None


def test_an_old_key_beside_its_new_one_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains: {a: {path: x}}\nrouting: {merge: weights, mix: vectors}\n")
    with pytest.raises(RecipeError, match=r"routing\.mix is the old name of routing\.merge"):
        load_recipe(path)


def test_a_group_that_is_renamed_gets_the_keys_that_it_needs_in_its_new_place():
    table = (Renamed("training.prefix", "training.adapter", added={"kind": "prefix"}),)
    values = {"training": {"prefix": {"length": 4}}}
    rename_old_keys(values, "r.yaml", table)
    assert values == {"training": {"adapter": {"kind": "prefix", "length": 4}}}


def test_a_renamed_number_of_another_unit_is_converted_and_said(tmp_path, caplog):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains: {a: {path: x}}\nserving: {limits: {seconds_per_text: 0.1}}\n")
    assert load_recipe(path).serving.limits.seconds_per_token == 0.005
    told = "serving.limits.seconds_per_text is now serving.limits.seconds_per_token"
    assert told in caplog.text
    assert "serving.limits.seconds_per_token: 0.1 is now 0.005" in caplog.text
    assert load_recipe(path, ["serving.limits.seconds_per_text=1"]).serving.limits.seconds_per_token == 0.05
    path.write_text("name: r\ndomains: {a: {path: x}}\nserving: {limits: {seconds_per_text: true}}\n")
    with pytest.raises(RecipeError, match=r"seconds_per_token: .*found true"):
        load_recipe(path)


def test_every_new_key_is_a_setting():
    values = parse_recipe(GOOD).model_dump()
    for renamed in RENAMED:
        node = values
        for part in renamed.new.split("."):
            node = node[part]


def test_every_setting_has_a_description():
    def kinds(kind):
        for child in kind.__subclasses__():
            yield child
            yield from kinds(child)

    unsaid = [
        f"{kind.__name__}.{name}"
        for kind in kinds(Settings)
        if kind.__module__.startswith("routerretriever.")
        for name, field in kind.model_fields.items()
        if not field.description
    ]
    assert unsaid == []


def test_a_teacher_that_reads_words_needs_a_domain_whose_words_are_searched(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ndomains: {a: {path: x, lexical: null}}\ntraining: {teacher_bm25: 0.1}\n")
    with pytest.raises(RecipeError, match=r"teacher_bm25: 0.1 needs the words of a"):
        load_recipe(path)
    assert load_recipe(path, ["domains.a.lexical={language: code}"]).training.teacher_bm25 == 0.1
