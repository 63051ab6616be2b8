#!/bin/sh
# Makes a virtual environment that holds the service and neither torch nor transformers.
# Usage: docker/install.sh WHEEL FOLDER
set -eu
wheel=$1
folder=$2
here=$(dirname "$0")

install() {
    python3 -m pip --python "$folder/bin/python" --disable-pip-version-check \
        install --quiet --constraint "$here/../constraints.txt" "$@"
}

python3 -m venv --without-pip "$folder"
install --requirement "$here/requirements.txt"
# mmemo depends on what its pipeline needs. Of silero-vad only the weights are read, and it depends on torch.
install --no-deps "$wheel" silero-vad
