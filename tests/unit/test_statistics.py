"""What a collection is like, and what an encoder will not see of it."""

import json

import pytest
from routerretriever.cli.main import app
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.datasets.preflight import preflight
from routerretriever.datasets.statistics import describe, tokens_of
from routerretriever.encoder.settings import DocumentEncoderSettings, EncoderSettings
from routerretriever.errors import DatasetError, EncoderError
from support.collections import WORDS, write_collection
from support.encoders import write_encoder
from typer.testing import CliRunner


def settings_of(tmp_path):
    return EncoderSettings(name=str(write_encoder("bert-cls-prompt", tmp_path)), device="cpu")


def toy(folder, texts, qrels="q0\td0\t1\nq1\td1\t1\n"):
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    asked = [json.dumps({"_id": f"q{number}", "text": f"a query {number}"}) for number in range(2)]
    (folder / "queries.jsonl").write_text("\n".join(asked) + "\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return Collection("toy", folder)


def test_a_collection_in_words(tmp_path):
    one = toy(
        tmp_path,
        ["one two three", "four five", "four five", "привет мир"],
        "q0\td0\t1\nq1\td1\t1\nq1\td2\t1\n",
    )
    found = describe(one.folder)
    assert found.documents == 4
    assert (found.document_lengths.median, found.document_lengths.highest, found.document_lengths.cut) == (
        2,
        3,
        0,
    )
    assert found.copies == 1
    assert found.scripts.keys() == {"Latin", "Cyrillic"}
    page = found.page()
    assert "documents: 4, 2 words in the middle, 3 at most" in page
    assert "train queries: 1, 3 words" in page
    assert "copies: 1 documents have an earlier one's text" in page


def test_the_built_in_sample_is_described():
    found = describe(open_collection("health", "sample:health").folder)
    assert found.query_lengths.keys() == {"train", "dev", "test"}
    assert all(lengths.texts > 0 for lengths in found.query_lengths.values())
    assert found.notes() == []


def test_the_tokens_are_the_encoders_and_what_it_cuts_is_counted(tmp_path):
    tokens = tokens_of(settings_of(tmp_path))
    assert (tokens.limit, tokens.query_limit) == (24, 24)
    assert tokens.count(["the quick fox", "the unheard"]) == [(5, 0), (4, 1)]
    one = toy(tmp_path / "c", ["the quick brown fox " * 10, "a dog"])
    lengths = describe(one.folder, tokens).document_lengths
    assert (lengths.unit, lengths.highest, lengths.limit, lengths.cut) == ("tokens", 42, 24, 1)


def test_a_book_is_not_tokenised_to_its_end(tmp_path):
    tokens = tokens_of(settings_of(tmp_path))
    assert tokens.characters == 24_000
    one = toy(tmp_path / "c", ["fox " * 50_000, "a dog"])
    found = describe(one.folder, tokens)
    lengths = found.document_lengths
    assert (lengths.highest, lengths.highest_is_more, lengths.cut) == (6_002, True, 1)
    assert "tokens in the middle, the longest has at least 6002" in found.page()


def test_documents_are_counted_by_what_reads_them(tmp_path):
    student = settings_of(tmp_path / "student")
    teacher = write_encoder("llama", tmp_path / "teacher")
    (teacher / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    tokens = tokens_of(student.model_copy(update={"documents": DocumentEncoderSettings(name=str(teacher))}))
    assert (tokens.limit, tokens.query_limit) == (9, None)


def test_a_run_notes_what_the_encoder_will_not_see(tmp_path):
    one = toy(tmp_path / "c", ["the quick brown fox " * 10, "привет мир"])
    report = preflight([one], {"toy": ["train", "dev"]})
    told = report.with_reading([one], tokens_of(settings_of(tmp_path))).notes("toy")
    assert told == [
        "dev has 1 queries: its figures, and where training stops, are largely chance",
        "1 of 2 measured documents are cut at 24 tokens; set passages to read all of them",
    ]
    other = toy(tmp_path / "d", ["привет fox", "еще dog"])
    found = preflight([other], {"toy": ()}).with_reading([other], tokens_of(settings_of(tmp_path / "e")))
    assert found.notes("toy") == [
        "50% unknown tokens: this encoder knows little of the language or script; choose another"
    ]


def test_an_encoder_that_knows_no_word_is_refused(tmp_path):
    one = toy(tmp_path / "c", ["привет мир", "еще слово"])
    report = preflight([one], {"toy": ()})
    with pytest.raises(EncoderError, match=r"100% of the tokens in .* are unknown to this encoder; choose"):
        report.with_reading([one], tokens_of(settings_of(tmp_path)))


def test_the_command_counts_in_the_recipes_tokens(tmp_path):
    folder = write_collection(tmp_path / "fruit", WORDS["fruit"])
    recipe = tmp_path / "recipe.yaml"
    name = settings_of(tmp_path).name
    recipe.write_text(f"name: t\ndomains:\n  fruit: {{path: {folder}}}\nencoder: {{name: {name}}}\n")
    command = ["datasets", "statistics", str(folder)]
    plain, counted = (CliRunner().invoke(app, [*command, *more]) for more in ([], ["--recipe", str(recipe)]))
    assert plain.exit_code == counted.exit_code == 0
    assert "28, 4 words in the middle" in plain.output
    assert "28, 6 tokens in the middle" in counted.output
    assert "unknown tokens: this encoder knows little" in counted.output
    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(as_json.output)["documents"] == 28


def test_a_folder_that_is_not_there_is_told_as_such(tmp_path):
    target = str(tmp_path / "x")
    commands = {"check": [], "statistics": [], "split": [target], "export": ["--to", target]}
    for command, to in commands.items():
        for path, message in (
            (str(tmp_path / "none"), "no such folder"),
            ("sample:none", "there are debate, "),
        ):
            done = CliRunner().invoke(app, ["datasets", command, path, *to])
            assert isinstance(done.exception, DatasetError)
            assert message in str(done.exception)


def test_a_recipes_collections_are_checked_with_their_settings(tmp_path):
    folder = write_collection(tmp_path / "fruit", WORDS["fruit"])
    with (folder / "queries.jsonl").open("a") as queries:
        queries.write('{"_id": "again", "text": "WHERE is banana with apple"}\n')
    with (folder / "qrels" / "test.tsv").open("a") as test:
        test.write("again\td0\t1\n")
    recipe = tmp_path / "recipe.yaml"

    def check(domain, *paths):
        recipe.write_text(f"name: t\ndomains:\n  fruit: {{path: {folder}{domain}}}\n")
        return CliRunner().invoke(app, ["datasets", "check", *paths, "--recipe", str(recipe), "--json"])

    assert check("").exit_code == 0
    refused = check(", equal_texts: refuse")
    assert refused.exit_code == 1
    assert not json.loads(refused.output)["ok"]
    both = check(", equal_texts: refuse", str(folder))
    assert {name: one["ok"] for name, one in json.loads(both.output).items()} == {
        str(folder): True, "fruit": False,
    }  # fmt: skip
    (folder / "qrels" / "train.tsv").unlink()
    assert "has no train split" in str(check("").exception)
    assert CliRunner().invoke(app, ["datasets", "check"]).exit_code == 2


def test_several_collections_are_checked_at_once(tiny_data):
    fruit, metal = (str(tiny_data / "data" / name) for name in ("fruit", "metal"))
    command = ["datasets", "check", fruit, metal]
    sound = CliRunner().invoke(app, command)
    assert sound.exit_code == 0
    assert sound.output.index(fruit) < sound.output.index(metal)
    twice = CliRunner().invoke(app, ["datasets", "check", fruit, fruit, "--json"])
    assert json.loads(twice.output)["ok"]
    with (tiny_data / "data" / "metal" / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tno-such-document\t1\n")
    broken = CliRunner().invoke(app, [*command, "--json"])
    assert broken.exit_code == 1
    found = json.loads(broken.output)
    assert [found[path]["ok"] for path in (fruit, metal)] == [True, False]
