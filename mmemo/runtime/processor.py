"""
The processor of an exported model, without torch and transformers.

Deliberate choices:
- Preparing and checking items is [`ItemProcessing`], shared with [`MMEmoProcessor`]; this module adds a feature
  extractor and a tokenizer that only need NumPy and `tokenizers`.
- Window and filterbank are loaded from the export, so the features equal those of the full package to the bit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mmemo.audio.mel import MelAnalysis, pad
from mmemo.items import AUDIO_SETTINGS, TEXT_SETTINGS, VIDEO_SETTINGS, ItemProcessing
from mmemo.runtime.graph import ANALYSIS_FILE, EXPORT_REMEDY, find_exported


class OnnxProcessor(ItemProcessing):
    """
    The processor of an exported model.

    Args:
        folder (`Path`): The folder of the model.

    Raises:
        FileNotFoundError: If the tokenizer is missing.
    """

    def __init__(self, folder: Path):
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        parts = settings.get("parts", ["feature_extractor", "tokenizer"])
        analysis = find_exported(folder, ANALYSIS_FILE)
        if "feature_extractor" in parts and analysis is not None:
            self.feature_extractor = MelExtractor(settings["feature_extractor"], load_file(analysis))
        if "tokenizer" in parts:
            self.tokenizer = FastTokenizer(folder)
        for name in TEXT_SETTINGS + AUDIO_SETTINGS + VIDEO_SETTINGS:
            if name in settings:  # missing in exports of earlier versions
                setattr(self, name, settings[name])


class MelExtractor:
    """
    [`MMEmoFeatureExtractor`] without librosa.

    Args:
        settings (`dict`): Its saved configuration.
        arrays (`dict[str, np.ndarray]`): `window`, `mel_filters` and `cosines`; see [`MelAnalysis`].
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(self, settings: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.sampling_rate: int = settings["sampling_rate"]
        self._padding_value = settings["padding_value"]
        self._analysis = MelAnalysis(
            settings["preset"],
            tuple(settings["features"]),
            settings["hop_length"],
            settings["loudness_dbfs"],
            **arrays,
        )

    def __call__(self, clips: list[np.ndarray], **_: Any) -> dict[str, np.ndarray]:
        """Returns `input_features` and `attention_mask` of loaded clips, `(samples,)` each, padded to the longest."""
        analysis = self._analysis
        frames = analysis.num_frames(max(map(len, clips)))
        features = analysis([analysis.level(clip) for clip in clips])
        masks = [np.ones(feature.shape[1], np.int32) for feature in features]
        return {
            "input_features": pad(features, frames, self._padding_value),
            "attention_mask": pad(masks, frames, 0),
        }


class FastTokenizer:
    """
    A tokenizer of `transformers` without transformers.

    Args:
        folder (`Path`): The folder with its tokenizer.json and tokenizer_config.json.

    Raises:
        FileNotFoundError: If one of them is missing.
    """

    is_fast = True

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json. {EXPORT_REMEDY}")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        # transformers' value for a tokenizer without a limit.
        self.model_max_length = int(settings.get("model_max_length") or 10**30)
        self.padding_side = settings.get("padding_side", "right")
        self.truncation_side = settings.get("truncation_side", "right")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.sep_token = _content(settings.get("sep_token"))
        unk_token = _content(settings.get("unk_token"))
        self.unk_token_id = None if unk_token is None else self._tokenizer.token_to_id(unk_token)
        pad_token = _content(settings.get("pad_token"))
        self.pad_token_id = 0 if pad_token is None else self._tokenizer.token_to_id(pad_token)

    def __call__(self, texts: str | list[str], **_: Any) -> dict[str, list]:
        """Returns `input_ids`, `offset_mapping` and `special_tokens_mask` of a text or a list, without padding."""
        encodings = self._tokenizer.encode_batch([texts] if isinstance(texts, str) else texts)
        columns: dict[str, list] = {
            "input_ids": [encoding.ids for encoding in encodings],
            "offset_mapping": [encoding.offsets for encoding in encodings],
            "special_tokens_mask": [encoding.special_tokens_mask for encoding in encodings],
        }
        return {name: rows[0] for name, rows in columns.items()} if isinstance(texts, str) else columns


def _content(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token
