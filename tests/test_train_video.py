"""Training and evaluation with video, on clips of a portrait whose mouth is closed (`sad`) or open (`happy`)."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from faces import open_mouth, read_portrait
from PIL import Image
from safetensors.torch import load_file
from tiny import RUN, video_config, write_table
from transformers import AutoModel
from videos import short_video, write_video

import eval as evaluation
import train
from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoProcessor, pipeline
from modeling_mmemo.data.clips import has_sound
from modeling_mmemo.evaluation.conditions import CONDITIONS
from modeling_mmemo.hub.adapter_card import adapter_card
from modeling_mmemo.training import training_run


ROOT = Path(__file__).parents[1]
CLOSED, OPEN = (picture[:256, 100:356] for picture in (read_portrait(), open_mouth(read_portrait())))
PICTURES = {"sad": CLOSED, "happy": OPEN}
LABELS = ("happy", "sad")
OPTIONS = {
    "labels": LABELS,
    **RUN,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory, make_clip):
    """
    Tables of 8 rows, half of them for development: `talk` with sound, text and video, the texts and voices telling
    nothing; `videos` with video alone, and one of them without a face; `pictures` as a folder of JPEG files.
    """
    folder = tmp_path_factory.mktemp("videos")
    talk, videos, pictures = [], [], []
    (folder / "pictures").mkdir()
    for index in range(8):
        label = LABELS[index % 2]
        row = {"label": label, "speaker": index, "split": "train" if index < 4 else "dev"}
        # 0.4 s, moved a little, so that no two are the same.
        frames = np.stack([np.roll(PICTURES[label], 2 * index, axis=1)] * 4)
        for name, samples in (("talk", make_clip(0.4, seed=index)), ("videos", None)):
            write_video(folder / f"{name}{index}.mp4", frames, fps=10, samples=samples)
        Image.fromarray(frames[0]).save(folder / "pictures" / f"{index}.jpg", quality=95)
        talk.append({"audio": "", "text": "i am so", "video": f"talk{index}.mp4", **row})
        videos.append({"audio": "", "text": "", "video": f"videos{index}.mp4", **row})
        pictures.append({"file_name": f"{index}.jpg", "label": label, "person": index, "split": row["split"]})
    (folder / "none.mp4").write_bytes(short_video(has_sound=False))
    videos.append({**videos[0], "video": "none.mp4"})
    return {
        "talk": write_table(folder / "talk.csv", talk),
        "videos": write_table(folder / "videos.csv", videos),
        "pictures": write_table(folder / "pictures" / "metadata.csv", pictures).parent,
    }


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Folder of a tiny ViT of 8 x 8 pixels, and of the settings of its pictures."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    AutoModel.from_config(video_config("vit")).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def as_flags(options):
    options = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in options.items()}
    return [str(part) for name, values in options.items() for part in (f"--{name}", *values)]


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory):
    """Trains on `corpora`, names of `tables`, by default with the network over blendshapes; returns the folder."""
    cache_dir = tmp_path_factory.mktemp("features")

    def make(folder, *corpora, **options):
        sources = {
            "corpora": [tables.get(name, name) for name in corpora],
            "output_dir": folder,
            "cache_dir": cache_dir,
        }
        options = {"video_encoder": "mmemo_video", **OPTIONS, **sources, **options}
        train.main(as_flags({name: value for name, value in options.items() if value is not None}))
        return folder

    return make


def scores(folder):
    return json.loads((folder / "eval_results.json").read_text())


def losses(folder):
    (checkpoint,) = folder.glob("checkpoint-*")
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def face_model(run, tmp_path_factory):
    """A model of the face alone."""
    return run(tmp_path_factory.mktemp("face"), "videos", num_train_epochs=20)


def test_a_face_head_learns_from_videos(face_model, tables, capsys):
    emotion = pipeline("multimodal-emotion", model=str(face_model))

    found = [emotion({"video": str(tables["talk"].parent / f"talk{index}.mp4")})[0]["label"] for index in range(4)]

    assert found == [*LABELS, *LABELS]
    assert scores(face_model)["eval_video_wa"] == 1.0
    assert (emotion.processor.frames_per_second, emotion.processor.crop_size) == (5.0, None)


@pytest.mark.slow
def test_the_documented_face_head_learns_from_pictures(tables, tmp_path):
    options = {
        "corpora": tables["pictures"],
        "labels": LABELS,
        "columns": "speaker=person",
        "head_learning_rate": 0.01,
    }
    options |= {"warmup_steps": 0, "output_dir": tmp_path / "model", "cache_dir": tmp_path / "cache"}
    options |= {"use_cpu": "true", "disable_tqdm": "true"}

    train.main([str(ROOT / "configs" / "face.yaml"), *as_flags(options)])

    assert scores(tmp_path / "model")["eval_video_wa"] == 1.0
    emotion = pipeline("multimodal-emotion", model=str(tmp_path / "model"))
    assert emotion({"video": Image.fromarray(OPEN)})[0]["label"] == "happy"


def test_development_sets_of_rows_with_and_without_video():
    kinds = [("audio", "video"), ("video",), ("text",), ("audio",), ("audio", "video")]
    rows = SimpleNamespace(kind_of=kinds.__getitem__)

    def select(indices, modalities, pair_probability=0.0, pair_texts=()):
        return SimpleNamespace(indices=indices, modalities=set(modalities), pairs=(pair_probability, list(pair_texts)))

    sets = training_run.development_sets(rows, range(5), select, has_pairs=True)

    none, all_rows = (0.0, []), (1.0, [0, 1, 2, 3, 4])
    assert {name: (part.indices, part.modalities, part.pairs) for name, part in sets.items()} == {
        "audio": ([3], {"audio"}, none),
        "text": ([2], {"text"}, none),
        "video": ([1], {"video"}, none),
        "audio+video": ([0, 4], {"audio", "video"}, none),
        "pairs": ([3], {"audio", "text"}, all_rows),
        "video_pairs": ([1], {"text", "video"}, all_rows),
        "audio+video_pairs": ([0, 4], {"audio", "text", "video"}, all_rows),
    }
    alone = training_run.development_sets(SimpleNamespace(kind_of=[kinds[0]].__getitem__), [0], select, has_pairs=True)
    assert {name: part.indices for name, part in alone.items()} == {"audio": [0], "video": [0], "audio+video": [0]}
    without = training_run.development_sets(SimpleNamespace(kind_of=[kinds[3]].__getitem__), [0], select, True)
    assert without.keys() == {"audio"}


def test_every_set_of_modalities_can_be_calibrated():
    assert training_run.CALIBRATED_ON == {
        "audio": ("audio",),
        "text": ("text",),
        "video": ("video",),
        "both": ("both", "pairs"),
        "audio+video": ("audio+video",),
        "text+video": ("text+video", "video_pairs"),
        "audio+text+video": ("audio+text+video", "audio+video_pairs"),
    }


def test_faces_are_followed_once(run, face_model, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("A face was followed again.")

    monkeypatch.setattr("mmemo.items.read_face", fail)

    folder = run(tmp_path, "videos", max_steps=1)

    assert scores(folder).keys() == scores(face_model).keys()


@pytest.fixture(scope="module")
def whole(run, encoders, tmp_path_factory):
    """A model of all modalities."""
    options = {"audio_encoder": encoders[0], "text_encoder": encoders[1], "audio_layers": 2, "max_steps": 4}
    # The clips are tones, in which no speech would be detected.
    options |= {"audio_mode": "frozen", "text_mode": "frozen", "modality_dropout": 0.5, "cut_to_speech": "false"}
    return run(tmp_path_factory.mktemp("whole"), "talk", "videos", **options)


@pytest.mark.slow
def test_three_modalities_train_and_are_scored_in_every_set(whole, tables):
    sets = {"audio", "text", "video", "both", "audio+video", "text+video", "audio+text+video"}
    assert sets == {name.removeprefix("eval_").removesuffix("_wa") for name in scores(whole) if name.endswith("_wa")}
    model = MMEmoForEmotionRecognition.from_pretrained(whole)
    assert model.missing_keys_on_load == () and model.config.modalities == ("audio", "text", "video")
    talk = {"video": str(tables["talk"].parent / "talk0.mp4"), "text": "i am so"}
    prediction = pipeline("multimodal-emotion", model=str(whole))(talk, return_modality_weights=True)
    assert all(weight > 0 for weight in prediction["modality_weights"].values())


@pytest.mark.slow
def test_three_modalities_are_evaluated_under_conditions_of_the_face(whole, tables, tmp_path):
    options = {"model": whole, "corpora": tables["talk"], "split": "dev", "output_dir": tmp_path}

    evaluation.main(as_flags({**options, "cache_dir": tmp_path / "cache"}))

    (table,) = json.loads((tmp_path / "results.json").read_text())["corpora"]
    assert (table["headline"], table["rows"]) == ("all", 4)
    assert set(table["conditions"]) == set(CONDITIONS) - {"no context"}
    assert table["conditions"]["face missing"] == table["conditions"]["both"]


def test_videos_without_a_face_are_left_out_with_one_warning(run, tmp_path, caplog, monkeypatch):
    trained = []
    monkeypatch.setattr(training_run, "standardize", lambda model, modalities, rows, collator: trained.append(rows))

    run(tmp_path, "videos", max_steps=1)

    assert sum("No face was found in 1 of 9 videos" in record.message for record in caplog.records) == 1
    assert len(trained[0]) == 4


@pytest.mark.slow
def test_an_audio_model_takes_the_sound_of_videos(run, encoders, tmp_path, tables):
    options = {"video_encoder": None, "audio_encoder": encoders[0], "audio_layers": 2, "max_steps": 1}

    folder = run(tmp_path / "model", "talk", **options)

    assert scores(folder).keys() >= {"eval_audio_wa"}
    with pytest.raises(ValueError, match=r"videos\.csv has no row for a model of audio"):
        run(tmp_path / "none", "videos", **options)


@pytest.mark.slow
def test_an_image_encoder_with_lora_is_saved_as_adapter(run, vit, tables, tmp_path):
    folder = run(tmp_path, "pictures", video_encoder=vit, max_steps=4, columns="speaker=person")
    processor = MMEmoProcessor.from_pretrained(folder)
    model = MMEmoForEmotionRecognition.from_pretrained(folder)
    inputs = processor(video=str(tables["pictures"] / "0.jpg"), return_tensors="pt")

    adapted = MMEmoForEmotionRecognition.from_pretrained(folder / "adapter")

    assert (processor.crop_size, processor.image_mean) == (8, [0.5, 0.4, 0.3])
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(".video_tower." in name and ".lora_B." in name and weight.any() for name, weight in weights.items())
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_adapter_holds_a_new_face_encoder(run, encoders, tables, tmp_path):
    options = {"text_encoder": encoders[1], "max_steps": 2}
    folder = run(tmp_path, "talk", **options)
    model = MMEmoForEmotionRecognition.from_pretrained(folder)

    config = MMEmoConfig.from_pretrained(folder / "adapter")
    config.text_config.name_or_path = "owner/bert"
    card = adapter_card(config, "me/adapter", None, None)
    assert "recognition from text and faces, with" in card and "trained on [owner/bert](https:" in card
    adapted = MMEmoForEmotionRecognition.from_pretrained(folder / "adapter")

    assert adapted.missing_keys_on_load == ()
    for name, weight in model.mmemo.video_tower.state_dict().items():
        assert torch.equal(weight, adapted.mmemo.video_tower.state_dict()[name]), name


@pytest.mark.slow
def test_a_trained_face_is_half_of_another_model(run, face_model, encoders, tmp_path):
    options = {"text_encoder": encoders[1], "text_mode": "frozen", "video_mode": "frozen", "max_steps": 2}

    folder = run(tmp_path, "talk", video_encoder=face_model, fusion="late", **options)

    before, after = (MMEmoForEmotionRecognition.from_pretrained(path) for path in (face_model, folder))
    for name in ("mmemo.video_tower", "mmemo.video_branch", "video_classifier"):
        expected = before.get_submodule(name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in after.get_submodule(name).state_dict().items())
    assert scores(folder)["eval_video_wa"] == 1.0


@pytest.mark.slow
def test_a_model_of_faces_is_evaluated_under_conditions_of_the_face(run, face_model, tables, tmp_path):
    measured = {"model": face_model, "corpora": tables["videos"], "split": "dev", "output_dir": tmp_path}

    evaluation.main(as_flags({**measured, "cache_dir": tmp_path / "cache"}))

    (table,) = json.loads((tmp_path / "results.json").read_text())["corpora"]
    assert (table["headline"], table["rows"]) == ("video", 4)
    assert list(table["conditions"]) == ["video", "blurred face", "dark face", "frozen face"]
    assert table["conditions"]["video"]["wa"]["value"] == table["conditions"]["frozen face"]["wa"]["value"] == 1.0
    assert "| frozen face" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_streamed_videos_train(run, encoders, tables, tmp_path):
    options = {"audio_encoder": encoders[0], "audio_layers": 2, "max_steps": 4, "streaming": "true"}

    folder = run(tmp_path, "talk", "videos", speed_probability=1.0, **options)

    assert MMEmoForEmotionRecognition.from_pretrained(folder).missing_keys_on_load == ()


@pytest.mark.slow
def test_a_resumed_run_with_video_equals_an_uninterrupted_one(run, encoders, tmp_path):
    options = {"audio_encoder": encoders[0], "text_encoder": encoders[1], "audio_layers": 2, "text_mode": "frozen"}
    options |= {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 4, "modality_dropout": 0.3}
    options |= {"speed_probability": 0.5}
    run(tmp_path / "whole", "talk", "videos", **options)

    middle = tmp_path / "whole" / "checkpoint-4"
    run(tmp_path / "resumed", "talk", "videos", **options, resume_from_checkpoint=middle)

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [("audio",), ("video",), ("audio", "video")])
def test_cached_states_train_like_the_encoders(run, encoders, vit, example_audio, tmp_path, frozen):
    """The times of frames in a clip that is cut to its speech are the same, whichever states are cached."""
    speech, rate = soundfile.read(example_audio, dtype="float32")
    rows = []
    for index in range(4):
        sound = np.concatenate([np.zeros(index * rate // 4 + rate // 2, np.float32), speech])[: 2 * rate]
        write_video(
            tmp_path / f"{index}.mp4", np.stack([CLOSED, OPEN] * 10), fps=10, samples=sound, sampling_rate=rate
        )
        rows.append({"video": f"{index}.mp4", "label": LABELS[index % 2], "speaker": index})
    table = write_table(tmp_path / "speech.csv", rows)
    modes = {f"{modality}_mode": "frozen" if modality in frozen else "full" for modality in ("audio", "video")}
    options = {"audio_encoder": encoders[0], "audio_layers": 2, "video_encoder": vit, "learning_rate": 0.0}
    options |= {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "train_sampling_strategy": "random",
        **modes,
    }

    cached, computed = (
        losses(run(tmp_path / value, table, **options, cache_states=value)) for value in ("true", "false")
    )

    assert cached == pytest.approx(computed, abs=1e-2)  # cached in half precision


def test_tables_are_as_described(tables):
    with tables["videos"].open(newline="", encoding="utf-8") as file:
        videos = [row["video"] for row in csv.DictReader(file)]
    sound = {name: has_sound({"bytes": None, "path": str(tables["talk"].parent / name)}) for name in videos}
    assert not any(sound.values()) and has_sound({"bytes": None, "path": str(tables["talk"].parent / "talk0.mp4")})
