"""The Space in `examples/space`, run from its own files."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


SPACE = Path(__file__).parents[1] / "examples" / "space"


@pytest.mark.slow
def test_it_serves_the_model_of_its_variable(exported, tmp_path):
    gradio_client = pytest.importorskip("gradio_client", reason="the page needs gradio: pip install 'mmemo[demo]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "MODEL": str(exported),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, SPACE / "app.py"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http\S+", server.stdout.readline())[0]
            client = gradio_client.Client(address, verbose=False, download_files=tmp_path)
            emotion, *_ = client.predict(None, "I am so happy!", None, api_name="/answer")
        finally:
            server.terminate()

    assert {entry["label"] for entry in emotion["confidences"]} == {"angry", "happy", "neutral", "sad"}


def test_its_front_matter_is_valid():
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text(), re.DOTALL)[1])

    assert front["sdk"] == "gradio" and (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text().split() == ["mmemo[demo,onnx]"]
