"""Pixels of decoded frames: rotation, shape, size and colours; images."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from videos import FPS, image_bytes, numbered, numbers, two_colours, write_video

from mmemo.video.frames import is_video_object, open_video


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_rotation_is_applied(rotation, corner, tmp_path):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 250  # the top left quarter
    write_video(tmp_path / "a.mp4", frames, FPS, rotation=rotation)

    video = open_video(tmp_path / "a.mp4")
    _, pixels = next(video.frames(1))

    assert video.size == ((64, 48) if rotation % 180 == 0 else (48, 64))
    assert pixels.shape == (video.size[1], video.size[0], 3)
    for place in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        assert (pixels[place] > 128).all() == (place == corner)


def test_pixels_become_square(tmp_path):
    write_video(tmp_path / "wide.mp4", numbered(3), FPS, aspect=Fraction(3, 2))
    write_video(tmp_path / "absurd.mp4", numbered(3), FPS, aspect=Fraction(200, 1))

    assert open_video(tmp_path / "wide.mp4").size == (96, 48)
    assert open_video(tmp_path / "absurd.mp4").size == (64, 48)


def test_large_frames_are_scaled_down(tmp_path):
    large = np.broadcast_to(np.uint8(100), (2, 640, 1920, 3))
    write_video(tmp_path / "a.mp4", large, FPS)

    for video in (open_video(tmp_path / "a.mp4"), open_video(large, fps=FPS), open_video(Image.fromarray(large[0]))):
        assert video.size == (1280, 427)
        assert abs(next(video.frames(1))[1].astype(int) - 100).max() <= 2


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p", "yuvj420p", "yuv422p", "gray"])
def test_pixel_formats(pixel_format, tmp_path):
    write_video(tmp_path / "a.mkv", numbered(5, 50, 66), FPS, pixel_format=pixel_format)

    video = open_video(tmp_path / "a.mkv")
    assert video.size == (66, 50)
    found = numbers(video)
    # Grey of an untagged file is of limited range.
    assert found == sorted(found) if pixel_format == "gray" else found == list(range(5))


def test_colours_are_rgb(tmp_path):
    colour = np.array([200, 60, 30], np.uint8)
    write_video(tmp_path / "a.mp4", np.broadcast_to(colour, (3, 48, 64, 3)), FPS)

    assert abs(next(open_video(tmp_path / "a.mp4").frames(1))[1].astype(int) - colour).max() <= 4


IMAGES = {
    "png": image_bytes("PNG"),
    "transparent": image_bytes("PNG", two_colours().convert("RGBA")),
    "jpeg": image_bytes("JPEG", quality=95),
    "webp": image_bytes("WEBP", lossless=True),
    "bmp": image_bytes("BMP"),
    "tiff": image_bytes("TIFF"),
    "avif": image_bytes("AVIF"),
    "pil": two_colours(),
    "array": np.asarray(two_colours()),
    "tensor": torch.tensor(np.asarray(two_colours())).permute(2, 0, 1),
}


@pytest.mark.parametrize("form", IMAGES)
def test_an_image_is_one_frame(form):
    assert is_video_object(IMAGES[form])
    image = open_video(IMAGES[form])

    ((time, pixels),) = image.frames(5)
    assert (image.is_image, image.has_audio, image.duration, image.size) == (True, False, 0.0, (80, 60))
    assert time == 0.0
    np.testing.assert_allclose(pixels[10, 10], (250, 10, 10), atol=5)
    np.testing.assert_allclose(pixels[-10, 10], (10, 10, 250), atol=5)
    assert list(image.frames(5, start=0.2)) == []


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pil_images_of_any_mode(mode):
    assert open_video(two_colours().convert(mode)).size == (80, 60)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    data = image_bytes("JPEG", exif=exif, quality=95)

    for image in (open_video(data), open_video(Image.open(io.BytesIO(data)))):
        assert image.size == (60, 80)
        pixels = next(image.frames(1))[1]
        assert pixels[40, -5, 0] > 200 and pixels[40, 5, 2] > 200
