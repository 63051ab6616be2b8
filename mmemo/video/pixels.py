"""Pixels of decoded frames: upright uint8 RGB with square pixels, scaled down to at most `MAX_SIDE`."""

from typing import Any

import numpy as np


MAX_SIDE = 1280
# Beyond, the ratio of a pixel's sides is not believed.
MAX_ASPECT = 4.0


class FrameConverter:
    """
    Converts decoded frames. Transparency is dropped, and HDR is not tone-mapped.

    Args:
        aspect (`float`, *optional*, defaults to 1.0): Width of a pixel, relative to its height.
    """

    def __init__(self, aspect: float = 1.0):
        self._aspect = aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else 1.0
        self._reformatter: Any = None

    def __call__(self, frame: Any) -> np.ndarray:
        """
        Converts a frame.

        Args:
            frame (`av.VideoFrame` or `np.ndarray` of shape `(height, width, 3)`): The frame; arrays are uint8 RGB.

        Returns:
            `np.ndarray` of shape `(height, width, 3)`: uint8 RGB.
        """
        if isinstance(frame, np.ndarray):
            height, width = frame.shape[:2]
            if max(height, width) <= MAX_SIDE:
                return frame
            import av

            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if self._reformatter is None:
            from av.video.reformatter import VideoReformatter

            self._reformatter = VideoReformatter()  # reused: each one computes tables of its own
        width, height = self._size(frame.width, frame.height)
        pixels = self._reformatter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, MAX_SIDE / max(width * self._aspect, height))
        return max(1, round(width * self._aspect * scale)), max(1, round(height * scale))
