import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from elsewhere import WITHOUT_PACKAGE
from safetensors.torch import load_file
from tiny import RUN, audio_config, write_table
from transformers import ASTFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor, WhisperModel

import eval as evaluation
import train
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, pipeline
from modeling_mmemo.training import training_run
from modeling_mmemo.training.rows import EmotionRows


CLIPS = Path(__file__).parents[1] / "examples" / "audio"
WORDS = {"angry": "wait !", "happy": "i am happy", "sad": "i am sad", "neutral": "i wait .", "fear": "not you"}
WORDS |= {"disgust": "you are not happy", "surprise": "so !"}
LABELS = ("angry", "happy", "neutral", "sad")
ANY_LABEL = {"allow_unknown_labels": "true"}
OPTIONS = {
    "audio_layers": 2,
    **RUN,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, make_clip):
    """8 clips in the layout of RAVDESS, each for a speaker of every split, and sentences in the layout of MELD."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(CLIPS, folder / "ravdess")
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    for seed, label in enumerate(("surprise", "surprise")):
        clips.append({"file_name": f"{seed}.wav", "label": label, "text": "so"})
        soundfile.write(folder / "ravdess" / f"{seed}.wav", make_clip(0.5, seed), 16_000)
    write_table(
        folder / "ravdess" / "metadata.csv", [{**clip, "speaker": who} for clip in clips for who in ("05", "02", "01")]
    )
    sentences = [
        {"text": text, "label": label, "speaker": "Ross", "split": split}
        for label, text in WORDS.items()
        for split in ("train", "train", "dev", "test")
    ]
    write_table(folder / "text" / "meld_text.csv", sentences)
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory, make_clip):
    """Tables of 8 clips, of 16 texts, and of 8 clips with text and word times; as many rows for `dev`."""
    folder = tmp_path_factory.mktemp("tables")
    clips, texts, both = [], [], []
    for index in range(16):
        label = LABELS[index % 4]
        row = {"label": label, "speaker": index, "split": "train" if index < 8 else "dev"}
        soundfile.write(folder / f"{index}.wav", make_clip(0.25 + 0.01 * index, seed=index % 4), 16_000)
        spoken = enumerate(WORDS[label].split())
        times = [{"word": word, "start": 0.05 * place, "end": 0.05 * place + 0.04} for place, word in spoken]
        clips.append({**row, "file_name": f"{index}.wav"})
        texts += [{**row, "text": WORDS[label]}, {**row, "text": WORDS[label] + " ."}]
        both.append({**row, "file_name": f"{index}.wav", "text": WORDS[label], "word_times": json.dumps(times)})
    rows = {"clips": clips, "texts": texts, "both": both}
    return {name: write_table(folder / f"{name}.csv", table) for name, table in rows.items()}


def as_flags(options):
    options = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in options.items()}
    return [str(part) for name, values in options.items() for part in (f"--{name}", *values)]


@pytest.fixture(scope="module")
def run(encoders, tables, tmp_path_factory):
    """Trains on `corpora`, names of `tables` or paths, with tiny encoders by default; returns the output folder."""
    paths = {"cache_dir": tmp_path_factory.mktemp("features"), "labels": LABELS}

    def make(folder, corpora=("clips", "texts"), **options):
        if not {"audio_encoder", "text_encoder", "model_name_or_path"} & options.keys():
            options |= dict(zip(("audio_encoder", "text_encoder"), encoders))
        if "audio_encoder" not in options:
            options["audio_layers"] = None
        if "model_name_or_path" in options:
            options["fusion_hidden_size"] = None
        sources = [tables.get(name, name) for name in corpora]
        options = {**OPTIONS, **paths, "corpora": sources, "output_dir": folder, **options}
        train.main(as_flags({name: value for name, value in options.items() if value is not None}))
        return folder

    return make


def losses(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]


def step_of(checkpoint):
    return int(checkpoint.name.removeprefix("checkpoint-"))


def scores(folder):
    return json.loads((folder / "eval_results.json").read_text())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, encoders, data_dir):
    """The output folder of one complete run of `train.py`: a configuration file with a base, frozen encoders."""
    folder = tmp_path_factory.mktemp("frozen")
    config = folder / "config.yaml"
    (folder / "base.yaml").write_text(
        "corpora: [meld]\naudio_mode: frozen\ntext_mode: frozen\npair_probability: 0.5\n"
    )
    config.write_text("base: base.yaml\ncorpora: [ravdess, meld]\nnum_train_epochs: 1\nclass_weights: balanced\n")
    paths = {"audio_encoder": encoders[0], "text_encoder": encoders[1], "data_dir": data_dir}
    paths |= {"cache_dir": folder / "features", "output_dir": folder / "model"}
    # With the checkpoint of its last step.
    paths |= {"num_train_epochs": 20, "save_strategy": "steps", "save_steps": 1000}
    train.main([str(config), *as_flags({**OPTIONS, **paths})])
    return folder / "model"


def test_trained_model_predicts_its_training_sentences(frozen):
    emotion = pipeline("multimodal-emotion", model=str(frozen))

    predictions = emotion([{"text": "i am happy"}, {"text": "i am sad"}, {"text": "wait !"}], top_k=1)

    assert [prediction[0]["label"] for prediction in predictions] == ["happy", "sad", "angry"]


def test_frozen_encoders_do_not_change(frozen, encoders):
    tower = MMEmoForEmotionRecognition.from_pretrained(frozen).mmemo.audio_tower
    whisper = WhisperModel.from_pretrained(encoders[0]).encoder.state_dict()

    assert tower.config.encoder_layers == 2
    for name, weight in tower.state_dict().items():
        assert torch.equal(weight, whisper[name]), name


def test_new_branches_are_standardized(frozen):
    branch = MMEmoForEmotionRecognition.from_pretrained(frozen).mmemo.audio_branch

    for statistics in (branch.standardization, branch.mix.standardization):
        assert statistics.mean.abs().max() > 0
        assert (statistics.std != 1).any()


def test_run_saves_development_scores_without_calibration_on_few_rows(frozen):
    found = {f"eval_{name}_{measure}" for name in ("audio", "text", "pairs") for measure in ("wa", "uar")}

    assert found <= scores(frozen).keys()
    config = MMEmoForEmotionRecognition.from_pretrained(frozen).config
    assert (config.temperature, config.conformal_quantiles) == (1.0, None)


@pytest.mark.slow
def test_run_prints_where_and_how_good_the_model_is_and_what_is_next(run, encoders, tmp_path, capsys):
    calls = [
        # A few of the texts have another label, so that there is a best temperature.
        {"text": WORDS[LABELS[(index + index % 7 // 5) % 4]], "label": LABELS[index % 4], "speaker": f"s{index % 20}"}
        for index in range(300)
    ]
    table = write_table(tmp_path / "calls.csv", calls)

    folder = run(tmp_path / "model", corpora=(table,), dev_share=0.2, max_steps=40, text_encoder=encoders[1])

    config = MMEmoForEmotionRecognition.from_pretrained(folder).config
    assert config.temperature.keys() == config.conformal_quantiles.keys() == {"text"}
    printed = capsys.readouterr().out
    assert f"Saved the model to {folder}, its adapter to {folder / 'adapter'}." in printed
    assert f"  text: WA {100 * scores(folder)['eval_text_wa']:.1f}, UAR" in printed
    assert re.search(r"  calls: 60 of 300 rows, of 4 speaker\(s\): s\d+, s\d+, s\d+, s\d+\n", printed)
    fitted = f"  text: temperature {config.temperature['text']:.2f}; prediction sets up to 98 % coverage"
    assert fitted in printed
    (command,) = re.findall(r"  python eval\.py (.*)", printed)
    assert f"--corpora {table} --split dev --dev_share 0.2 --output_dir {folder / 'results'}" in command

    evaluation.main([*shlex.split(command), "--conditions", "text"])

    (own,) = json.loads((folder / "results" / "results.json").read_text())["corpora"]
    assert (own["rows"], own["groups"]) == (60, 4)
    assert own["conditions"]["text"]["wa"]["value"] == pytest.approx(scores(folder)["eval_text_wa"], abs=1e-4)


def test_missing_clips_are_listed_before_anything_is_computed(run, tmp_path):
    rows = [{"audio": f"nosuch{index}.wav", "label": LABELS[index % 4]} for index in range(3)]
    table = write_table(tmp_path / "late.csv", rows)

    with pytest.raises(ValueError, match=r"3 audio file\(s\) cannot be read\. Correct their paths.*") as error:
        run(tmp_path / "model", corpora=("clips", table), audio_mode="frozen")

    assert [f"nosuch{index}.wav does not exist." in str(error.value) for index in range(3)] == [True] * 3


def test_own_labels_are_named_by_the_error_and_trained(run, frozen, tmp_path):
    calls = [{"text": "i am so", "label": label, "speaker": index} for index in range(4) for label in ("生气", "calm")]
    options = {"corpora": (write_table(tmp_path / "calls.csv", calls),), "model_name_or_path": frozen, "max_steps": 1}

    with pytest.raises(ValueError, match=r"4 of 8 rows \(50\.0%\) .*: 生气 \(4\)\. .* \(--labels calm '生气'\), map"):
        run(tmp_path / "model", **options, labels=None)
    folder = run(tmp_path / "model", **options, labels=("calm", "生气"))

    assert MMEmoForEmotionRecognition.from_pretrained(folder).config.label2id == {"calm": 0, "生气": 1}


@pytest.mark.parametrize("option", ["model_name_or_path", "text_encoder"])
def test_missing_models_raise(run, tmp_path, option):
    with pytest.raises(FileNotFoundError, match=f"^{option}=/missing is neither a folder nor a name on the Hub"):
        run(tmp_path, **{option: "/missing"})
    with pytest.raises(FileNotFoundError, match=f"^{option}=runs/none is neither a folder in .* loaded from the Hub"):
        run(tmp_path, **{option: "runs/none"})


def test_balanced_class_weights(frozen):
    config = MMEmoForEmotionRecognition.from_pretrained(frozen).config

    weights = dict(zip(config.label2id, config.class_weights))
    # Each label has 2 sentences and 1 clip, surprise 2 clips: 22 rows.
    assert weights == {label: pytest.approx(22 / 7 / (4 if label == "surprise" else 3)) for label in WORDS}


@pytest.mark.slow
def test_bias_correction_moves_predictions_to_the_frequencies_of_the_development_rows(run, tmp_path, encoders):
    """The text does not tell the label, `happy` is twice as frequent in training, and three times in development."""
    labels = {"train": ["happy", "happy", "sad"] * 20, "dev": ["happy", "happy", "happy", "sad"] * 20}
    rows = [{"text": "i wait .", "label": label, "split": split} for split, of in labels.items() for label in of]
    table = write_table(tmp_path / "rows.csv", rows)
    options = {"corpora": (table,), "labels": ("happy", "sad"), "text_encoder": encoders[1]}
    options |= {"text_mode": "frozen", "class_weights": "balanced", "max_steps": 40, "per_device_train_batch_size": 60}

    shares = []
    for correction in (None, ("text",)):
        folder = run(tmp_path / "model", **options, bias_correction=correction)
        (first, *_) = pipeline("multimodal-emotion", model=str(folder))({"text": "i wait ."})
        shares.append((first["label"], first["score"]))

    assert shares[0][1] < 0.6
    assert shares[1] == ("happy", pytest.approx(0.75, abs=0.02))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "16 development rows have text alone, at least 50 are needed"),
        ({"fusion": "early"}, "do not come from a head with biases"),
        ({"bias_correction": ("audio",), "corpora": ("texts",), "audio_encoder": None}, "do not come from a head"),
    ],
)
def test_bias_correction_that_cannot_be_fitted_raises(run, tmp_path, encoders, options, message):
    names = {"audio_encoder": encoders[0], "text_encoder": encoders[1]}
    options = {**names, "bias_correction": ("text",), "audio_mode": "frozen", "text_mode": "frozen", **options}
    if options["audio_encoder"] is None:
        options.update(audio_mode=None, audio_layers=None)

    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)


def test_silence_that_would_be_cut_off_raises(run, tmp_path):
    with pytest.raises(ValueError, match=r"silence_probability=0\.5 contradicts cut_to_speech=True"):
        run(tmp_path, silence_probability=0.5)


def test_other_labels_than_those_of_a_resumed_checkpoint_raise(run, frozen, tmp_path):
    (checkpoint,) = frozen.glob("checkpoint-*")

    with pytest.raises(
        ValueError, match=r"labels=\['angry', .* contradicts resume_from_checkpoint=.* are \['angry', 'dis"
    ):
        run(tmp_path, resume_from_checkpoint=checkpoint)


@pytest.mark.slow
def test_saved_folders_load_without_the_packages(frozen, tmp_path):
    (checkpoint,) = frozen.glob("checkpoint-*")
    program = (
        WITHOUT_PACKAGE
        + f"""
import json
from transformers import pipeline
found = []
for folder in {[str(frozen), str(checkpoint)]!r}:
    emotion = pipeline("multimodal-emotion", model=folder, trust_remote_code=True, device="cpu")
    found.append([emotion({{"text": "i am sad"}})[0]["label"], type(emotion.model).__module__.partition(".")[0]])
print(json.dumps(found))
"""
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path)},
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [["sad", "transformers_modules"]] * 2


@pytest.mark.slow
def test_model_overfits_eight_clips(encoders, data_dir, tmp_path):
    options = {"audio_encoder": encoders[0], "text_encoder": encoders[1], "data_dir": data_dir, "text_mode": "full"}
    options |= {"corpora": ["ravdess", "meld"], "num_train_epochs": 40, "output_dir": tmp_path / "model"}

    train.main(as_flags({**OPTIONS, **options, "per_device_train_batch_size": 8, "lora_dropout": 0.0}))

    measured = {"model": tmp_path / "model", "data_dir": data_dir, "output_dir": tmp_path / "results"}
    evaluation.main(as_flags({**measured, "corpora": ["ravdess", "meld"], "conditions": ["audio", "text"]}))
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    for corpus, rows, modality in zip(results["corpora"], (8, 7), ("audio", "text")):
        assert corpus["rows"] == rows
        assert corpus["conditions"][modality]["wa"]["value"] == 1.0
    assert scores(tmp_path / "model")["eval_mean_uar"] == 1.0


RESUMED = {
    "lora": {},
    "lora beside full": {"audio_mode": "full", "text_mode": "lora", "train_sampling_strategy": "random"},
    "frozen": {"audio_mode": "frozen", "text_mode": "frozen", "gradient_accumulation_steps": 2, "save_steps": 4},
}
DRAWN = {
    "corpus_weights": [0.6, 1.2],
    "pair_probability": 0.5,
    "modality_dropout": 0.3,
    "fusion_dropout": 0.2,
    # Of 6 batches each.
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 8,
    "max_grad_norm": 1.0,
}
# Options with which a model learns the sentences for certain.
SENTENCES = {
    "corpora": ("texts",),
    "text_mode": "full",
    "head_learning_rate": 0.03,
    "lr_scheduler_type": "constant",
}
AUGMENTED = {"speed_probability": 0.5, "noise_probability": 0.5, "spec_augment_probability": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_equals_an_uninterrupted_one(run, tmp_path, name):
    options = {**DRAWN, **RESUMED[name], **(AUGMENTED if name != "frozen" else {})}
    run(tmp_path / "whole", **options)
    middle, last = sorted((tmp_path / "whole").glob("checkpoint-*"), key=step_of)
    assert 1 < json.loads((middle / "trainer_state.json").read_text())["epoch"] < 2

    run(tmp_path / "resumed", **options, resume_from_checkpoint=middle)

    expected = losses(last)
    assert len({loss for _, loss, _ in expected}) == len(expected) == step_of(last)
    assert losses(tmp_path / "resumed" / last.name) == expected
    for file in ("model.safetensors", *(f"{last.name}/{path.name}" for path in last.glob("*.safetensors"))):
        whole, resumed = (load_file(tmp_path / part / file) for part in ("whole", "resumed"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(weight, resumed[weight_name]) for weight_name, weight in whole.items())


@pytest.mark.slow
def test_cached_states_train_like_the_encoders(run, tmp_path):
    options = {"audio_mode": "frozen", "text_mode": "frozen", "max_steps": 6, "save_strategy": "steps"}
    # Lengths of states and of inputs differ, and would make other batches.
    options["train_sampling_strategy"] = "random"

    folders = [run(tmp_path / cached, cache_states=cached, save_steps=6, **options) for cached in ("true", "false")]

    cached, computed = (losses(folder / "checkpoint-6") for folder in folders)

    # States are cached in half precision.
    for one, other in zip(cached, computed):
        assert one == pytest.approx(other, abs=2e-2)
    assert cached[-1][1] < cached[0][1]


@pytest.mark.slow
def test_frozen_run_trains_on_augmented_copies(run, tmp_path, tables, make_clip):
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "hum.wav", make_clip(0.2, 7), 16_000)
    options = {"audio_mode": "frozen", "text_mode": "frozen", "max_steps": 4, "save_strategy": "steps"}
    options |= {"fusion": "late", "audio_layer_mix": "concat", "class_weights": "corpus", "eval_strategy": "epoch"}
    options |= {"augmented_copies": 2, "noise_probability": 1.0, "noise_dir": tmp_path / "noise"}
    options |= {"cache_dir": tmp_path / "features", "save_steps": 4, "room_probability": 0.5}

    folders = [run(tmp_path / name, **options) for name in ("first", "again")]

    first, again = (losses(folder / "checkpoint-4") for folder in folders)
    assert len(first) == 4 and first == again
    assert len(list((tmp_path / "features").glob("audio-copies-*"))) == 2
    assert not list((tmp_path / "features").glob("audio-[!c]*"))
    assert MMEmoForEmotionRecognition.from_pretrained(folders[0]).config.class_weights is None
    assert 0 <= scores(folders[0])["eval_audio_uar"] <= 1
    clip = {"audio": str(tables["clips"].parent / "0.wav")}
    assert pipeline("multimodal-emotion", model=str(folders[0]))(clip)


def test_copies_for_a_branch_that_needs_the_whole_sequence_raise(run, tmp_path):
    with pytest.raises(ValueError, match="augmented_copies contradicts fusion=hybrid, audio_layer_mix=weighted_sum"):
        run(tmp_path, audio_mode="frozen", text_mode="frozen", augmented_copies=2, noise_probability=1.0)


@pytest.mark.slow
def test_saved_adapter_equals_the_merged_model(run, encoders, tables, tmp_path):
    options = {"corpora": ("both",), "max_steps": 4, "fusion": "late"}
    folder = run(tmp_path / "model", **options)
    model = MMEmoForEmotionRecognition.from_pretrained(folder)
    inputs = MMEmoProcessor.from_pretrained(folder)(
        audio=str(tables["both"].parent / "0.wav"), text="i am sad", return_tensors="pt"
    )

    adapted = MMEmoForEmotionRecognition.from_pretrained(folder / "adapter")

    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_model_is_evaluated_as_it_is_stored_in_half_precision(run, encoders, tmp_path):
    folder = run(tmp_path / "model", max_steps=4, stored_dtype="float16")

    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for name, weight in weights.items() if "_tower." in name} == {torch.float16}
    assert {weight.dtype for name, weight in weights.items() if "_tower." not in name} == {torch.float32}
    unchanged = {"learning_rate": 0, "head_learning_rate": 0, "audio_mode": "full", "text_mode": "full"}
    again = run(tmp_path / "again", model_name_or_path=folder, max_steps=1, stored_dtype="float16", **unchanged)
    reloaded = load_file(again / "model.safetensors")
    assert all(torch.equal(weight, reloaded[name]) for name, weight in weights.items())
    for name in ("audio", "text"):
        # The temperature is fitted again, to the same predictions.
        assert scores(again)[f"eval_{name}_loss"] == scores(folder)[f"eval_{name}_loss"]


@pytest.mark.slow
def test_training_continues_with_the_labels_of_a_checkpoint(run, tmp_path):
    order = LABELS[::-1]
    options = {"num_train_epochs": 15, **SENTENCES}
    first = run(tmp_path / "first", **options, class_weights="balanced", labels=order)
    assert scores(first)["eval_text_wa"] == 1.0

    small = {"num_train_epochs": 1, "learning_rate": 1e-4, "head_learning_rate": 1e-4}
    more = run(tmp_path / "more", model_name_or_path=first, **{**options, **small}, labels=None)
    other = run(tmp_path / "other", model_name_or_path=first, **options, labels=("sad", "angry"), **ANY_LABEL)

    # Labels of rows follow the order of the model.
    assert scores(more)["eval_text_wa"] == 1.0
    config = MMEmoForEmotionRecognition.from_pretrained(more).config
    assert config.label2id == {label: index for index, label in enumerate(order)}
    assert scores(other)["eval_text_wa"] == 1.0
    config = MMEmoForEmotionRecognition.from_pretrained(other).config
    assert config.label2id == {"sad": 0, "angry": 1}
    assert config.class_weights is None
    with pytest.raises(ValueError, match="reorders the labels of model_name_or_path"):
        run(tmp_path / "reordered", model_name_or_path=first, **options, labels=LABELS)


@pytest.mark.slow
def test_training_with_word_times(run, tmp_path):
    folder = run(
        tmp_path,
        corpora=("both",),
        num_train_epochs=1,
        modality_dropout=0.5,
        speed_probability=1.0,
        activation_checkpointing="true",
        lr_scheduler_type="cosine",
        focal_gamma=1.0,
        label_smoothing=0.1,
    )

    model = MMEmoForEmotionRecognition.from_pretrained(folder)
    assert (model.config.modality_dropout, model.config.focal_gamma, model.config.label_smoothing) == (0.5, 1.0, 0.1)
    assert "eval_both_wa" in scores(folder)
    # Slopes are trained only with word times.
    assert model.mmemo.layers[0].slope.abs().min() > 0


@pytest.mark.slow
def test_training_on_streamed_rows(run, tmp_path):
    folder = run(tmp_path, **SENTENCES, max_steps=60, streaming="true")

    emotion = pipeline("multimodal-emotion", model=str(folder))
    predictions = emotion([{"text": WORDS[label]} for label in LABELS], top_k=1)
    assert [prediction[0]["label"] for prediction in predictions] == list(LABELS)
    assert not (folder / "eval_results.json").exists()


@pytest.mark.slow
def test_several_streams(run, tmp_path):
    folder = run(tmp_path, max_steps=6, streaming="true", corpus_weights=[1, 2], noise_probability=0.5)

    assert MMEmoForEmotionRecognition.from_pretrained(folder).missing_keys_on_load == ()


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_training_one_modality(run, encoders, tmp_path, modality):
    encoder = {f"{modality}_encoder": encoders[modality == "text"]}

    folder = run(tmp_path, corpora=("both",), max_steps=2, **encoder)

    assert scores(folder).keys() >= {f"eval_{modality}_wa", "eval_mean_uar"}
    assert MMEmoForEmotionRecognition.from_pretrained(folder).config.temperature == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [("wav2vec2", "lora"), ("wav2vec2_layer_norm", "full"), ("hubert", "lora"), ("wavlm", "lora"), ("ast", "lora")],
)
def test_other_audio_encoders(run, tmp_path, name, mode):
    torch.manual_seed(0)
    config = audio_config(name)
    if name == "ast":
        config.max_length = 64
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    if name == "ast":
        extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=64)
    extractor.save_pretrained(tmp_path / "encoder")

    folder = run(
        tmp_path / "model",
        corpora=("clips",),
        audio_encoder=tmp_path / "encoder",
        max_steps=2,
        audio_mode=mode,
        audio_layers=None,
    )

    trained = MMEmoForEmotionRecognition.from_pretrained(folder)
    before = AutoModel.from_pretrained(tmp_path / "encoder").state_dict()
    after = trained.mmemo.audio_tower.state_dict()
    assert trained.missing_keys_on_load == ()
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (
            "train",
            {"eval_strategy": "epoch"},
            "eval_strategy=epoch contradicts .* no development rows. Set dev_share",
        ),
        ("dev", {}, r"have no training rows; their splits are \['dev'\]"),
        ("train", {"context_dropout": 0.5}, "context_dropout=0.5 contradicts context_turns=0"),
        (
            "train",
            {"labels": ["angry", "sad"], "pair_probability": 1.0, "neutral_text_probability": 0.5},
            r"neutral_text_probability=0\.5 contradicts labels=\['angry', 'sad'\], which lack 'neutral'",
        ),
        (
            "train",
            {"pair_probability": 1.0, "pair_split": "dev"},
            "no development rows with text alone. Set dev_share",
        ),
        ("test", {}, "has no row for a model of audio and text; leave it out"),
    ],
)
def test_rows_that_do_not_fit_raise(run, tmp_path, split, options, message):
    rows = [{"text": "i am sad", "label": label, "split": split} for label in ("sad", "angry")]
    table = write_table(tmp_path / "table.csv", rows)

    with pytest.raises(ValueError, match=message):
        run(tmp_path / "model", corpora=(table,), **options)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_pairs_have_texts_of_the_split_chosen(run, tmp_path, monkeypatch, split):
    splits = []

    class Recorded(EmotionRows):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            splits.append({self.rows["split"][index] for texts in self.texts_of for index in texts})

    monkeypatch.setattr(training_run, "EmotionRows", Recorded)
    modes = {"audio_mode": "frozen", "text_mode": "frozen", "max_steps": 1}
    run(tmp_path, pair_probability=1.0, pair_split=split, **modes)

    # The second are the development rows with audio.
    assert splits[0] == {split}


def test_audio_rows_for_a_text_model_raise(run, encoders, tmp_path):
    with pytest.raises(ValueError, match=r"clips\.csv has no row for a model of text; leave it out of corpora"):
        run(tmp_path, corpora=("texts", "clips"), text_encoder=encoders[1])


def test_speaker_in_two_splits_raises(run, make_clip, tmp_path):
    soundfile.write(tmp_path / "clip.wav", make_clip(0.3), 16_000)
    row = {"file_name": "clip.wav", "speaker": "Ann"}
    rows = [{**row, "split": split, "label": label} for split in ("train", "dev") for label in ("sad", "angry")]
    table = write_table(tmp_path / "table.csv", rows)

    with pytest.raises(ValueError, match=r"1 speaker value\(s\) occur in both train and dev"):
        run(tmp_path / "model", corpora=(table,))
    run(tmp_path / "model", corpora=(table,), allow_leaks="true", max_steps=1)


def test_a_single_label_raises(run, tmp_path):
    table = write_table(tmp_path / "table.csv", [{"text": "i am sad", "label": "sad"}] * 3)

    with pytest.raises(
        ValueError, match=r"All training rows have the label 'sad', .*table\.csv: sad \(3\)\. Add rows of"
    ):
        run(tmp_path / "model", corpora=(table,))


@pytest.mark.slow
def test_the_script_reports_errors_and_hides_warnings(run, tables, encoders, tmp_path):
    options = {**OPTIONS, "text_encoder": encoders[1], "corpora": tables["texts"], "labels": LABELS, "max_steps": 1}
    options |= {"output_dir": tmp_path / "model", "audio_layers": None}
    flags = as_flags({name: value for name, value in options.items() if value is not None})
    script = [sys.executable, train.__file__]

    trained = subprocess.run([*script, *flags], capture_output=True, text=True)
    missing = subprocess.run([*script, *flags, "--corpora", "nosuch.csv"], capture_output=True, text=True)
    contradiction = subprocess.run([*script, *flags, "--trim_db", "3"], capture_output=True, text=True)
    unknown = subprocess.run([*script, "--nosuch", "3"], capture_output=True, text=True)

    assert trained.returncode == 0 and f"Saved the model to {tmp_path / 'model'}" in trained.stdout
    assert "pin_memory" not in trained.stderr and "FutureWarning" not in trained.stderr
    assert (missing.returncode, contradiction.returncode, unknown.returncode) == (1, 2, 2)
    message = f"Error: nosuch.csv does not exist; paths are relative to {Path.cwd()}."
    assert missing.stderr.splitlines()[-1] == message
    assert contradiction.stderr.splitlines()[-1].startswith("Error: trim_db=3.0 contradicts audio_encoder=None")
    assert not any("Traceback" in script.stderr for script in (trained, missing, contradiction, unknown))
