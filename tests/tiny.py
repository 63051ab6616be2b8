"""Tiny configurations of every architecture, samples for them, tables of rows, and options of short runs.

Where their masks are 0, the samples have random values rather than zeros: these must not reach a result.
"""

import copy
import csv
import json

import torch
from datasets import Dataset
from transformers import (
    ASTConfig,
    BertConfig,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    HubertConfig,
    LlamaConfig,
    MPNetConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    ViTConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
    XLMRobertaConfig,
)

from modeling_mmemo import MMEmoAudioConfig, MMEmoConfig, MMEmoForEmotionRecognition, MMEmoVideoConfig


# Options of train.py for runs of seconds.
RUN = {
    "fusion_hidden_size": 16,
    "fusion_dropout": 0.0,
    "learning_rate": 0.01,
    "head_learning_rate": 0.01,
    "warmup_steps": 0,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"vocab_size": 50, "bos_token_id": 2, "eos_token_id": 3}
ENCODER = {**SIZES, **TOKENS, "max_position_embeddings": 64}
# Two query heads share one key and value, as in grouped-query decoders.
DECODER = {**ENCODER, "num_key_value_heads": 1}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 30,
}
WAVEFORM = {
    **SIZES,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}

_AUDIO_CONFIGS = {
    "mmemo_audio": MMEmoAudioConfig(**WHISPER),
    "whisper": WhisperConfig(
        **WHISPER,
        **TOKENS,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        pad_token_id=0,
        decoder_start_token_id=3,
    ),
    "wav2vec2": Wav2Vec2Config(**WAVEFORM),
    "wav2vec2_layer_norm": Wav2Vec2Config(**WAVEFORM, feat_extract_norm="layer", do_stable_layer_norm=True),
    "hubert": HubertConfig(**WAVEFORM),
    "wavlm": WavLMConfig(**WAVEFORM),
    "ast": ASTConfig(**SIZES, max_length=32, num_mel_bins=16, patch_size=8, time_stride=8, frequency_stride=8),
}
_TEXT_CONFIGS = {
    "bert": BertConfig(**ENCODER),
    "roberta": RobertaConfig(**ENCODER),
    "distilbert": DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=50, max_position_embeddings=64
    ),
    "xlm-roberta": XLMRobertaConfig(**ENCODER),
    "minilm": BertConfig(**{**ENCODER, "hidden_size": 24, "num_attention_heads": 12, "num_hidden_layers": 3}),
    "mpnet": MPNetConfig(**ENCODER),
    "llama": LlamaConfig(**DECODER),
    "gpt2": GPT2Config(**TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "qwen2": Qwen2Config(**DECODER),
    "qwen3": Qwen3Config(**DECODER, head_dim=8),
    "gemma": GemmaConfig(**DECODER, head_dim=8),
    # A sliding window shorter than the text, so that the position of its start matters.
    "gemma3_text": Gemma3TextConfig(**DECODER, head_dim=8, sliding_window=4),
}
IMAGES = {**SIZES, "image_size": 8, "patch_size": 4}
_VIDEO_CONFIGS = {
    "mmemo_video": MMEmoVideoConfig(num_features=6, hidden_size=16, kernel_size=3),
    "vit": ViTConfig(**IMAGES),
    "clip": CLIPVisionConfig(**IMAGES),
    "dinov2": Dinov2Config(**{**IMAGES, "mlp_ratio": 2}),
}
AUDIO = tuple(_AUDIO_CONFIGS)
TEXT = tuple(_TEXT_CONFIGS)
VIDEO = tuple(_VIDEO_CONFIGS)
# Every encoder, each with one of the other modality.
PAIRS = [*((audio, "bert") for audio in AUDIO), *(("mmemo_audio", text) for text in TEXT if text != "bert")]

# Row 0 is padded, row 1 has the length of the batch, row 2 has no audio, row 3 no text. The video of row 0 is padded
# and has a frame without a face, row 1 has no video.
BOTH, WHOLE, TEXT_ONLY, AUDIO_ONLY = range(4)
_TEXT_LENGTHS = (5, 9, 7, 0)
_AUDIO_SHAPES = {
    # Longer than one window of 60 frames.
    "mmemo_audio": ("input_features", (8, 75), (40, 75, 0, 21)),
    "whisper": ("input_features", (8, 60), (40, 60, 0, 21)),
    "ast": ("input_values", (32, 16), (32, 32, 0, 32)),
}
_VIDEO_LENGTHS = (4, 0, 5, 3)
_WAVEFORM_SHAPE = ("input_values", (1000,), (600, 1000, 0, 703))


def audio_config(name):
    return None if name is None else copy.deepcopy(_AUDIO_CONFIGS[name])


def text_config(name):
    return None if name is None else copy.deepcopy(_TEXT_CONFIGS[name])


def video_config(name):
    return None if name is None else copy.deepcopy(_VIDEO_CONFIGS[name])


def make_config(audio="mmemo_audio", text="bert", video=None, **fields):
    fields = {"fusion_hidden_size": 16, "num_attention_heads": 2, **fields}
    towers = {
        "audio_config": audio_config(audio),
        "text_config": text_config(text),
        "video_config": video_config(video),
    }
    return MMEmoConfig(**towers, **fields)


def spread(model):
    """Draws the weights from a wide range: with the usual one, a new model has nearly equal logits for all inputs."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_model(audio="mmemo_audio", text="bert", video=None, **fields):
    torch.manual_seed(0)
    return spread(MMEmoForEmotionRecognition(make_config(audio, text, video, **fields)))


def _mask(lengths, size):
    return (torch.arange(size) < torch.tensor(lengths).unsqueeze(1)).long()


def audio_inputs(name="mmemo_audio"):
    """The audio of the four samples, as the model's inputs."""
    input_name, shape, lengths = _AUDIO_SHAPES.get(name, _WAVEFORM_SHAPE)
    values = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    return {input_name: values, "audio_attention_mask": _mask(lengths, shape[input_name == "input_features"])}


def text_inputs():
    """The text of the four samples, as the model's inputs; one word of each of the first two has timestamps."""
    input_ids = torch.randint(4, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    token_times = torch.full((4, 9, 2), -1.0)
    token_times[0, 1] = torch.tensor([0.1, 0.3])
    token_times[1, 2] = torch.tensor([0.0, 0.2])
    return {"input_ids": input_ids, "attention_mask": _mask(_TEXT_LENGTHS, 9), "token_times": token_times}


def video_inputs(name="mmemo_video"):
    """The video of the four samples, as the model's inputs: five frames in a second, with times but for row 3."""
    generator = torch.Generator().manual_seed(0)
    mask = _mask(_VIDEO_LENGTHS, 5)
    mask[0, 1] = 0
    starts = torch.arange(5) * 0.2
    times = torch.stack([starts, starts + 0.2], dim=1).expand(4, -1, -1).where(mask.bool().unsqueeze(2), -1.0)
    times[3] = -1.0
    input_name, shape = ("video_features", (6,)) if name == "mmemo_video" else ("pixel_values", (3, 8, 8))
    values = torch.rand(4, 5, *shape, generator=generator)
    return {input_name: values, "video_attention_mask": mask, "video_times": times}


def make_inputs(audio="mmemo_audio", video=None):
    return {**audio_inputs(audio), **text_inputs(), **({} if video is None else video_inputs(video))}


def rows(inputs, indices):
    return {name: values[indices] for name, values in inputs.items()}


def alone(inputs, row, fixed_length=False):
    """One sample alone: without padding, unless the encoder needs it, and without inputs of a missing modality."""
    sample = {name: values[[row]] for name, values in inputs.items()}
    for mask_name, names in (
        ("audio_attention_mask", ("input_features", "input_values")),
        ("attention_mask", ("input_ids", "token_times")),
        ("video_attention_mask", ("video_features", "pixel_values", "video_times")),
    ):
        if mask_name not in sample:
            continue
        mask = sample[mask_name]
        length = int((mask * (torch.arange(mask.shape[1]) + 1)).max())
        if length == 0:
            del sample[mask_name]
        elif not (fixed_length and mask_name == "audio_attention_mask"):
            sample[mask_name] = mask[:, :length]
        for name in sample.keys() & set(names):
            if length == 0:
                del sample[name]
            elif name == "input_features" and not fixed_length:
                sample[name] = sample[name][:, :, :length]
            elif name != "input_features":
                sample[name] = sample[name][:, :length]
    return sample


def pad_left(inputs):
    """The same samples with the text padded on the left."""
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return {
        name: torch.stack([row.roll(row.shape[0] - length, 0) for row, length in zip(values, lengths)])
        if name in ("input_ids", "attention_mask", "token_times")
        else values
        for name, values in inputs.items()
    }


def write_table(path, rows):
    """Writes rows to a JSON Lines, Parquet, TSV or, by default, CSV file, by the suffix of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path
