"""
The page of `mmemo demo`: predicts the emotions of a recording, a video, a text, or several of them, over time and by
word, and draws the faces of the video.

Deliberate choices:
- The command and the Space in `examples/space` serve the same page.
- It is self-contained: fonts and scripts are files of gradio, and there are no analytics or external requests.
- Faces are followed and drawn whether or not the model encodes them: what the tracker sees is of use by itself.
- Uploads and results are kept in gradio's temporary folder under hashes of their content, so that visitors cannot find
  each other's files, and are deleted after two hours at most.
"""

import csv
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from matplotlib.figure import Figure

from mmemo.answers import format_face
from mmemo.audio.loading import AudioBlocks
from mmemo.plots import COLORS, plot_blendshapes, plot_timeline
from mmemo.runtime.graph import EMBEDDED_MODEL
from mmemo.runtime.predictor import EmotionPredictor
from mmemo.timeline.windows import SILENCE
from mmemo.video.drawing import encode_faces
from mmemo.video.face import FaceSequence, check_face, read_faces
from mmemo.video.frames import VideoSource, open_video


MAX_SECONDS = 600
MAX_VIDEO_SECONDS = 60  # 600 pictures with five faces take about a minute
FRAMES_PER_SECOND = 10  # of faces, if the model does not encode them
MAX_FILE_BYTES = 128 * 2**20  # a little more than ten minutes of 16-bit stereo at 48 kHz
MAX_CHARACTERS = 2_000  # about the maximum length of the embedded model's text encoder
MAX_SUBTITLES_BYTES = 2**20
MAX_WAITING = 32  # requests; further ones get the error "try again later"
FILES_LIVE_SECONDS = 3600  # also the interval between deletions of older files
SAMPLING_RATE = 16_000  # Hz, for measuring durations
ERROR_SECONDS = 20

TITLE = "# mmemo\nThe emotions of a recording, of a video, of a text: speak, show your face, write, or combine them."
NOTE = (
    "Acted emotion is not felt emotion: do not base decisions about a person on this page. Inferring the emotions "
    "of people at work or at school is prohibited in the European Union (AI Act, Art. 5(1)(f)). Faces and voices are "
    "personal data, and biometric data if they identify a person: upload only those of people who agree. Uploads and "
    "results are deleted after two hours at most; nothing else is stored."
)
NO_FACE_ENCODER = (
    "This model has no face encoder, so its emotion is that of voice and text; docs/faces.md describes how to train a "
    "model that has one."
)
NO_SPEECH = "There is neither speech in the video nor a text, so this model predicts no emotion."
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
    """Weights of the modalities that the model encodes."""
    words: list[tuple[str, str | None]]
    """Words, each with its emotion; a text without timestamps is one entry."""
    picture: Figure | None
    """The plot of the timeline, if there is one."""
    file: str
    """Path of the result of [`EmotionPredictor`] as JSON, with the `face` of a video."""
    note: str = ""
    """Sentences about the faces of a video."""
    faces: str | None = None
    """Path of the video with its faces drawn."""
    blendshapes: Figure | None = None
    """The plot of the blendshapes of its face."""


class FollowedVideo(NamedTuple):
    """A video and the faces in it."""

    source: VideoSource
    frames_per_second: float
    """Rate at which the faces were followed."""
    faces: list[FaceSequence]
    """At least one."""
    chosen: int
    """Number of the face to predict."""

    @property
    def face(self) -> FaceSequence:
        return self.faces[self.chosen]


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
                with gr.Tab("Audio"):
                    audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Audio", buttons=[])
                with gr.Tab("Video"):
                    video = gr.Video(sources=["upload", "webcam"], label="Video", buttons=[])
                    face = gr.Number(0, label="Face, if there are several: 0 speaks longest", precision=0, minimum=0)
                text = gr.Textbox(label="Text", placeholder="The text spoken in the recording, or any text", lines=2)
                subtitles = gr.File(label="Subtitles of the recording", file_types=[".srt", ".vtt"], height=140)
                labels = gr.Textbox(
                    label="Labels in your own words, separated by commas",
                    placeholder="The model's own, or for example: frustrated, relieved, bored",
                    visible=predict.similarity.projection_dim is not None,
                )
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
        with gr.Column(visible=False) as seen:
            note = gr.Markdown(elem_id="note")
            faces = gr.Video(label="Faces", interactive=False, buttons=[], height=400, elem_id="faces")
            blendshapes = gr.Plot(label="Blendshapes", show_label=False, format="png", elem_id="blendshapes")
        inputs = [audio, text, subtitles, video, face, labels]
        outputs = [emotion, weights, words, picture, file, note, faces, blendshapes]
        video.change(lambda path: gr.Column(visible=path is not None), video, seen, api_visibility="private")
        button.click(partial(predict_page, predict), inputs, outputs, api_name="answer")
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


def predict_page(
    predict: EmotionPredictor,
    audio: str | None,
    text: str | None,
    subtitles: str | None,
    video: str | None = None,
    face: int | None = None,
    labels: str | None = None,
) -> PageOutput:
    """
    Predicts the emotions of a recording or a video, of a text, or of both.

    Args:
        predict ([`EmotionPredictor`]): The model.
        audio (`str`, *optional*): Path of a recording.
        text (`str`, *optional*): The text spoken in it, or a text alone; blank counts as missing.
        subtitles (`str`, *optional*): Path of an SRT or WebVTT file with the words of the recording.
        video (`str`, *optional*): Path of a video, in place of a recording.
        face (`int`, *optional*): The face of the video, by rank; see [`read_face`].
        labels (`str`, *optional*): Labels in one's own words, separated by commas; the model's own by default.

    Raises:
        gradio.Error: If all inputs are missing, or one is invalid; its message says why.
    """
    text = (text or "").strip() or None
    try:
        _check_sizes(audio, text, subtitles, video, labels)
        followed = None if video is None else follow_faces(predict, video, face)
        if followed is not None and followed.source.has_audio and "audio" in predict.answers.modalities:
            sound = video
        else:
            sound = audio
        result, sound = _predict(predict, sound, text, subtitles, followed, (labels or "").strip() or None)
    except ValueError as error:
        message = str(error)
        for path in filter(None, (audio, subtitles, video)):
            # Paths of the server are not shown to visitors.
            message = message.replace(f"{Path(path).parent}{os.sep}", "")
        raise gr.Error(message, duration=ERROR_SECONDS, print_exception=False) from error
    output = PageOutput(
        emotion={entry["label"]: entry["score"] for entry in result["scores"]},
        weights=result["modality_weights"],
        words=_colored_words(result, text),
        picture=plot_timeline(result, audio=sound) if "timeline" in result else None,
        file=_save(json.dumps(result, ensure_ascii=False, indent=2).encode(), "emotion.json"),
    )
    if followed is None:
        return output
    source, rate, faces, chosen = followed
    return output._replace(
        note=_describe_faces(predict, result, followed),
        faces=_save(encode_faces(source.frames(rate), rate, faces, chosen), "faces.mp4"),
        blendshapes=plot_blendshapes(followed.face),
    )


def follow_faces(predict: EmotionPredictor, path: str, face: int | None = None) -> FollowedVideo:
    """
    Follows the faces of a video, as the model needs them.

    Args:
        predict ([`EmotionPredictor`]): The model.
        path (`str`): Path of the video.
        face (`int`, *optional*): The face to predict, by rank; see [`read_face`].

    Raises:
        ValueError: If the video is invalid or too long, has no face, or none with that number.
    """
    source = open_video(path)
    if source.has_audio:
        _check_duration(path, MAX_VIDEO_SECONDS)
    rate = predict.processor.frames_per_second or FRAMES_PER_SECOND
    faces = read_faces(_short_frames(source, rate, path), rate, predict.processor.crop_size)
    if not faces:
        raise ValueError(
            f"There is no face in {path}. Choose a video with a face seen from the front, at least an eighth as high "
            "as the picture, or upload its sound as a recording."
        )
    check_face(face, len(faces))
    return FollowedVideo(source, rate, faces, face or 0)


def find_examples() -> dict[str, str]:
    """Returns the paths of the example clips by their acted emotion; empty if they are not installed."""
    package = EMBEDDED_MODEL.parent
    for root in (package, package.parent):  # installed, and in the repository
        folder = root / "examples" / "audio"
        if (table := folder / "metadata.csv").is_file():
            with table.open(newline="", encoding="utf-8") as file:
                return {row["label"]: str(folder / row["file_name"]) for row in csv.DictReader(file)}
    return {}


def _check_sizes(
    audio: str | None, text: str | None, subtitles: str | None, video: str | None, labels: str | None
) -> None:
    """Raises a `ValueError` for inputs that would block other visitors, or that contradict each other."""
    for name, written in (("text", text), ("list of labels", labels)):
        if written is not None and len(written) > MAX_CHARACTERS:
            raise ValueError(
                f"The {name} has {len(written)} characters; at most {MAX_CHARACTERS} are allowed. Shorten it."
            )
    if audio is not None and video is not None:
        raise ValueError("There are a recording and a video, which has its own sound; remove one of them.")
    if subtitles is not None and audio is None and video is None:
        raise ValueError(f"{subtitles} belongs to a recording; add the recording, or remove the subtitles.")
    if subtitles is not None and (size := os.path.getsize(subtitles)) > MAX_SUBTITLES_BYTES:
        raise ValueError(
            f"{subtitles} has {size} bytes; at most {MAX_SUBTITLES_BYTES} are allowed. Is it the right file?"
        )
    if audio is not None:
        _check_duration(audio, MAX_SECONDS)


def _check_duration(path: str, seconds: int) -> None:
    """Raises a `ValueError` if the sound of a file is longer."""
    # Counted, since not every header declares the duration.
    lengths = accumulate(block.shape[1] for block in AudioBlocks(path, target_sampling_rate=SAMPLING_RATE))
    if any(length > seconds * SAMPLING_RATE for length in lengths):
        raise _too_long(path, seconds)


def _short_frames(source: VideoSource, rate: float, path: str) -> Iterator[tuple[float, np.ndarray]]:
    for time, picture in source.frames(rate):
        if time >= MAX_VIDEO_SECONDS:
            raise _too_long(path, MAX_VIDEO_SECONDS)
        yield time, picture


def _too_long(path: str, seconds: int) -> ValueError:
    return ValueError(f"{path} is longer than {seconds} s, the maximum on this page; shorten it.")


def _predict(
    predict: EmotionPredictor,
    sound: str | None,
    text: str | None,
    subtitles: str | None,
    followed: FollowedVideo | None,
    labels: str | None,
) -> tuple[dict[str, Any], str | None]:
    """Returns the result, without scores if the model encodes nothing of the input; and the sound, if encoded."""
    item: dict[str, Any] = {"text": text, "word_times": None if subtitles is None else Path(subtitles)}
    options: dict[str, Any] = {"candidate_labels": labels}
    face = {}
    if followed is not None:
        face["face"] = {"number": followed.chosen, **format_face(followed.face, 0.0, followed.face.duration)}
        if "video" in predict.answers.modalities:
            item["video"] = followed.face
    if sound is not None:
        result = predict(sound, **item, **options, return_timeline=True)
        if result["label"] != SILENCE:
            return result | face, sound
        if followed is None:
            raise ValueError(
                f"There is no speech in {sound}. Speak louder or closer to the microphone, choose another recording, "
                "or remove it to predict the text alone."
            )
    if followed is not None and not any(item.values()):
        return {"scores": [], "modality_weights": {}} | face, None
    has_times = subtitles is not None or "video" in item
    result = predict(**item, **options, return_timeline=has_times or None, return_modality_weights=True)
    return result | face, None


def _describe_faces(predict: EmotionPredictor, result: dict[str, Any], followed: FollowedVideo) -> str:
    """Returns sentences on the faces of a video, and on what the model does not predict of it."""
    presence, count = result["face"]["presence"], len(followed.faces)
    found = f"found in {presence:.0%} of the pictures."
    sentences = [f"The video has one face, {found}"]
    if count > 1:
        ranked = f"The video has {count} faces; those that speak longest come first."
        sentences = [f"{ranked} Face {followed.chosen} is {found}"]
    if "video" not in predict.answers.modalities:
        sentences.append(NO_FACE_ENCODER)
    if not result["scores"]:
        sentences.append(NO_SPEECH)
    return " ".join(sentences)


def _save(content: bytes, name: str) -> str:
    """Returns the path of a file that gradio serves, and deletes with the visitors' other files."""
    return save_bytes_to_cache(content, name, get_upload_folder())


def _colored_words(result: dict[str, Any], text: str | None) -> list[tuple[str, str | None]]:
    words = [
        (word, None if entry["label"] == SILENCE else entry["label"])
        for entry in result.get("timeline", [])
        for word in entry["words"]
    ]
    if words or text is None:
        return words
    return [(text, result["scores"][0]["label"])]
