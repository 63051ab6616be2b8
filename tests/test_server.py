"""The server keeps its connections below the limit on open files."""

import resource

import pytest

from mmemo.serving import server


@pytest.mark.parametrize(
    ("files", "wanted", "limit"),
    [(1024, 512, 512), (128, 512, 48), (592, 512, 512), (591, 512, 511), (resource.RLIM_INFINITY, 10**6, 10**6)],
)
def test_connections_leave_files_for_other_uses(monkeypatch, caplog, files, wanted, limit):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))

    assert server.connection_limit(wanted) == limit
    assert bool(caplog.records) == (limit < wanted)


def test_too_few_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (80, 80))

    with pytest.raises(ValueError, match="At most 80 files may be open, but at least 81 must; raise ulimit -n"):
        server.connection_limit(512)
