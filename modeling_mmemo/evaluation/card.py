"""
Model cards with figures generated from `results.json`.

Only the section between two markers and the `model-index` that the Hub shows are generated; the rest of a card is
hand-written and never changed.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mmemo.modalities import MODALITIES
from modeling_mmemo import MMEmoConfig, __version__
from modeling_mmemo.evaluation.conditions import ABLATIONS, AS_GIVEN, VIDEO_CONDITIONS
from modeling_mmemo.evaluation.metrics import MEASURES
from modeling_mmemo.evaluation.report import (
    HEADINGS,
    caveats,
    is_defined,
    label_notes,
    markdown_table,
    percent,
    timelines_table,
)


BEGIN, END = "<!-- results: written by eval.py -->", "<!-- end of results -->"
TASKS = {
    "audio": "audio-classification",
    "text": "text-classification",
    "both": "audio-classification",
    "video": "video-classification",
    "audio+video": "audio-classification",
    "text+video": "video-classification",
    "all": "audio-classification",
    AS_GIVEN: "audio-classification",
}
GIVEN = {
    "audio": "audio",
    "text": "text",
    "both": "audio and text",
    "video": "video",
    "audio+video": "audio and video",
    "text+video": "text and video",
    "all": "audio, text and video",
}
# What the card of every evaluation needs.
RESULTS_KEYS = ("versions", "seed", "labels", "bootstrap", "corpora", "pairs", "timelines")
INDEXED = {"wa": "accuracy", "uar": "recall", "weighted_f1": "f1"}
# Description and example item of a model, by the modalities that it encodes.
INPUTS = {
    ("audio", "text"): (
        "speech, text, or both",
        '{"audio": "call.wav", "text": "I have been waiting for an hour."}',
    ),
    ("audio",): ("speech", '"call.wav"'),
    ("text",): ("text", '{"text": "I have been waiting for an hour."}'),
    ("video",): ("a face", '{"video": "call.mp4"}'),
    ("audio", "video"): ("speech, a face, or both", '{"video": "call.mp4"}'),
    ("text", "video"): (
        "text, a face, or both",
        '{"video": "call.mp4", "text": "I have been waiting for an hour."}',
    ),
    ("audio", "text", "video"): (
        "speech, text, a face, or several of them",
        '{"video": "call.mp4", "text": "I have been waiting for an hour."}',
    ),
}
TEMPLATE = """\
# {name}

Emotion recognition from {inputs}, with {count} labels: {labels}. A model of the package `mmemo`.

```python
from modeling_mmemo import pipeline  # pip install mmemo

emotion = pipeline("multimodal-emotion", model="{name}")
emotion({item})
```

Without the package: `transformers.pipeline(..., trust_remote_code=True)`, with torch, librosa and silero-vad.

## Architecture

{architecture}

## Training data

{training_data}

## Results

{begin}
{end}

## Limits and misuse

- Acted emotion differs from felt emotion, and the emotion expressed in a voice or a text may not be what a person
  feels.
- Languages, ages and recording conditions other than those evaluated above have not been measured.
- Inferring the emotions of people at work or at school is prohibited in the European Union (AI Act, Art. 5(1)(f)).
- Do not base decisions about people on predictions of this model.

## How to reproduce and cite

`python eval.py --model {name} --corpora SOURCE` with mmemo {version}, the test sets above as SOURCE, and for a
development part its `--split dev` and `--dev_share`, reproduces the figures. Please cite the package with its version,
and this repository.
"""


def write_card(
    model: str | Path,
    results: str | Path,
    output: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
    training_data: str | Path | None = None,
) -> Path:
    """
    Writes the card of a model, or updates the figures of an existing card.

    Args:
        model (`str` or `Path`): Folder of the model.
        results (`str` or `Path`): Output folder of `eval.py`.
        output (`str` or `Path`, *optional*): Path of the card; `README.md` in the model's folder by default.
        name, license (`str`, *optional*), training_data (`str` or `Path`, *optional*):
            Content of a new card; see [`make_card`]. `training_data` is the path of a Markdown file.

    Returns:
        `Path`: Path of the card.

    Raises:
        FileNotFoundError: If there are no results.
        ValueError: If an existing card lacks the markers, or `name`, `license` or `training_data` is passed for one.
    """
    model, results_file = Path(model), Path(results) / "results.json"
    output = model / "README.md" if output is None else Path(output)
    if not results_file.is_file():
        raise FileNotFoundError(f"{results} has no results.json; run eval.py --model {model} --output_dir {results}.")
    results_of_file = read_results(results_file)
    if not output.exists():
        data = None if training_data is None else Path(training_data).read_text(encoding="utf-8").strip()
        text = make_card(MMEmoConfig.from_pretrained(model), name or model.resolve().name, license, data)
        output.write_text(text, encoding="utf-8")
    elif name or license or training_data:
        raise ValueError(
            f"{output} already exists; edit its name, licence and training data by hand. Leave these options out, or "
            "choose another --output."
        )
    update_card(output, results_of_file)
    return output


def read_results(path: Path) -> dict[str, Any]:
    """
    Reads a `results.json`.

    Raises:
        ValueError: If it was not written by `eval.py`.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in RESULTS_KEYS if key not in results]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); run eval.py again.") from error
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}, so eval.py did not write it; run eval.py.")
    return results


def make_card(
    config: MMEmoConfig,
    name: str,
    license: str | None = None,
    training_data: str | None = None,
) -> str:
    """
    Returns a new card without figures.

    Args:
        config (`MMEmoConfig`): Configuration of the model.
        name (`str`): Name of the model, `owner/name` for the Hub.
        license (`str`, *optional*): Licence identifier of the Hub, such as `apache-2.0`.
        training_data (`str`, *optional*): Markdown that describes the training data and their licences.
    """
    modalities = tuple(filter(config.has_encoder, MODALITIES))
    inputs, item = INPUTS[modalities]
    encoders = [
        f"{getattr(config, f'{modality}_config').model_type} encoder for {modality}" for modality in modalities
    ]
    labels = [config.id2label[index] for index in range(config.num_labels)]
    fusion = f", combined by {config.fusion} fusion" if config.is_multimodal else ""
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["mmemo", "emotion-recognition", "multimodal"],
        model_name=name,
    )
    text = TEMPLATE.format(
        name=name,
        inputs=inputs,
        item=item,
        count=len(labels),
        labels=", ".join(labels),
        architecture=f"Architecture: {_joined(encoders)}{fusion}.",
        training_data=training_data or "Not stated.",
        begin=BEGIN,
        end=END,
        version=__version__,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def update_card(path: str | Path, results: dict[str, Any]) -> None:
    """
    Replaces the section between the markers of a Markdown file by the results.

    A file that begins with metadata is a model card: it gets all conditions, and the figures in its metadata too.

    Args:
        path (`str` or `Path`): The Markdown file.
        results (`dict`): Content of `results.json`.

    Raises:
        ValueError: If the file does not contain both markers, once each and in this order.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"{path} must contain the lines {BEGIN!r} and {END!r} once each, in this order.")
    is_card = text.startswith("---\n")
    section = results_section(results) + (f"\n\n{details_section(results)}" if is_card else "")
    text = f"{before}{BEGIN}\n{section}\n{END}{after}"
    if is_card:
        card = ModelCard(text, ignore_metadata_errors=False)
        card.data.model_name = card.data.model_name or "mmemo"
        card.data.eval_results = eval_results(results)
        text = f"---\n{card.data.to_yaml()}\n---\n{card.text}"
    path.write_text(text, encoding="utf-8")


def eval_results(results: dict[str, Any]) -> list[EvalResult]:
    """
    Returns the headline figures in percent, for the `model-index` of the Hub.

    Undefined figures are left out, and those of rows with a single label, which do not measure recognition.
    """
    return [
        EvalResult(
            task_type=TASKS[table["headline"]],
            task_name="Emotion recognition",
            dataset_type=table["name"],
            dataset_name=f"{table['protocol']}, {_given(table)}",
            metric_type=metric,
            metric_name=HEADINGS[measure],
            metric_value=round(100 * figure["value"], 2),
        )
        for table in [*results["corpora"], *results["pairs"]]
        if sum(bool(row["support"]) for row in table["per_class"].values()) > 1
        for measure, metric in INDEXED.items()
        if is_defined(figure := table["conditions"][table["headline"]][measure])
    ]


def _given(table: dict[str, Any]) -> str:
    """Returns the modalities of the rows of a table in words."""
    if table["headline"] != AS_GIVEN:
        return GIVEN[table["headline"]]
    has_video = VIDEO_CONDITIONS.keys() & table["conditions"].keys()
    return "audio, text, video or several of them" if has_video else "audio, text or both"


def _joined(words: list[str]) -> str:
    """Returns words as in a sentence: "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def details_section(results: dict[str, Any]) -> str:
    """Returns the protocols, the weakest labels, and the figures with noise and missing modalities."""
    tables = [*results["corpora"], *results["pairs"]]
    protocols = "\n".join(f"- {table['name']}: {table['protocol']}." for table in tables)
    weakest = [[table["name"], *_weakest_and_strongest(table)] for table in tables]
    conditions = [
        [table["name"], name, percent(figures["wa"]), percent(figures["uar"]), percent(figures["ece"])]
        for table in tables
        for name, figures in table["conditions"].items()
        if name != table["headline"] and (table in results["pairs"] or name not in ABLATIONS)
    ]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts = [
        f"Test sets:\n\n{protocols}",
        "The two weakest labels and the strongest one, by F1:",
        markdown_table(["test set", "weakest", "second", "strongest"], weakest),
    ]
    if conditions:
        parts += [
            "Other conditions:",
            markdown_table(
                ["test set", "condition", *(HEADINGS[measure] for measure in ("wa", "uar", "ece"))], conditions
            ),
        ]
    return "\n\n".join([*parts, f"Computed with {versions}; seed {results['seed']}."])


def _weakest_and_strongest(table: dict[str, Any]) -> list[str]:
    """Returns the two weakest labels and the strongest one with their F1, each label once; dashes for missing ones."""
    scored = {
        label: row["f1"] for label, row in table["per_class"].items() if row["support"] and is_defined(row["f1"])
    }
    ranked = sorted(scored, key=lambda label: scored[label]["value"])
    chosen = [*ranked[:2], ranked[-1]] if len(ranked) > 2 else [*ranked[:1], None, *ranked[1:]]
    cells = ["-" if label is None else f"{label} {percent(scored[label])}" for label in chosen]
    return cells + ["-"] * (3 - len(cells))


def results_section(results: dict[str, Any]) -> str:
    """Returns the headline figures of each test set, gains and losses of the fusion on pairs, and timelines."""
    tables = [*results["corpora"], *results["pairs"]]
    rows = [
        [
            f"{table['name']}, {table['headline']}",
            str(table["rows"]),
            *(percent(table["conditions"][table["headline"]][measure]) for measure in MEASURES),
        ]
        for table in tables
    ]
    parts = [
        markdown_table(["test set, condition", "rows", *(HEADINGS[measure] for measure in MEASURES)], rows),
        f"In percent, with {results['bootstrap']['level']:.0%} intervals of a bootstrap over speakers, or over rows "
        "if fewer than two speakers are known.",
    ]
    parts += label_notes(results)
    parts += [caveat for table in tables for caveat in caveats(table)]
    for table in results["pairs"]:
        gain = table["gain"]
        losses = [f"{percent(loss['uar'])} with {condition}" for condition, loss in table["losses"].items()]
        parts.append(
            f"On the simulated pairs {table['name']}, audio and text together score {percent(gain['uar'])} points of "
            f"UAR more than the better modality alone ({gain['over']}). Points of UAR that a modality loses when the "
            f"other one is degraded instead of missing (negative: gains): {', '.join(losses)}."
        )
    if results["timelines"]:
        parts += [
            "Timelines of held-out clips joined to long recordings: the share of the speech with the correct label, "
            "and the emotion-diarisation error rate (EDER), compared with always predicting the most frequent label.",
            timelines_table(results["timelines"]),
        ]
    return "\n\n".join(parts)
