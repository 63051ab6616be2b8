"""Layers of CONTRIBUTING.md: `import mmemo` stays light, no import points upwards, and one name means one thing."""

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import mmemo
import modeling_mmemo


ROOT = Path(__file__).parents[1]
PACKAGES = {"mmemo", "modeling_mmemo"}
# `a b <- c`: c may import a and b, which must not import c. A name stands for the module and everything inside it that
# has no layer of its own.
ARROWS = """
mmemo.modalities <- mmemo.timeline mmemo.items mmemo.answers
mmemo.storage <- mmemo.audio mmemo.words
mmemo.audio <- mmemo.video
mmemo.audio mmemo.words mmemo.video <- mmemo.timeline <- mmemo.items mmemo.answers <- mmemo.zero_shot
mmemo.zero_shot <- mmemo.recognition <- mmemo.runtime <- mmemo
mmemo <- mmemo.serving mmemo.archives mmemo.info mmemo.demo mmemo.cli
mmemo.audio mmemo.video mmemo.timeline <- mmemo.plots <- mmemo.archives mmemo.demo modeling_mmemo.evaluation
modeling_mmemo.configuration_mmemo <- modeling_mmemo.audio_encoder_mmemo modeling_mmemo.video_encoder_mmemo
modeling_mmemo.video_encoder_mmemo <- modeling_mmemo.towers_mmemo
modeling_mmemo.audio_encoder_mmemo <- modeling_mmemo.towers_mmemo modeling_mmemo.fusion_mmemo
modeling_mmemo.towers_mmemo <- modeling_mmemo.fusion_mmemo <- modeling_mmemo.alignment_mmemo
modeling_mmemo.towers_mmemo <- modeling_mmemo.adapter_mmemo <- modeling_mmemo.pretrained_mmemo
modeling_mmemo.fusion_mmemo modeling_mmemo.distributed_mmemo <- modeling_mmemo.shared_space_mmemo
modeling_mmemo.shared_space_mmemo <- modeling_mmemo.pretrained_mmemo
modeling_mmemo.fusion_mmemo <- modeling_mmemo.losses_mmemo modeling_mmemo.pretrained_mmemo
modeling_mmemo.alignment_mmemo modeling_mmemo.losses_mmemo <- modeling_mmemo.modeling_mmemo <- modeling_mmemo
modeling_mmemo.outputs_mmemo modeling_mmemo.distributed_mmemo <- modeling_mmemo.modeling_mmemo
modeling_mmemo.outputs_mmemo modeling_mmemo.pretrained_mmemo <- modeling_mmemo.modeling_mmemo
mmemo.runtime modeling_mmemo.modeling_mmemo <- modeling_mmemo.onnx_model <- modeling_mmemo.pipelines
modeling_mmemo.feature_extraction_mmemo <- modeling_mmemo.processing_mmemo <- modeling_mmemo.pipelines
modeling_mmemo.pipelines modeling_mmemo.hub.remote_code <- modeling_mmemo
modeling_mmemo <- modeling_mmemo.data <- modeling_mmemo.evaluation <- modeling_mmemo.training
modeling_mmemo <- modeling_mmemo.exporters <- modeling_mmemo.hub
"""
# Assembles the package from all layers below.
ASSEMBLY = "modeling_mmemo"


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    in_function: bool


@cache
def modules():
    """Paths by dotted name; in the wheel `pipelines/` is `modeling_mmemo.pipelines`."""
    found = {}
    for folder in ("mmemo", "modeling_mmemo", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(("modeling_mmemo", *parts) if folder == "pipelines" else parts)] = path
    return found


@cache
def imports():
    """All imports of our own modules by our own modules, at any depth."""
    return [
        Import(name, target, line, in_function)
        for name, path in modules().items()
        for target, line, in_function in imports_in(name, path)
        if target.partition(".")[0] in PACKAGES
    ]


def imports_in(name, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            parents = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            members = [f"{source}.{alias.name}" for alias in node.names]
            targets = [member if member in modules() else source for member in members]
        for target in targets:
            yield target, node.lineno, id(node) in inside


@cache
def layers_below():
    """For each layer the layers that are drawn below it, directly or not."""
    direct = {layer: set() for layer in ARROWS.replace("<-", "").split()}
    for line in ARROWS.splitlines():
        for lower, upper in pairwise(group.split() for group in line.split("<-")):
            for layer in upper:
                direct[layer].update(lower)

    def below(layer):
        return direct[layer].union(*map(below, direct[layer]))

    return {layer: below(layer) for layer in direct}


def layer_of(module):
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    layer = next(name for name in names if name in layers_below())
    # The packages themselves are layers; a module that has none of its own belongs to no layer.
    return None if layer in PACKAGES and layer != module else layer


def is_exempt(found):
    """The package's `__init__`, and `mmemo` commands that need torch."""
    is_command = found.importer == "mmemo.cli" and found.in_function
    return found.importer == ASSEMBLY or (is_command and found.imported.startswith("modeling_mmemo"))


def described(found):
    return f"{modules()[found.importer].relative_to(ROOT)}:{found.line} imports {found.imported}"


@pytest.mark.parametrize("module", ["mmemo", "mmemo.cli"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print(*sys.modules.keys() & {{'torch', 'transformers', 'numpy', 'onnxruntime'}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.split() == []


def test_both_packages_share_their_classes():
    assert modeling_mmemo.EmotionStream is mmemo.EmotionStream


def test_every_module_has_a_layer():
    assert [module for module in modules() if layer_of(module) is None] == []


def test_no_import_points_upwards():
    upward = [
        described(found)
        for found in imports()
        if not is_exempt(found) and layer_of(found.importer) in layers_below()[layer_of(found.imported)]
    ]

    assert upward == []


def test_layers_have_no_cycle():
    graph = defaultdict(set)
    for found in imports():
        importer, imported = layer_of(found.importer), layer_of(found.imported)
        if importer != imported and not is_exempt(found):
            graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"These layers import each other: {' <- '.join(error.args[1])}")


def test_mmemo_imports_modeling_mmemo_only_inside_commands():
    heavy = [
        described(found)
        for found in imports()
        if found.importer.partition(".")[0] == "mmemo" and found.imported.partition(".")[0] == "modeling_mmemo"
        if not is_exempt(found)
    ]

    assert heavy == []


def test_the_generator_of_remote_code_imports_nothing_of_ours():
    assert [found for found in imports() if found.importer == "modeling_mmemo.hub.remote_code"] == []


def test_module_names_are_unique():
    assert repeated((path.stem, name) for name, path in modules().items() if path.stem != "__init__") == {}


def test_class_names_are_unique():
    classes = (
        (node.name, name)
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )

    assert repeated(classes) == {}


def repeated(named):
    places = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("importer", "imported", "upward"),
    [
        ("mmemo.audio.loading", "mmemo.timeline.track", True),
        ("mmemo.audio.loading", "mmemo.serving.app", True),
        ("mmemo.timeline.track", "mmemo.audio.loading", False),
        ("mmemo.plots", "mmemo.timeline.windows", False),
        ("mmemo.timeline.windows", "mmemo.plots", True),
        ("modeling_mmemo.evaluation.report", "modeling_mmemo.training.folds", True),
        ("modeling_mmemo.towers_mmemo", "modeling_mmemo.modeling_mmemo", True),
        ("modeling_mmemo.configuration_mmemo", "modeling_mmemo", True),
        ("modeling_mmemo.hub.push", "modeling_mmemo.exporters.quantizer", False),
        ("modeling_mmemo.exporters.quantizer", "modeling_mmemo.hub.push", True),
    ],
)
def test_the_drawing_is_read_as_meant(importer, imported, upward):
    assert (layer_of(importer) in layers_below()[layer_of(imported)]) is upward
