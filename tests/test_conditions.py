import numpy as np
import pytest
import soundfile
from datasets import Dataset
from faces import open_mouth, read_portrait
from videos import write_video

from mmemo.modalities import MODALITIES
from mmemo.video.landmarks import BLENDSHAPES
from modeling_mmemo import MMEmoProcessor
from modeling_mmemo.data.faces import FaceCache
from modeling_mmemo.evaluation.conditions import (
    CONDITIONS,
    VIDEO_CONDITIONS,
    ablation_of,
    applicable_conditions,
    score_condition,
)


TEXTS = ["wait !", "i am so happy .", "you are sad"]
LENGTHS = np.array([3, 2, 1])
BOTH = {"audio", "text"}
SPEECH_CONDITIONS = [name for name in CONDITIONS if name not in VIDEO_CONDITIONS]
CHANGED = [name for name, condition in CONDITIONS.items() if condition.change_audio is not None]


@pytest.fixture
def rows(make_clip, tmp_path):
    clips = []
    for seed in range(3):
        path = tmp_path / f"{seed}.wav"
        soundfile.write(path, make_clip(0.3 + 0.1 * seed, seed=seed), 16_000)
        clips.append({"path": str(path), "bytes": None})
    return Dataset.from_dict({"audio": clips, "text": TEXTS})


@pytest.fixture
def given(emotion, monkeypatch):
    """Returns the items that a condition makes of rows, without scoring them."""

    def give(name, rows, carriers=BOTH, seed=0, faces=None):
        items = {}

        def record(emotion, make_item, lengths, batch_size, description):
            items.update({row: make_item(row) for row in np.argsort(lengths).tolist()})

        monkeypatch.setattr("modeling_mmemo.evaluation.conditions.score_items", record)
        score_condition(emotion, name, rows, LENGTHS, carriers, seed=seed, faces=faces)
        return [items[row] for row in range(len(rows))]

    return give


def test_ablations_drop_a_modality(given, rows):
    assert given("text", rows)[1] == {"text": TEXTS[1]}
    assert given("audio", rows)[1] == {"audio": rows[1]["audio"]}
    assert given("both", rows)[1] == {"audio": rows[1]["audio"], "text": TEXTS[1]}


def test_blank_text_is_empty(given, rows):
    assert given("blank text", rows)[0] == {"audio": rows[0]["audio"], "text": ""}


def test_no_context_removes_the_dialogue(given, rows):
    said = rows.add_column("said_by", ["Ann"] * 3).add_column("context", [[{"speaker": "Bob", "text": "no"}]] * 3)

    assert given("text", said)[0] == {
        "text": TEXTS[0],
        "context": [{"speaker": "Bob", "text": "no"}],
        "speaker": "Ann",
    }
    assert given("no context", said)[0] == {"audio": rows[0]["audio"], "text": TEXTS[0]}
    assert given("no context", said, carriers={"text"})[0] == {"text": TEXTS[0]}


def test_changed_audio_keeps_its_length_and_its_text(given, rows, make_clip):
    for name in CHANGED:
        for row, item in enumerate(given(name, rows)):
            assert item["audio"].shape == make_clip(0.3 + 0.1 * row).shape
            assert item["audio"].dtype == np.float32
            assert item["text"] == TEXTS[row]


def test_blank_audio_is_nearly_silent_and_accepted_by_the_processor(emotion, given, rows):
    item = given("blank audio", rows)[0]

    assert np.abs(item["audio"]).max() <= 2e-4
    assert emotion.processor.load_audio(item["audio"]) is not None


def test_noise_has_the_level_of_the_clip(given, rows, make_clip):
    noise = given("noise audio", rows)[0]["audio"]

    assert np.std(noise) == pytest.approx(np.std(make_clip(0.3, seed=0)), rel=0.05)
    assert abs(np.corrcoef(noise, make_clip(0.3, seed=0))[0, 1]) < 0.1


@pytest.mark.parametrize("snr", [20, 10, 0])
def test_noise_has_the_requested_snr(given, rows, make_clip, snr):
    clip = make_clip(0.3, seed=0)

    noise = given(f"snr {snr} dB", rows)[0]["audio"] - clip

    assert 10 * np.log10(np.mean(clip**2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.3)


def test_audio_corpora_are_changed_without_their_text(given, rows):
    assert given("telephone", rows, carriers={"audio"})[0].keys() == {"audio"}


def test_noise_is_reproducible(given, rows):
    first, again, other = (given("snr 0 dB", rows, seed=seed)[1]["audio"] for seed in (0, 0, 1))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_shuffling_uses_every_other_row_once(given, rows):
    texts = [item["text"] for item in given("shuffled text", rows)]
    clips = [item["audio"]["path"] for item in given("shuffled audio", rows)]

    assert sorted(texts) == sorted(TEXTS)
    assert all(text != own for text, own in zip(texts, TEXTS))
    assert all(clip != row["audio"]["path"] for clip, row in zip(clips, rows))


def test_word_times_are_aligned_or_random(given, rows):
    for name in ("aligned times", "shuffled times"):
        for item, text in zip(given(name, rows), TEXTS):
            words, starts, ends = zip(*item["word_times"])
            assert list(words) == text.split()
            assert starts[0] >= 0
            assert all(start <= end for start, end in zip(starts, ends))
            assert list(starts) == sorted(starts)
    aligned, shuffled = (given(name, rows)[0]["word_times"] for name in ("aligned times", "shuffled times"))
    assert aligned != shuffled
    assert aligned[-1][2] <= 0.31


def test_shuffling_one_row_raises(given, rows):
    with pytest.raises(ValueError, match="Shuffling needs at least 2 rows, got 1"):
        given("shuffled text", rows.select([0]))


@pytest.mark.parametrize("name", SPEECH_CONDITIONS)
def test_every_condition_returns_probabilities(emotion, rows, name):
    scores = score_condition(emotion, name, rows, LENGTHS, BOTH, batch_size=2)

    assert scores.shape == (3, 4)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_applicable_conditions():
    names = list(CONDITIONS)

    assert applicable_conditions(names, {"text"}, {"text"}) == ["text"]
    assert applicable_conditions(names, BOTH, {"audio"}) == [
        "audio", "text", "both", "snr 20 dB", "snr 10 dB", "snr 0 dB", "telephone",
    ]  # fmt: skip
    assert applicable_conditions(names, BOTH, BOTH) == [name for name in SPEECH_CONDITIONS if name != "no context"]
    assert applicable_conditions(names, {"text"}, {"text", "context"}) == ["text", "no context"]
    assert applicable_conditions(names, BOTH, BOTH | {"context"}) == SPEECH_CONDITIONS
    everything = {*MODALITIES}
    with_video = [name for name in names if name != "no context"]
    assert applicable_conditions(names, everything, everything) == with_video
    alone = ["video", "blurred face", "dark face", "frozen face"]
    assert applicable_conditions(names, {"video"}, {"video"}) == alone
    assert set(applicable_conditions(names, {"audio", "video"}, {"audio", "video"})) >= {
        *alone, "audio", "audio+video", "face missing", "shuffled video", "telephone",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("modalities", "name"),
    [("audio", "audio"), ("audio text", "both"), ("text video", "text+video"), ("video text audio", "all")],
)
def test_ablation_of(modalities, name):
    assert ablation_of(modalities.split()) == name


@pytest.fixture
def faces(tmp_path):
    return FaceCache(MMEmoProcessor(frames_per_second=5.0), tmp_path / "cache")


@pytest.fixture
def filmed(rows, tmp_path):
    """The rows with videos of one second: of a closed mouth that opens, of an open one, and without a face."""
    closed, opened = (picture[:256, 100:356] for picture in (read_portrait(), open_mouth(read_portrait())))
    videos = [[closed] * 2 + [opened] * 3, [opened] * 5, [np.zeros_like(closed)] * 5]
    cells = []
    for index, frames in enumerate(videos):
        write_video(tmp_path / f"{index}.mp4", np.stack(frames), fps=5)
        cells.append({"path": str(tmp_path / f"{index}.mp4"), "bytes": None})
    return rows.add_column("video", cells)


ALL = {"audio", "text", "video"}


def test_ablations_of_video(given, filmed, faces):
    for name, kept in (("video", {"video"}), ("all", ALL), ("audio+video", {"audio", "video"})):
        assert given(name, filmed, ALL, faces=faces)[0].keys() == kept
    assert given("face missing", filmed, ALL, faces=faces)[0].keys() == {"audio", "text"}
    assert given("as given", filmed, {"video"}, faces=faces)[0].keys() == {"video"}


def jaw_of(face):
    return face.blendshapes[:, BLENDSHAPES.index("jawOpen")]


def test_frames_are_changed():
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[:, 150:] = 200

    blurred, dark, frozen = (
        CONDITIONS[name].change_frame(frame, frame // 2) for name in ("blurred face", "dark face", "frozen face")
    )

    # The standard deviation is 2 pixels: a sixth of the step is left a standard deviation from it.
    assert blurred[100, 147, 0] == pytest.approx(200 * 0.16, abs=10) and blurred[100, 130, 0] == 0
    assert sorted(np.unique(dark)) == [0, 20]
    assert np.array_equal(frozen, frame // 2)


def test_faces_are_found_in_changed_frames(given, filmed, faces):
    plain, blurred, dark, frozen = (
        given(name, filmed, ALL, faces=faces)[0]["video"]
        for name in ("all", "blurred face", "dark face", "frozen face")
    )

    assert jaw_of(plain)[-1] > 2 * jaw_of(plain)[0]
    assert np.ptp(jaw_of(frozen)) < 0.02 and len(frozen.times) == len(plain.times) == 5
    for changed in (blurred, dark):
        assert changed.is_present.any() and not np.array_equal(changed.blendshapes, plain.blendshapes)


def test_shuffled_videos_are_those_of_other_rows(given, filmed, faces):
    shuffled, own = (given(name, filmed, ALL, faces=faces) for name in ("shuffled video", "all"))

    for other, item in zip(shuffled, own):
        assert not np.array_equal(other["video"].blendshapes, item["video"].blendshapes)
        assert other["text"] == item["text"]


def test_rows_of_which_no_face_is_left_get_equal_scores(given, filmed, faces):
    """Blurring removes no face here, but the third video has none from the beginning."""
    items = given("blurred face", filmed, {"video"}, faces=faces)

    assert [item is None for item in items] == [False, False, True]
    assert given("blurred face", filmed, ALL, faces=faces)[2]["video"] is None
