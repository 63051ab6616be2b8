"""
The page of `mmemo demo`: speak or write, and see which emotions are heard and read, when, and in which words.

Deliberate choices:
- The command and the Space of `examples/space` serve this one page.
- It is complete in itself: fonts and scripts are files of gradio, and nothing is counted or sent elsewhere.
- What visitors send and get lies in gradio's temporary folder, named after a hash of its content, so that nobody finds
  what is another's, and for two hours at most. What stays is empty.
"""

import csv
import json
import os
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from matplotlib.figure import Figure

from mmemo.audio.loading import AudioBlocks
from mmemo.plots import COLORS, plot_timeline
from mmemo.runtime.graph import EMBEDDED_MODEL
from mmemo.runtime.predictor import EmotionPredictor
from mmemo.timeline.windows import SILENCE


MAX_SECONDS = 600
MAX_FILE_BYTES = 128 * 2**20  # ten minutes of stereo at 48 kHz, and a little more
MAX_CHARACTERS = 2_000  # about what the embedded model's text encoder reads
MAX_SUBTITLES_BYTES = 2**20
MAX_WAITING = 32  # requests; those beyond are told to try again
FILES_LIVE_SECONDS = 3600  # and as often it is looked for older ones
SAMPLING_RATE = 16_000  # Hz, at which lengths are counted
ERROR_SECONDS = 20

TITLE = "# mmemo\nWhich emotions are in a voice, in its words, or in both: speak, write, or do both."
NOTE = (
    "Acted emotion is not felt emotion: decide nothing about a person by what this page says. Inferring the emotions "
    "of people at work or at school is prohibited in the European Union (AI Act, Art. 5(1)(f))."
)
# Where gradio's own are hard to read, or as high as a page.
CSS = """
.dark #words .highlighted, .dark #words .legend-item { color: white !important; }
#result [aria-label="Empty value"] { min-height: 100px; }
"""


class PageOutput(NamedTuple):
    """What the page shows, in the order of its components."""

    emotion: dict[str, float]
    """Scores of the whole by label."""
    weights: dict[str, float]
    """How much audio and text had to say."""
    words: list[tuple[str, str | None]]
    """Words and the emotion that each was said with; a text without times is one of them."""
    picture: Figure | None
    """The waveform and its timeline, if there is a recording."""
    file: str
    """Path of the result as JSON, as [`EmotionPredictor`] gives it."""


def build_demo(predict: EmotionPredictor) -> gr.Blocks:
    """
    Builds the page.

    Args:
        predict ([`EmotionPredictor`]): What answers.

    Returns:
        `gradio.Blocks`, not yet launched; its endpoint is `/answer`.
    """
    colors = {label: COLORS[label] for label in predict.answers.labels if label in COLORS}
    files_live = (FILES_LIVE_SECONDS, FILES_LIVE_SECONDS)
    with gr.Blocks(title="mmemo", analytics_enabled=False, delete_cache=files_live) as demo:
        gr.Markdown(TITLE)
        gr.Markdown(NOTE)
        with gr.Row():
            with gr.Column():
                audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Voice", buttons=[])
                text = gr.Textbox(label="Words", placeholder="What is said", lines=2)
                subtitles = gr.File(label="Subtitles: when it is said", file_types=[".srt", ".vtt"], height=140)
                button = gr.Button("Which emotion?", variant="primary")
                if clips := find_examples():
                    # Copies would be removed with what visitors left.
                    gr.set_static_paths(list(clips.values()))
                    # Without their words, which are German: the embedded model reads English.
                    gr.Examples(
                        [[path, ""] for path in clips.values()],
                        [audio, text],
                        example_labels=list(clips),
                        label="Or listen to German actors, who meant to sound",
                    )
            with gr.Column():
                emotion = gr.Label(label="Emotion", num_top_classes=4)
                weights = gr.Label(label="Heard and read", show_heading=False)
                words = gr.HighlightedText(
                    label="Words by emotion",
                    elem_id="words",
                    color_map=colors,
                    combine_adjacent=True,
                    adjacent_separator=" ",
                    show_inline_category=False,
                    show_legend=True,
                )
                file = gr.File(label="Result as JSON", interactive=False, height=100, elem_id="result")
        picture = gr.Plot(label="Over time", show_label=False, format="png")
        outputs = [emotion, weights, words, picture, file]
        button.click(partial(answer, predict), [audio, text, subtitles], outputs, api_name="answer")
    return demo.queue(max_size=MAX_WAITING)


def serve_demo(
    predict: EmotionPredictor,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    wait: bool = True,
) -> gr.Blocks:
    """
    Serves the page.

    Args:
        predict ([`EmotionPredictor`]): What answers.
        host (`str`, *optional*): Address to listen at; by default that of `GRADIO_SERVER_NAME`, or 127.0.0.1.
        port (`int`, *optional*): By default that of `GRADIO_SERVER_PORT`, or the first free one from 7860 on.
        share (`bool`, *optional*, defaults to `False`): Whether gradio lends it a public address, through its tunnel.
        wait (`bool`, *optional*, defaults to `True`): Whether to return only when it is interrupted.

    Returns:
        `gradio.Blocks`, with its address as `local_url`; `close()` ends it.

    Raises:
        OSError: If the port is taken.
    """
    demo = build_demo(predict)
    demo.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not wait,
        max_file_size=MAX_FILE_BYTES,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        ssr_mode=False,
        css=CSS,
    )
    return demo


def answer(predict: EmotionPredictor, audio: str | None, text: str | None, subtitles: str | None) -> PageOutput:
    """
    Says which emotions are in a recording, in its words, or in both.

    Args:
        audio (`str`, *optional*): Path of a recording.
        text (`str`, *optional*): What is said; blank counts as missing.
        subtitles (`str`, *optional*): Path of an SRT or WebVTT file, which says when it is said.

    Raises:
        gradio.Error: If there is nothing to answer for, or something is wrong with it; a sentence that says what.
    """
    text = (text or "").strip() or None
    try:
        _check_sizes(audio, text, subtitles)
        if audio is None:
            result = predict(text=text, return_modality_weights=True)
        else:
            word_times = None if subtitles is None else Path(subtitles)
            result = predict(audio, text, word_times=word_times, return_timeline=True)
            if result["label"] == SILENCE:
                raise ValueError(
                    f"No voice is heard in {audio}. Speak louder or closer to the microphone, choose another "
                    "recording, or remove it to have the words read alone."
                )
    except ValueError as error:
        sentence = str(error)
        for path in filter(None, (audio, subtitles)):
            # Where the server keeps a file is no visitor's business.
            sentence = sentence.replace(f"{Path(path).parent}{os.sep}", "")
        raise gr.Error(sentence, duration=ERROR_SECONDS, print_exception=False) from error
    content = json.dumps(result, ensure_ascii=False, indent=2).encode()
    return PageOutput(
        emotion={entry["label"]: entry["score"] for entry in result["scores"]},
        weights=result["modality_weights"],
        words=_colored_words(result, text),
        picture=None if audio is None else plot_timeline(result, audio=audio),
        file=save_bytes_to_cache(content, "emotion.json", get_upload_folder()),
    )


def find_examples() -> dict[str, str]:
    """Paths of the clips that come with the package, by the emotion acted; none where they were not installed."""
    package = EMBEDDED_MODEL.parent
    for root in (package, package.parent):  # installed, and in the repository
        folder = root / "examples" / "audio"
        if (table := folder / "metadata.csv").is_file():
            with table.open(newline="", encoding="utf-8") as file:
                return {row["label"]: str(folder / row["file_name"]) for row in csv.DictReader(file)}
    return {}


def _check_sizes(audio: str | None, text: str | None, subtitles: str | None) -> None:
    """Refuses what would keep other visitors waiting, and subtitles of nothing."""
    if text is not None and len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text)} characters; {MAX_CHARACTERS} are read here. Shorten it.")
    if subtitles is not None and audio is None:
        raise ValueError(f"{subtitles} says when something is said in a recording; add the recording, or remove it.")
    if subtitles is not None and (size := os.path.getsize(subtitles)) > MAX_SUBTITLES_BYTES:
        raise ValueError(f"{subtitles} has {size} bytes; {MAX_SUBTITLES_BYTES} are read here. Is it of another kind?")
    if audio is not None:
        # Counted, since a header need not say how long a recording is.
        lengths = accumulate(block.shape[1] for block in AudioBlocks(audio, target_sampling_rate=SAMPLING_RATE))
        if any(length > MAX_SECONDS * SAMPLING_RATE for length in lengths):
            raise ValueError(f"{audio} is longer than the {MAX_SECONDS} s that are listened to here; cut it.")


def _colored_words(result: dict[str, Any], text: str | None) -> list[tuple[str, str | None]]:
    spoken = [
        (word, None if entry["label"] == SILENCE else entry["label"])
        for entry in result.get("timeline", [])
        for word in entry["words"]
    ]
    if spoken or text is None:
        return spoken
    return [(text, result["scores"][0]["label"])]
