"""Settings of the service from environment variables whose names Kubernetes cannot take."""

import re
from dataclasses import fields

import pytest

from mmemo.serving.settings import PREFIX, ServiceSettings, environment_warnings


def kubernetes_variables(service, port=8000):
    """
    Variables that Kubernetes sets for a Service, in all pods of its namespace.

    Source: https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
    """
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", service)
    name, address = service.upper().replace("-", "_"), f"tcp://10.0.0.1:{port}"
    return {
        f"{name}_SERVICE_HOST": "10.0.0.1",
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": address,
        f"{name}_PORT_{port}_TCP": address,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": "10.0.0.1",
    }


@pytest.mark.parametrize("service", ["mmemo", "mmemo-serve", "mmemo-serve-1"])
def test_a_kubernetes_service_changes_no_setting(service, monkeypatch):
    for name, value in kubernetes_variables(service).items():
        monkeypatch.setenv(name, value)

    assert ServiceSettings.from_environment() == ServiceSettings()
    assert environment_warnings() == []


def test_no_service_name_can_give_the_name_of_a_setting():
    """A variable of Kubernetes ends as below after the name of a Service, which cannot end with a dash."""
    endings = r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_\w+)?)"
    for field in fields(ServiceSettings):
        match = re.fullmatch(rf"(\w+?){endings}", PREFIX + field.name.upper())
        assert match is None or match[1].endswith("_"), field.name


def test_values_are_parsed(monkeypatch):
    for name, value in {
        "PORT": "1",
        "MAX_CLIP_S": "2.5",
        "API_KEYS": "a, b",
        "MODEL": "",
        "MAX_BATCH_SIZE": "3",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)

    settings = ServiceSettings.from_environment(port=5)

    assert settings == ServiceSettings(port=5, max_clip_s=2.5, api_keys=("a", "b"), max_batch_size=3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "http", "MMEMO_SERVE__PORT='http' must be an integer"),
        ("IDLE_S", "long", "MMEMO_SERVE__IDLE_S='long' must be a number"),
        ("WORKERS", "0", "workers=0 must be positive"),
        ("API_KEYS", "a,,b", "An API key is blank"),
        ("MAX_REQUEST_MIB", "100", "max_pending_mib=40 is less than max_request_mib=100"),
    ],
)
def test_invalid_values(monkeypatch, name, value, message):
    monkeypatch.setenv(PREFIX + name, value)

    with pytest.raises(ValueError, match=message):
        ServiceSettings.from_environment()


def test_ignored_variables_cause_warnings(monkeypatch):
    monkeypatch.setenv("MMEMO_SERVE__PROT", "1")
    monkeypatch.setenv("MMEMO_MAX_CLIP_S", "12")

    old, unknown = environment_warnings()

    assert old == "MMEMO_MAX_CLIP_S is ignored: the setting is now called MMEMO_SERVE__MAX_CLIP_S."
    assert unknown.startswith("MMEMO_SERVE__PROT is ignored: it is not a setting. Valid are MMEMO_SERVE__API_KEYS, ")


def test_keys_under_the_former_name_do_not_leave_the_service_open(monkeypatch):
    monkeypatch.setenv("MMEMO_API_KEYS", "secret")

    with pytest.raises(ValueError, match="MMEMO_API_KEYS is now called MMEMO_SERVE__API_KEYS"):
        ServiceSettings.from_environment()

    monkeypatch.setenv("MMEMO_SERVE__API_KEYS", "secret")
    assert ServiceSettings.from_environment().api_keys == ("secret",)


@pytest.mark.parametrize(
    "name",
    [
        "MMEMO_SERVE__API_KEY",
        "MMEMO_SERVE__APIKEYS",
        "MMEMO_SERVE__KEYS",
        "MMEMO_SERVE__API_TOKEN",
        "MMEMO_SERVE__AUTH",
        "MMEMO_SERVE_API_KEYS",
        "MMEMO_SERVE_API_KEY",
        "mmemo_serve__api_keys",
        "MMEMO_SERVE__API_KYES",
    ],
)
@pytest.mark.parametrize("given", [{}, {"api_keys": ("a",)}])
def test_misspelt_keys_do_not_leave_the_service_open(monkeypatch, name, given):
    monkeypatch.setenv(name, "secret")

    with pytest.raises(ValueError, match=f"{name} is not a setting. API keys are set with MMEMO_SERVE__API_KEYS"):
        ServiceSettings.from_environment(**given)


@pytest.mark.parametrize("service", ["mmemo-serve-api-keys", "mmemo-serve-api-key", "mmemo-api-keys", "mmemo-keys"])
def test_no_service_of_kubernetes_seems_to_be_keys(service, monkeypatch):
    for name, value in kubernetes_variables(service).items():
        monkeypatch.setenv(name, value)

    assert ServiceSettings.from_environment() == ServiceSettings()


def test_other_unknown_variables_are_no_error(monkeypatch):
    for name in ("MMEMO_SERVE__PROT", "MMEMO_SERVE__MAX_CLIPS", "MMEMO_SERVER", "MY_API_KEYS", "API_KEYS"):
        monkeypatch.setenv(name, "1")

    assert ServiceSettings.from_environment() == ServiceSettings()
