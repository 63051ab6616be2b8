"""
Validates manifests strictly, offline: unknown fields are errors.

The schemas of Kubernetes are those of `kubernetes-validate`, and of KServe those of its Python client. Of that package
only the tables of fields are read, not its code, whose dependencies contradict others.
"""

import ast
import importlib.metadata
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import jsonschema
import yaml
from referencing import Registry, Resource


KUBERNETES = "1.37"
SIMPLE = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
}
# Names that the client of KServe has for schemas of Kubernetes; all others are of the core.
OTHERS = {
    "K8sIoApiAppsV1DeploymentStrategy": "io.k8s.api.apps.v1.DeploymentStrategy",
    "ResourceQuantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
}


def documents(path):
    return list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))


def validate(manifest):
    """Raises a `jsonschema.ValidationError` if a manifest of Kubernetes, KServe or KubeRay is invalid."""
    if manifest["kind"] == "InferenceService":
        check(manifest, kserve_schema("V1beta1InferenceService"))
    elif manifest["kind"] == "RayService":
        check(manifest, RAY_SERVICE)
    else:
        check(manifest, kubernetes_schema(manifest["kind"], manifest["apiVersion"]))


def check(instance, schema):
    jsonschema.Draft202012Validator(schema, registry=registry()).validate(instance)


@cache
def registry():
    return Resource.from_contents(read_schema("_definitions.json")) @ Registry()


@cache
def kubernetes_schema(kind, version):
    """Returns the schema of a kind; files are named after the first word of the group, such as `networking`."""
    group = re.sub(r"\.[^/]*", "", version).replace("/", "-")
    return read_schema(f"{kind.lower()}-{group}.json")


def read_schema(name):
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    return json.loads((folder / name).read_text(encoding="utf-8"))


def kubernetes(name):
    return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/{name}"}


@cache
def kserve_schema(kind):
    """Returns the JSON Schema of a class of KServe's client."""
    name = re.sub(r"(?<!^)(?=[A-Z][a-z])|(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    path = importlib.metadata.distribution("kserve").locate_file(f"kserve/models/{name}.py")
    (model,) = [
        node for node in ast.parse(Path(path).read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    tables = {node.targets[0].id: ast.literal_eval(node.value) for node in model.body if isinstance(node, ast.Assign)}
    (init,) = [node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    # Optional fields are only set if they are given.
    required = [
        node.targets[0].attr
        for node in init.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Name)
        and node.value.id in tables["openapi_types"]
    ]
    spelling = tables["attribute_map"]
    return {
        "type": "object",
        "properties": {spelling[field]: kserve_type(type_) for field, type_ in tables["openapi_types"].items()},
        "required": [spelling[field] for field in required],
        "additionalProperties": False,
    }


def kserve_type(name):
    if name in SIMPLE:
        return SIMPLE[name]
    if match := re.fullmatch(r"list\[(.+)\]", name):
        return {"type": "array", "items": kserve_type(match[1])}
    if match := re.fullmatch(r"dict\(str, (.+)\)", name):
        return {"type": "object", "additionalProperties": kserve_type(match[1])}
    if name in OTHERS:
        return kubernetes(OTHERS[name])
    if re.match("V1(alpha|beta)", name):
        # Specifications of other frameworks and of the status contain each other; ours has none of them.
        return kserve_schema(name) if name in {"V1beta1InferenceServiceSpec", "V1beta1PredictorSpec"} else False
    return kubernetes(f"io.k8s.api.core.v1.{name.removeprefix('V1')}")


def closed(required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required else [],
        "additionalProperties": False,
    }


COUNT, TEXT = {"type": "integer", "minimum": 0}, {"type": "string"}
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": TEXT},
    "template": kubernetes("io.k8s.api.core.v1.PodTemplateSpec"),
}
# There is no schema of KubeRay in a package. These are the fields that we use, by its API reference; the pods in them
# have the schema of Kubernetes, and `serveConfigV2` that of Ray (tests/test_ray_app.py).
# Source: https://ray-project.github.io/kuberay/reference/api/
RAY_SERVICE = closed(
    True,
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=kubernetes(OTHERS["V1ObjectMeta"]),
    spec=closed(
        True,
        serveConfigV2=TEXT,
        rayClusterConfig=closed(
            True,
            rayVersion=TEXT,
            enableInTreeAutoscaling={"type": "boolean"},
            headGroupSpec=closed(True, **GROUP),
            workerGroupSpecs={
                "type": "array",
                "items": closed(True, groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, **GROUP),
            },
        ),
    ),
)
