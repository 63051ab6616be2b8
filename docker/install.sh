#!/bin/sh
# Creates a virtual environment with the service, without torch and transformers.
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
# Both depend on torch: mmemo for its pipeline, and silero-vad, of which the service uses only the weights.
install --no-deps "$wheel" silero-vad
