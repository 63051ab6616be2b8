"""Hundreds of damaged audio files: the service predicts or rejects each, and keeps running."""

import io

import httpx
import numpy as np
import pytest
import soundfile
from encoded import CODINGS, encode
from hostile import endless_opus
from running import PATIENCE_S, running


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("AU", "ULAW"),
    ("CAF", "ALAC_16"),
    ("W64", "PCM_16"),
    ("NIST", "PCM_16"),
    ("VOC", "PCM_U8"),
]
HEADER_BYTES = 200
MEMORY_MIB = 256


@pytest.fixture(scope="module")
def files(example_audio):
    """One recording in every format that libsndfile or FFmpeg can write here."""
    samples, rate = soundfile.read(example_audio, dtype="float32")
    found = []
    for kind, subtype in FORMATS:
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, samples[:16_000], rate, format=kind, subtype=subtype)
        except soundfile.LibsndfileError:
            continue
        found.append(buffer.getvalue())
    assert len(found) >= 12
    pcm = (samples[None, :16_000] * 2**15).astype(np.int16)
    return [*found, *(encode(pcm, rate, coding) for coding in CODINGS.values()), endless_opus(120)]


def mutate(data, rng):
    """Returns a file with one to eight faults, half of them in its header."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        end = min(HEADER_BYTES, len(data)) if rng.random() < 0.5 else len(data)
        place = int(rng.integers(end)) if end else 0
        length = int(rng.integers(1, 17))
        fault = rng.integers(6)
        if fault == 0:
            data[place : place + length] = rng.bytes(length)
        elif fault == 1:
            data[place : place + length] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * length
        elif fault == 2:
            del data[place : place + length]
        elif fault == 3:
            data[place:place] = rng.bytes(length)
        elif fault == 4:
            data[place:place] = data[place : place + 100 * length]
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)


def send_damaged(service, files, count, seed):
    rng = np.random.default_rng(seed)
    service.post("/predict", files={"audio_file": files[0]})
    idle = service.memory()
    service.reset_peak()
    statuses = {}
    with httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client:
        for number in range(count):
            data = mutate(files[number % len(files)], rng)
            form = {"return_timeline": "1"} if number % 4 == 0 else {}
            response = client.post("/predict", files={"audio_file": data}, data=form)
            assert response.status_code in (200, 413, 422), (number, response.status_code, response.text)
            assert response.status_code == 200 or len(response.json()["detail"]) > 20
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
    assert service.process.poll() is None
    assert service.memory("VmHWM") - idle < MEMORY_MIB
    assert '"level": "error"' not in service.log
    return statuses


@pytest.mark.slow
def test_damaged_files(exported, files, tmp_path):
    with running(tmp_path / "log", exported) as service:
        statuses = send_damaged(service, files, 2 * len(files), seed=0)

    assert statuses[422] > 10 and statuses[200] > 10


@pytest.mark.slow
def test_more_damaged_files(exported, files, tmp_path):
    with running(tmp_path / "log", exported) as service:
        send_damaged(service, files, 1000, seed=1)


@pytest.mark.nightly
def test_many_damaged_files(exported, files, tmp_path):
    with running(tmp_path / "log", exported) as service:
        send_damaged(service, files, 10_000, seed=2)
