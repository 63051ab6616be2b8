"""Plots of timelines and of attention, read back from the figures."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba

from mmemo.plots import (
    COLORS,
    MAX_COLUMNS,
    NUM_LINES,
    SHADE,
    UNCERTAIN_COLOR,
    plot_attention,
    plot_blendshapes,
    plot_timeline,
)
from mmemo.video.face import FaceSequence
from mmemo.video.landmarks import BLENDSHAPES
from modeling_mmemo.configuration_mmemo import EMOTIONS


def entry(start, end, label, words=(), **scores):
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    scores = [{"label": name, "score": score} for name, score in ranked]
    return {"start": start, "end": end, "label": label, "scores": scores, "words": list(words), "modality_weights": {}}


@pytest.fixture
def result():
    """Three seconds: two segments, silence, and an uncertain segment."""
    return {
        "duration": 3.0,
        "timeline": [
            entry(0, 0.5, "angry", ["I", "pay"], angry=0.7, sad=0.2, bored=0.1),
            entry(0.5, 1, "sad", ["$5", "or", "$6"], sad=0.6, angry=0.3, bored=0.1),
            entry(1, 2, "silence"),
            entry(2, 3, "uncertain", ["待つ"], bored=0.4, angry=0.35, sad=0.25),
        ],
        "spans": [
            {"start": 0, "end": 0.5, "label": "angry", "score": 0.7},
            {"start": 0.5, "end": 1, "label": "sad", "score": 0.6},
            {"start": 1, "end": 2, "label": "silence", "score": 1.0},
            {"start": 2, "end": 3, "label": "uncertain", "score": 0.4},
        ],
    }


def long_result(segments, label="happy"):
    timeline = [entry(0.5 * index, 0.5 * index + 0.5, label, happy=0.75, sad=0.25) for index in range(segments)]
    return {"duration": 0.5 * segments, "timeline": timeline, "spans": []}


def panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


def areas(axes):
    return {area.get_label(): area for area in axes.collections}


def band(area, time):
    """Bottom and top of an area at a time; empty in a gap."""
    heights = np.arange(0, 1.5, 0.0005) + 0.00025
    points = np.stack([np.full_like(heights, time), heights], axis=1)
    inside = heights[np.any([path.contains_points(points) for path in area.get_paths()], axis=0)]
    return [inside.min(), inside.max()] if len(inside) else []


def about(heights):
    return pytest.approx(heights, abs=0.001)


def test_panels_share_the_time_axis(result, make_clip):
    figure = plot_timeline(result, make_clip(3.0))

    assert list(panels(figure)) == ["waveform", "scores", "words"]
    assert all(axes.get_xlim() == (0, 3) for axes in figure.axes)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "seconds"]
    assert list(panels(plot_timeline(result))) == ["scores", "words"]
    for segment in result["timeline"]:
        segment["words"] = []
    assert list(panels(plot_timeline(result))) == ["scores"]


def test_scores_are_stacked_with_a_gap_for_silence(result):
    drawn = areas(panels(plot_timeline(result))["scores"])

    assert list(drawn) == ["angry", "bored", "sad", "uncertain"]
    for time, angry, bored in ((0.25, 0.7, 0.1), (0.75, 0.3, 0.1), (2.5, 0.35, 0.4)):
        assert band(drawn["angry"], time) == about([0, angry])
        assert band(drawn["bored"], time) == about([angry, angry + bored])
        assert band(drawn["sad"], time) == about([angry + bored, 1])
    assert not any(band(drawn[label], time) for label in ("angry", "bored", "sad") for time in (1.01, 1.5, 1.99))


def test_time_without_segments_is_a_gap(result):
    del result["timeline"][2]
    drawn = areas(panels(plot_timeline(result))["scores"])

    assert not band(drawn["sad"], 1.5)
    assert band(drawn["sad"], 0.99) == about([0.4, 1])
    assert band(drawn["sad"], 2.01) == about([0.75, 1])


def test_overlapping_segments_are_drawn_until_the_next_one():
    timeline = [entry(0, 1, "sad", sad=0.9), entry(0.5, 1.5, "sad", sad=0.7), entry(1, 2, "sad", sad=0.8)]
    drawn = areas(plot_timeline({"duration": 2.0, "timeline": timeline}).axes[0])["sad"]

    for time, score in ((0.25, 0.9), (0.75, 0.7), (1.25, 0.8), (1.9, 0.8)):
        assert band(drawn, time) == about([0, score])


def test_colors_are_fixed_and_distinct(result, make_clip):
    axes = panels(plot_timeline(result, make_clip(3.0)))
    scores, spans = areas(axes["scores"]), areas(axes["waveform"])

    assert tuple(COLORS) == EMOTIONS
    assert len(set(COLORS.values())) == 7
    for label in ("angry", "sad"):
        assert scores[label].get_facecolor().tolist() == [list(to_rgba(COLORS[label]))]
        assert spans[label].get_facecolor().tolist() == [list(to_rgba(COLORS[label], SHADE))]
    assert tuple(scores["bored"].get_facecolor()[0][:3]) not in [to_rgb(color) for color in COLORS.values()]
    for drawn in (scores, spans):
        assert drawn["uncertain"].get_hatch()
        assert drawn["uncertain"].get_facecolor().tolist() == [list(to_rgba(UNCERTAIN_COLOR, SHADE))]
        assert not drawn["angry"].get_hatch()


def test_spans_are_shaded_except_for_silence(result, make_clip):
    result["spans"].append({"start": 2.5, "end": 3, "label": "angry", "score": 0.5})
    spans = areas(panels(plot_timeline(result, make_clip(3.0)))["waveform"])

    assert set(spans) >= {"angry", "sad", "uncertain"}
    assert "silence" not in spans
    edges = [sorted(set(path.vertices[:, 0])) for path in spans["angry"].get_paths()]
    assert edges == [[0, 0.5], [2.5, 3]]


def test_a_face_has_a_panel(result):
    shapes = [("jawOpen", 0.5), ("mouthPucker", 0.4), ("jawOpen", 0.3), ("browDownLeft", 0.2)]
    for entry, (name, score), presence in zip(result["timeline"], shapes, (1.0, 0.5, 0.0, 1.0)):
        blendshapes = [{"name": name, "score": score}] if presence else []
        entry["face"] = {"presence": presence, "blendshapes": blendshapes}

    axes = panels(plot_timeline(result))["face"]

    assert list(panels(plot_timeline(result))) == ["scores", "face", "words"]
    presence = areas(axes)["presence"]
    heights = [max(band(presence, time), default=0) for time in (0.2, 0.7, 1.5, 2.5)]
    assert heights == about([1, 0.5, 0, 1])
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(lines) == ["jawOpen", "mouthPucker", "browDownLeft"]
    jaw = lines["jawOpen"]
    # Not where it is none of the strongest, or the face is absent.
    assert np.nanmax(jaw[:, 0][np.isfinite(jaw[:, 1])]) == 0.5 and np.nanmax(jaw[:, 1]) == 0.5


def test_the_legend_is_outside_in_the_order_of_the_stack(result):
    result["timeline"][-1]["words"] = ["wait"]  # has glyphs in the default font
    figure = plot_timeline(result)
    axes = panels(figure)["scores"]
    figure.draw_without_rendering()

    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["uncertain", "sad", "bored", "angry"]
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_words_are_placed_at_the_start_of_their_segment(result):
    texts = panels(plot_timeline(result))["words"].texts

    assert [text.get_text() for text in texts] == ["I pay", "$5 or $6", "待つ"]
    assert [text.get_position()[0] for text in texts] == [0, 0.5, 2]
    assert not any(text.get_parse_math() for text in texts)


def test_words_do_not_overlap():
    long = long_result(60)
    for index, segment in enumerate(long["timeline"]):
        segment["words"] = ["WWW", "really" * (index % 3)]
    figure = plot_timeline(long)
    figure.draw_without_rendering()
    axes = panels(figure)["words"]
    boxes = [text.get_window_extent() for text in axes.texts]

    assert len(boxes) == 60
    assert len({text.get_position()[1] for text in axes.texts}) > 1
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    assert all(box.x1 <= axes.get_window_extent().x1 for box in boxes)


@pytest.mark.parametrize(("segments", "word"), [(121, "a"), (110, "immeasurably " * 5)])
def test_too_many_words_are_left_out_with_a_note(segments, word):
    long = long_result(segments)
    for segment in long["timeline"]:
        segment["words"] = [word]
    axes = panels(plot_timeline(long))

    assert list(axes) == ["scores"]
    assert axes["scores"].get_title(loc="right") == f"words left out: {segments} labels would not be legible"


@pytest.mark.slow
def test_long_recordings_are_reduced_to_columns():
    hours = long_result(2 * 3600 * 2)
    hours["timeline"][1000:3000] = [entry(0.5 * index, 0.5 * index + 0.5, "silence") for index in range(1000, 3000)]
    noise = np.random.default_rng(0).uniform(-1, 1, 2 * 3600 * 1000).astype(np.float32)
    noise[5_000_000] = 10
    axes = panels(plot_timeline(hours, noise, sampling_rate=1000))

    wave, happy = axes["waveform"].collections[0], areas(axes["scores"])["happy"]
    assert sum(len(path.vertices) for path in wave.get_paths()) <= 2 * MAX_COLUMNS + 3
    assert sum(len(path.vertices) for path in happy.get_paths()) <= 4 * MAX_COLUMNS + 10
    peak = wave.get_paths()[0].vertices
    assert peak[peak[:, 1].argmax(), 0] == pytest.approx(5000, abs=7200 / MAX_COLUMNS)
    assert band(happy, 100) == about([0, 0.75])
    assert not band(happy, 1000)
    assert band(happy, 1600) == about([0, 0.75])


def test_the_envelope_keeps_the_extremes_of_a_short_clip(make_clip):
    clip = make_clip(1.0)
    vertices = panels(plot_timeline(long_result(2), clip))["waveform"].collections[0].get_paths()[0].vertices

    assert vertices[:, 1].max() == clip.max()
    assert vertices[:, 1].min() == clip.min()


def test_every_form_of_audio_is_drawn(audio_forms):
    waves = {
        name: panels(plot_timeline(long_result(1), form))["waveform"].collections[0].get_paths()[0].vertices
        for name, form in audio_forms.items()
    }

    for name, wave in waves.items():
        np.testing.assert_allclose(wave, waves["array"], atol=1e-6, err_msg=name)


def test_a_silent_timeline_and_a_multi_label_one_are_drawn():
    axes = plot_timeline({"duration": 1.0, "timeline": [entry(0, 1, "silence")], "spans": []}).axes[0]
    assert not axes.collections
    assert axes.get_xlim() == (0, 1)

    axes = plot_timeline({"duration": 1.0, "timeline": [entry(0, 1, "sad", sad=0.9, angry=0.8)]}).axes[0]
    assert axes.get_ylim() == pytest.approx((0, 1.7))


def test_the_suffix_determines_the_file_format(result, make_clip, tmp_path):
    attention = np.full((1, 6), 1 / 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the font lacks the glyphs
        for ending in ("png", "svg", "PNG"):
            plot_timeline(result, make_clip(3.0), tmp_path / f"timeline.{ending}")
            plot_attention(attention, ["待つ$_$"], 3.0, str(tmp_path / f"attention.{ending}"))

    for name in ("timeline", "attention"):
        for ending in ("png", "PNG"):
            assert (tmp_path / f"{name}.{ending}").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_invalid_results_paths_and_audio_raise(result, make_clip, tmp_path):
    with pytest.raises(ValueError, match=r"no 'timeline' to plot; .*return_timeline=True"):
        plot_timeline({"duration": 1.0, "scores": []})
    with pytest.raises(ValueError, match=r"timeline\.pdf' must end in one of \('\.png', '\.svg'\)"):
        plot_timeline(result, path=tmp_path / "timeline.pdf")
    with pytest.raises(ValueError, match=r"attention' must end in one of"):
        plot_attention([[1.0]], ["a"], 1.0, path="attention")
    with pytest.raises(ValueError, match=r"audio lasts 6\.00 s, but the result is for 3\.00 s; .*sampling_rate="):
        plot_timeline(result, make_clip(3.0, sampling_rate=32_000))
    assert not list(tmp_path.iterdir())


def test_attention_is_summed_over_segments():
    attention = [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]
    figure = plot_attention(attention, ["so", "$ad$"], 2.0, segment_seconds=1.0)
    axes = figure.axes[0]
    image = axes.images[0]

    np.testing.assert_allclose(image.get_array(), [[0.3, 0.7], [0.5, 0.5]])
    assert image.get_extent() == [0, 2, 1.5, -0.5]
    assert axes.get_xlim() == (0, 2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["so", "$ad$"]
    assert figure.axes[1].get_ylabel() == "attention in 1 s"


def test_a_position_on_a_boundary_is_divided_between_both_segments():
    # Three positions of 0.4 s: the second has 0.1 s before 0.5 s and 0.3 s after it; the last segment ends at 1.2 s.
    axes = plot_attention(np.array([[0.2, 0.4, 0.4]], np.float32), ["so"], 1.2).axes[0]

    np.testing.assert_allclose(axes.images[0].get_array(), [[0.3, 0.5, 0.2]], rtol=1e-6)
    assert axes.images[0].get_extent()[1] == 1.5
    assert axes.get_xlim() == (0, 1.2)


def test_rounding_errors_do_not_add_a_segment():
    seconds = 0.1 * 3
    image = plot_attention(np.full((1, 50), 0.02), ["so"], seconds, segment_seconds=0.1).axes[0].images[0]

    assert seconds / 0.1 > 3
    np.testing.assert_allclose(image.get_array(), [[1 / 3] * 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ["a"]}, "Got 1 words but 2 rows of attention; they must match 1:1"),
        ({"attention": np.ones((1, 2, 2))}, r"attention has shape \(1, 2, 2\); it must be \(words, audio_positions\)"),
        ({"attention": np.ones((2, 0))}, r"attention has shape \(2, 0\)"),
        ({"attention": [[np.nan, 1], [0, 1]]}, "attention contains NaN"),
        ({"seconds": 0}, "seconds=0 must be a positive number"),
        ({"seconds": np.nan}, "seconds=nan must be a positive number"),
        ({"segment_seconds": -1}, "segment_seconds=-1 must be a positive number"),
    ],
)
def test_invalid_attention_raises(change, message):
    with pytest.raises(ValueError, match=message):
        plot_attention(**({"attention": [[0.5, 0.5], [0, 1]], "words": ["a", "b"], "seconds": 1.0} | change))


def test_the_waveform_of_one_channel(result, make_clip):
    samples = np.stack([make_clip(3.0), 2 * make_clip(3.0)])

    heights = [panels(plot_timeline(result, samples, channel=channel))["waveform"].get_ylim() for channel in (0, 1)]

    assert heights[1] == pytest.approx(np.multiply(heights[0], 2))
    with pytest.raises(ValueError, match=r"2 channel\(s\), so channel=2 does not exist"):
        plot_timeline(result, samples, channel=2)


def face_sequence(present, **blendshapes):
    """Ten frames per second; the blendshapes are those of every frame."""
    values = np.zeros((len(present), len(BLENDSHAPES)), np.float32)
    for name, value in blendshapes.items():
        values[:, BLENDSHAPES.index(name)] = value
    starts = np.arange(len(present), dtype=np.float32) / 10
    boxes = np.zeros((len(present), 4), np.float32)
    return FaceSequence(
        np.stack([starts, starts + 0.1], axis=1), np.array(present), values, boxes, None, len(present) / 10
    )


def test_blendshapes_over_time(tmp_path):
    jaw = [0.2, 0.4, 0.9, 0.6]
    face = face_sequence([True, True, False, True], jawOpen=jaw, cheekPuff=0.3, _neutral=1)
    figure = plot_blendshapes(face, tmp_path / "face.png")

    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[:2] == ["jawOpen", "cheekPuff"] and len(names) == len(axes.lines) == NUM_LINES
    assert axes.lines[0].get_xdata() == pytest.approx([0.05, 0.15, 0.25, 0.35])
    assert axes.lines[0].get_ydata() == pytest.approx([0.2, 0.4, np.nan, 0.6], nan_ok=True)
    assert axes.get_xlim() == (0, 0.4) and (tmp_path / "face.png").stat().st_size > 1000


def test_an_absent_face_cannot_be_plotted():
    with pytest.raises(ValueError, match="The face is absent in all 2 frames"):
        plot_blendshapes(face_sequence([False, False]))
    with pytest.raises(ValueError, match=r"path='face\.gif' must end in one of"):
        plot_blendshapes(face_sequence([True]), "face.gif")
