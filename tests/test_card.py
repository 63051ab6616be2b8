import json
import re
from pathlib import Path

import pytest
import tiny
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from mmemo.cli import app
from modeling_mmemo.evaluation.card import BEGIN, END, eval_results, make_card, results_section, update_card


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "results" / "default" / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("card", ["model_card.md", "docs/models.md"])
def test_the_committed_figures_match_the_results(card, results, tmp_path):
    committed = (ROOT / card).read_text(encoding="utf-8")
    copy = tmp_path / "card.md"
    copy.write_text(committed, encoding="utf-8")

    update_card(copy, results)

    assert copy.read_text(encoding="utf-8") == committed


def test_only_the_section_between_the_markers_is_replaced(results, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(f"# Mine\n{BEGIN}\nold\n{END}\nkept\n", encoding="utf-8")

    update_card(card, results)

    assert card.read_text(encoding="utf-8") == f"# Mine\n{BEGIN}\n{results_section(results)}\n{END}\nkept\n"


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_card_without_markers_raises(text, results, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match="once each, in this order"):
        update_card(card, results)

    assert card.read_text(encoding="utf-8") == text


def test_the_metadata_contain_the_figures(results):
    card = ModelCard.load(ROOT / "model_card.md")

    figures = {(result.dataset_type, result.metric_name): result.metric_value for result in card.data.eval_results}
    ravdess = results["corpora"][0]["conditions"]["audio"]
    assert figures["ravdess", "WA"] == round(100 * ravdess["wa"]["value"], 2)
    assert len(figures) == 3 * (len(results["corpora"]) + len(results["pairs"]))
    assert card.data.license == "cc-by-nc-sa-4.0" and card.data.base_model[0] == "openai/whisper-base"


def run(*arguments):
    return CliRunner().invoke(app, ["card", *map(str, arguments)])


def test_a_new_card(trained, tmp_path):
    (tmp_path / "data.md").write_text("Calls of 2025, our own.\n")
    options = ("--license", "apache-2.0", "--training-data", tmp_path / "data.md")

    result = run(trained, "--results", ROOT / "results" / "default", *options)

    assert (result.exit_code, result.stdout.strip()) == (0, str(trained / "README.md"))
    card = ModelCard.load(trained / "README.md")
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "trained")
    assert "Emotion recognition from speech, text, or both, with 4 labels: angry, happy, neutral, sad." in card.text
    architecture = "mmemo_audio encoder for audio and bert encoder for text, combined by hybrid fusion"
    assert f"Architecture: {architecture}." in card.text
    assert "Calls of 2025, our own." in card.text and "| ravdess        | telephone" in card.text
    assert "prohibited in the European Union" in card.text
    written = (trained / "README.md").read_text()
    assert run(trained, "--results", ROOT / "results" / "default").exit_code == 0
    assert (trained / "README.md").read_text() == written
    other = run(trained, "--results", ROOT / "results" / "default", "--license", "mit")
    assert other.exit_code == 1 and "already exists; edit its name, licence and training data by hand" in other.stderr


def test_missing_results_raise(trained, tmp_path):
    result = run(trained, "--results", tmp_path)

    assert result.exit_code == 1 and "has no results.json; run eval.py --model" in result.stderr
    assert not (trained / "README.md").exists()


def test_the_card_of_a_single_modality():
    card = make_card(tiny.make_config(None, "bert"), "me/reader")

    assert "Emotion recognition from text, with" in card and 'emotion({"text": "I have' in card
    assert "audio" not in card.partition("## Architecture")[2].partition("## Limits")[0]


@pytest.mark.parametrize(
    ("encoders", "inputs", "architecture"),
    [
        ((None, None, "mmemo_video"), "a face", "mmemo_video encoder for video"),
        (
            ("mmemo_audio", "bert", "vit"),
            "speech, text, a face, or several of them",
            "mmemo_audio encoder for audio, bert encoder for text and vit encoder for video, combined by hybrid "
            "fusion",
        ),
    ],
)
def test_the_card_of_a_model_of_faces(encoders, inputs, architecture):
    card = make_card(tiny.make_config(*encoders), "me/face")

    assert f"Emotion recognition from {inputs}, with" in card and 'emotion({"video": "call.mp4"' in card
    assert f"Architecture: {architecture}." in card


ONE_LABEL = {"value": 1.0, "interval": [1.0, 1.0]}
UNDEFINED = {"precision": {"value": 0.0, "interval": [0.0, 0.0]}, "recall": None, "f1": None}


def results_with(supports, **changes):
    """The results of "card_index_error": rows of some of four labels, scored as speech."""
    figures = dict.fromkeys(("wa", "uar", "macro_f1", "weighted_f1", "ece"), ONE_LABEL)
    labels = ("very happy", "生气", "sad", "calm")
    scored = {"precision": ONE_LABEL, "recall": ONE_LABEL, "f1": ONE_LABEL}
    table = {
        "name": "calls",
        "protocol": "calls, whole corpus (it has no test part)",
        "headline": "audio",
        "rows": sum(supports),
        "groups": 10,
        "resampled": "speakers",
        "conditions": {"audio": figures, "telephone": figures},
        "per_class": {
            label: {"support": support, **(scored if support else UNDEFINED)}
            for label, support in zip(labels, supports)
        },
    }
    head = {"versions": {"mmemo": "0.1"}, "seed": 0, "labels": labels, "bootstrap": {"samples": 1000, "level": 0.95}}
    return {**head, "corpora": [table | changes], "pairs": [], "timelines": []}


def write_results_file(folder, results):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("supports", "row"),
    [
        ((0, 0, 20, 0), ("sad 100.0 [100.0, 100.0]", "-", "-")),
        ((0, 7, 20, 0), ("生气 100.0 [100.0, 100.0]", "-", "sad 100.0 [100.0, 100.0]")),
        ((1, 7, 20, 0), tuple(f"{label} 100.0 [100.0, 100.0]" for label in ("very happy", "生气", "sad"))),
    ],
)
def test_cards_of_few_labels(supports, row, trained, tmp_path):
    results = results_with(supports)

    run_result = run(trained, "--results", write_results_file(tmp_path / "r", results))

    assert run_result.exit_code == 0, run_result.stderr
    card = ModelCard.load(trained / "README.md")
    (line,) = [line for line in card.text.splitlines() if line.startswith("| calls ") and line.count("|") == 5]
    assert tuple(cell.strip() for cell in line.split("|")[2:-1]) == row
    only_one = sum(map(bool, supports)) == 1
    assert ("calls: All rows have the label 'sad': the figures only count" in card.text) is only_one
    assert bool(card.data.eval_results) is not only_one


def test_undefined_figures_are_dashes_and_not_indexed(trained, tmp_path):
    undefined = {"value": float("nan"), "interval": [float("nan")] * 2}
    figures = dict.fromkeys(("macro_f1", "weighted_f1", "ece"), ONE_LABEL) | {"wa": undefined, "uar": None}
    results = results_with((5, 5, 0, 0), conditions={"as given": figures}, headline="as given", groups=2)

    assert run(trained, "--results", write_results_file(tmp_path / "r", results)).exit_code == 0

    card = ModelCard.load(trained / "README.md")
    assert [result.metric_type for result in card.data.eval_results] == ["f1"]
    assert re.search(r"\| calls, as given +\| 10 +\| - +\| - +\| 100\.0 \[100\.0, 100\.0\]", card.text)
    assert "calls: The intervals are over 2 speakers only" in card.text


@pytest.mark.parametrize(
    ("headline", "others", "given"),
    [
        ("all", (), "audio, text and video"),
        ("audio+video", (), "audio and video"),
        ("as given", ("face missing",), "audio, text, video or several of them"),
        ("as given", ("telephone",), "audio, text or both"),
    ],
)
def test_the_index_names_the_modalities_of_the_rows(headline, others, given):
    figures = dict.fromkeys(("wa", "uar", "macro_f1", "weighted_f1", "ece"), ONE_LABEL)
    conditions = dict.fromkeys((headline, *others), figures)

    first, *_ = eval_results(results_with((5, 5, 0, 0), headline=headline, conditions=conditions))

    assert first.dataset_name == f"calls, whole corpus (it has no test part), {given}"


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("{}", "has no versions, seed, labels"), ("3", "is not JSON")]
)
def test_other_files_are_refused(content, message, trained, tmp_path):
    (tmp_path / "results.json").write_text(content)

    result = run(trained, "--results", tmp_path)

    assert result.exit_code == 1 and message in result.stderr
    assert not (trained / "README.md").exists()
