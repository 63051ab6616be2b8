"""Every form of video input, and what is refused."""

import gc
import io
import struct
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image
from videos import FPS, FRAMES, image_bytes, numbered, numbers, tone, two_colours

from mmemo.video.frames import is_video_object, open_video


class Decoder:
    """The protocol of `torchcodec.decoders.VideoDecoder`, of frames at 10 per second whose times start at 2 s."""

    metadata = SimpleNamespace(begin_stream_seconds=2.0, end_stream_seconds=4.0, average_fps=10.0)

    def get_frames_played_at(self, seconds):
        if not all(2.0 <= second < 4.0 for second in seconds):
            raise RuntimeError("Invalid pts")
        frames = numbered(20)[[int((second - 2.0) * 10) for second in seconds]]
        return SimpleNamespace(data=torch.tensor(frames).permute(0, 3, 1, 2))


BARE = {
    "array": FRAMES,
    "channels first": FRAMES.transpose(0, 3, 1, 2),
    "tensor": torch.tensor(FRAMES),
    "tensor, channels first": torch.tensor(FRAMES).permute(0, 3, 1, 2),
    "list of arrays": list(FRAMES),
    "list of tensors": list(torch.tensor(FRAMES)),
    "list of PIL images": [Image.fromarray(frame) for frame in FRAMES],
    "tuple": tuple(FRAMES),
    "dict": {"frames": FRAMES, "fps": FPS},
    "dict of images": {"frames": list(FRAMES), "fps": FPS},
}


@pytest.mark.parametrize("form", BARE)
def test_bare_frames(form):
    video = open_video(BARE[form], fps=None if "dict" in form else FPS)

    assert is_video_object(BARE[form])
    assert (video.duration, video.size, video.has_audio, video.is_image) == (2.0, (64, 48), False, False)
    assert numbers(video) == list(range(20))
    assert numbers(video, 4) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert numbers(video, start=0.5, end=0.8) == [5, 6, 7]


def test_decoders():
    assert is_video_object(Decoder())
    video = open_video(Decoder())

    assert (video.duration, video.size, video.has_audio) == (2.0, (64, 48), False)
    assert numbers(video) == list(range(20))
    assert numbers(video, 4, start=0.5) == [5, 7, 10, 12, 15, 17]
    broken = Decoder()
    broken.get_frames_played_at = lambda seconds: Decoder.get_frames_played_at(broken, [9.0])
    with pytest.raises(ValueError, match=r"Decoder cannot decode its video at 0.0 s: Invalid pts"):
        open_video(broken)


def test_the_decoder_of_torchcodec(encoded_video):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))

    assert numbers(open_video(decoders.VideoDecoder(str(encoded_video("mp4"))))) == list(range(40))


FILES = {
    "path": lambda path: str(path),
    "os.PathLike": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "dict of a path": lambda path: {"path": str(path)},
    "dict of bytes": lambda path: {"path": None, "bytes": path.read_bytes()},
    "arrow row": lambda path: pa.array([{"bytes": path.read_bytes(), "path": None}])[0],
}


@pytest.mark.parametrize("form", FILES)
def test_every_form_of_a_file_gives_the_same_frames(form, encoded_video):
    value = FILES[form](encoded_video("webm"))

    assert is_video_object(value)
    video = open_video(value)
    gc.collect()
    for _ in range(2):
        assert numbers(video) == list(range(40))


@pytest.mark.parametrize(
    "value",
    [None, [], ["a.mp4", "b.mp4"], [FRAMES, FRAMES], {"video": "a.mp4"}, {"fps": 5}, 3.5, (0.1, 0.2), np.zeros(5)],
)
def test_collections_and_other_objects(value):
    assert not is_video_object(value)


def wave_bytes(kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5), 48_000, format=kind)
    return buffer.getvalue()


def with_cover(mp3):
    """An MP3 with a picture in its ID3 tag."""
    picture = b"\0image/jpeg\0\x03\0" + image_bytes("JPEG")
    frame = b"APIC" + struct.pack(">I", len(picture)) + bytes(2) + picture
    size = bytes(len(frame) >> 7 * place & 127 for place in (3, 2, 1, 0))
    return b"ID3\x03\0\0" + size + frame + mp3


REFUSED = {
    "empty": (b"", r"the video file is empty \(0 bytes\); use a whole video file"),
    "text": (
        b"Happy? " * 99,
        r"the video file is not readable video \(.*: it is corrupt, truncated, or in an unknown f",
    ),
    "missing": ("absent.mp4", r"Cannot read absent\.mp4 \(.*No such file.*\); check the path or URL"),
    "folder": (".", r"Cannot read \. \(.*Is a directory.*\); check the path or URL"),
    "sound": (wave_bytes(), r"the video file has no video track; use a file with video"),
    "sound with a cover": (with_cover(wave_bytes("MP3")), r"the video file has no video track; use a file with video"),
    "playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\na.ts\n", r"is not readable video \("),
    "script": (b"ffconcat version 1.0\nfile a.mp4\n", r"is not readable video \("),
    "vector graphics": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", r"is not readable video"),
    "text file": (io.StringIO("RIFF"), r"StringIO returns str instead of bytes; open the file with"),
    "dict without a video": (
        {"path": None, "bytes": None},
        r"dict with keys \['path', 'bytes'\] is not a video: it needs",
    ),
    "dict of a file with fps": ({"path": "a.mp4", "fps": 5}, r"fps=5 does not apply to a file; leave it out"),
    "dict without fps": ({"frames": FRAMES}, r"array of shape \(20, 48, 64, 3\) needs fps, the number of frames per"),
    "array without fps": (
        FRAMES,
        r"array of shape \(20, 48, 64, 3\) needs fps, .*: pass fps=25, or \{'frames', 'fps'\}",
    ),
    "list without fps": (list(FRAMES), r"list of 20 images needs fps"),
    "floats": (FRAMES / 255, r"has dtype float64, of unknown scale; pass uint8 RGB in \[0, 255\]: \(255 \* frames\)"),
    "grey": (FRAMES[..., :1], r"array of shape \(48, 64, 1\) is not an image; it must be RGB of shape"),
    "batch": (
        FRAMES[None],
        r"array of shape \(1, 20, 48, 64, 3\) is not one video; .* Pass a batch as a list of videos",
    ),
    "no frames": (FRAMES[:0], r"array of shape \(0, 48, 64, 3\) has no frames"),
    "empty list": ([], r"list of 0 images has no frames"),
    "no pixels": (np.zeros((4, 0, 64, 3), np.uint8), r"array of shape \(0, 64, 3\) is not an image"),
    "list of sizes": (
        [FRAMES[0], FRAMES[0, :20]],
        r"list of 2 images has images of different sizes, \(20, 64, 3\) and \(48, 64, 3\); resize them to one",
    ),
    "list of paths": (["a.png", "b.png"], r"list of 2 images: 0 is a str, not an image; pass a path or URL"),
    "truncated picture": (
        Image.open(io.BytesIO(image_bytes("JPEG")[:-200])),
        r"the JpegImageFile cannot be decoded \(.*truncated.*\); use a whole file",
    ),
    "number": (3.5, r"float is not a video input; pass a path or URL of a video or image file, its bytes"),
    "nothing": (None, r"NoneType is not a video input"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_at_once(case):
    video, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        open_video(video)


def test_fps_is_for_bare_frames_only(encoded_video):
    for video, message in (
        (
            encoded_video("mp4"),
            r"fps=25 does not apply to .*\.mp4, which has its own timestamps \(10 frames per second\)",
        ),
        (Decoder(), r"fps=25 does not apply to Decoder, which has its own timestamps \(10 frames per second\)"),
        (two_colours(), r"fps=25 does not apply to one image; leave it out, or pass a list of frames"),
        ({"frames": FRAMES, "fps": 5}, r"fps=25 contradicts the fps=5 of the video's dict; leave one of them out"),
    ):
        with pytest.raises(ValueError, match=message):
            open_video(video, fps=25)


def test_frames_may_last_a_day():
    assert open_video(FRAMES[:1], fps=1 / 86_400).duration == pytest.approx(86_400)
    with pytest.raises(ValueError, match=r"at fps=1e-05 lasts 100000 s; at most 86400 s are read"):
        open_video(FRAMES[:1], fps=1e-5)


def test_grey_of_16_bits_keeps_its_levels():
    levels = np.arange(0, 256, 4, dtype=np.uint16)[None].repeat(2, axis=0)
    ((_, pixels),) = open_video(Image.fromarray(levels * 256 + 128)).frames(1)
    assert np.array_equal(pixels, levels.astype(np.uint8)[..., None].repeat(3, axis=-1))
