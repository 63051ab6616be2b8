# `mmemo serve` over an exported model: without torch, without root, and with nothing to write to but /tmp.
#
#   docker build --tag mmemo .
#   docker run --rm --publish 127.0.0.1:8000:8000 --read-only --tmpfs /tmp mmemo
#
# docker/rehearse.py takes the same steps without Docker.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY docker/install.sh docker/requirements.txt docker/
COPY examples examples
COPY mmemo mmemo
COPY modeling_mmemo modeling_mmemo
COPY pipelines pipelines
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip wheel --no-deps --wheel-dir dist . && docker/install.sh dist/*.whl /opt/mmemo

FROM python:3.11-slim-bookworm
# The code is Apache-2.0, the weights of the embedded model are CC-BY-NC-SA-4.0.
LABEL org.opencontainers.image.title="mmemo" \
      org.opencontainers.image.description="Multimodal emotion recognition from voice and words, over HTTP and WebSocket" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-NC-SA-4.0"
RUN groupadd --gid 10001 mmemo \
    && useradd --uid 10001 --gid mmemo --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mmemo
COPY --from=build /opt/mmemo /opt/mmemo
# Uploads of more than 1 MiB lie in TMPDIR while they are read; models of the Hub lie in HF_HOME.
ENV PATH=/opt/mmemo/bin:$PATH \
    TMPDIR=/tmp \
    HF_HOME=/tmp/huggingface \
    MMEMO_HOST=0.0.0.0 \
    MMEMO_PORT=8000
USER 10001:10001
EXPOSE 8000
# By http.client, which no proxy of the environment diverts.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --start-interval=1s CMD ["python", "-c", "import http.client, os; asked = http.client.HTTPConnection('127.0.0.1', int(os.environ['MMEMO_PORT']), timeout=2); asked.request('GET', '/ready'); raise SystemExit(asked.getresponse().status != 200)"]
CMD ["mmemo", "serve"]
