"""The service with a model that encodes faces, over the network."""

import asyncio
import base64
import json
import threading
import time

import numpy as np
import pytest
from running import running
from starlette.exceptions import HTTPException
from test_app import close_to
from test_fuzz import mutate
from videos import short_video, write_video

from mmemo import EmotionPredictor
from mmemo.serving.batching import OutOfTimeError, until
from mmemo.serving.limits import open_limited_video
from mmemo.serving.service import Service
from mmemo.serving.settings import ServiceSettings


CODECS = {".mp4": "libx264", ".mpg": "mpeg2video"}


@pytest.fixture(scope="module")
def service(video_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "tmp"))
        with running(folder / "log", video_model, max_video_s=3, max_pixels=400 * 300) as service:
            yield service


@pytest.fixture(scope="module")
def twin(video_model):
    return EmotionPredictor(video_model)


def post(service, files, **fields):
    return service.post("/predict", files=files, data=fields)


def test_a_form_with_a_video_predicts_its_face_and_its_sound(service, twin, portrait):
    response = post(service, {"video_file": portrait.read_bytes()}, text="so sad")

    assert response.status_code == 200
    answer, expected = response.json(), twin(text="so sad", video=portrait, return_modality_weights=True)
    assert close_to(answer, expected)
    assert answer["label"] == "happy"
    assert answer["modality_weights"] == pytest.approx({"audio": 1 / 3, "text": 1 / 3, "video": 1 / 3})


@pytest.mark.parametrize(
    ("item", "weights"),
    [
        ({}, {"audio": 0.5, "text": 0, "video": 0.5}),
        ({"audio": None}, {"audio": 0, "text": 0, "video": 1}),
        ({"text": "so", "face": 0}, {"audio": 1 / 3, "text": 1 / 3, "video": 1 / 3}),
    ],
)
def test_json_with_a_video(service, portrait, item, weights):
    video = base64.b64encode(portrait.read_bytes()).decode()

    response = service.post("/predict", json={"video": f"data:video/mp4;base64,{video}", **item})

    assert response.status_code == 200
    assert response.json()["modality_weights"] == pytest.approx(weights)


def test_another_file_replaces_the_sound_of_a_video(service, twin, portrait, example_audio):
    files = {"video_file": portrait.read_bytes(), "audio_file": example_audio.read_bytes()}

    answer = post(service, files).json()

    assert close_to(answer["scores"], twin(example_audio, video=portrait))


def test_a_timeline_has_the_face_of_each_segment(service, twin, portrait):
    answer = post(service, {"video_file": portrait.read_bytes()}, return_timeline="1").json()

    expected = twin(video=portrait, return_timeline=True)
    assert close_to(answer, json.loads(json.dumps(expected)))
    face = answer["timeline"][1]["face"]
    assert face["presence"] == 1 and face["blendshapes"][0]["name"].startswith("mouthSmile")


def test_a_batch_with_videos(service, portrait):
    videos = [portrait.read_bytes(), b"noise", short_video(has_sound=False)]
    items = [{"video": base64.b64encode(video).decode()} for video in videos]

    response = service.post("/predict/batch", json={"items": [*items, {"text": "so"}], "top_k": 1})

    first, second, third, fourth = response.json()["answers"]
    assert first["label"] == "happy" and fourth["label"] == "neutral"
    assert "not readable video" in second["detail"]
    assert third["detail"] == "video: no face was found, and there is neither audio nor text."


def test_without_a_face_the_sound_is_predicted(service):
    answer = post(service, {"video_file": short_video()}).json()

    assert answer["label"] == "sad" and answer["modality_weights"] == {"audio": 1, "text": 0, "video": 0}


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        ({"files": {"video_file": b"noise"}}, "the video file is not readable video"),
        ({"files": {"video_file": b"https://example.com/a.mp4"}}, "the video file is not readable video"),
        ({"json": {"video": "https://example.com/a.mp4"}}, "video: not valid base64"),
        ({"data": {"video_file": "https://example.com/a.mp4"}, "files": {"subtitles": b""}}, "video_file: is a text"),
        ({"files": {"video_file": b""}}, "the video file is empty (0 bytes)"),
        ({"json": {"text": "so", "face": 0}}, "face=0 is about a video, and the item has none"),
        ({"json": {"text": "so", "face": -1}}, "face: Input should be greater than or equal to 0"),
    ],
)
def test_invalid_videos_are_rejected(service, request_, detail):
    response = service.post("/predict", **request_)

    assert response.status_code == 422 and detail in response.json()["detail"]


def test_a_face_that_is_not_there_is_rejected(service, portrait):
    response = post(service, {"video_file": portrait.read_bytes()}, face="3")

    assert response.status_code == 422
    assert response.json()["detail"] == "face=3 is not in the video; faces found: 1, numbered from 0."


@pytest.mark.parametrize(
    ("name", "seconds", "size", "detail"),
    [
        ("a.mp4", 4, (32, 32), "The video is longer than 3 s, the limit of this service. Send a shorter file."),
        ("a.mp4", 0.2, (302, 400), "has frames of 400 x 302 pixels; at most 120000 are decoded. Scale it down"),
        # An MPEG program stream declares no duration.
        ("a.mpg", 4, (32, 32), "the video file has frames up to 3 s; at most 3 s are decoded. Cut it"),
    ],
)
def test_videos_have_limits(service, tmp_path, name, seconds, size, detail):
    path, count = tmp_path / name, service.metric('mmemo_rejects_total{reason="too large"}')
    write_video(path, np.zeros((round(25 * seconds), *size, 3), np.uint8), 25, codec=CODECS[path.suffix])

    response = post(service, {"video_file": path.read_bytes()}, return_timeline="1")

    assert response.status_code == 413 and detail in response.json()["detail"]
    assert service.metric('mmemo_rejects_total{reason="too large"}') == count + 1


def test_nothing_of_a_video_is_kept(service, portrait):
    before = service.open_files()

    post(service, {"video_file": ("my-face.mp4", portrait.read_bytes())})

    assert not list((service.log_path.parent / "tmp").iterdir())
    service.wait_until(lambda: service.open_files() <= before)
    assert "my-face" not in service.log and "blendshapes" not in service.log
    description = service.get("/openapi.json").json()["info"]["description"]
    assert "Art. 5(1)(f)" in description and "stores neither" in description


def test_the_version_lists_the_modalities(service):
    assert service.get("/version").json()["modalities"] == ["audio", "text", "video"]


def test_a_model_without_a_video_encoder_says_so():
    service = Service(ServiceSettings(workers=1))

    with pytest.raises(ValueError, match="this model has no video encoder; leave 'video' out"):
        service._predict({"video": b"noise"}, return_timeline=False)
    service.close()


def test_videos_have_a_limit_of_their_own(video_model):
    service = Service(ServiceSettings(model=str(video_model), workers=1, max_videos=1))
    may_run, video, text = threading.Event(), {"video": short_video()}, {"text": "so"}
    predict = service._predict
    service._predict = lambda item, **options: may_run.wait() and predict(item, **options)

    async def ask():
        tasks = [asyncio.create_task(service.predict([item], {"return_timeline": False})) for item in (video, text)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as refused:
            await service.predict([text, video], {"return_timeline": False})
        may_run.set()
        return refused.value, await asyncio.gather(*tasks)

    refused, found = asyncio.run(ask())
    service.close()

    assert refused.status_code == 503 and refused.detail == "1 requests with videos are in progress; try again later."
    assert refused.headers["Retry-After"] == "1" and service.is_idle()
    assert [prediction["label"] for (prediction,) in found] == ["sad", "neutral"]


def test_decoding_a_video_ends_when_the_request_is_out_of_time():
    with until(time.monotonic() - 1), pytest.raises(OutOfTimeError):
        open_limited_video(short_video(), ServiceSettings())


def send_damaged_videos(service, count, seed):
    rng = np.random.default_rng(seed)
    videos = [short_video(suffix) for suffix in (".mp4", ".mkv", ".mov", ".avi", ".ts")]
    statuses = set()
    for number in range(count):
        data = mutate(videos[number % len(videos)], rng)
        response = post(service, {"video_file": data}, **({"return_timeline": "1"} if number % 3 == 0 else {}))
        assert response.status_code in (200, 413, 422), (number, response.text)
        statuses.add(response.status_code)
    assert service.process.poll() is None and '"level": "error"' not in service.log
    assert statuses >= {200, 422}


def test_damaged_videos(service):
    send_damaged_videos(service, 25, seed=0)


@pytest.mark.slow
def test_more_damaged_videos(service):
    send_damaged_videos(service, 1000, seed=1)
