"""A model of audio, text and video whose predictions are known, and a video of a portrait for it."""

import json

import numpy as np
import onnx
import onnx.parser
from faces import read_portrait, resize
from videos import write_video

from mmemo.runtime.graph import METADATA_KEY
from mmemo.video.landmarks import BLENDSHAPES
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, MMEmoVideoConfig
from modeling_mmemo.exporters import save_analysis


FRAMES_PER_SECOND = 5
# The logit of "happy" is six times the smile, 0.9 for the portrait; that of "sad" is 1 with audio, that of "neutral" 1
# with text. Modalities have equal weights.
GRAPH = f"""
<ir_version: 10, opset_import: ["": 18]>
smiles (float[batch, 16, frames] input_features, int64[batch, frames] audio_attention_mask,
        int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask, float[batch, tokens, 2] token_times,
        float[batch, pictures, 52] video_features, int64[batch, pictures] video_attention_mask,
        float[batch, pictures, 2] video_times, float[batch, segments, 2] segment_times)
    => (float[batch, 4] logits, float[batch, 3] modality_weights,
        float[batch, segments, 4] segment_logits, float[batch, segments, 3] segment_modality_weights)
<int64[1] first = {{1}}, int64 smile = {{{BLENDSHAPES.index("mouthSmileLeft")}}},
 float one = {{1.0}}, float six = {{6.0}}, float zero = {{0.0}}>
{{
    audio_max = ReduceMax (audio_attention_mask, first)
    text_max = ReduceMax (attention_mask, first)
    video_max = ReduceMax (video_attention_mask, first)
    maxima = Concat <axis = 1> (audio_max, text_max, video_max)
    present = Cast <to = 1> (maxima)
    count = ReduceSum (present, first)
    modality_weights = Div (present, count)
    audio = Cast <to = 1> (audio_max)
    text = Cast <to = 1> (text_max)
    seen = Cast <to = 1> (video_attention_mask)
    smiles = Gather <axis = 2> (video_features, smile)
    seen_smiles = Mul (smiles, seen)
    total = ReduceSum (seen_smiles, first)
    num_seen = ReduceSum (seen, first)
    at_least_one = Max (num_seen, one)
    mean = Div (total, at_least_one)
    happy = Mul (mean, six)
    angry = Mul (audio, zero)
    logits = Concat <axis = 1> (angry, happy, text, audio)
    num_segments = Shape <start = 1, end = 2> (segment_times)
    shape = Concat <axis = 0> (first, num_segments, first)
    wide_logits = Unsqueeze (logits, first)
    segment_logits = Expand (wide_logits, shape)
    wide_weights = Unsqueeze (modality_weights, first)
    segment_modality_weights = Expand (wide_weights, shape)
}}
"""


def save_video_model(folder, config, tokenizer):
    """Saves the model as an export, with the labels of a configuration of four."""
    processor = MMEmoProcessor(
        MMEmoFeatureExtractor(n_mels=16), tokenizer, speech_padding_s=None, frames_per_second=FRAMES_PER_SECOND
    )
    processor.save_pretrained(folder)
    save_analysis(processor, folder)
    config.video_config = MMEmoVideoConfig(hidden_size=16)
    config.projection_dim = None
    config.save_pretrained(folder)
    graph = onnx.parser.parse_model(GRAPH)
    metadata = {"format": 1, "versions": {"mmemo": "0"}, "precision": "float32"}
    onnx.helper.set_model_props(graph, {METADATA_KEY: json.dumps(metadata)})
    onnx.save(graph, folder / "model.onnx")
    return folder


def write_portrait(path, seconds=1.0, samples=None, size=(288, 288), **options):
    """Writes a video of the portrait, at 5 frames per second, with samples at 16 kHz as its sound."""
    picture = np.full((*size, 3), 110, np.uint8)
    picture[:288, :288] = resize(read_portrait(), 288)
    frames = np.broadcast_to(picture, (round(seconds * FRAMES_PER_SECOND), *picture.shape))
    write_video(path, frames, FRAMES_PER_SECOND, samples, **options)
    return path
