"""Options of a timeline, and the means over windows."""

import math

import numpy as np
import pytest

from mmemo.timeline.windows import Span, TimelineOptions, Window


@pytest.mark.parametrize(
    "options, message",
    [
        ({"granularity": "phrase"}, "granularity='phrase'"),
        ({"segment_s": 0}, "segment_s=0 must be a positive number"),
        ({"window_s": math.nan}, "window_s=nan"),
        ({"hop_s": "0.5"}, "hop_s='0.5'"),
        ({"window_hop_s": 5}, "window_hop_s=5 exceeds window_s=3.5"),
        ({"segment_s": 5.0}, "segment_s=5.0 exceeds window_s=3.5"),
        ({"latency_s": 1.0}, "at least 2.5"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        TimelineOptions(**options)


def test_span_scores_are_the_mean_weighted_by_seconds():
    span = Span(0.0, 2.0)
    span.add(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 1.0)
    span.add(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 3.0)
    np.testing.assert_allclose(span.scores, [0.25, 0.75])
    np.testing.assert_allclose(span.modality_weights, [0.25, 0.75])


def test_predictions_without_any_modality_are_ignored():
    spans = [Span(0.0, 0.5, num_pending=1), Span(0.5, 1.0, num_pending=1)]
    window = Window(0.0, 1.0, {}, spans, [0.5, 0.5])
    window.set_predictions(np.ones((2, 1)), np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert [span.scores is None for span in spans] == [True, False]
    assert [span.num_pending for span in spans] == [0, 0]


def test_a_word_of_zero_length_reaches_one_frame():
    assert Span(1.0, 1.0).reach == pytest.approx(1.032)
    assert Span(1.0, 1.5).reach == 1.5
