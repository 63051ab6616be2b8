import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel

import eval as evaluation
import train
from modeling_mmemo import MMEmoForEmotionRecognition, pipeline


CLIPS = Path(__file__).parents[1] / "examples" / "audio"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, session_tokenizer):
    """Folders of a tiny Whisper and a tiny BERT, as a user would pass Hub names."""
    audio, text = tmp_path_factory.mktemp("audio"), tmp_path_factory.mktemp("text")
    whisper = WhisperConfig(
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=16,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    WhisperModel(whisper).save_pretrained(audio)
    bert = BertConfig(
        vocab_size=len(session_tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(bert).save_pretrained(text)
    session_tokenizer.save_pretrained(text)
    return audio, text


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The example clips in the layout of RAVDESS, and a few sentences in that of MELD."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(CLIPS, folder / "ravdess")
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = [clip | {"emobox_fold_1": "train"} for clip in csv.DictReader(file)]
    clips += [clip | {"emobox_fold_1": "test"} for clip in clips[:2]] + [clip | {"speaker": "02"} for clip in clips]
    (folder / "text").mkdir()
    words = {"angry": "wait !", "happy": "i am happy", "sad": "i am sad", "neutral": "i wait .", "fear": "not you"}
    words["disgust"] = "you are not happy"
    sentences = [
        {"text": text, "label": label, "speaker": "Ross", "split": split}
        for label, text in words.items()
        for split in ("train", "train", "dev", "test")
    ]
    for table, rows in (("ravdess/metadata.csv", clips), ("text/meld_text.csv", sentences)):
        with (folder / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, encoders, data_dir):
    """The folder that one short run of `train.py` wrote."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "config.yaml"
    config.write_text(
        "corpora: [ravdess, meld]\naudio_layers: 2\nfusion_hidden_size: 16\nnum_train_epochs: 1\n"
        "learning_rate: 0.01\nper_device_train_batch_size: 8\nreport_to: none\nuse_cpu: true\nsave_strategy: 'no'\n"
        "fusion_dropout: 0.0\n"
    )
    options = {
        "--audio_encoder": encoders[0],
        "--text_encoder": encoders[1],
        "--data_dir": data_dir,
        "--cache_dir": folder / "features",
        "--output_dir": folder / "model",
        "--num_train_epochs": 60,
    }
    train.main([str(config), *(str(part) for option in options.items() for part in option)])
    return folder / "model"


def test_a_run_learns_its_sentences(trained):
    emotion = pipeline("multimodal-emotion", model=str(trained))

    answers = emotion([{"text": "i am happy"}, {"text": "i am sad"}, {"text": "wait !"}], top_k=1)

    assert [answer[0]["label"] for answer in answers] == ["happy", "sad", "angry"]


def test_a_run_leaves_the_encoders_as_they_were(trained, encoders):
    model = MMEmoForEmotionRecognition.from_pretrained(trained)
    whisper = WhisperModel.from_pretrained(encoders[0])

    assert model.dtype == torch.float32
    assert model.config.audio_config.encoder_layers == 2
    kept, original = model.mmemo.audio_tower.layers[1].fc1.weight, whisper.encoder.layers[1].fc1.weight
    assert torch.equal(kept, original.half().float())


def test_a_run_standardizes_the_features_it_trained_on(trained):
    branch = MMEmoForEmotionRecognition.from_pretrained(trained).mmemo.audio_branch

    for statistics in (branch.standardization, branch.mix.standardization):
        assert statistics.mean.abs().max() > 0
        assert (statistics.std != 1).any()


def test_a_run_records_its_development_scores(trained):
    recorded = json.loads((trained / "eval_results.json").read_text())

    assert {f"eval_{name}_{measure}" for name in ("audio", "text", "pairs") for measure in ("wa", "uar")} <= set(
        recorded
    )


def test_eval_scores_the_test_parts(trained, data_dir, capsys):
    evaluation.main(["--model", str(trained), "--data_dir", str(data_dir), "--corpora", "ravdess", "meld"])

    scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(score["corpus"], score["modality"], score["samples"]) for score in scores] == [
        ("ravdess", "audio", 2),
        ("meld", "text", 6),
    ]
    assert scores[1]["wa"] == 1.0  # the sentences that it was trained on


def test_an_unknown_option_is_refused(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("audio_encoder: a\ntext_encoder: b\ncorpora: [meld]\nlearning_rat: 0.1\n")

    with pytest.raises(ValueError, match="learning_rat"):
        train.main([str(config)])


def test_repeats_that_do_not_match_the_corpora_are_refused():
    with pytest.raises(ValueError, match=r"repeats=\[2, 2\] must have a number .* corpora=\['meld'\]"):
        train.main(["--audio_encoder", "a", "--text_encoder", "b", "--corpora", "meld", "--repeats", "2", "2"])


def test_contradictory_data_arguments_are_refused():
    with pytest.raises(ValueError, match=r"pair_probability=2\.0 is a probability"):
        train.main(["--audio_encoder", "a", "--text_encoder", "b", "--corpora", "meld", "--pair_probability", "2"])
