"""
Draws the faces of a video over its frames, with Pillow.

Deliberate choices:
- Every face has its number, since that is how another one is chosen; only the chosen one has names.
- Frames are drawn and encoded one at a time, as H.264 in MP4, which all browsers play.
"""

import io
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmemo.video.face import FaceSequence


# The longer side of drawn pictures in pixels; smaller ones have no room for the names beside a face.
DRAWN_SIDE = 640
NUM_NAMES = 5
CHOSEN_COLOR, OTHER_COLOR = "#E69F00", "#56B4E9"
FONT_SIZE, MARGIN, LINE_WIDTH = 14, 4, 2


def draw_faces(picture: np.ndarray, faces: list[FaceSequence], chosen: int, frame: int) -> Image.Image:
    """
    Draws the box and number of each face in a frame, and the strongest blendshapes of one beside its box.

    Args:
        picture (`np.ndarray` of shape `(height, width, 3)`): The frame, uint8 RGB.
        faces (`list[FaceSequence]`): The faces, numbered from 0.
        chosen (`int`): Number of the face whose blendshapes are drawn.
        frame (`int`): Position of the frame in the sequences.

    Returns:
        `PIL.Image.Image`: The picture, scaled to `DRAWN_SIDE`, with even sides, as H.264 needs them.
    """
    image = Image.fromarray(picture)
    scale = DRAWN_SIDE / max(image.size)
    width, height = (max(2, 2 * round(scale * side / 2)) for side in image.size)
    image = image.resize((width, height))
    canvas = ImageDraw.Draw(image)
    for number, face in enumerate(faces):
        if not face.is_present[frame]:
            continue
        color = CHOSEN_COLOR if number == chosen else OTHER_COLOR
        left, top, right, bottom = (face.boxes[frame] * (width, height, width, height)).tolist()
        canvas.rectangle((left, top, right, bottom), outline=color, width=LINE_WIDTH)
        lines = [f"face {number}"]
        if number == chosen:
            start, end = face.times[frame].tolist()
            lines += [f"{name} {score:.2f}" for name, score in face.strongest(start, end, NUM_NAMES)]
        _write(canvas, image.size, "\n".join(lines), (left, top, right))
    return image


def encode_faces(
    frames: Iterable[tuple[float, np.ndarray]], frames_per_second: float, faces: list[FaceSequence], chosen: int
) -> bytes:
    """
    Returns the drawn frames of a video as the bytes of an MP4 file, without sound.

    Args:
        frames (iterable of `(float, np.ndarray)`): The frames from which the faces were read.
        frames_per_second (`float`): Their rate.
        faces, chosen: As in [`draw_faces`].
    """
    import av

    file, rate = io.BytesIO(), Fraction(frames_per_second).limit_denominator(1000)
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for index, (_, picture) in enumerate(frames):
            frame = av.VideoFrame.from_image(draw_faces(picture, faces, chosen, index))
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    return file.getvalue()


def _write(canvas: ImageDraw.ImageDraw, size: tuple[int, int], text: str, box: tuple[float, float, float]) -> None:
    """Writes lines on a picture of that width and height, on the side of a box (left, top, right) with more room."""
    (width, height), (left, top, right) = size, box
    font = ImageFont.load_default(FONT_SIZE)
    *_, text_width, text_height = canvas.multiline_textbbox((0, 0), text, font)
    x = right + MARGIN if width - right >= left else left - MARGIN - text_width
    x = max(0.0, min(x, width - text_width))
    y = max(0.0, min(top, height - text_height))
    canvas.rectangle((x - MARGIN / 2, y, x + text_width + MARGIN / 2, y + text_height + MARGIN), fill="black")
    canvas.multiline_text((x, y), text, fill="white", font=font)
