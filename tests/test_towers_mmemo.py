import pytest
import torch
from tiny import AUDIO, TEXT, alone, audio_config, audio_inputs, pad_left, rows, spread, text_config, text_inputs
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BertConfig,
    BertForMaskedLM,
    HubertForCTC,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperForConditionalGeneration,
)

from modeling_mmemo import MMEmoAudioConfig, MMEmoAudioEncoder
from modeling_mmemo.towers_mmemo import (
    build_tower,
    encode_audio,
    encode_text,
    load_tower,
    num_hidden_states,
    position_times,
    seconds_per_position,
)


WAVEFORM = ("wav2vec2", "wav2vec2_layer_norm", "hubert", "wavlm")
# RoBERTa's first position is the one after its padding index of 1.
MAX_TOKENS = {**dict.fromkeys(TEXT, 64), "roberta": 62, "xlm-roberta": 62, "mpnet": 62}
T5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0)


def audio_tower(name):
    return spread(build_tower(audio_config(name)))


def text_tower(name):
    return spread(build_tower(text_config(name)))


def encode_clips(tower, inputs):
    values = next(value for name, value in inputs.items() if name != "audio_attention_mask")
    return encode_audio(tower, values, inputs["audio_attention_mask"])


def encode_texts(tower, inputs):
    return encode_text(tower, inputs["input_ids"], inputs["attention_mask"])


@torch.no_grad()
@pytest.mark.parametrize("name", AUDIO)
def test_states_of_a_clip_do_not_depend_on_the_batch(name):
    tower, inputs = audio_tower(name), audio_inputs(name)
    states, mask = encode_clips(tower, inputs)
    assert len(states) == num_hidden_states(tower.config) == 3
    assert all(layer.shape == (*mask.shape, 16) for layer in states)
    for row in (0, 1, 3):
        one, own_mask = encode_clips(tower, alone(inputs, row, fixed_length=name == "whisper"))
        positions = own_mask.sum()
        assert mask[row].sum() == positions > 0
        for layer, one_layer in zip(states, one):
            torch.testing.assert_close(layer[row, :positions], one_layer[0, :positions], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", AUDIO)
def test_a_missing_clip_has_no_positions_and_no_nan(name):
    tower = audio_tower(name)
    for inputs in (audio_inputs(name), rows(audio_inputs(name), [2])):
        states, mask = encode_clips(tower, inputs)
        assert all(layer.isfinite().all() for layer in states)
        assert mask.any(dim=1).tolist() == inputs["audio_attention_mask"].any(dim=1).tolist()


@pytest.mark.parametrize(
    "name, positions",
    [
        # (frames + 1) // 2
        ("mmemo_audio", [20, 38, 0, 11]),
        ("whisper", [20, 30, 0, 11]),
        # (samples - 10) // 5 + 1 = 119, 199, 139; then (... - 3) // 2 + 1
        *((name, [59, 99, 0, 69]) for name in WAVEFORM),
        # 2 special tokens, 2 bands of 4 patches
        ("ast", [10, 10, 0, 10]),
    ],
)
def test_the_mask_is_downsampled_like_the_states(name, positions):
    _, mask = encode_clips(audio_tower(name), audio_inputs(name))
    assert mask.sum(dim=1).tolist() == positions
    assert mask.shape[1] == max(positions)
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values)


@torch.no_grad()
@pytest.mark.parametrize("name", TEXT)
def test_states_of_a_text_depend_neither_on_the_batch_nor_on_the_padding_side(name):
    tower, inputs = text_tower(name), text_inputs()
    states = encode_texts(tower, inputs)
    left = encode_texts(tower, pad_left(inputs))
    assert len(states) == num_hidden_states(tower.config) == tower.config.num_hidden_layers + 1
    assert states[-1].shape == (4, 9, tower.config.hidden_size)
    for row, length in ((0, 5), (1, 9), (2, 7)):
        one = encode_texts(tower, alone(inputs, row))
        for layer, left_layer, one_layer in zip(states, left, one):
            torch.testing.assert_close(layer[row, :length], one_layer[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(left_layer[row, -length:], one_layer[0], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", TEXT)
def test_a_missing_text_has_no_nan(name):
    tower, inputs = text_tower(name), text_inputs()
    for batch in (inputs, rows(inputs, [3])):
        assert all(layer.isfinite().all() for layer in encode_texts(tower, batch))


@torch.no_grad()
@pytest.mark.parametrize("name, maximum", MAX_TOKENS.items())
def test_a_text_with_more_tokens_than_positions_raises(name, maximum):
    tower = text_tower(name)
    tokens = torch.randint(4, 50, (1, maximum + 1))
    assert (
        encode_texts(tower, {"input_ids": tokens[:, 1:], "attention_mask": torch.ones(1, maximum)})[0].shape[1]
        == maximum
    )
    with pytest.raises(
        ValueError, match=f"has {maximum + 1} tokens, but the .* encoder has {maximum} positions; truncate"
    ):
        encode_texts(tower, {"input_ids": tokens, "attention_mask": torch.ones(1, maximum + 1)})


@torch.no_grad()
@pytest.mark.parametrize("name", AUDIO)
def test_the_last_state_of_a_clip_is_after_the_closing_norm(name):
    tower, inputs = audio_tower(name), rows(audio_inputs(name), [1])
    states, _ = encode_clips(tower, inputs)
    del inputs["audio_attention_mask"]
    assert torch.equal(states[-1], tower(**inputs).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("name", TEXT)
def test_the_last_state_of_a_text_is_after_the_closing_norm(name):
    tower, inputs = text_tower(name), alone(text_inputs(), 1)
    torch.testing.assert_close(encode_texts(tower, inputs)[-1], tower(inputs["input_ids"]).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize(
    "model_class, config, prefix",
    [
        (BertForMaskedLM, text_config("bert"), "bert"),
        (LlamaForCausalLM, text_config("llama"), "model"),
        (T5ForConditionalGeneration, T5, "encoder"),
        (WhisperForConditionalGeneration, audio_config("whisper"), "model.encoder"),
        (Wav2Vec2ForCTC, audio_config("wav2vec2"), "wav2vec2"),
        (HubertForCTC, audio_config("hubert"), "hubert"),
        (ASTForAudioClassification, audio_config("ast"), "audio_spectrogram_transformer"),
    ],
)
def test_the_encoder_of_a_saved_model_with_a_head(model_class, config, prefix, tmp_path):
    whole = spread(model_class(config))
    whole.save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path), torch.float32, "text")
    weights = whole.get_submodule(prefix).state_dict()
    assert tower.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in tower.state_dict().items())


def test_a_saved_mmemo_audio_encoder(tmp_path):
    audio_tower("mmemo_audio").save_pretrained(tmp_path)
    assert type(load_tower(str(tmp_path), torch.float32, "audio")) is MMEmoAudioEncoder


def test_dtype_of_a_loaded_encoder(tmp_path):
    text_tower("bert").save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path), torch.bfloat16, "text")
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "model_class, config, deeper, lacking",
    [
        (BertForMaskedLM, text_config("bert"), {"num_hidden_layers": 3}, "encoder.layer.2"),
        (WhisperForConditionalGeneration, audio_config("whisper"), {"encoder_layers": 3}, "encoder.layers.2"),
    ],
)
def test_a_checkpoint_without_a_layer_raises(model_class, config, deeper, lacking, tmp_path):
    model = model_class(config)
    model.save_pretrained(tmp_path)
    model.config.update(deeper)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"lacks weights: \['{lacking}"):
        load_tower(str(tmp_path), torch.float32, "text")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_unused_pooler_is_dropped(name):
    assert not [key for key in build_tower(text_config(name)).state_dict() if "pooler" in key]


@pytest.mark.parametrize(
    "config, seconds",
    [
        (MMEmoAudioConfig(), 0.02),
        # Twice a hop of 256 samples at 16 kHz.
        (MMEmoAudioConfig(frame_seconds=0.016), 0.032),
        (audio_config("whisper"), 0.02),
        # Strides of 5 * 2^6 = 320 samples.
        (Wav2Vec2Config(), 0.02),
        # Strides of 5 * 2 = 10 samples.
        (audio_config("hubert"), 0.000625),
        # A patch starts every 10 frames of 10 ms.
        (ASTConfig(), 0.1),
        (BertConfig(), None),
    ],
)
def test_seconds_per_position(config, seconds):
    assert seconds_per_position(config) == (None if seconds is None else pytest.approx(seconds))


def test_position_times_are_the_middles():
    times = position_times(audio_config("mmemo_audio"), 3, 0.02)
    torch.testing.assert_close(times, torch.tensor([0.01, 0.03, 0.05]))


def test_position_times_of_spectrogram_patches():
    # Patches of 8 frames and 8 bands: 4 in time, 2 in frequency.
    times = position_times(audio_config("ast"), 10, 0.08)
    band = [0.04, 0.12, 0.20, 0.28]
    torch.testing.assert_close(times, torch.tensor([-1, -1, *band, *band]))


def test_position_times_of_overlapping_patches():
    config = ASTConfig()  # patches of 16 frames of 10 ms, a new one every 10
    times = position_times(config, 2 + 101, seconds_per_position(config))
    torch.testing.assert_close(times[2:4], torch.tensor([0.08, 0.18]))


@torch.no_grad()
def test_audio_changes_the_patches_at_its_time():
    tower, inputs = audio_tower("ast"), rows(audio_inputs("ast"), [1])
    times = position_times(tower.config, 10, seconds_per_position(tower.config))
    before = encode_clips(tower, inputs)[0][0]
    inputs["input_values"][:, 8:16] += 1  # from 0.08 s to 0.16 s
    changed = (encode_clips(tower, inputs)[0][0] != before).any(dim=-1)[0]
    assert times[changed].tolist() == pytest.approx([0.12, 0.12])


@torch.no_grad()
@pytest.mark.parametrize("name", TEXT)
def test_a_padding_token_outside_the_vocabulary_is_not_looked_up(name):
    tower, inputs = text_tower(name), text_inputs()
    padded = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 10_000)}

    for layer, expected in zip(encode_texts(tower, padded), encode_texts(tower, inputs)):
        real = inputs["attention_mask"].bool()
        assert torch.equal(layer[real], expected[real])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mmemo_audio", "wav2vec2", "wav2vec2_layer_norm"])
def test_lengths_are_counted_for_masks_of_any_dtype(name):
    # Half precision does not count beyond 256 or 2,048.
    tower, inputs = audio_tower(name), audio_inputs(name)
    states, mask = encode_clips(tower, inputs)
    for dtype in (torch.bfloat16, torch.bool):
        inputs["audio_attention_mask"] = inputs["audio_attention_mask"].to(dtype)
        other_states, other_mask = encode_clips(tower, inputs)
        assert torch.equal(other_mask, mask)
        assert torch.equal(other_states[-1], states[-1])


@torch.no_grad()
def test_text_masks_of_any_dtype():
    tower, inputs = text_tower("bert"), text_inputs()
    expected = encode_texts(tower, inputs)
    for dtype in (torch.bfloat16, torch.bool):
        inputs["attention_mask"] = inputs["attention_mask"].to(dtype)
        assert torch.equal(encode_texts(tower, inputs)[-1], expected[-1])
