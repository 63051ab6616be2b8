import pytest
import torch
from tiny import audio_config
from transformers import BertConfig

from modeling_mmemo.alignment_mmemo import audio_times, segment_masks, time_gaps


MASK = torch.tensor([[1, 1, 1, 0]]).bool()
# A word of one second, one without a time, one of no length, and padding.
TIMES = torch.tensor([[[0.5, 1.5], [-1.0, -1.0], [2.0, 2.0], [0.0, 9.0]]])


def test_positions_of_segments_by_hand():
    segments = torch.tensor([[[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [-1.0, -1.0]]])
    # A word at a boundary is in the segment that starts there; a word without a time is where the others are.
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert segment_masks(MASK, TIMES, segments).int().tolist() == [expected]


@pytest.mark.parametrize("times", [None, torch.full((1, 4, 2), -1.0)])
def test_without_timestamps_all_positions_are_in_every_segment(times):
    segments = torch.tensor([[[0.0, 1.0], [-1.0, -1.0]]])
    assert segment_masks(MASK, times, segments).int().tolist() == [[[1, 1, 1, 0], [0, 0, 0, 0]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_times_are_compared_in_float32(dtype):
    # At 64 s the neighbours of a bfloat16 number are 0.25 s away, so that adding a millisecond changes nothing.
    times, segments = torch.tensor([[[64.0, 64.0]]], dtype=dtype), torch.tensor([[[64.0, 64.5]]], dtype=dtype)
    assert segment_masks(torch.ones(1, 1).bool(), times, segments).tolist() == [[[True]]]
    audio_positions = torch.tensor([[[64.07, 64.07], [64.13, 64.13]]])
    gaps = time_gaps(times, audio_positions)
    torch.testing.assert_close(gaps, torch.tensor([[[0.07, 0.13]]]), atol=1e-5, rtol=0)


def test_time_gaps_by_hand():
    positions = torch.tensor([0.25, 1.0, 2.5, -1.0])[None, :, None].expand(-1, -1, 2)
    gaps = time_gaps(TIMES[:, :3], positions)
    # Before, within and after the first word; no time; before and after the third.
    expected = [[0.25, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.75, 1.0, 0.5, 0.0]]
    torch.testing.assert_close(gaps, torch.tensor([expected]))


def test_time_gaps_between_stretches_by_hand():
    frames = torch.tensor([[[0.0, 0.2], [1.4, 1.6], [1.7, 1.9]]])
    # Before, across the end of, and after the word; no time; before the moment.
    expected = [[0.3, 0.0, 0.2], [0.0, 0.0, 0.0], [1.8, 0.4, 0.1]]
    torch.testing.assert_close(time_gaps(TIMES[:, :3], frames), torch.tensor([expected]))


def test_audio_times_by_the_configuration_or_by_the_encoder():
    torch.testing.assert_close(audio_times(audio_config("mmemo_audio"), None, 2), torch.tensor([0.01, 0.03]))
    torch.testing.assert_close(audio_times(audio_config("mmemo_audio"), 0.5, 2), torch.tensor([0.25, 0.75]))


def test_an_encoder_without_known_times_raises():
    with pytest.raises(ValueError, match="the bert encoder; set audio_frame_seconds"):
        audio_times(BertConfig(), None, 2)
