"""
Sends requests of every kind to a running service, and exits with status 1 if a response is wrong.

    python docker/smoke.py http://127.0.0.1:8080 --key KEY

Requires av, numpy, soundfile and websockets, as the service does. It expects the predictions of the embedded model.
"""

import argparse
import io
import json
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
from websockets.sync.client import connect


CLIP = Path(__file__).parents[1] / "examples" / "audio" / "03b01Wa.flac"
WORDS = "What are those bags?"
RATE = 16_000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--key", default="")
    given = parser.parse_args(argv)
    address, key = given.address, given.key
    samples, _ = soundfile.read(CLIP, dtype="float32")

    answer = ask(f"{address}/predict", key, {"audio_file": CLIP.read_bytes()}, {"text": WORDS})
    expect(answer["label"] == "angry", f"audio and text: {answer}")

    pause = np.zeros(2 * RATE, np.float32)
    recording = io.BytesIO()
    soundfile.write(recording, np.concatenate([samples, pause, samples]), RATE, format="WAV")
    subtitles = f"1\n00:00:00,200 --> 00:00:01,000\n{WORDS}\n".encode()
    files = {"audio_file": recording.getvalue(), "subtitles": subtitles}
    answer = ask(f"{address}/predict", key, files, {"return_timeline": "true"})
    expect([word for entry in answer["timeline"] for word in entry["words"]] == WORDS.split(), f"words: {answer}")
    expect("silence" in [entry["label"] for entry in answer["timeline"]], f"silence: {answer}")

    for encoding, messages in (("pcm_s16le", pcm(samples)), ("opus", opus(samples))):
        segments = follow(address, key, encoding, messages)
        labels = [segment["label"] for segment in segments]
        expect(labels.count("angry") * 2 > len(labels) > 3, f"{encoding}: {labels}")


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"Unexpected response: {message}")


def ask(address: str, key: str, files: dict[str, bytes], fields: dict[str, str]) -> dict:
    """Sends a form to the service and returns its response."""
    boundary = uuid.uuid4().hex
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{name}"', value) for name, value in files.items()]
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(address, body + f"--{boundary}--\r\n".encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def follow(address: str, key: str, encoding: str, messages: Iterator[bytes]) -> list[dict]:
    """Sends a live stream and returns its segments."""
    start = {"encoding": encoding, "sampling_rate": RATE, "top_k": 1} | ({"api_key": key} if key else {})
    with connect(f"{address.replace('http', 'ws', 1)}/stream", proxy=None) as socket:
        socket.send(json.dumps(start))
        for message in messages:
            socket.send(message)
        socket.send('{"type": "end"}')
        received = [json.loads(message) for message in socket]
    expect([received[0]["type"], received[-1]["type"]] == ["ready", "end"], f"{encoding}: {received}")
    return received[1:-1]


def pcm(samples: np.ndarray) -> Iterator[bytes]:
    """Yields messages of 0.1 s."""
    for chunk in np.split(samples, range(RATE // 10, len(samples), RATE // 10)):
        yield (chunk * 32767).astype("<i2").tobytes()


def opus(samples: np.ndarray) -> Iterator[bytes]:
    """Yields Opus packets, as WebCodecs in a browser does."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = RATE, "mono", "s16"
    encoder.open()
    size = encoder.frame_size
    whole = samples[: len(samples) // size * size].reshape(-1, 1, size)
    for chunk in (whole * 32767).astype(np.int16):
        frame = av.AudioFrame.from_ndarray(chunk, format="s16", layout="mono")
        frame.sample_rate = RATE
        yield from map(bytes, encoder.encode(frame))


if __name__ == "__main__":
    main()
