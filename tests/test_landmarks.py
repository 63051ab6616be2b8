import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
from faces import open_mouth, place, read_portrait, read_reference, read_versions, resize

from mmemo.video.landmarks import (
    BLENDSHAPE_POINTS,
    BLENDSHAPES,
    FaceLandmarker,
    Region,
    intersection_over_union,
    load_landmarker,
    sample,
)
from modeling_mmemo.hub.remote_code import remote_code


@pytest.mark.parametrize("version", read_reference())
def test_equals_the_reference(version):
    expected = read_reference()[version]
    picture = read_versions()[version]
    region = load_landmarker().detect(picture)[0]
    (face,) = load_landmarker()(picture)

    assert [region.x, region.y, region.size] == pytest.approx([*expected["centre"], expected["size"]], abs=0.02)
    assert face.presence > 0.99
    assert face.blendshapes == pytest.approx(np.array(expected["blendshapes"]), abs=1e-3)


def test_names_and_points():
    assert len(BLENDSHAPES) == len(set(BLENDSHAPES)) == 52
    assert sorted(set(BLENDSHAPE_POINTS)) == BLENDSHAPE_POINTS
    assert len(BLENDSHAPE_POINTS) == 146


def test_the_smile_and_the_open_mouth_of_the_portrait():
    portrait = read_portrait()
    closed, opened = (
        dict(zip(BLENDSHAPES, load_landmarker()(picture)[0].blendshapes))
        for picture in (portrait, open_mouth(portrait))
    )

    assert closed["mouthSmileLeft"] > 0.8
    assert closed["jawOpen"] < 0.05 < 0.15 < opened["jawOpen"]


def test_mirroring_exchanges_left_and_right():
    portrait = resize(read_portrait(), 400)
    plain, mirrored = (load_landmarker()(picture)[0].points for picture in (portrait, portrait[:, ::-1]))

    # The outer corner of the right eye, of the left eye, and the tip of the nose.
    assert 399 - mirrored[[263, 33, 1], 0] == pytest.approx(plain[[33, 263, 1], 0], abs=3)


def test_several_faces():
    portrait = read_portrait()
    scene = place((512, 1000), (portrait, 0, 0), (resize(portrait, 400)[:, ::-1], 550, 60))
    faces = load_landmarker()(scene)

    assert [face.region.x for face in sorted(faces, key=lambda face: face.region.x)] == pytest.approx(
        [225, 774], abs=8
    )


def test_small_faces_in_wide_pictures_are_found_in_squares():
    portrait = read_portrait()
    wide, tall = place((720, 1280), (portrait, 700, 100)), place((1280, 720), (portrait, 100, 700))

    assert [round(face.region.x, -1) for face in load_landmarker()(wide)] == [920]
    assert [round(face.region.y, -1) for face in load_landmarker()(tall)] == [830]


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((240, 320, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8),
        np.full((1, 1, 3), 200, np.uint8),
        np.full((1, 500, 3), 200, np.uint8),
        read_portrait()[::40, ::40],
        read_portrait()[250:],
    ],
    ids=["black", "noise", "one pixel", "one row", "tiny portrait", "portrait without its head"],
)
def test_no_face(picture):
    assert load_landmarker()(picture) == []


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_invalid_picture(picture):
    with pytest.raises(ValueError, match=r"must be a uint8 array of shape \(height, width, 3\)"):
        load_landmarker().detect(picture)


def test_sampling_by_hand():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0], picture[0, 1], picture[1, 0] = 255, (0, 51, 0), (0, 0, 102)

    # Positions -0.5, 0.5 and 1.5 along both axes, between pixels: means of four, black outside.
    result = sample(picture, Region(1, 1, 3, 0.0), 3)

    assert result[0] * 4 == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]]), abs=1e-6)
    assert result[1] * 4 == pytest.approx(np.array([[1, 1.2, 0.2], [1, 1.2, 0.2], [0, 0, 0]]), abs=1e-6)
    assert result[2] * 4 == pytest.approx(np.array([[1, 1, 0], [1.4, 1.4, 0], [0.4, 0.4, 0]]), abs=1e-6)


def test_a_region_turned_by_a_right_angle():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    # The crop's x axis points down the picture and its y axis to the left, from the picture's upper right corner.
    turned = 255 * sample(picture, Region(2, 2, 4, np.pi / 2), 4)

    assert turned[:, 1:] == pytest.approx(np.rot90(picture).transpose(2, 0, 1)[:, :3], abs=1e-3)


@pytest.mark.parametrize("degrees", [0, 30, -100])
def test_the_region_around_points_turns_with_them(degrees):
    points = load_landmarker()(read_portrait())[0].points.astype(float)
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    plain, turned = Region.around(points), Region.around(points @ rotation.T)

    assert [turned.x, turned.y] == pytest.approx(rotation @ [plain.x, plain.y])
    assert turned.size == pytest.approx(plain.size)
    assert turned.angle == pytest.approx(plain.angle + angle)


def test_intersection_over_union():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]])

    assert intersection_over_union(np.array([0, 0, 2, 2]), boxes) == pytest.approx([1, 1 / 7, 0])


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "mmemo\[video\]"'):
        FaceLandmarker()


def test_importing_is_light():
    code = "import sys, mmemo.video.face; print(*sys.modules.keys() & {'torch', 'transformers', 'onnxruntime', 'PIL'})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.split() == []


def test_the_code_of_a_saved_model_takes_the_graphs_of_the_package(tmp_path, monkeypatch):
    path = tmp_path / "mmemo_video_landmarks.py"
    path.write_text(remote_code()[path.name], encoding="utf-8")
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    assert module.models_folder().joinpath("detector.onnx").is_file()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the graphs of the package"):
        module.models_folder()
