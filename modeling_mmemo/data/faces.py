"""
Faces of the videos of rows, followed once and cached on disk.

Deliberate choices:
- Finding a face takes about 12 ms per frame, which is nearly the whole cost of training an encoder of blendshapes. The
  result is small: 70 kB for a minute at 5 frames per second.
- The key of a file is the fingerprint of its video, see [`file_fingerprint`], the settings of the processor and the
  weights of the landmarker. Runs with the same settings share it, and an interrupted run continues.
- Crops, for image encoders, are stored uncompressed with the face if they take at most `MAX_CROP_BYTES`; those of
  longer videos are computed whenever they are used.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers.utils import logging

from mmemo.items import ItemProcessing
from mmemo.video.face import FaceSequence
from mmemo.video.landmarks import models_folder
from modeling_mmemo.data.clips import check_clips, has_sound, unreadable
from modeling_mmemo.data.fingerprints import audio_fingerprint
from modeling_mmemo.data.schema import STORED_FEATURES


logger = logging.get_logger(__name__)

# 44 seconds at 5 frames per second and 224 pixels.
MAX_CROP_BYTES = 2**25
_ARRAYS = ("times", "is_present", "blendshapes", "boxes")

Stored = Mapping[str, Any]


class FaceCache:
    """
    Follows the faces of stored videos, and keeps them in files.

    Args:
        processor (`ItemProcessing`): Follows faces at its `frames_per_second`, with crops of its `crop_size`.
        folder (`str` or `Path`): Folder of the cache; faces are in its folder `faces`.
    """

    def __init__(self, processor: ItemProcessing, folder: str | Path):
        self.processor = processor
        self.folder = Path(folder) / "faces"
        settings = {name: getattr(processor, name) for name in ("frames_per_second", "crop_size")}
        self._settings = json.dumps(settings | {"landmarker": _landmarker_hash()})

    def read(self, video: Stored, with_crops: bool = True) -> FaceSequence:
        """
        Returns the face in a video, from the cache or followed now.

        Args:
            video (`Mapping`): A cell of the column `video`, `{"bytes", "path"}`.
            with_crops (`bool`, *optional*, defaults to `True`): Whether to load the crops, if the processor has a
                `crop_size`.

        Raises:
            ValueError: If the video cannot be read.
        """
        digest = hashlib.sha256(f"{self._settings} {audio_fingerprint(video)}".encode())
        path = self.folder / f"{digest.hexdigest()[:32]}.safetensors"
        if not path.is_file():
            face = self.processor.load_video(dict(video))
            _write(path, face)
            return face if with_crops else replace(face, crops=None)
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            crops = file.get_tensor("crops") if with_crops and "crops" in file.keys() else None  # noqa: SIM118
        if crops is None and with_crops and self.processor.crop_size is not None:
            return self.processor.load_video(dict(video))
        duration = float(arrays["times"][-1, 1]) if len(arrays["times"]) else 0.0
        return FaceSequence(**arrays, crops=crops, duration=duration)

    def read_all(self, videos: Iterable[Stored | None]) -> list[FaceSequence | None]:
        """
        Returns the faces in many videos without their crops, `None` where there is no video.

        Raises:
            ValueError: If videos cannot be read; the message lists the first 10 and the number of all.
        """
        videos, problems = list(videos), []

        def face_of(video: Stored | None) -> FaceSequence | None:
            try:
                return None if video is None else self.read(video, with_crops=False)
            except ValueError as error:
                problems.append(f"{video['path'] or 'video'}: {error}")
                return None

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            faces = list(tqdm(threads.map(face_of, videos), desc="Following faces", total=len(videos)))
        if problems:
            raise unreadable("video", problems)
        return faces


class Faces(Sequence):
    """
    The faces of rows; `self[i]` is the face of a row, with crops if the processor has a `crop_size`.

    Args:
        cache (`FaceCache`): Reads the videos.
        videos (`Iterable[Mapping]`): The column `video`; `None` for a row without one.
    """

    def __init__(self, cache: FaceCache, videos: Iterable[Stored | None]):
        self._cache, self._videos = cache, list(videos)
        self._faces = cache.read_all(self._videos)

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, index: int) -> FaceSequence | None:
        has_crops = self._cache.processor.crop_size is not None and self._videos[index] is not None
        return self._cache.read(self._videos[index]) if has_crops else self._faces[index]

    def without_crops(self, index: int) -> FaceSequence | None:
        """Returns the face of a row without its crops, from memory."""
        return self._faces[index]

    def length(self, index: int) -> int:
        """Returns the number of frames of a row; 0 without a video."""
        face = self._faces[index]
        return 0 if face is None else len(face.times)


def with_sounds(rows: Dataset) -> Dataset:
    """
    Returns rows with the columns of `FEATURES`, in which a row with `video` and without `audio` has the sound of its
    video as `audio`, if the file has an audio track.

    Raises:
        ValueError: If videos cannot be read; the message lists the first 10 and the number of all.
    """
    clips = list(zip(rows["audio"], rows["video"]))
    check_clips((), [video for audio, video in clips if audio is None])
    return _with_files(rows, "audio", [sound_of(video) if audio is None else audio for audio, video in clips])


def with_faces(rows: Dataset, cache: FaceCache) -> Dataset:
    """
    Returns rows with the columns of `FEATURES`, in which a video without a face is missing; one warning counts them.

    Raises:
        ValueError: If videos cannot be read; the message lists the first 10 and the number of all.
    """
    videos = list(rows["video"])
    found = [face is not None and bool(face.is_present.any()) for face in cache.read_all(videos)]
    count = sum(video is not None for video in videos)
    if missing := count - sum(found):
        logger.warning(f"No face was found in {missing} of {count} videos; these videos count as missing.")
    return _with_files(rows, "video", [video if is_found else None for video, is_found in zip(videos, found)])


def sound_of(video: Stored | None) -> Stored | None:
    """Returns a stored video as a cell of the column `audio`; `None` if it has no audio track."""
    return video if video is not None and has_sound(video) else None


def _with_files(rows: Dataset, column: str, files: Sequence[Stored | None]) -> Dataset:
    """Returns rows with other files in one column."""
    # As a plain struct, because encoding an Audio column again would need torchcodec.
    return rows.cast(STORED_FEATURES).map(
        lambda _, indices: {column: [files[index] for index in indices]},
        batched=True,
        with_indices=True,
        features=STORED_FEATURES,
        load_from_cache_file=False,
    )


@cache
def _landmarker_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(models_folder().glob("*.onnx")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, face: FaceSequence) -> None:
    """Writes a face, whole or not at all: several processes may follow the same one."""
    arrays = {name: np.ascontiguousarray(getattr(face, name)) for name in _ARRAYS}
    if face.crops is not None and face.crops.nbytes <= MAX_CROP_BYTES:
        arrays["crops"] = np.ascontiguousarray(face.crops)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    save_file(arrays, temporary)
    os.replace(temporary, path)
