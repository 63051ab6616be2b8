import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.training.collator import EmotionCollator


TARGET = {"labels": 1, "label_mask": torch.tensor([1, 1, 0, 1])}


def states(positions):
    """States of 2 layers and hidden size 3, filled with the number of positions."""
    return np.full((2, positions, 3), positions, np.float16)


@pytest.fixture
def collator(processor):
    return EmotionCollator(processor)


def test_states_are_padded_and_missing_modalities_masked(collator):
    batch = collator([{**TARGET, "audio": states(3)}, {**TARGET, "audio": states(1), "text": states(2)}])

    assert batch["labels"].tolist() == [1, 1]
    assert batch["label_mask"].tolist() == [[1, 1, 0, 1]] * 2
    assert batch["audio_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[0, 0], [1, 1]]
    assert [layer.shape for layer in batch["audio_hidden_states"]] == [(2, 3, 3)] * 2
    assert batch["audio_hidden_states"][0][:, :, 0].tolist() == [[3, 3, 3], [1, 0, 0]]


def test_loss_weights_are_collated(collator):
    rows = [{**TARGET, "audio": states(1), "loss_weight": weight} for weight in (0.5, 2.0)]

    assert collator(rows)["loss_weight"].tolist() == [0.5, 2.0]
    assert "loss_weight" not in collator([{**TARGET, "audio": states(1)}])


def test_modality_missing_from_all_rows_is_left_out(collator):
    assert set(collator([{**TARGET, "text": "i am sad"}])) == {"labels", "label_mask", "input_ids", "attention_mask"}


def test_rows_have_the_same_logits_in_a_batch_and_alone(collator, model, make_clip):
    rows = [
        {**TARGET, "audio": make_clip(0.5, 1)},
        {**TARGET, "text": "i am so happy"},
        {**TARGET, "audio": make_clip(0.3, 2), "text": "wait !"},
    ]

    with torch.no_grad():
        together = model(**collator(rows)).logits
        alone = torch.cat([model(**collator([row])).logits for row in rows])

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_word_times_are_assigned_to_their_tokens(collator, make_clip):
    timed = {**TARGET, "audio": make_clip(0.5), "text": "i am", "word_times": [("i", 0.1, 0.2), ("am", 0.2, 0.4)]}

    times = collator([timed, {**TARGET, "audio": make_clip(0.5), "text": "so sad ."}])["token_times"]

    assert times[0, 1:3].tolist() == [pytest.approx([0.1, 0.2]), pytest.approx([0.2, 0.4])]
    assert (times[1] == -1).all()


def test_word_times_are_relative_to_the_trimmed_clip(tokenizer, make_clip):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(trim_db=35.0), tokenizer, speech_padding_s=None)
    clip = np.concatenate([np.zeros(16_000, np.float32), make_clip(0.5)])
    row = {**TARGET, "audio": clip, "text": "i am", "word_times": [("i", 1.1, 1.2), ("am", 1.2, 1.4)]}

    times = EmotionCollator(processor)([row, {**TARGET, "audio": clip}])["token_times"]

    begins = processor.feature_extractor(clip).start_seconds[0]
    assert times[0, 1:3].tolist() == [
        pytest.approx([1.1 - begins, 1.2 - begins]),
        pytest.approx([1.2 - begins, 1.4 - begins]),
    ]
    assert (times[1] == -1).all()


def test_spec_augment_depends_on_the_seed_of_the_rows(processor, make_clip):
    collator = EmotionCollator(processor, Augmentation(spec_augment_probability=1.0))

    def features(**extra):
        return collator([{**TARGET, "audio": make_clip(0.5), **extra}])["input_features"]

    plain = EmotionCollator(processor)([{**TARGET, "audio": make_clip(0.5)}])["input_features"]
    assert torch.equal(features(), plain)
    assert torch.equal(features(seed=1), features(seed=1))
    assert not torch.equal(features(seed=1), features(seed=2))
    assert not torch.equal(features(seed=1), plain)


def test_spec_augment_of_waveforms_raises(tokenizer, make_clip):
    processor = MMEmoProcessor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer)
    collator = EmotionCollator(processor, Augmentation(spec_augment_probability=0.5))

    with pytest.raises(ValueError, match=r"spec_augment_probability=0.5 needs .* input_features; .*'input_values'"):
        collator([{**TARGET, "audio": make_clip(0.5), "seed": 1}])
