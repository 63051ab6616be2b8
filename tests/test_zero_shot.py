"""Labels in one's own words: their vectors and scores, in every entry point, over the same tiny model."""

import copy
import csv
import io
import json
import math
import pickle
import shutil
import threading

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mmemo import EmotionPredictor, EmotionStream
from mmemo.archives import score
from mmemo.archives.scorer import Scorer
from mmemo.archives.sections import SectionJoiner
from mmemo.archives.tasks import ArchiveItem, ScoringOptions, Section, Task
from mmemo.cli import app
from mmemo.zero_shot import (
    MAX_LABEL_SETS,
    MAX_LABELS,
    CandidateLabels,
    LabelCache,
    LabelScorer,
    Similarity,
    read_labels,
)
from modeling_mmemo import (
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MultimodalEmotionPipeline,
    load_pipeline,
)


# Words of the tokenizer of the tests.
LABELS = ["happy", "so sad", "not waiting"]
TEMPLATE = "i am {}."
CALIBRATION = {"audio": [3.0, -0.5], "text": [5.0, 1.0], "both": [4.0, 0.25]}
OPTIONS = {"candidate_labels": LABELS, "hypothesis_template": TEMPLATE}


def make_processor(tokenizer):
    return MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), copy.deepcopy(tokenizer), speech_padding_s=None)


def make_pipeline(model, processor, **options):
    return MultimodalEmotionPipeline(
        model=model, processor=processor, task="multimodal-emotion", device="cpu", **options
    )


@pytest.fixture(scope="module")
def shared(session_model, session_tokenizer):
    """A calibrated model with a shared space, and its processor."""
    model = copy.deepcopy(session_model)
    model.config.zero_shot_calibration = CALIBRATION
    return model, make_processor(session_tokenizer)


@pytest.fixture(scope="module")
def emotion(shared):
    """The pipeline over PyTorch."""
    return make_pipeline(*shared)


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory):
    """The exported model, float and int8."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("shared") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"zero_shot_calibration": CALIBRATION}))
    return folder


@pytest.fixture(scope="module")
def predict(folder):
    """The predictor over the int8 graph, whose scores depend on the batch."""
    return EmotionPredictor(folder)


@pytest.fixture(scope="module")
def speech(example_audio):
    samples, _ = soundfile.read(example_audio, dtype="float32")
    return np.tile(np.concatenate([samples, np.zeros(8_000, np.float32)]), 3)


def by_label(scores):
    return {entry["label"]: entry["score"] for entry in scores}


def labels_of(scores):
    return {entry["label"] for entry in scores}


def unit(*degrees):
    return np.array([[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees], np.float32)


# The vectors of two labels, at 0 and 60 degrees.
VECTORS = unit(0, 60)
PROJECTIONS = {
    # An item with both modalities, at -30 and 30 degrees, with the mean at 0; audio alone; text alone; nothing.
    "audio_projection": np.concatenate([unit(-30, 90), np.zeros((2, 2), np.float32)]),
    "text_projection": np.concatenate([unit(30), np.zeros((1, 2), np.float32), unit(60), np.zeros((1, 2))]),
    "modality_weights": np.zeros((4, 2)),
}
COSINES = [[1, 0.5], [0, math.cos(math.radians(30))], [0.5, 1]]


def scored(calibration, none_label="none of these", **outputs):
    scorer = LabelScorer(
        CandidateLabels(("a", "b"), none_label=none_label),
        VECTORS,
        Similarity(2, 10.0, calibration),
        ("audio", "text"),
    )
    return scorer, scorer(PROJECTIONS | outputs)


def test_calibrated_scores_by_hand():
    scorer, found = scored(CALIBRATION)

    assert scorer.answers.labels == ["a", "b", "none of these"]
    rows = zip(COSINES, (CALIBRATION[presence] for presence in ("both", "audio", "text")))
    expected = [[*(factor * cosine + addend for cosine in row), 0] for row, (factor, addend) in rows]
    assert found["logits"] == pytest.approx(np.array([*expected, [0, 0, 0]]), abs=1e-6)
    assert found["modality_weights"].tolist() == [[0.5, 0.5], [1, 0], [0, 1], [0, 0]]
    first = scorer.answers.scores(found["logits"])[0]
    exponentials = [math.exp(4.25), math.exp(2.25), 1]
    assert first == pytest.approx([value / sum(exponentials) for value in exponentials])


@pytest.mark.parametrize("calibration", [None, {"audio": [3.0, -0.5]}])
def test_without_a_complete_calibration_scores_are_those_of_the_learned_scale(calibration):
    scorer, found = scored(calibration)

    assert scorer.answers.labels == ["a", "b"]
    assert found["logits"] == pytest.approx(10 * np.array([*COSINES, [0, 0]]), abs=1e-5)


def test_none_label_of_none_leaves_the_logits_of_the_labels():
    _, whole = scored(CALIBRATION)
    scorer, found = scored(CALIBRATION, none_label=None)

    assert scorer.answers.labels == ["a", "b"]
    assert np.array_equal(found["logits"], whole["logits"][:, :2])


def test_segments_are_scored_like_items():
    segments = {f"segment_{name}": values[:, None] for name, values in PROJECTIONS.items()}

    _, found = scored(CALIBRATION, **segments)

    assert np.array_equal(found["segment_logits"][:, 0], found["logits"])
    assert np.array_equal(found["segment_modality_weights"][:, 0], found["modality_weights"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate_labels": []}, "candidate_labels is empty; pass at least one"),
        ({"candidate_labels": " , "}, "candidate_labels is empty"),
        ({"candidate_labels": ["a", " "]}, r"candidate_labels\[1\]=' ' is blank"),
        ({"candidate_labels": ["Bored ", "bored"]}, "'Bored' and 'bored', which are the same label"),
        ({"candidate_labels": [f"a{index}" for index in range(501)]}, "has 501 entries; at most 500 are allowed"),
        ({"candidate_labels": 5}, "candidate_labels=5 must be a str or a list of str, not int"),
        ({"candidate_labels": ["a", None]}, r"candidate_labels\[1\]=None must be a str"),
        ({"candidate_labels": ["a\ud800"]}, r"candidate_labels\[0\]: .* lone surrogate"),
        ({"candidate_labels": "a", "hypothesis_template": "I am."}, "hypothesis_template='I am.' has no {}"),
        ({"candidate_labels": "a", "hypothesis_template": ["{}", "I am."]}, "'I am.' has no {}"),
        ({"candidate_labels": "a", "hypothesis_template": []}, "hypothesis_template is empty"),
        ({"candidate_labels": "a", "hypothesis_template": ["{}"] * 21}, "21 entries; at most 20"),
        ({"candidate_labels": ["Silence"]}, "'Silence' is the label of stretches without speech; rename it"),
        ({"candidate_labels": ["uncertain"]}, "'uncertain' is the label of scores below the threshold"),
        ({"candidate_labels": ["None of these"]}, r"to which none of the labels applies \(none_label\)"),
        ({"candidate_labels": "a", "none_label": "silence"}, "none_label='silence' is the label of stretches"),
        ({"candidate_labels": "a", "none_label": ""}, r"none_label\[0\]='' is blank"),
        (
            {"candidate_labels": [str(index) for index in range(101)], "hypothesis_template": ["{}"] * 10},
            "101 candidate_labels in 10 templates are 1010 sentences; at most 1000 are allowed",
        ),
    ],
)
def test_invalid_labels_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        read_labels(**options)


def test_labels_may_be_one_text_and_as_many_as_500():
    assert read_labels(" so sad, happy ,").labels == ("so sad", "happy")
    assert len(read_labels([str(index) for index in range(MAX_LABELS)]).labels) == 500


def test_a_template_may_have_other_braces():
    candidates = read_labels("a", ["{}: {x}", "I am {}."])

    assert candidates.hypotheses() == [("a", "a: {x}"), ("a", "I am a.")]


def test_label_vectors_are_the_projections_of_the_sentences(emotion, shared):
    model, processor = shared
    templates = ["i am {}.", "you are {}, so {}"]
    scorer = emotion.with_labels(["happy", "sad"], templates)._scorer

    sentences = [template.replace("{}", label) for label in ("happy", "sad") for template in templates]
    with torch.no_grad():
        found = model(**processor(text=sentences, return_tensors="pt")).text_projection
    mean = found.unflatten(0, (2, 2)).mean(dim=1)
    assert scorer._vectors == pytest.approx(torch.nn.functional.normalize(mean, dim=-1).numpy(), abs=1e-5)


def test_scores_of_the_pipeline_are_those_of_the_projections(emotion, shared, make_clip):
    model, processor = shared
    item = {"audio": make_clip(0.7, 1), "text": "you are so happy"}

    answer = emotion(item, **OPTIONS, return_modality_weights=True)

    sentences = [TEMPLATE.replace("{}", label) for label in LABELS]
    with torch.no_grad():
        labels = model(**processor(text=sentences, return_tensors="pt")).text_projection
        output = model(**processor(audio=item["audio"], text=item["text"], return_tensors="pt"))
    mean = torch.nn.functional.normalize(output.audio_projection + output.text_projection, dim=-1)
    logits = torch.cat([4 * (mean @ labels.T)[0] + 0.25, torch.zeros(1)])
    expected = dict(zip([*LABELS, "none of these"], logits.softmax(dim=0).tolist()))
    assert by_label(answer["scores"]) == pytest.approx(expected, abs=1e-5)
    assert answer["modality_weights"] == {"audio": 0.5, "text": 0.5}


def test_embeddings_are_those_of_the_model(emotion, predict):
    for recognition in (emotion, predict):
        vectors = recognition.with_labels(LABELS).embed({"text": "so sad"})
        expected = recognition.embed({"text": "so sad"})
        assert vectors.keys() == {"text"} and np.array_equal(vectors["text"], expected["text"])


def test_a_list_equals_its_items_one_by_one(emotion, make_clip, speech):
    emotion.processor.max_speech_s = 5.0
    try:
        items = [{"text": "so happy"}, make_clip(0.5), {"audio": speech, "text": None}, {"text": ""}]
        options = {**OPTIONS, "threshold": 0.4, "return_modality_weights": True}

        answers = emotion(items, **options, on_error="return", batch_size=4)

        alone = [emotion(item, **options) for item in items[:3]]
    finally:
        emotion.processor.max_speech_s = 10.0
    for answer, expected in zip(answers, alone):
        assert by_label(answer["scores"]) == pytest.approx(by_label(expected["scores"]), abs=1e-5)
        assert labels_of(answer["scores"]) == {*LABELS, "none of these"}
        assert answer["label"] == expected["label"]
    assert "missing" in answers[3]["error"]


def test_options_of_the_pipeline_are_those_of_its_calls(shared):
    emotion = make_pipeline(*shared, **OPTIONS, none_label=None)

    assert labels_of(emotion({"text": "so sad"})) == set(LABELS)
    assert labels_of(emotion({"text": "so sad"}, candidate_labels="sad")) == {"sad"}
    assert labels_of(emotion({"text": "so sad"}, candidate_labels=None)) == {"angry", "happy", "neutral", "sad"}


@pytest.mark.parametrize(
    "item", [{"text": "you are not happy, wait!"}, {"audio": "clip"}, {"audio": "clip", "text": "I am so sad."}]
)
@pytest.mark.parametrize("options", [{}, {"top_k": 2, "threshold": 0.5}, {"function_to_apply": "none"}])
def test_int8_predictions_equal_the_pipeline(folder, predict, example_audio, item, options):
    item = {**item, "audio": str(example_audio)} if "audio" in item else item

    answer = predict(**item, **OPTIONS, **options)

    assert answer == load_pipeline(folder, "onnx")(item, **OPTIONS, **options)


def test_the_float_graph_has_the_scores_of_pytorch(folder, emotion, example_audio, make_clip):
    predict = EmotionPredictor(folder, file_name="model.onnx")
    for item in ({"audio": str(example_audio), "text": "I am so sad."}, {"audio": make_clip(0.7, 1)}, {"text": "so"}):
        expected = emotion(item, **OPTIONS)

        assert by_label(predict(**item, **OPTIONS)) == pytest.approx(by_label(expected), abs=1e-4)


def test_exports_have_the_learned_scale(folder, shared):
    for name in ("model.onnx", "model_int8.onnx"):
        predictor = EmotionPredictor(folder, file_name=name)
        assert predictor.similarity == Similarity(8, shared[0].similarity_scale, CALIBRATION)
    assert shared[0].similarity_scale == pytest.approx(math.exp(2.6592))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.5, "segment_s": 1.0},
        {"word_times": "1\n00:00:00,500 --> 00:00:02,000\nI am not happy.\n", "granularity": "sentence"},
        {"speaker_turns": [("ann", 0.0, 1.5), ("bob", 2.0, 4.0)], "customer": "bob"},
    ],
)
def test_timelines_equal_the_pipeline(folder, predict, speech, options):
    item = {"audio": speech, "word_times": options.get("word_times")}
    options = {name: value for name, value in options.items() if name != "word_times"} | OPTIONS

    found = predict(**item, return_timeline=True, **options)

    assert found == load_pipeline(folder, "onnx")(item, return_timeline=True, **options)
    predicted = found["speakers"]["bob"] if "speakers" in found else found
    assert labels_of(predicted["scores"]) == {*LABELS, "none of these"}
    assert {entry["label"] for entry in predicted["timeline"]} <= {*LABELS, "none of these", "silence", "uncertain"}


def test_channels_have_candidate_labels(predict, speech):
    found = predict(np.stack([speech, np.roll(speech, 9_000)]), channels="split", customer=1, **OPTIONS)

    assert labels_of(found["speakers"]["channel_1"]["scores"]) == {*LABELS, "none of these"}


def test_streams_of_both_backends_have_the_same_segments(folder, predict, speech):
    def segments(emotion, **options):
        stream = EmotionStream(emotion, top_k=1, **options)
        return [*stream.feed(speech), *stream.flush()]

    found = segments(predict, **OPTIONS)

    assert found == segments(load_pipeline(folder, "onnx"), **OPTIONS) == segments(predict.with_labels(**OPTIONS))
    assert {entry["label"] for entry in found} <= {*LABELS, "none of these", "silence"}
    with pytest.raises(TypeError, match=r"valid options of predictions are \['candidate_labels', 'coverage', .*\]"):
        EmotionStream(predict, labels=LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OPTIONS, "coverage": 0.9}, "coverage=0.9 contradicts candidate_labels"),
        ({"hypothesis_template": TEMPLATE}, "hypothesis_template='i am {}.' needs candidate_labels"),
        ({"none_label": None}, "none_label=None needs candidate_labels"),
        ({"candidate_labels": ["happy", "дa"]}, "knows no token of the label 'дa'"),
        ({"candidate_labels": "sad " * 80}, "is .* tokens longer than the text encoder takes"),
    ],
)
def test_both_backends_refuse_the_same(emotion, predict, options, message, caplog):
    for call in (emotion, lambda item, **options: predict(**item, **options)):
        with pytest.raises(ValueError, match=message):
            call({"text": "so sad"}, **options)
    assert caplog.text == ""


def test_what_a_model_lacks_is_named(shared, folder):
    calls = {"no shared space of voice and words": EmotionPredictor()}
    model, processor = copy.deepcopy(shared)
    model.config.projection_dim = None
    calls["adapt this one to your labels with mmemo adapt"] = make_pipeline(model, processor)
    config = copy.deepcopy(shared[0].config)
    config.text_config = None
    voice = MMEmoProcessor(processor.feature_extractor, None, speech_padding_s=None)
    calls["has no text encoder, which candidate labels need"] = make_pipeline(
        MMEmoForEmotionRecognition(config), voice
    )
    old = EmotionPredictor(folder)
    del old.graph.metadata["similarity_scale"]
    calls["an earlier version exported this model"] = old
    for message, recognition in calls.items():
        with pytest.raises(ValueError, match=message):
            recognition.with_labels(LABELS)


def test_labels_are_encoded_once(folder, monkeypatch):
    predict = EmotionPredictor(folder)
    run, texts = predict.run, []
    monkeypatch.setattr(predict, "run", lambda items: texts.append([item.text for item in items]) or run(items))

    for _ in range(2):
        predict(text="so sad", **OPTIONS)
        predict(text="so sad", **OPTIONS, none_label="i am not")

    # One by one, since the scores of this graph depend on the batch.
    assert texts == [*([TEMPLATE.replace("{}", label)] for label in LABELS), *[["so sad"]] * 4]


def test_the_cache_is_bounded_and_keeps_what_was_used_last():
    cache, encoded = LabelCache(), []

    def get(key):
        return cache.get(key, lambda: encoded.append(key) or np.full(2, key))

    for key in range(MAX_LABEL_SETS):
        get(key)
    get(0)
    get(MAX_LABEL_SETS)

    assert len(cache) == MAX_LABEL_SETS and encoded == list(range(MAX_LABEL_SETS + 1))
    assert get(0).tolist() == [0, 0] and len(encoded) == MAX_LABEL_SETS + 1
    assert get(1).tolist() == [1, 1] and encoded[-1] == 1
    assert len(pickle.loads(pickle.dumps(cache))) == 0


def test_threads_that_need_the_same_labels_encode_them_once():
    cache, started, encoded = LabelCache(), threading.Event(), []

    def encode():
        encoded.append(1)
        started.wait(5)
        return np.zeros(1)

    threads = [threading.Thread(target=cache.get, args=("labels", encode)) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.set()
    for thread in threads:
        thread.join()

    assert encoded == [1]


def test_labels_that_fail_are_tried_again():
    cache = LabelCache()

    with pytest.raises(ZeroDivisionError):
        cache.get("labels", lambda: 1 / 0)

    assert cache.get("labels", lambda: np.ones(1)).tolist() == [1]


def read_only_row(folder):
    """Returns the row of an archive of one input."""
    (path,) = (path for path in folder.rglob("[!.]*.json*") if path.is_file())
    (row,) = map(json.loads, path.read_text().splitlines())
    return row


@pytest.mark.parametrize("timeline", [False, True])
def test_archives_have_the_scores_of_the_predictor(folder, predict, example_audio, tmp_path, timeline):
    options = {"model": str(folder), "timeline": timeline, "threshold": 0.4, **OPTIONS}

    score([str(example_audio)], tmp_path / "out", format="json", **options)
    summary = score([str(example_audio)], tmp_path / "out", format="json", **options)

    assert (summary.predicted, summary.skipped) == (0, 1)
    row = read_only_row(tmp_path / "out")
    expected = predict(str(example_audio), threshold=0.4, return_timeline=timeline or None, **OPTIONS)
    assert row["label"] == expected["label"]
    assert row["scores"] == pytest.approx(by_label(expected["scores"]), abs=1e-6)
    with pytest.raises(ValueError, match=r"candidate_labels was \['happy', .* and is \['sad'\]"):
        score([str(example_audio)], tmp_path / "out", format="json", **{**options, "candidate_labels": ["sad"]})


def test_sections_of_a_recording_have_candidate_labels(folder, speech, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.tile(speech, 3), 16_000)
    options = ScoringOptions(str(folder), timeline=True, **OPTIONS)
    scorer, item = Scorer(options), ArchiveItem("a", path=str(tmp_path / "a.wav"))
    joiner = SectionJoiner(scorer.answers, options)
    sections = [Section(0, 2, 0.0, 12.0), Section(1, 2, 12.0, math.inf)]

    outcomes = [joiner.add(scorer([Task(item, section)])[0]) for section in sections]

    (whole,) = scorer([Task(item)])
    assert outcomes[1].error is None
    assert labels_of(outcomes[1].result["scores"]) == labels_of(whole.result["scores"]) == {*LABELS, "none of these"}


def run_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_predicts_candidate_labels(folder, predict, example_audio):
    labels = ["--candidate-label", "happy, so sad", "--candidate-label", "not waiting"]
    arguments = ["predict", example_audio, "--model", folder, *labels, "--hypothesis-template", TEMPLATE]

    result = run_command(*arguments, "--csv")

    assert result.exit_code == 0, result.stderr
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    expected = by_label(predict(str(example_audio), **OPTIONS))
    assert {label: float(row[label]) for label in expected} == pytest.approx(expected, abs=1e-6)
    row = json.loads(run_command(*arguments, "--json", "--none-label", "").stdout)
    assert labels_of(row["scores"]) == set(LABELS)


def test_calls_and_archives_of_the_command_have_candidate_labels(folder, speech, tmp_path):
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([speech, np.roll(speech, 9_000)], axis=1), 16_000)
    labels = ["--model", folder, "--candidate-label", "happy,so sad"]

    called = run_command("call", path, "--customer", 1, "--json", *labels)
    archived = run_command("predict", path, "--output", tmp_path / "out", "--format", "json", *labels)

    speaker = json.loads(called.stdout)["speakers"]["channel_1"]
    assert labels_of(speaker["scores"]) == {"happy", "so sad", "none of these"}
    assert archived.exit_code == 0, archived.stderr
    assert read_only_row(tmp_path / "out")["scores"].keys() == {"happy", "so sad", "none of these"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidate-label", "happy"], "no shared space of voice and words (projection_dim)"),
        (["--none-label", "other"], "none_label='other' needs candidate_labels"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message):
    result = run_command("predict", "--text", "so sad", *arguments)

    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.stderr
