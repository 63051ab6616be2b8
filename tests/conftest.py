"""Tiny random models, processors and exports, built once per session; tests get copies."""

import copy
import functools
import os
import tempfile
from pathlib import Path


# The libraries read these variables at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="mmemo-modules-")

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, WhisperConfig, WhisperModel
from video_model import save_video_model, write_portrait
from videos import encode_numbered

from modeling_mmemo import (
    MMEmoAudioConfig,
    MMEmoConfig,
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MultimodalEmotionPipeline,
)
from modeling_mmemo.exporters import MMEmoQuantizer, export_onnx, save_analysis


torch.set_num_threads(1)  # more threads slow tiny models down
LABELS = ("angry", "happy", "neutral", "sad")
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL_TOKENS, "i", "am", "you", "are", "so", "happy", "sad", "not", "wait", "##ing", "!", ".", ","]


@pytest.fixture(scope="session")
def example_audio():
    """Path of a recorded utterance."""
    return sorted((Path(__file__).parents[1] / "examples" / "audio").iterdir())[0]


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch):
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def make_clip():
    """Returns a function that makes float32 samples: one signal per seed, the same at every sampling rate."""

    def make(seconds=0.5, seed=0, sampling_rate=16_000):
        time = np.arange(round(seconds * sampling_rate)) / sampling_rate
        tones = np.random.default_rng(seed).uniform(100, 2000, size=4)
        return sum(np.sin(2 * np.pi * tone * time) for tone in tones).astype(np.float32) / 8

    return make


@pytest.fixture(scope="session")
def encoded_video(tmp_path_factory):
    """A function that returns the path of 40 numbered frames in one of the `CODINGS` of `videos.py`."""
    folder = tmp_path_factory.mktemp("videos")
    return functools.cache(lambda name: encode_numbered(name, folder))


@pytest.fixture
def audio_forms(make_clip, tmp_path):
    """One clip in every audio form except a list of floats, which pipelines take as a batch."""
    clip = make_clip(0.5)
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip, 16_000, subtype="FLOAT")

    class Decoder:
        def get_all_samples(self):
            return type("Samples", (), {"data": torch.tensor(clip)[None], "sample_rate": 16_000})

    return {
        "path": str(path),
        "os.PathLike": path,
        "bytes": path.read_bytes(),
        "array": clip,
        "channels": np.stack([clip, clip]),
        "tensor": torch.tensor(clip),
        "array dict": {"array": clip, "sampling_rate": 16_000},
        "raw dict": {"raw": clip, "sampling_rate": 16_000},
        "path dict": {"path": str(path)},
        "file dict": {"path": None, "bytes": path.read_bytes()},
        "decoder": Decoder(),
    }


@pytest.fixture(scope="session")
def session_tokenizer():
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)


@pytest.fixture
def tokenizer(session_tokenizer):
    """WordPiece as in BERT: `[CLS] ... [SEP]`, right padding, lower case."""
    return copy.deepcopy(session_tokenizer)


@pytest.fixture
def byte_tokenizer():
    """Byte-level tokens as in GPT-2: with an end-of-sequence token, without padding token and maximum length."""
    vocabulary = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture
def processor(tokenizer):
    # The clips of most tests are tones, in which no speech would be detected.
    return MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), tokenizer, speech_padding_s=None)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory, session_tokenizer):
    """Folders of a tiny Whisper and a tiny BERT, for arguments that take names of the Hub."""
    audio, text = tmp_path_factory.mktemp("audio"), tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
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


@pytest.fixture(scope="session")
def session_model():
    torch.manual_seed(0)
    audio = MMEmoAudioConfig(
        num_mel_bins=16, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32
    )
    text = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config = MMEmoConfig(
        audio_config=audio,
        text_config=text,
        fusion_hidden_size=16,
        num_attention_heads=2,
        id2label=dict(enumerate(LABELS)),
        # With the usual range, a random model predicts nearly the same for every input.
        initializer_range=0.5,
    )
    plain = MMEmoForEmotionRecognition(config)
    config.projection_dim = 8
    model = MMEmoForEmotionRecognition(config)
    # Of a shared space, only the projections are new: the predictions are those of a model without one.
    model.load_state_dict(plain.state_dict(), strict=False)
    return model.eval()


@pytest.fixture
def model(session_model):
    return copy.deepcopy(session_model)


@pytest.fixture
def trained(model, processor, tmp_path):
    """A folder as `train.py` saves it."""
    folder = tmp_path / "trained"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory, session_model, session_tokenizer):
    """A folder of the random model with its graphs, float and int8, and the arrays of its feature extractor."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return export_to(tmp_path_factory.mktemp("exported"), session_model, session_tokenizer)
    # Exported by the first worker that needs it, for all of them.
    folder = tmp_path_factory.getbasetemp().parent / "exported"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            export_to(tmp_path_factory.mktemp("exported"), session_model, session_tokenizer).rename(folder)
    return folder


def export_to(folder, session_model, session_tokenizer):
    """Exports the random model to a folder, and returns it."""
    extractor, tokenizer = MMEmoFeatureExtractor(n_mels=16), copy.deepcopy(session_tokenizer)
    processor = MMEmoProcessor(extractor, tokenizer, speech_padding_s=None)
    processor.save_pretrained(folder)
    session_model.save_pretrained(folder)
    export_onnx(session_model, processor, folder)
    save_analysis(processor, folder)
    MMEmoQuantizer.from_pretrained(folder).quantize(folder)
    return folder


@pytest.fixture(scope="session")
def video_model(tmp_path_factory, session_model, session_tokenizer):
    """A folder of an exported model of audio, text and video; see `video_model.py`."""
    folder = tmp_path_factory.mktemp("video_model")
    return save_video_model(folder, copy.deepcopy(session_model.config), copy.deepcopy(session_tokenizer))


@pytest.fixture(scope="session")
def portrait(tmp_path_factory, example_audio):
    """Path of a video of 2 s with a smiling face, in which somebody off screen speaks."""
    samples, _ = soundfile.read(example_audio, frames=32_000, dtype="float32")
    return write_portrait(tmp_path_factory.mktemp("portrait") / "clip.mp4", seconds=2, samples=samples)


@pytest.fixture
def emotion(model, processor):
    """The pipeline, with a random model."""
    return MultimodalEmotionPipeline(model=model, processor=processor, task="multimodal-emotion", device="cpu")


@pytest.fixture(scope="session")
def corpora_dir():
    """Folder of the real corpora next to the repository; without it, the test is skipped."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no corpora in {folder}")
    return folder
