"""
Video inputs: the Python objects that are accepted as one video or one image.

Deliberate choices:
- Frames are uint8: the scale of floats is unknown ([0, 1], [-1, 1] or normalised).
- Files have timestamps of their own, and any other frame rate contradicts them; bare frames have none and need one.
- Objects of other libraries are recognised by their protocols or names, as in `mmemo.audio.inputs`.
"""

import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from mmemo.audio.files import BinaryFile
from mmemo.audio.inputs import ArrayObject, as_array, file_bytes, is_arrow_scalar, is_tensor
from mmemo.storage import short


@runtime_checkable
class VideoDecoder(Protocol):
    """The part of `torchcodec.decoders.VideoDecoder` that is used; `datasets` yields such decoders."""

    metadata: Any

    def get_frames_played_at(self, seconds: Any) -> Any:
        """Returns the frames that are shown at these times, with their pixels as `data`."""


VideoInput: TypeAlias = (
    str
    | os.PathLike
    | bytes
    | bytearray
    | memoryview
    | BinaryFile
    | ArrayLike
    | ArrayObject
    | Sequence[Any]
    | dict[str, Any]
    | VideoDecoder
)
"""
One video or one image, in any of these forms:

- a path, or a URL, http(s) or one that `fsspec` opens (s3, gs, hf and others), of a video file (MP4, MOV, WebM, MKV,
  AVI, MPEG-TS, FLV, WMV, animated GIF and others) or of an image file (JPEG, PNG, WebP, BMP, TIFF);
- the bytes of such a file, also as a `bytearray` or `memoryview`, or the file itself, open for reading in binary mode
  (`io.BytesIO`, `open(path, "rb")`), which is read from its beginning;
- frames: a NumPy array or tensor of shape `(time, height, width, 3)` or `(time, 3, height, width)`, or a list of
  images of one size, each a PIL image or an array of shape `(height, width, 3)` or `(3, height, width)`. Arrays are
  uint8 RGB. Frames need `fps`, their number per second;
- `{"frames": frames, "fps": fps}`;
- one image, as a PIL image or an array; transparency is dropped, and PIL images are rotated as their EXIF data says;
- `{"path": path, "bytes": bytes}`, either of them possibly `None`, as `datasets` yields with `Video(decode=False)`;
- a torchcodec `VideoDecoder`, as `datasets` yields with `Video()`. It has no sound.
"""

VIDEO_INPUT_FORMS = (
    "a path or URL of a video or image file, its bytes, an open binary file, a uint8 array of shape (time, "
    "height, width, 3), a list of images, {'frames', 'fps'}, one image, {'path', 'bytes'} or a torchcodec VideoDecoder"
)
VIDEO_KEYS = frozenset({"frames", "fps", "bytes", "path"})
# Slow-motion cameras record up to this many frames per second.
MAX_FPS = 1000.0
FILE_NAME = "the video file"  # of bytes and open files, in error messages


class Frames(NamedTuple):
    """Decoded frames; `fps` is `None` for one image."""

    pictures: Sequence[Any]
    fps: float | None


Source: TypeAlias = bytes | str | BinaryFile | VideoDecoder | Frames


def is_video_object(value: Any) -> bool:
    """
    Returns whether a Python object is one video or image by itself, and not a collection of inputs.

    Lists and tuples of images are one video; all others are collections.
    """
    if isinstance(value, dict):
        return bool(value.keys() - {"fps"}) and value.keys() <= VIDEO_KEYS
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_is_image(part) for part in value)
    if isinstance(value, (str, os.PathLike, bytes, BinaryFile, VideoDecoder)):
        return True
    if _is_image(value) or is_arrow_scalar(value) or file_bytes(value) is not None:
        return True
    return isinstance(value, ArrayObject) and np.ndim(as_array(value)) == 4


def resolve_video(video: VideoInput, fps: float | None = None) -> tuple[str, Source]:
    """
    Returns a name for error messages and the source.

    Args:
        video (`VideoInput`): The input.
        fps (`float`, *optional*): Frames per second of bare frames.

    Returns:
        `tuple`: the name; the bytes or location of a file, an open file, a decoder, or frames.

    Raises:
        ValueError: If the input has no accepted form, or `fps` is missing, invalid or contradicts the input.
    """
    if fps is not None:
        check_fps("fps", fps)
    if isinstance(video, dict):
        return _resolve_dict(video, fps)
    if is_arrow_scalar(video):
        scalar: Any = video
        return resolve_video(scalar.as_py(), fps)
    if isinstance(video, (str, os.PathLike)):
        location = os.fsdecode(video)
        return short(location), location
    if isinstance(video, VideoDecoder):
        return type(video).__name__, video
    content = None if _is_pil(video) else file_bytes(video)
    if content is not None:
        return FILE_NAME, content
    if isinstance(video, BinaryFile):
        return FILE_NAME, video
    return _resolve_frames(video, fps)


def check_fps(name: str, fps: Any) -> None:
    """Raises a `ValueError` if a number of frames per second is not positive and at most `MAX_FPS`."""
    is_number = isinstance(fps, Real) and not isinstance(fps, bool)
    if not is_number or not 0 < fps < math.inf:
        raise ValueError(f"{name}={fps!r} must be a positive number of frames per second, such as 25.")
    if fps > MAX_FPS:
        raise ValueError(f"{name}={fps!r} is out of range; at most {MAX_FPS:.0f} frames per second are valid.")


def _resolve_dict(video: dict[str, Any], fps: float | None) -> tuple[str, Source]:
    own = video.get("fps")
    if own is not None and fps is not None and own != fps:
        raise ValueError(f"fps={fps!r} contradicts the fps={own!r} of the video's dict; leave one of them out.")
    for key in ("frames", "bytes", "path"):
        value = video.get(key)
        if value is None:
            continue
        if key == "frames":
            return resolve_video(value, fps if own is None else own)
        if own is not None:
            raise ValueError(f"dict with keys {list(video)}: fps={own!r} does not apply to a file; leave it out.")
        name, source = resolve_video(value)
        return short(video.get("path") or name), source
    raise ValueError(
        f"dict with keys {list(video)} is not a video: it needs 'frames' and 'fps', or one of 'path' and 'bytes', and "
        "those must not be None."
    )


def _resolve_frames(video: Any, fps: float | None) -> tuple[str, Frames]:
    if _is_image(video):
        if fps is not None:
            raise ValueError(f"fps={fps!r} does not apply to one image; leave it out, or pass a list of frames.")
        as_rgb(video)
        return "the image", Frames([video], None)
    frames: Any = video
    if isinstance(video, (list, tuple)):
        name = f"list of {len(video)} images"
        for index, image in enumerate(video):
            if not _is_image(image):
                raise ValueError(f"{name}: {index} is {_described(image)}, not an image; pass {VIDEO_INPUT_FORMS}.")
        sizes = sorted({_shape(image) for image in video})
        if len(sizes) > 1:
            raise ValueError(f"{name} has images of different sizes, {sizes[0]} and {sizes[1]}; resize them to one.")
    else:
        frames = _frames_of(video)
        name = f"array of shape {frames.shape}"
    if not len(frames):
        raise ValueError(f"{name} has no frames; leave it out, or pass at least one.")
    as_rgb(frames[0])
    if fps is None:
        raise ValueError(f"{name} needs fps, the number of frames per second: pass fps=25, or {{'frames', 'fps'}}.")
    return name, Frames(frames, float(fps))


def _frames_of(video: Any) -> np.ndarray:
    """Returns frames of shape `(time, height, width, 3)` or `(time, 3, height, width)`."""
    if not isinstance(video, ArrayObject):
        raise ValueError(f"{type(video).__name__} is not a video input; pass {VIDEO_INPUT_FORMS}.")
    frames = as_array(video)
    if frames.ndim != 4:
        raise ValueError(
            f"{_described(video)} is not one video; it must be (time, height, width, 3), or (height, width, 3) for "
            "one image. Pass a batch as a list of videos."
        )
    return frames


def as_rgb(image: Any) -> np.ndarray:
    """
    Returns the pixels of a PIL image, or of an array of shape `(height, width, 3)` or `(3, height, width)`.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: uint8 RGB.

    Raises:
        ValueError: If an array is not uint8, has no three channels, or no pixels, or a PIL image cannot be decoded.
    """
    if _is_pil(image):
        return _pil_rgb(image)
    pixels = as_array(image)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"{_described(image)} has dtype {pixels.dtype}, of unknown scale; pass uint8 RGB in [0, 255]: "
            "(255 * frames).astype('uint8') for floats in [0, 1]."
        )
    if pixels.shape[-1] != 3 and pixels.shape[0] == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(f"{_described(image)} is not an image; it must be RGB of shape (height, width, 3).")
    return pixels


def _pil_rgb(image: Any) -> np.ndarray:
    """Returns the pixels of a PIL image, uint8 `(height, width, 3)`, rotated as its EXIF data says."""
    from PIL import Image, ImageOps

    name = type(image).__name__
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            # Pillow would clip the levels above 255.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
    except OSError as error:  # its pixels are read only now
        raise ValueError(f"the {name} cannot be decoded ({short(error)}); use a whole file.") from error


def _is_image(value: Any) -> bool:
    is_array = isinstance(value, ArrayObject) and not isinstance(value, (list, tuple))
    return _is_pil(value) or (is_array and len(_shape(value)) == 3)


def _shape(value: Any) -> tuple[int, ...]:
    """Returns the shape of an array, or that of a PIL image, whose pixels may still be in its file."""
    if _is_pil(value):
        return (value.height, value.width, 3)
    return tuple(value.shape) if isinstance(value, np.ndarray) or is_tensor(value) else np.shape(value)


def _described(value: Any) -> str:
    return f"array of shape {_shape(value)}" if isinstance(value, ArrayObject) else f"a {type(value).__name__}"


def _is_pil(value: Any) -> bool:
    return any((kind.__module__, kind.__name__) == ("PIL.Image", "Image") for kind in type(value).__mro__)
