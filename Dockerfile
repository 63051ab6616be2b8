# `mmemo serve`: serves an exported model without torch, without root, and writes to /tmp only.
#
#   docker build --tag mmemo .
#   docker run --rm --publish 127.0.0.1:8000:8000 --read-only --tmpfs /tmp mmemo
#
# docker/rehearse.py runs the same steps without Docker.

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
# TMPDIR holds uploads of more than 1 MiB during their request; HF_HOME holds models from the Hub.
ENV PATH=/opt/mmemo/bin:$PATH \
    TMPDIR=/tmp \
    HF_HOME=/tmp/huggingface \
    MMEMO_SERVE__HOST=0.0.0.0 \
    MMEMO_SERVE__PORT=8000
USER 10001:10001
EXPOSE 8000
# http.client ignores proxy settings of the environment.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --start-interval=1s CMD ["python", "-c", "import http.client, os; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['MMEMO_SERVE__PORT']), timeout=2); probe.request('GET', '/ready'); raise SystemExit(probe.getresponse().status != 200)"]
CMD ["mmemo", "serve"]
