"""
Conditional execution of an exported graph: nodes that serve a modality run only if a batch has this modality.

Deliberate choices:
- The pass works on the traced graph, so it needs nothing from an encoder. It moves the nodes that only contribute to
  the outputs of a modality's branch into an `If` on the modality's mask; the other case returns zeros. Attention
  between two modalities runs only if a batch has both.
- These zeros change no output: the embedding of a missing modality is multiplied by 0, its positions are masked.
- Weights stay in the outer graph, where quantization and sharing find them.
- `inline` restores the flat graph that quantization needs, and `nest` repeats the pass on the result.
"""

import re
from collections.abc import Iterable
from graphlib import TopologicalSorter
from itertools import combinations

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from mmemo.modalities import MASKS, presence_of


# The modules, by scope, whose outputs are not used for a batch without the modality; `last_pooling` is of the text.
BRANCH = re.compile(r"(^|\.)((?P<modality>[a-z]+)_branch|last_pooling)[./]")
ATTENTION = re.compile(r"(^|\.)(?P<layer>layers\.\d+)\.(?P<query>[a-z]+)_to_(?P<context>[a-z]+)[./]")
# The layer of attention, "" for a branch, and the modalities without which no output is used.
Scope = tuple[str, frozenset[str]]
# Element type and axes of values by name: an `int` if fixed, a `str` if dynamic.
Shapes = dict[str, tuple[int, list[int | str]]]
# Suffixes of the names of a value in the two cases.
PRESENT, ABSENT = "_present", "_absent"


def skip_absent(model: onnx.ModelProto) -> None:
    """
    Makes the nodes of each modality, and of each pair of modalities, conditional on their masks, in place.

    Graphs of one modality stay as they are, and so do encoders whose number of positions is only known after a run.

    Args:
        model (`onnx.ModelProto`): A flat graph whose nodes are named `{module}/{node}`, with the shapes of values.
    """
    graph = model.graph
    names = {value.name for value in graph.input}
    masks = {modality: mask for modality, mask in MASKS.items() if mask in names}
    if len(masks) < 2:
        return
    shapes = _shapes(graph)
    cuts = [(_has(*modalities), outputs) for (_, modalities), outputs in _outputs(graph, shapes).items()]
    conditional = set[int]().union(*(_exclusive_ancestors(graph, outputs) for _, outputs in cuts))
    axes = _axes(graph, conditional, shapes)
    conditionals = [
        helper.make_node("If", [name], outputs, name=f"{name}/{outputs[0]}", else_branch=_zeros(outputs, shapes, axes))
        for name, outputs in cuts
        if all(axis in axes or isinstance(axis, int) for output in outputs for axis in shapes[output][1])
    ]
    _set_nodes(graph, [*_conditions(masks), *graph.node])
    nest(graph, conditionals)


def _scope(node: NodeProto) -> Scope | None:
    """Returns the scope of a node of a branch or of attention between two modalities."""
    if found := BRANCH.search(node.name):
        return "", frozenset({found["modality"] or "text"})
    if found := ATTENTION.search(node.name):
        return found["layer"], frozenset({found["query"], found["context"]})
    return None


def _outputs(graph: GraphProto, shapes: Shapes) -> dict[Scope, list[str]]:
    """
    Returns the vectors that leave each scope, without those that a scope of other modalities uses: its nodes may run
    where this one's do not, such as attention of the text to the video after attention of the text to the audio.
    """
    users: dict[str, set[Scope | None]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(_scope(node))
    outputs: dict[Scope, list[str]] = {}
    for node in graph.node:
        if (scope := _scope(node)) is None:
            continue
        for name in node.output:
            others = users.get(name, set()) - {scope}
            needs_scope = all(other is None or scope[1] <= other[1] for other in others)
            if others and needs_scope and _are_vectors(shapes, name):
                outputs.setdefault(scope, []).append(name)
    return outputs


def _conditions(masks: dict[str, str]) -> Iterable[NodeProto]:
    """Yields the nodes that compute whether a batch has each modality, and each pair of them."""
    for modality, mask in masks.items():
        name = _has(modality)
        yield helper.make_node("ReduceMax", [mask], [f"{name}_mask"], name=f"{name}/ReduceMax", keepdims=0)
        yield helper.make_node("Cast", [f"{name}_mask"], [name], name=f"{name}/Cast", to=TensorProto.BOOL)
    for pair in combinations(masks, 2):
        yield helper.make_node("And", list(map(_has, pair)), [_has(*pair)], name=f"{_has(*pair)}/And")


def _has(*modalities: str) -> str:
    """Returns the name of the condition that a batch has these modalities: `has_audio`, `has_both`."""
    return f"has_{presence_of(modalities)}"


def nest(graph: GraphProto, conditionals: Iterable[NodeProto]) -> None:
    """Moves the nodes that only serve the outputs of an `If` without `then_branch` into it, for each of the nodes."""
    for conditional in conditionals:
        outputs = list(conditional.output)
        region = _exclusive_ancestors(graph, outputs)
        inside = [node for index, node in enumerate(graph.node) if index in region]
        outside = [node for index, node in enumerate(graph.node) if index not in region]
        _rename(inside, {name: name + PRESENT for name in outputs})
        branch = helper.make_graph(
            inside, f"{conditional.name}{PRESENT}", [], [_copied(value) for value in _results(conditional)]
        )
        for value, name in zip(branch.output, outputs):
            value.name = name + PRESENT
        complete = NodeProto()
        complete.CopyFrom(conditional)
        complete.attribute.append(helper.make_attribute("then_branch", branch))
        _set_nodes(graph, _sorted([*outside, complete]))


def inline(graph: GraphProto) -> list[NodeProto]:
    """Replaces each `If` of [`skip_absent`] by its nodes, in place, and returns them without `then_branch`."""
    nodes, conditionals = [], []
    for node in graph.node:
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        if node.op_type != "If" or not node.input[0].startswith("has_"):
            nodes.append(node)
            continue
        inside = list(branches["then_branch"].node)
        _rename(inside, {name + PRESENT: name for name in node.output})
        nodes += inside
        conditionals.append(
            helper.make_node("If", node.input, node.output, name=node.name, else_branch=branches["else_branch"])
        )
    _set_nodes(graph, nodes)
    return conditionals


def _results(conditional: NodeProto) -> Iterable[onnx.ValueInfoProto]:
    return next(attribute.g.output for attribute in conditional.attribute if attribute.name == "else_branch")


def _copied(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copied = onnx.ValueInfoProto()
    copied.CopyFrom(value)
    return copied


def _shapes(graph: GraphProto) -> Shapes:
    """Returns the element types and axes of the inputs and of the values within the graph."""
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.value_info)
    }


def _are_vectors(shapes: Shapes, name: str) -> bool:
    """Whether a value is a float sequence `(batch, positions or spans, width)`, not weights over positions."""
    kind, axes = shapes.get(name, (TensorProto.UNDEFINED, []))
    return kind == TensorProto.FLOAT and len(axes) == 3 and isinstance(axes[-1], int)


def _exclusive_ancestors(graph: GraphProto, outputs: Iterable[str]) -> set[int]:
    """Returns the indices of the nodes that contribute to nothing but `outputs`; nodes of weights alone stay out."""
    results, outputs = {value.name for value in graph.output}, set(outputs)
    users: dict[str, list[int]] = {}
    varies = {value.name for value in graph.input}
    for index, node in enumerate(graph.node):
        used = _used(node)
        for name in used:
            users.setdefault(name, []).append(index)
        if varies & used:
            varies.update(node.output)
    region: set[int] = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        is_exclusive = all(
            name in outputs or (name not in results and name in users and region.issuperset(users[name]))
            for name in node.output
        )
        if is_exclusive and varies.intersection(node.output):
            region.add(index)
    return region


def _axes(graph: GraphProto, region: set[int], shapes: Shapes) -> dict[int | str, tuple[str, int]]:
    """Returns, for each axis, a value that has it and does not depend on the nodes of `region`, and its position."""
    dependent: set[str] = set()
    for index, node in enumerate(graph.node):
        if index in region or dependent.intersection(node.input):
            dependent.update(node.output)
    found: dict[int | str, tuple[str, int]] = {}
    for name, (_, axes) in shapes.items():
        if name not in dependent:
            for position, axis in enumerate(axes):
                found.setdefault(axis, (name, position))
    return found


def _zeros(outputs: list[str], shapes: Shapes, sources: dict[int | str, tuple[str, int]]) -> GraphProto:
    """Returns a graph of zeros in the shapes of `outputs`; see [`_axes`]."""
    nodes, values, weights = [], [], []
    for name in outputs:
        kind, axes = shapes[name]
        parts = [f"{name}_axis_{position}" for position in range(len(axes))]
        for part, axis in zip(parts, axes):
            if isinstance(axis, int):
                weights.append(helper.make_tensor(part, TensorProto.INT64, [1], [axis]))
            else:
                source, start = sources[axis]
                nodes.append(helper.make_node("Shape", [source], [part], start=start, end=start + 1))
        nodes.append(helper.make_node("Concat", parts, [f"{name}_shape"], axis=0))
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [name + ABSENT]))
        values.append(helper.make_tensor_value_info(name + ABSENT, kind, axes))
    return helper.make_graph(nodes, f"zeros/{outputs[0]}", [], values, weights)


def _rename(nodes: Iterable[NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]


def _used(node: NodeProto) -> set[str]:
    """Returns the inputs of a node, including those that its subgraphs take from the outer graph."""
    used = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            used |= _used(inner)
    return used


def _sorted(nodes: list[NodeProto]) -> list[NodeProto]:
    """Returns the nodes in topological order."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    needed = {
        index: sorted({makers[name] for name in _used(node) if name in makers}) for index, node in enumerate(nodes)
    }
    return [nodes[index] for index in TopologicalSorter(needed).static_order()]


def _set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
