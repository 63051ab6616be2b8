"""
The page of `mmemo demo`: predicts the emotions of a recording, of text, or of both, over time and by word.

Deliberate choices:
- The command and the Space in `examples/space` serve the same page.
- It is self-contained: fonts and scripts are files of gradio, and there are no analytics or external requests.
- Uploads and results are kept in gradio's temporary folder under hashes of their content, so that visitors cannot find
  each other's files, and are deleted after two hours at most.
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
MAX_FILE_BYTES = 128 * 2**20  # a little more than ten minutes of 16-bit stereo at 48 kHz
MAX_CHARACTERS = 2_000  # about the maximum length of the embedded model's text encoder
MAX_SUBTITLES_BYTES = 2**20
MAX_WAITING = 32  # requests; further ones get the error "try again later"
FILES_LIVE_SECONDS = 3600  # also the interval between deletions of older files
SAMPLING_RATE = 16_000  # Hz, for measuring durations
ERROR_SECONDS = 20

TITLE = "# mmemo\nThe emotions of a recording, of a text, or of both: speak, write, or do both."
NOTE = (
    "Acted emotion is not felt emotion: do not base decisions about a person on this page. Inferring the emotions "
    "of people at work or at school is prohibited in the European Union (AI Act, Art. 5(1)(f))."
)
# Replaces gradio styles that are hard to read, or as high as the page.
CSS = """
.dark #words .highlighted, .dark #words .legend-item { color: white !important; }
#result [aria-label="Empty value"] { min-height: 100px; }
"""


class PageOutput(NamedTuple):
    """The values of the page's components, in their order."""

    emotion: dict[str, float]
    """Scores of the whole input by label."""
    weights: dict[str, float]
    """Modality weights of audio and text."""
    words: list[tuple[str, str | None]]
    """Words, each with its emotion; a text without timestamps is one entry."""
    picture: Figure | None
    """The plot of the timeline, if there is a recording."""
    file: str
    """Path of the result of [`EmotionPredictor`] as JSON."""


def build_demo(predict: EmotionPredictor) -> gr.Blocks:
    """
    Builds the page.

    Args:
        predict ([`EmotionPredictor`]): The model.

    Returns:
        `gradio.Blocks`, not launched; its API endpoint is `/answer`.
    """
    colors = {label: COLORS[label] for label in predict.answers.labels if label in COLORS}
    files_live = (FILES_LIVE_SECONDS, FILES_LIVE_SECONDS)
    with gr.Blocks(title="mmemo", analytics_enabled=False, delete_cache=files_live) as demo:
        gr.Markdown(TITLE)
        gr.Markdown(NOTE)
        with gr.Row():
            with gr.Column():
                audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Audio", buttons=[])
                text = gr.Textbox(label="Text", placeholder="The text spoken in the recording, or any text", lines=2)
                subtitles = gr.File(label="Subtitles of the recording", file_types=[".srt", ".vtt"], height=140)
                button = gr.Button("Predict", variant="primary")
                if clips := find_examples():
                    # Copies would be deleted with the visitors' files.
                    gr.set_static_paths(list(clips.values()))
                    # Without text: the sentences of the corpus are neutral.
                    gr.Examples(
                        [[path, ""] for path in clips.values()],
                        [audio, text],
                        example_labels=list(clips),
                        label="Examples: German actors portraying an emotion",
                    )
            with gr.Column():
                emotion = gr.Label(label="Emotion", num_top_classes=4)
                weights = gr.Label(label="Modality weights", show_heading=False)
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
        button.click(partial(predict_page, predict), [audio, text, subtitles], outputs, api_name="answer")
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
        predict ([`EmotionPredictor`]): The model.
        host (`str`, *optional*): Address to bind to; defaults to `GRADIO_SERVER_NAME`, or 127.0.0.1.
        port (`int`, *optional*): Port; defaults to `GRADIO_SERVER_PORT`, or the first free port from 7860.
        share (`bool`, *optional*, defaults to `False`): Whether to create a public link through gradio's tunnel.
        wait (`bool`, *optional*, defaults to `True`): Whether to block until interrupted.

    Returns:
        `gradio.Blocks`, with its address as `local_url`; `close()` stops the server.

    Raises:
        OSError: If the port is in use.
    """
    demo = build_demo(predict)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,  # gradio would print advice on its own arguments
            max_file_size=MAX_FILE_BYTES,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api"],
            ssr_mode=False,
            css=CSS,
        )
    except OSError as error:
        raise OSError(f"The page cannot be served on port {port} ({error}); pass another port.") from error
    print(f"The page is at {demo.share_url or demo.local_url} (stop it with Ctrl+C).", flush=True)
    if wait:
        demo.block_thread()
    return demo


def predict_page(predict: EmotionPredictor, audio: str | None, text: str | None, subtitles: str | None) -> PageOutput:
    """
    Predicts the emotions of a recording, of a text, or of both.

    Args:
        predict ([`EmotionPredictor`]): The model.
        audio (`str`, *optional*): Path of a recording.
        text (`str`, *optional*): The text spoken in it, or a text alone; blank counts as missing.
        subtitles (`str`, *optional*): Path of an SRT or WebVTT file with the words of the recording.

    Raises:
        gradio.Error: If all inputs are missing, or one is invalid; its message says why.
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
                    f"There is no speech in {audio}. Speak louder or closer to the microphone, choose another "
                    "recording, or remove it to predict the text alone."
                )
    except ValueError as error:
        message = str(error)
        for path in filter(None, (audio, subtitles)):
            # Paths of the server are not shown to visitors.
            message = message.replace(f"{Path(path).parent}{os.sep}", "")
        raise gr.Error(message, duration=ERROR_SECONDS, print_exception=False) from error
    content = json.dumps(result, ensure_ascii=False, indent=2).encode()
    return PageOutput(
        emotion={entry["label"]: entry["score"] for entry in result["scores"]},
        weights=result["modality_weights"],
        words=_colored_words(result, text),
        picture=None if audio is None else plot_timeline(result, audio=audio),
        file=save_bytes_to_cache(content, "emotion.json", get_upload_folder()),
    )


def find_examples() -> dict[str, str]:
    """Returns the paths of the example clips by their acted emotion; empty if they are not installed."""
    package = EMBEDDED_MODEL.parent
    for root in (package, package.parent):  # installed, and in the repository
        folder = root / "examples" / "audio"
        if (table := folder / "metadata.csv").is_file():
            with table.open(newline="", encoding="utf-8") as file:
                return {row["label"]: str(folder / row["file_name"]) for row in csv.DictReader(file)}
    return {}


def _check_sizes(audio: str | None, text: str | None, subtitles: str | None) -> None:
    """Raises a `ValueError` for inputs that would block other visitors, and for subtitles without a recording."""
    if text is not None and len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text)} characters; at most {MAX_CHARACTERS} are allowed. Shorten it.")
    if subtitles is not None and audio is None:
        raise ValueError(f"{subtitles} belongs to a recording; add the recording, or remove the subtitles.")
    if subtitles is not None and (size := os.path.getsize(subtitles)) > MAX_SUBTITLES_BYTES:
        raise ValueError(
            f"{subtitles} has {size} bytes; at most {MAX_SUBTITLES_BYTES} are allowed. Is it the right file?"
        )
    if audio is not None:
        # Counted, since not every header declares the duration.
        lengths = accumulate(block.shape[1] for block in AudioBlocks(audio, target_sampling_rate=SAMPLING_RATE))
        if any(length > MAX_SECONDS * SAMPLING_RATE for length in lengths):
            raise ValueError(f"{audio} is longer than {MAX_SECONDS} s, the maximum on this page; shorten it.")


def _colored_words(result: dict[str, Any], text: str | None) -> list[tuple[str, str | None]]:
    words = [
        (word, None if entry["label"] == SILENCE else entry["label"])
        for entry in result.get("timeline", [])
        for word in entry["words"]
    ]
    if words or text is None:
        return words
    return [(text, result["scores"][0]["label"])]
