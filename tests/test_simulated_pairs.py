import numpy as np
import pytest
from datasets import Dataset

from modeling_mmemo.evaluation.simulated_pairs import follows, simulated_pairs


def make_rows(corpus, labels):
    size = range(len(labels))
    return Dataset.from_dict(
        {
            "audio": [{"path": f"{index}.wav", "bytes": None} for index in size],
            "text": [f"{corpus} {index}" for index in size],
            "word_times": [None for _ in size],
            "label": labels,
            "speaker": [f"{corpus}-{index % 2}" for index in size],
            "context": [[{"speaker": None, "text": f"before {corpus} {index}"}] for index in size],
            "said_by": [None for _ in size],
        }
    )


VOICES = make_rows("voices", ["angry", "sad", "happy", "sad"])
# Most texts are neutral, as in television dialogue.
SENTENCES = make_rows("sentences", ["neutral"] * 20 + ["sad", "angry", "sad"])


def test_agreeing_pairs_share_a_label_and_unmatched_audio_is_left_out():
    pairs = simulated_pairs(VOICES, SENTENCES, agreeing=True)

    assert pairs["label"][:] == pairs["text_label"][:] == ["angry", "sad", "sad"]
    assert pairs["text"][0] == "sentences 21"
    assert pairs["context"][0] == [{"speaker": None, "text": "before sentences 21"}]
    assert pairs["speaker"][:] == ["voices-0", "voices-1", "voices-1"]
    assert [audio["path"] for audio in pairs["audio"]] == ["0.wav", "1.wav", "3.wav"]


def test_labels_of_conflicting_pairs_are_drawn_uniformly():
    voices = make_rows("voices", ["sad"] * 200)

    pairs = simulated_pairs(voices, SENTENCES, agreeing=False)

    labels = pairs["text_label"][:]
    assert set(labels) == {"angry", "neutral"}
    assert 70 <= labels.count("angry") <= 130
    assert labels == [SENTENCES["label"][int(text.split()[1])] for text in pairs["text"]]


def test_pairing_is_reproducible():
    first, again, other = (simulated_pairs(VOICES, SENTENCES, False, seed)["text"][:] for seed in (0, 0, 1))

    assert first == again != other


def test_corpora_without_a_shared_label_raise():
    with pytest.raises(ValueError, match=r"No text has the same label: the audio labels are \['angry'.* \['fear'\]"):
        simulated_pairs(VOICES, make_rows("sentences", ["fear"]), agreeing=True)


def test_predictions_follow_audio_text_or_neither():
    scores = np.eye(3)[[0, 1, 2]]

    shares = follows(scores, np.array([0, 0, 0]), np.array([1, 1, 1]))

    assert shares.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
