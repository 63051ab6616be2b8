"""The page of `mmemo demo`: its outputs, served on loopback, and in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import soundfile
from faces import place, read_portrait, resize
from test_video_items import make_pipeline
from videos import write_video

from mmemo import EmotionPredictor
from modeling_mmemo import (
    MMEmoConfig,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MMEmoVideoConfig,
    MultimodalEmotionPipeline,
)


gr = pytest.importorskip("gradio", minversion="6", reason="the page needs gradio: pip install 'mmemo[demo]'")

import httpx  # noqa: E402 - the following imports need gradio
from gradio_client import Client, handle_file  # noqa: E402

from mmemo import demo  # noqa: E402


CLIPS = Path(__file__).parents[1] / "examples" / "audio"
CLIP = str(CLIPS / "03b01Wa.flac")
SENTENCE = "What are those bags?"
SUBTITLES = "1\n00:00:00,100 --> 00:00:01,600\nWhat are those bags?\n"
PORTRAIT = read_portrait()[:256, 96:352]
ORANGE = (230, 159, 0)  # the box of the chosen face
CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGS = (
    "--no-sandbox",  # which containers forbid
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A fake microphone that records a tone, and a fake camera.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@pytest.fixture(scope="module")
def predict():
    return EmotionPredictor()


class FacePredictor:
    """The pipeline of a random model with a face encoder, called as `EmotionPredictor` is."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.answers, self.processor = pipeline.answers, pipeline.processor

    def __call__(self, audio=None, text=None, video=None, word_times=None, **options):
        item = {"audio": audio, "text": text, "video": video, "word_times": word_times}
        return self.pipeline(item, **options)


@pytest.fixture(scope="module")
def predict_face(session_tokenizer):
    return FacePredictor(make_pipeline(session_tokenizer, MMEmoVideoConfig(hidden_size=16), frames_per_second=5))


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Path of a video of 2.2 s: a face that moves, and the sound of the clip."""
    path = tmp_path_factory.mktemp("videos") / "talk.mp4"
    samples, rate = soundfile.read(CLIP, dtype="float32")
    frames = [place((256, 320), (PORTRAIT, 2 * index, 0)) for index in range(22)]
    write_video(path, np.stack(frames), samples=samples, sampling_rate=rate)
    return str(path)


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Path of a video of 0.4 s without sound: two faces, the left one larger."""
    path = tmp_path_factory.mktemp("videos") / "silent.mp4"
    write_video(path, place((256, 512), (PORTRAIT, 0, 0), (resize(PORTRAIT, 200), 256, 0))[None].repeat(4, axis=0))
    return str(path)


def read_frames(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_raw_video(path, frames):
    """Writes a YUV4MPEG2 file of 10 frames per second, as fake cameras of Chromium need it."""
    height, width = frames[0].shape[:2]
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode())
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            file.write(b"FRAME\n" + frame.to_ndarray().tobytes())


def is_orange(pixels):
    return np.abs(pixels.astype(int) - ORANGE).max(axis=2) < 40


def as_json(result):
    """Converts tuples to lists."""
    return json.loads(json.dumps(result))


@contextmanager
def raises(message):
    with pytest.raises(gr.Error) as error:
        yield
    assert re.match(message, error.value.message)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Gradio's folder for uploads and results."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("gradio")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


def test_the_address_is_printed(predict, files, capsys):
    page = demo.serve_demo(predict, "127.0.0.1", wait=False)
    page.close()

    assert capsys.readouterr().out.startswith(f"The page is at {page.local_url} (stop it with Ctrl+C).")


def test_a_port_in_use_is_named(predict, files):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"The page cannot be served on port {port} .*; pass another port"):
            demo.serve_demo(predict, "127.0.0.1", port, wait=False)


@pytest.fixture(scope="module")
def served(predict, files):
    served = demo.serve_demo(predict, "127.0.0.1", wait=False)
    yield served
    served.close()


@pytest.fixture
def subtitles(tmp_path):
    path = tmp_path / "clip.srt"
    path.write_text(SUBTITLES)
    return str(path)


class TestPredictPage:
    @pytest.fixture(autouse=True)
    def _files(self, files):
        """All tests write there."""

    def test_recording_with_subtitles_has_coloured_words(self, predict, subtitles):
        output = demo.predict_page(predict, CLIP, " ", subtitles)

        expected = predict(CLIP, word_times=Path(subtitles), return_timeline=True)
        assert json.loads(Path(output.file).read_text()) == as_json(expected)
        assert output.emotion == {entry["label"]: entry["score"] for entry in expected["scores"]}
        assert output.weights == expected["modality_weights"]
        assert [word for word, _ in output.words] == SENTENCE.split()
        assert output.words == [(word, entry["label"]) for entry in expected["timeline"] for word in entry["words"]]
        assert [axes.get_ylabel() for axes in output.picture.axes] == ["waveform", "scores", "words"]

    def test_text_without_timestamps_has_the_colour_of_the_whole(self, predict):
        output = demo.predict_page(predict, CLIP, SENTENCE, None)

        assert output.words == [(SENTENCE, max(output.emotion, key=output.emotion.get))]
        assert json.loads(Path(output.file).read_text()) == as_json(predict(CLIP, SENTENCE, return_timeline=True))

    def test_text_alone(self, predict):
        output = demo.predict_page(predict, None, f" {SENTENCE} ", None)

        expected = predict(text=SENTENCE, return_modality_weights=True)
        assert json.loads(Path(output.file).read_text()) == expected
        assert output.words == [(SENTENCE, expected["scores"][0]["label"])]
        assert output.weights == {"audio": 0.0, "text": 1.0} and output.picture is None

    def test_candidate_labels(self, exported):
        predict = EmotionPredictor(exported)

        output = demo.predict_page(predict, None, "so sad", None, labels=" happy, so sad ")

        expected = predict(text="so sad", candidate_labels=["happy", "so sad"])
        assert output.emotion == {entry["label"]: entry["score"] for entry in expected}
        timeline = demo.predict_page(predict, CLIP, None, None, labels="happy, so sad")
        assert timeline.emotion.keys() == {"happy", "so sad"} and timeline.picture is not None

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ("a, A", "'a' and 'A', which are the same label"),
            ("a" * 2001, "The list of labels has 2001 characters; at most 2000 are allowed"),
            ("a", "no shared space of voice and words"),
        ],
    )
    def test_invalid_candidate_labels_are_named(self, predict, labels, message):
        with pytest.raises(gr.Error, match=message):
            demo.predict_page(predict, None, SENTENCE, None, labels=labels)

    def test_audio_alone_has_no_words(self, predict):
        output = demo.predict_page(predict, CLIP, None, None)

        assert output.words == [] and output.weights == {"audio": 1.0, "text": 0.0}

    def test_results_have_separate_folders(self, predict):
        first, second = (demo.predict_page(predict, None, text, None).file for text in ("I hate you!", "I love you!"))

        assert Path(first).parent != Path(second).parent

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"RIFF nonsense", r"clip\.wav is not readable audio"),
            (b"", r"clip\.wav is empty"),
            (np.zeros(16_000), r"There is no speech in clip\.wav\. "),
            (np.sin(np.arange(16_000)), r"There is no speech in clip\.wav\. "),
            (np.full(16_000, np.nan), r"clip\.wav contains NaN"),
        ],
        ids=["broken", "empty", "silent", "tone", "NaN"],
    )
    def test_recordings_without_speech_raise(self, predict, tmp_path, content, message):
        path = tmp_path / "clip.wav"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, 16_000, subtype="FLOAT")

        with raises(message):
            demo.predict_page(predict, str(path), SENTENCE, None)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("What are those bags?", r"clip\.srt does not contain subtitles"),
            ("1\n00:10:00,000 --> 00:10:01,000\nbags\n", r".* starts at 600\.00 s, but the audio lasts"),
            (b"\xff\xfe1", r"clip\.srt is not UTF-16"),
            (SUBTITLES * 20_000, r"clip\.srt has \d+ bytes"),
        ],
        ids=["no times", "of another recording", "no text", "too long"],
    )
    def test_invalid_subtitles_raise(self, predict, tmp_path, content, message):
        path = tmp_path / "clip.srt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

        with raises(message):
            demo.predict_page(predict, CLIP, None, str(path))

    def test_subtitles_need_their_recording(self, predict, subtitles):
        with raises(r"clip\.srt belongs to a recording; add the recording"):
            demo.predict_page(predict, None, SENTENCE, subtitles)

    def test_missing_inputs_raise(self, predict):
        with raises("audio and text are both missing"):
            demo.predict_page(predict, None, " ", None)

    def test_a_long_recording_raises(self, predict, monkeypatch):
        monkeypatch.setattr(demo, "MAX_SECONDS", 2)  # the clip lasts 2.2 s

        with raises(r"03b01Wa\.flac is longer than 2 s"):
            demo.predict_page(predict, CLIP, None, None)

    def test_a_long_text_raises(self, predict):
        with raises("The text has 2004 characters"):
            demo.predict_page(predict, None, "word " * 400 + "word", None)


class TestVideos:
    @pytest.fixture(autouse=True)
    def _files(self, files):
        """All tests write there."""

    def test_a_model_without_a_face_encoder_predicts_the_sound(self, predict, talk):
        output = demo.predict_page(predict, None, None, None, talk)

        expected = predict(talk, return_timeline=True)
        result = json.loads(Path(output.file).read_text())
        assert result.pop("face")["blendshapes"][0]["name"].startswith("mouthSmile")
        assert result == as_json(expected)
        assert output.emotion == {entry["label"]: entry["score"] for entry in expected["scores"]}
        assert output.note == f"The video has one face, found in 100% of the pictures. {demo.NO_FACE_ENCODER}"
        assert "mouthSmileLeft" in [text.get_text() for text in output.blendshapes.axes[0].get_legend().texts]
        frames = read_frames(output.faces)
        boxes = [np.flatnonzero(is_orange(pixels).any(axis=0))[0] for pixels in frames]
        assert len(frames) == 22
        assert np.diff(boxes) == pytest.approx(4, abs=3), "the box moves with the face, twice enlarged"

    def test_a_model_with_a_face_encoder(self, predict_face, talk):
        output = demo.predict_page(predict_face, None, "I am sad", None, talk)

        result = json.loads(Path(output.file).read_text())
        assert output.weights == result["modality_weights"]
        assert {name for name, weight in output.weights.items() if weight} == {"audio", "text", "video"}
        assert result["timeline"][0]["face"]["presence"] == 1
        assert [axes.get_ylabel() for axes in output.picture.axes] == ["waveform", "scores", "face"]
        assert output.note == "The video has one face, found in 100% of the pictures."

    def test_a_model_of_faces_ignores_the_sound(self, talk):
        config = MMEmoConfig(
            video_config=MMEmoVideoConfig(hidden_size=16), fusion_hidden_size=16, num_attention_heads=2
        )
        processor = MMEmoProcessor(frames_per_second=5)
        predict = FacePredictor(MultimodalEmotionPipeline(MMEmoForEmotionRecognition(config), processor))
        output = demo.predict_page(predict, None, None, None, talk)

        assert output.weights == {"audio": 0, "text": 0, "video": pytest.approx(1)}
        assert len(json.loads(Path(output.file).read_text())["timeline"]) == 5

    def test_a_face_alone(self, predict_face, silent):
        output = demo.predict_page(predict_face, None, None, None, silent)

        assert output.weights == {"audio": 0, "text": 0, "video": pytest.approx(1)}
        assert [axes.get_ylabel() for axes in output.picture.axes] == ["scores", "face"]

    @pytest.mark.parametrize("text", [None, SENTENCE])
    def test_without_speech_the_face_is_shown(self, predict, silent, text):
        output = demo.predict_page(predict, None, text, None, silent, 1)

        assert output.emotion == ({} if text is None else demo.predict_page(predict, None, text, None).emotion)
        assert output.note.endswith(demo.NO_SPEECH) is (text is None)
        assert output.note.startswith("The video has 2 faces; those that speak longest come first. Face 1 is found")
        assert np.flatnonzero(is_orange(read_frames(output.faces)[0]).any(axis=0))[0] > 320, "the right face"

    def test_a_sound_without_speech(self, predict, tmp_path):
        path = tmp_path / "tone.mp4"
        write_video(path, PORTRAIT[None].repeat(5, axis=0), samples=np.sin(np.arange(8000)) / 4)
        output = demo.predict_page(predict, None, None, None, str(path))

        assert output.emotion == {} and output.picture is None and output.faces is not None
        assert output.note.endswith(demo.NO_SPEECH)

    def test_invalid_videos_raise(self, predict, talk, silent, tmp_path, monkeypatch):
        bad, empty = tmp_path / "bad.mp4", tmp_path / "empty.mp4"
        bad.write_bytes(b"nonsense")
        write_video(empty, np.full((3, 64, 64, 3), 99, np.uint8))
        with raises(r"bad\.mp4 is not readable video"):
            demo.predict_page(predict, None, None, None, str(bad))
        with raises(r"There is no face in empty\.mp4\. Choose a video with a face"):
            demo.predict_page(predict, None, None, None, str(empty))
        with raises("face=2 is not in the video; faces found: 2, numbered from 0"):
            demo.predict_page(predict, None, None, None, silent, 2)
        with raises("There are a recording and a video"):
            demo.predict_page(predict, CLIP, None, None, silent)
        monkeypatch.setattr(demo, "MAX_VIDEO_SECONDS", 0.3)
        for path in (talk, silent):
            with raises(rf"{Path(path).name} is longer than 0\.3 s, the maximum on this page"):
                demo.predict_page(predict, None, None, None, path)


def test_the_examples_are_the_clips():
    examples = demo.find_examples()

    assert sorted(examples.values()) == sorted(map(str, CLIPS.glob("*.flac")))
    assert examples["angry"] == CLIP


def test_the_examples_are_not_temporary_files(served):
    assert not [file for files in served.temp_file_sets for file in files if Path(file).name in os.listdir(CLIPS)]


def test_labels_are_asked_for_if_the_model_can_score_them(predict, exported):
    def is_asked(predict):
        components = [component["props"] for component in demo.build_demo(predict).config["components"]]
        return next(props["visible"] for props in components if "in your own words" in str(props.get("label")))

    assert (is_asked(predict), is_asked(EmotionPredictor(exported))) == (False, True)


@pytest.mark.slow
def test_torch_is_not_imported():
    code = (
        "import sys; from mmemo import EmotionPredictor; from mmemo.demo import build_demo; "
        "build_demo(EmotionPredictor()); sys.exit(bool(sys.modules.keys() & {'torch', 'transformers'}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
class TestServed:
    def test_prediction_over_http(self, served, predict, subtitles, tmp_path):
        client = Client(served.local_url, verbose=False, download_files=tmp_path)
        emotion, weights, words, picture, file, *_ = client.predict(
            handle_file(CLIP), "", handle_file(subtitles), api_name="/answer"
        )

        expected = predict(CLIP, word_times=Path(subtitles), return_timeline=True)
        assert json.loads(Path(file).read_text()) == as_json(expected)
        assert emotion["label"] == expected["label"]
        assert {entry["label"] for entry in weights["confidences"]} == {"audio", "text"}
        assert " ".join(entry["token"] for entry in words) == SENTENCE
        assert picture["plot"].startswith("data:image/png;base64,")

    def test_files_over_the_limit_are_rejected(self, predict, files, monkeypatch):
        monkeypatch.setattr(demo, "MAX_FILE_BYTES", 1000)
        served = demo.serve_demo(predict, "127.0.0.1", wait=False)
        status = [
            httpx.post(f"{served.local_url}gradio_api/upload", files={"files": ("clip.wav", bytes(size))}).status_code
            for size in (1000, 2000)
        ]
        served.close()

        assert status == [200, 413]

    def test_files_of_visitors_are_deleted_on_close(self, predict, files, tmp_path):
        served = demo.serve_demo(predict, "127.0.0.1", wait=False)
        clip = shutil.copy(CLIP, tmp_path / "mine.flac")
        client = Client(served.local_url, verbose=False, download_files=False)
        client.predict(handle_file(clip), "I am here.", None, api_name="/answer")
        theirs = as_json(predict(CLIP, "I am here.", return_timeline=True))

        def left():
            results = (json.loads(path.read_text()) for path in files.glob("*/emotion.json"))
            return len(list(files.glob("*/mine.flac"))), sum(result == theirs for result in results)

        assert left() == (1, 1)
        served.close()
        assert left() == (0, 0)

    def test_videos_of_visitors_are_deleted_on_close(self, predict, files, talk, tmp_path):
        served = demo.serve_demo(predict, "127.0.0.1", wait=False)
        # Other tests leave the results of other content.
        mine = tmp_path / "mine.mp4"
        write_video(mine, PORTRAIT[None, :200].repeat(2, axis=0))
        before = set(files.rglob("*.*"))
        client = Client(served.local_url, verbose=False, download_files=False)
        output = client.predict(None, "", None, handle_file(str(mine)), 0, api_name="/answer")

        assert output[5].startswith("The video has one face")
        assert {path.name for path in set(files.rglob("*.*")) - before} == {"mine.mp4", "faces.mp4", "emotion.json"}
        served.close()
        assert set(files.rglob("*.*")) == before


@pytest.mark.slow
@pytest.mark.browser
class TestBrowser:
    @pytest.fixture(scope="class")
    def browser(self, tmp_path_factory):
        sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
        if CHROMIUM is None:
            pytest.skip("there is no chromium: apt-get install chromium")
        camera = tmp_path_factory.mktemp("camera") / "camera.y4m"
        write_raw_video(camera, [place((240, 320), (PORTRAIT, 2 * index, 0)) for index in range(20)])
        with sync_api.sync_playwright() as playwright:
            args = [*CHROMIUM_ARGS, f"--use-file-for-fake-video-capture={camera}"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
            yield browser
            browser.close()

    @pytest.fixture
    def page(self, browser, served):
        """The opened page; all its requests must go to its own server."""
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.errors, addresses = [], []
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: addresses.append(urlsplit(request.url)))
        page.goto(served.local_url, wait_until="networkidle")  # earlier clicks may be lost
        yield page
        page.close()
        assert {address.hostname for address in addresses if address.scheme not in ("data", "blob")} == {"127.0.0.1"}

    @staticmethod
    def upload(page, selector, path):
        with page.expect_response(lambda response: "/upload" in response.url):
            page.locator(selector).set_input_files(path)

    @staticmethod
    def press(page):
        page.get_by_role("button", name="Predict").click()

    @staticmethod
    def result(page, folder):
        """The result as JSON, once there is one."""
        page.get_by_test_id("matplotlib").first.wait_for()
        with page.expect_download() as download:
            page.get_by_test_id("download-link").last.click()
        download.value.save_as(folder / "result.json")
        return json.loads((folder / "result.json").read_text())

    def test_a_clip_and_a_sentence(self, page, predict, tmp_path):
        self.upload(page, "input[accept*=audio]", CLIP)
        page.get_by_label("Text", exact=True).fill(SENTENCE)
        self.press(page)
        result = self.result(page, tmp_path)

        assert result == as_json(predict(CLIP, SENTENCE, return_timeline=True))
        assert page.get_by_test_id("label-output-value").first.inner_text().strip() == result["label"]
        assert page.get_by_test_id("highlighted-text").get_by_text(SENTENCE).is_visible()
        assert page.get_by_test_id("matplotlib").locator("img").evaluate("image => image.naturalWidth") > 1000
        assert "do not base decisions about a person" in page.inner_text("body")
        assert page.errors == []
        page.screenshot(path=tmp_path / "page.png", full_page=True)

    def test_subtitles(self, page, predict, subtitles, tmp_path):
        self.upload(page, "input[accept*=srt]", subtitles)
        self.upload(page, "input[accept*=audio]", CLIP)
        self.press(page)

        expected = predict(CLIP, word_times=Path(subtitles), return_timeline=True)
        assert self.result(page, tmp_path) == as_json(expected)
        assert page.errors == []
        page.screenshot(path=tmp_path / "page.png", full_page=True)

    def test_an_example(self, page):
        page.get_by_role("button", name="sad", exact=True).first.click()
        page.get_by_test_id("waveform-controls").wait_for()
        self.press(page)

        page.get_by_test_id("label-output-value").get_by_text("sad").wait_for()
        assert page.errors == []

    def test_the_microphone(self, page):
        page.get_by_label("Record audio").click()
        page.locator(".record-button").click()
        page.wait_for_timeout(1500)
        with page.expect_response(lambda response: "/upload" in response.url):
            page.locator(".stop-button").click()
        self.press(page)

        # The recording contains a tone.
        page.get_by_test_id("toast-text").get_by_text("There is no speech in").wait_for()
        assert page.errors == []

    @staticmethod
    def count_orange(page):
        """The number of orange pixels in the drawn video, as the browser shows it."""
        page.locator("#faces video").wait_for()
        return page.locator("#faces video").evaluate(
            """async (video, orange) => {
                if (video.readyState < 2) await new Promise(done => video.addEventListener("loadeddata", done));
                const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
                const context = canvas.getContext("2d");
                context.drawImage(video, 0, 0);
                const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
                let count = 0;
                for (let first = 0; first < pixels.length; first += 4)
                    count += orange.every((value, channel) => Math.abs(pixels[first + channel] - value) < 40);
                return count;
            }""",
            ORANGE,
        )

    @pytest.mark.slow
    def test_a_video(self, page, predict, talk, tmp_path):
        page.get_by_role("tab", name="Video").click()
        self.upload(page, "input[accept*=video]", talk)
        self.press(page)

        assert self.count_orange(page) > 300
        page.get_by_text("The video has one face, found in 100% of the pictures.").wait_for()
        blendshapes = page.locator("#blendshapes img")
        assert blendshapes.evaluate("image => image.naturalWidth") > 1000
        result = self.result(page, tmp_path)
        assert result["label"] == predict(talk, return_timeline=True)["label"]
        assert result["face"]["blendshapes"][0]["name"].startswith("mouthSmile")
        assert page.errors == []
        page.screenshot(path=tmp_path / "page.png", full_page=True)

    @pytest.mark.slow
    def test_the_camera(self, page):
        page.get_by_role("tab", name="Video").click()
        page.get_by_label("Capture from camera").click()
        page.get_by_text("Click to Access Webcam").click()
        page.get_by_label("start recording").click()
        page.wait_for_timeout(1500)
        with page.expect_response(lambda response: "/upload" in response.url):
            page.locator(".capture-button").click()
        self.press(page)

        assert self.count_orange(page) > 300
        page.get_by_text(demo.NO_SPEECH).wait_for()
        assert page.errors == []

    def test_a_video_without_a_face_shows_an_error(self, page, tmp_path):
        write_video(tmp_path / "empty.mp4", np.full((3, 64, 64, 3), 99, np.uint8))
        page.get_by_role("tab", name="Video").click()
        self.upload(page, "input[accept*=video]", tmp_path / "empty.mp4")
        self.press(page)

        page.get_by_test_id("toast-text").get_by_text("There is no face in empty.mp4").wait_for()
        assert str(tmp_path) not in page.inner_text("body")

    def test_an_invalid_file_shows_an_error(self, page, tmp_path):
        (tmp_path / "bad.wav").write_bytes(b"RIFF nonsense")
        self.upload(page, "input[accept*=audio]", tmp_path / "bad.wav")
        self.press(page)

        page.get_by_text("bad.wav is not readable audio").wait_for()
        assert str(tmp_path) not in page.inner_text("body") and "Traceback" not in page.inner_text("body")
