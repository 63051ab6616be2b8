"""
A model card, its figures written from `results.json` and never by hand.

What stands between two marks, and the `model-index` that the Hub shows, is rewritten; all else is its author's.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_mmemo import MMEmoConfig, __version__
from modeling_mmemo.evaluation.conditions import ABLATION
from modeling_mmemo.evaluation.metrics import MEASURES
from modeling_mmemo.evaluation.report import HEADINGS, markdown_table, percent, timelines_table


BEGIN, END = "<!-- results: written by eval.py -->", "<!-- end of results -->"
TASKS = {"audio": "audio-classification", "text": "text-classification", "both": "audio-classification"}
INDEXED = {"wa": "accuracy", "uar": "recall", "weighted_f1": "f1"}
# By whether it has an encoder for audio and one for text: what a model does, and what it is given.
SENSES = {
    (True, True): (
        "hears a voice, reads its words, or does both",
        '{"audio": "call.wav", "text": "I have been waiting for an hour."}',
    ),
    (True, False): ("hears a voice", '"call.wav"'),
    (False, True): ("reads a text", '{"text": "I have been waiting for an hour."}'),
}
TEMPLATE = """\
# {name}

A model of the package `mmemo`. It {senses}, and says which of {count} labels is there: {labels}.

```python
from modeling_mmemo import pipeline  # pip install mmemo

emotion = pipeline("multimodal-emotion", model="{name}")
emotion({item})
```

Without the package: `transformers.pipeline(..., trust_remote_code=True)`, with torch and librosa.

## What it is

{architecture}

## Training data

{training_data}

## Results

{begin}
{end}

## Limits and misuse

- Emotion that is acted is not emotion that is felt, and what a voice shows need not be what a person feels.
- Languages, ages and recordings other than those scored above are unmeasured.
- Inferring the emotions of people at work or at school is prohibited in the European Union (AI Act, Art. 5(1)(f)).
- No decision about a person should hang on an answer of this model.

## How to reproduce and cite

`python eval.py --model {name} --data_dir DATA` of mmemo {version} writes the figures above. Cite the package by its
name and version, and this repository.
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
    Writes the card of a model, or brings the figures of one that is there up to date.

    Args:
        model (`str` or `Path`): The model's folder.
        results (`str` or `Path`): The folder that `eval.py` left.
        output (`str` or `Path`, *optional*): The card; `README.md` in the model's folder by default.
        name, license (`str`, *optional*), training_data (`str` or `Path`, *optional*):
            For a card that is not there yet; see [`make_card`]. The training data are a Markdown file.

    Returns:
        `Path`: of the card.

    Raises:
        FileNotFoundError: If there are no results.
        ValueError: If a card is there and lacks the marks of the results, or was to be made otherwise.
    """
    model, results_file = Path(model), Path(results) / "results.json"
    output = model / "README.md" if output is None else Path(output)
    if not results_file.is_file():
        raise FileNotFoundError(
            f"{results} holds no results.json; run eval.py --model {model} --output_dir {results}."
        )
    if not output.exists():
        data = None if training_data is None else Path(training_data).read_text(encoding="utf-8").strip()
        text = make_card(MMEmoConfig.from_pretrained(model), name or model.resolve().name, license, data)
        output.write_text(text, encoding="utf-8")
    elif name or license or training_data:
        raise ValueError(
            f"{output} is there already: its name, licence and training data are changed in it by hand. Leave the "
            "options out, or name another --output."
        )
    update_card(output, json.loads(results_file.read_text(encoding="utf-8")))
    return output


def make_card(
    config: MMEmoConfig,
    name: str,
    license: str | None = None,
    training_data: str | None = None,
) -> str:
    """
    Begins a card: what the configuration says of a model, and what no results can say.

    Args:
        config (`MMEmoConfig`): Of the model.
        name (`str`): Of the model, as `owner/name` if it is for the Hub.
        license (`str`, *optional*): As the Hub names licences, such as `apache-2.0`.
        training_data (`str`, *optional*): Markdown on what it was trained on, and under which licences that is.
    """
    senses, item = SENSES[config.audio_config is not None, config.text_config is not None]
    encoders = [
        f"a {tower.model_type} encoder for the {modality}"
        for modality, tower in (("voice", config.audio_config), ("words", config.text_config))
        if tower is not None
    ]
    labels = [config.id2label[index] for index in range(config.num_labels)]
    fused = f", joined by {config.fusion} fusion" if len(encoders) == 2 else ""
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["mmemo", "emotion-recognition", "multimodal"],
        model_name=name,
    )
    text = TEMPLATE.format(
        name=name,
        senses=senses,
        item=item,
        count=len(labels),
        labels=", ".join(labels),
        architecture=f"{' and '.join(encoders).capitalize()}{fused}.",
        training_data=training_data or "Not stated.",
        begin=BEGIN,
        end=END,
        version=__version__,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def update_card(path: str | Path, results: dict[str, Any]) -> None:
    """Replaces what stands between the marks of a Markdown file by the results.

    A file that begins with metadata is a model card: it has every condition, and the metadata has the figures, too.

    Raises:
        ValueError: If the file does not hold the two marks, once each and in their order.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"{path} must hold the lines {BEGIN!r} and {END!r} once each, in this order.")
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
    """The headline figures as the Hub's `model-index` has them, in percent."""
    return [
        EvalResult(
            task_type=TASKS[table["headline"]],
            task_name="Emotion recognition",
            dataset_type=table["name"],
            dataset_name=f"{table['protocol']}, given {table['headline']}",
            metric_type=metric,
            metric_name=HEADINGS[measure],
            metric_value=round(100 * table["conditions"][table["headline"]][measure]["value"], 2),
        )
        for table in [*results["corpora"], *results["pairs"]]
        for measure, metric in INDEXED.items()
    ]


def details_section(results: dict[str, Any]) -> str:
    """How the rows were held out, which labels are weak, and what noise and a missing modality cost."""
    tables = [*results["corpora"], *results["pairs"]]
    protocols = "\n".join(f"- {table['name']}: {table['protocol']}." for table in tables)
    weakest = []
    for table in tables:
        scored = {label: row["f1"] for label, row in table["per_class"].items() if row["support"]}
        ranked = sorted(scored, key=lambda label: scored[label]["value"])
        weakest.append([table["name"], *(f"{label} {percent(scored[label])}" for label in (*ranked[:2], ranked[-1]))])
    conditions = [
        [table["name"], name, percent(figures["wa"]), percent(figures["uar"]), percent(figures["ece"])]
        for table in tables
        for name, figures in table["conditions"].items()
        if name != table["headline"] and (table in results["pairs"] or name not in ABLATION)
    ]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts = [
        f"What was scored:\n\n{protocols}",
        "The weakest labels and the strongest one, by F1:",
        markdown_table(["test set", "weakest", "second", "strongest"], weakest),
    ]
    if conditions:
        parts += [
            "The same, given in other ways:",
            markdown_table(
                ["test set", "given", *(HEADINGS[measure] for measure in ("wa", "uar", "ece"))], conditions
            ),
        ]
    return "\n\n".join([*parts, f"Made by {versions}; seed {results['seed']}."])


def results_section(results: dict[str, Any]) -> str:
    """The figures of each test set as it is meant to be scored, and what the fusion gains and loses on pairs."""
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
        markdown_table(["test set, given", "rows", *(HEADINGS[measure] for measure in MEASURES)], rows),
        f"In percent, with {results['bootstrap']['level']:.0%} intervals of a bootstrap over speakers, or over rows "
        "where no two speakers are known.",
    ]
    for table in results["pairs"]:
        gain = table["gain"]
        losses = [f"{percent(loss['uar'])} given {condition}" for condition, loss in table["losses"].items()]
        parts.append(
            f"On the simulated pairs {table['name']}, both have {percent(gain['uar'])} points of UAR more than "
            f"the better of the two alone ({gain['over']}). What the other modality loses: {', '.join(losses)}."
        )
    if results["timelines"]:
        parts += [
            "Held-out clips joined to long recordings and followed: the share of the speech with the right label, and "
            "the emotion-diarisation error rate (EDER) beside that of always the most frequent label.",
            timelines_table(results["timelines"]),
        ]
    return "\n\n".join(parts)
