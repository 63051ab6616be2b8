from itertools import product

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tiny import AUDIO, TEXT, VIDEO, WHISPER, audio_config, make_config, text_config, video_config
from transformers import AutoConfig, BertConfig, PreTrainedConfig

from modeling_mmemo import EMOTIONS, MMEmoAudioConfig, MMEmoConfig


def test_labels_and_their_order_are_a_contract():
    assert EMOTIONS == ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    config = make_config()
    assert config.id2label == {
        0: "angry",
        1: "disgust",
        2: "fear",
        3: "happy",
        4: "neutral",
        5: "sad",
        6: "surprise",
    }
    assert config.label2id == {label: index for index, label in config.id2label.items()}
    assert config.num_labels == 7


def test_defaults():
    config = MMEmoConfig(text_config=text_config("bert"))
    assert (config.fusion, config.audio_pooling, config.text_pooling) == ("hybrid", "mean_std", "mean")
    assert (config.fusion_hidden_size, config.fusion_num_layers, config.num_attention_heads) == (256, 1, 4)
    assert (config.segment_seconds, config.temperature, config.late_fusion_weights) == (0.5, 1.0, None)
    assert config.audio_config is None
    assert not config.is_multimodal


def test_a_model_needs_an_encoder():
    with pytest.raises(ValueError, match="needs an audio_config, a text_config or a video_config; none was given"):
        MMEmoConfig()


@pytest.mark.parametrize("audio, text", list(product((None, *AUDIO), (None, *TEXT)))[1:])
def test_round_trip_of_every_pair(audio, text, tmp_path):
    config = make_config(audio, text, fusion="early", text_pooling="last", temperature={"both": 1.5}, num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MMEmoConfig
    assert type(loaded.audio_config) is type(audio_config(audio))
    assert type(loaded.text_config) is type(text_config(text))
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert loaded.is_multimodal == (audio is not None and text is not None)


@pytest.mark.parametrize("video", VIDEO)
def test_round_trip_of_a_video_encoder(video, tmp_path):
    config = make_config(video=video, temperature={"text+video": 1.5})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded.video_config) is type(video_config(video))
    assert loaded.modalities == ("audio", "text", "video")
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_encoder_configurations_can_be_dicts():
    config = make_config()
    from_dicts = MMEmoConfig(
        audio_config=config.audio_config.to_dict(),
        text_config=config.text_config.to_dict(),
        fusion_hidden_size=16,
        num_attention_heads=2,
    )
    assert from_dicts.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fusion": "middle"}, r"fusion='middle' is unknown; choose one of \('early', 'late'"),
        ({"audio_pooling": "max"}, r"audio_pooling='max' is unknown; choose one of \('mean', 'mean_std'"),
        ({"text_pooling": "first"}, r"text_pooling='first' is unknown"),
        ({"problem_type": "ranking"}, r"problem_type='ranking' is unknown"),
        (
            {"fusion": "late", "late_fusion_weights": [0, 0]},
            r"=\[0, 0\] must be one weight for each of audio, text",
        ),
    ],
)
def test_unknown_values_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_a_value_of_another_type_raises():
    with pytest.raises(StrictDataclassFieldValidationError, match="field 'fusion_hidden_size'"):
        make_config(fusion_hidden_size="wide")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fusion_hidden_size": 18, "num_attention_heads": 4}, "fusion_hidden_size=18 must be a multiple of .*=4"),
        ({"fusion": "hybrid", "fusion_num_layers": 0}, "at least 1, got 0"),
        ({"fusion": "cross_attention", "fusion_num_layers": 0}, "at least 1, got 0"),
        ({"segment_seconds": 0}, "positive, got 0"),
        ({"segment_seconds": -0.5}, "positive, got -0.5"),
        ({"fusion_dropout": -0.1}, r"fusion_dropout must be in \[0, 1\), got -0.1"),
        ({"fusion_dropout": 1.0}, "fusion_dropout must be in"),
        ({"modality_dropout": 1.5}, "modality_dropout must be in"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"focal_gamma": -1.0}, "focal_gamma must not be negative, got -1.0"),
        ({"class_weights": [1.0, 2.0]}, "must be one weight for each of the 7 labels"),
        ({"class_weights": [-1.0] + 6 * [1.0]}, "none negative"),
        ({"modality_loss_weight": -1.0}, "modality_loss_weight must not be negative"),
        ({"late_fusion_weights": [1.0, 1.0], "fusion": "hybrid"}, 'contradicts fusion="hybrid"'),
        ({"late_fusion_weights": [1.0], "fusion": "late"}, "must be one weight for each of audio, text"),
        ({"late_fusion_weights": [1.0, 1.0, 1.0], "fusion": "late"}, "must be one weight for each of audio, text"),
        ({"late_fusion_weights": [-1.0, 2.0], "fusion": "late"}, "none negative"),
        ({"late_fusion_weights": [0.0, 0.0], "fusion": "late"}, "not all 0"),
        ({"id2label": {0: "angry", 2: "sad"}}, r"0, 1, 2, \.\.\.; got \[0, 2\]"),
        ({"id2label": {1: "angry", 2: "sad"}}, r"got \[1, 2\]"),
        ({"id2label": {0: "sad", 1: "sad"}}, "has a label twice"),
        ({"id2label": {0: "angry", 1: "sad"}, "label2id": {"angry": 1, "sad": 0}}, "contradicts id2label"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"temperature": {"audio": 1.0, "text": -2.0}}, "temperature must be positive"),
        ({"temperature": {"audio": 1.0, "face": 1.0}}, r"unknown keys \['face'\]"),
    ],
)
def test_contradictions_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_no_layer_is_needed_without_cross_attention(fusion):
    assert not make_config(fusion=fusion, fusion_num_layers=0).attends_across


def test_custom_labels():
    assert make_config(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config = make_config(id2label={"0": "calm", "1": "tense"})
    assert config.id2label == {0: "calm", 1: "tense"}
    assert config.label2id == {"calm": 0, "tense": 1}
    assert config.num_labels == 2


def test_label2id_alone_defines_the_labels():
    config = make_config(label2id={"calm": 0, "tense": 1})
    assert config.id2label == {0: "calm", 1: "tense"}


def test_temperature_by_modalities_present():
    assert make_config(temperature=2).temperature_of("text") == 2.0
    config = make_config(temperature={"audio": 1.5, "both": 3.0})
    assert [config.temperature_of(presence) for presence in ("audio", "text", "both")] == [1.5, 1.0, 3.0]


def test_whisper_config_is_reduced_to_its_encoder(tmp_path):
    audio_config("whisper").save_pretrained(tmp_path)
    config = MMEmoAudioConfig.from_pretrained(tmp_path, num_hidden_layers=1)
    assert {name: getattr(config, name) for name in WHISPER} == {**WHISPER, "encoder_layers": 1}
    assert config.model_type == "mmemo_audio"
    assert config.frame_seconds == 0.01
    assert not config.to_dict().keys() & {"decoder_layers", "decoder_start_token_id", "forced_decoder_ids"}


def test_a_folder_of_another_model_raises(tmp_path):
    BertConfig().save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="holds a 'bert' model, not 'mmemo'; MMEmoForEmotionRecognition"):
        MMEmoConfig.from_pretrained(tmp_path)


def test_audio_config_has_the_names_of_transformers():
    config = MMEmoAudioConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    assert (config.d_model, config.encoder_layers) == (32, 3)
    assert (config.encoder_attention_heads, config.encoder_ffn_dim) == (4, 64)
    assert isinstance(config, PreTrainedConfig)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_model": 15, "encoder_attention_heads": 3}, "d_model=15 must be even"),
        ({"d_model": 16, "encoder_attention_heads": 3}, "a multiple of encoder_attention_heads=3"),
        ({"scale_embedding": True}, "scale_embedding=True is not supported"),
    ],
)
def test_audio_contradictions_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        MMEmoAudioConfig(**fields)
