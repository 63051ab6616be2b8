import json

import numpy as np
import pytest
import soundfile
import torch
from tiny import make_model, write_table

from modeling_mmemo import MMEmoForEmotionRecognition, load_pipeline
from modeling_mmemo.adapter_mmemo import EMBEDDED_LICENSE, embedded_model
from modeling_mmemo.data.schema import as_dataset
from modeling_mmemo.data.source_arguments import SourceArguments
from modeling_mmemo.training.adapt import adapt, combined_logits, fit_heads
from modeling_mmemo.training.adapt_rows import EmbeddedRows, find_labels, take_shots


WORDS = {"relieved": "i am so happy", "tense": "you wait , not sad", "bored": "are you !"}


def text_rows(count=6, speakers=3):
    """Rows of three labels, each with a word of its own, and a column of the place in which nothing differs."""
    return [
        {"text": f"{text} {'so ' * (index % 2)}.", "label": label, "speaker": f"s{index % speakers}"}
        for label, text in WORDS.items()
        for index in range(count)
    ]


@pytest.fixture
def table(tmp_path):
    return lambda rows, name="calls.csv": str(write_table(tmp_path / name, rows))


@pytest.fixture
def clip_rows(make_clip, tmp_path):
    """Rows with clips of one signal per label, in some noise."""

    def write(count=4, speakers=2, **columns):
        rng, rows = np.random.default_rng(0), []
        for label, seed in zip(WORDS, range(3)):
            for index in range(count):
                clip = make_clip(0.5, seed) + rng.normal(scale=0.01, size=8_000)
                path = tmp_path / f"{label}-{index}.wav"
                soundfile.write(path, clip, 16_000)
                rows.append({"audio": path.name, "label": label, "speaker": index % speakers, **columns})
        return rows

    return write


def test_a_model_of_texts_from_a_table(trained, table, tmp_path):
    output = tmp_path / "adapted"
    summary = adapt(table(text_rows()), output, trained)

    emotion = load_pipeline(output)
    config = emotion.model.config
    assert list(config.id2label.values()) == ["bored", "relieved", "tense"]
    assert (config.has_encoder("audio"), config.has_encoder("text")) == (False, True)
    for label, text in WORDS.items():
        assert emotion({"text": f"{text} ."}, top_k=1)[0]["label"] == label
    results = json.loads((output / "results" / "results.json").read_text())
    (figures,) = results["corpora"]
    assert (figures["rows"], figures["groups"], figures["resampled"]) == (18, 3, "speakers")
    assert figures["protocol"] == "calls, 18 rows, cross-validated in 3 folds of speakers"
    card = (output / "README.md").read_text()
    assert "18 rows of calls: bored (6), relieved (6), tense (6)" in card and "| calls, text" in card
    for part in ("chance is a UAR of 33.3", "| relieved | 6", "text: not fitted: 18 development rows"):
        assert part in summary
    assert f"mmemo export {output} --output {output}-onnx\n  mmemo predict FILE --model {output}-onnx" in summary


def test_the_encoders_are_unchanged_and_their_precision_is_kept(trained, table, tmp_path):
    adapt(table(text_rows()), tmp_path / "adapted", trained)
    old = MMEmoForEmotionRecognition.from_pretrained(trained).state_dict()
    new = MMEmoForEmotionRecognition.from_pretrained(tmp_path / "adapted").state_dict()

    changed = {name for name, values in new.items() if name not in old or not torch.equal(values, old[name])}
    assert changed == {"text_classifier.weight", "text_classifier.bias"}


def test_audio_and_text_vote_as_in_the_base(trained, table, clip_rows, tmp_path):
    rows = [{**row, "text": WORDS[row["label"]]} for row in clip_rows()]
    summary = adapt(table(rows), tmp_path / "adapted", trained)

    emotion = load_pipeline(tmp_path / "adapted")
    item = {"audio": str(tmp_path / rows[0]["audio"]), "text": rows[0]["text"]}
    for given in (item, {"audio": item["audio"]}, {"text": item["text"]}):
        assert emotion(given, top_k=1)[0]["label"] == rows[0]["label"]
    (figures,) = json.loads((tmp_path / "adapted" / "results" / "results.json").read_text())["corpora"]
    assert figures["headline"] == "both" and list(figures["conditions"]) == ["both", "audio", "text"]
    assert "both: not fitted: 12 development rows" in summary


def test_rows_of_different_modalities_share_a_model(trained, table, clip_rows, tmp_path):
    rows = [{**row, "text": ""} for row in clip_rows()] + [{**row, "audio": ""} for row in text_rows(4, 2)]
    adapt(table(rows), tmp_path / "adapted", trained)

    model = MMEmoForEmotionRecognition.from_pretrained(tmp_path / "adapted")
    # No row has both, so the fused head abstains.
    assert not model.fused_classifier.weight.any() and model.audio_classifier.weight.any()
    (figures,) = json.loads((tmp_path / "adapted" / "results" / "results.json").read_text())["corpora"]
    assert (figures["headline"], figures["rows"]) == ("as given", 24)


def test_shots_of_one_row_are_not_cross_validated(trained, table, tmp_path):
    summary = adapt(table(text_rows()), tmp_path / "adapted", trained, shots=1)

    assert "3 labels from 3 rows" in summary
    assert "Nothing was cross-validated, since there is only one row of bored, relieved, tense:" in summary
    assert not (tmp_path / "adapted" / "results").exists()
    assert len(load_pipeline(tmp_path / "adapted")({"text": WORDS["tense"]})) == 3


def test_temperatures_and_quantiles_with_enough_rows(trained, table, tmp_path):
    rows = text_rows(24)
    for row in rows[::5]:
        row["text"] = "are i"
    summary = adapt(table(rows), tmp_path / "adapted", trained)

    config = MMEmoForEmotionRecognition.from_pretrained(tmp_path / "adapted").config
    assert config.temperature_of("text") != 1.0 and len(config.conformal_quantiles["text"]) == 101
    assert "text: temperature" in summary


def test_a_modality_that_says_nothing_does_not_outvote_another():
    """Each head has its own penalty, so the scores of a head on noise are flat, whatever the gate gives it."""
    rng = np.random.default_rng(0)
    ids, speakers = np.tile(np.arange(3), 16), np.repeat(np.arange(4), 12)
    vectors = {
        "audio": rng.normal(size=(48, 16)) + 4 * np.eye(3, 16)[ids],
        "text": 1000 * rng.normal(size=(48, 16)),
        "fused": rng.normal(size=(48, 16)),
    }
    rows = as_dataset([{"label": "x", "speaker": str(speaker)} for speaker in speakers])
    embedded = EmbeddedRows(rows, ids, speakers, vectors)
    model = make_model(id2label=dict(enumerate(WORDS)))
    torch.nn.init.zeros_(model.vote.weight)
    model.vote.bias.data = torch.tensor([0.0, 2.0, 1.0])
    fit_heads(model, embedded)

    heads = {
        name: getattr(model, f"{name}_classifier")(torch.from_numpy(values).float()).detach().numpy()
        for name, values in vectors.items()
    }

    assert (combined_logits(model, embedded, heads).argmax(axis=1) == ids).mean() > 0.9
    alone = combined_logits(model, embedded, heads, ["audio"])
    np.testing.assert_allclose(alone, torch.from_numpy(heads["audio"]).log_softmax(dim=1), atol=1e-5)


def test_shots_are_drawn_from_all_speakers_in_turn():
    ids = np.repeat([0, 1], 10)
    speakers = np.array([0] * 7 + [1, 1, 2] + [3] * 10)

    drawn = take_shots(ids, speakers, 4, seed=1)

    assert sorted(speakers[drawn[ids[drawn] == 0]].tolist())[-2:] == [1, 2] and np.bincount(ids[drawn]).tolist() == [
        4,
        4,
    ]
    assert take_shots(ids, speakers, 4, seed=1).tolist() == drawn.tolist()
    assert take_shots(ids, speakers, 4, seed=2).tolist() != drawn.tolist()
    assert len(take_shots(ids, speakers, 50, seed=1)) == 20


def test_labels_are_those_of_the_table(table):
    rows = [{"text": "so", "label": label} for label in ("Tense", "tense", "tense", "joy", "happy", "sad|tense", "")]

    assert find_labels(table(rows), SourceArguments()) == ["happy", "joy", "tense"]
    assert find_labels(table(rows), SourceArguments(label_map=["joy=happy"])) == ["happy", "tense"]
    assert find_labels(table(rows), SourceArguments(labels=["tense", "joy"])) == ["tense", "joy"]


def changed(rows, **values):
    return [{**row, **values} for row in rows]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (changed(text_rows(), label="tense"), {}, r"has the labels tense \(18\), but at least 2 are needed"),
        (
            [{"text": "so", "label": f"label {index}"} for index in range(501)],
            {},
            "has 501 labels, at most 500 are possible",
        ),
        ([*text_rows(2), {"text": "", "label": "calm"}], {}, r"no usable row of the labels \['calm'\]"),
        (text_rows(2), {"modalities": ["audio"]}, "No row of .* has audio; leave it out of modalities"),
        (text_rows(2), {"modalities": ["sound"]}, r"modalities=\['sound'\] are unknown"),
        (text_rows(2), {"shots": 0}, "shots=0 must be at least 1"),
        (
            changed(text_rows(2), audio="none.wav"),
            {},
            r"1 audio file\(s\) cannot be read(.|\n)*none.wav does not exist",
        ),
        (
            [*text_rows(2), {"text": "", "label": "tense", "speaker": "s9", "audio": "tense-0.wav"}],
            {},
            r"No row of the labels \['bored', 'relieved'\] has audio",
        ),
    ],
)
def test_unusable_data(trained, table, clip_rows, tmp_path, rows, options, message):
    clip_rows(1)
    columns = {name: "" for row in rows for name in row}

    with pytest.raises(ValueError, match=message):
        adapt(table([{**columns, **row} for row in rows]), tmp_path / "adapted", trained, **options)

    assert not (tmp_path / "adapted").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio": None}, "have audio, but the model encodes text; name the modalities to use"),
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label_classification'"),
        ({"problem_type": "regression"}, "problem_type='regression'"),
        ({"fusion": "early"}, r"different modalities \(audio, text\), but a model with fusion='early' has one head"),
    ],
)
def test_unusable_models(processor, table, clip_rows, tmp_path, fields, message):
    model = make_model(**fields)
    model.save_pretrained(tmp_path / "base")
    if "fusion" not in fields:
        processor.save_pretrained(tmp_path / "base")
    else:
        config = model.config.audio_config
        type(processor)(
            type(processor.feature_extractor)(n_mels=config.num_mel_bins), processor.tokenizer, speech_padding_s=None
        ).save_pretrained(tmp_path / "base")
    rows = [{**row, "text": ""} for row in clip_rows(2)] + [{**row, "audio": ""} for row in text_rows(2)]

    with pytest.raises(ValueError, match=message):
        adapt(table(rows), tmp_path / "adapted", tmp_path / "base")


def test_an_output_folder_with_files_is_kept(trained, table, tmp_path):
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        adapt(table(text_rows()), trained, trained)


def test_the_embedded_model_passes_its_licence_on(table, tmp_path):
    adapt(table(text_rows(2)), tmp_path / "adapted", shots=2)

    assert (tmp_path / "adapted" / "LICENSE.md").read_bytes() == (embedded_model() / "LICENSE.md").read_bytes()
    assert f"license: {EMBEDDED_LICENSE}" in (tmp_path / "adapted" / "README.md").read_text()
