# A worker: docker build --file ops/docker/worker.Dockerfile --tag clipfleet-worker .
# Everything is pinned by hash. pip's default torch contains CUDA and runs on a CPU as well. For a small image with a CPU
# build set PIP_EXTRA_INDEX_URL to its index: torch then has the same version, pinned by version only.
# MODELS="NAME NAME" are baked in. Other models are downloaded to /opt/models once: mount a volume there, and one at
# /home/clipfleet/.cache, where a worker keeps what it measured on its device. Nothing is compiled.
FROM python:3.12-slim-bookworm AS build

ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/clipfleet
COPY ops/locks ops/locks
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement ops/locks/worker.txt \
    && if [ -n "$PIP_EXTRA_INDEX_URL" ]; \
       then pip install --no-cache-dir --requirement ops/locks/torch.in; \
       else pip install --no-cache-dir --require-hashes --no-deps --requirement ops/locks/torch.txt; \
       fi
COPY pyproject.toml README.md LICENSE ./
COPY producer producer
COPY worker worker
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
ARG MODELS
RUN install --directory /opt/models \
    && if [ -n "$MODELS" ]; then HF_HOME=/opt/models clipfleet-worker models pull $MODELS; fi

FROM python:3.12-slim-bookworm

RUN useradd --create-home --uid 1000 clipfleet \
    && install --directory --owner 1000 --group 1000 /data /home/clipfleet/.cache
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=1000:1000 /opt/models /opt/models
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/opt/models \
    CLIPFLEET_HEALTH_HOST=0.0.0.0 \
    CLIPFLEET_HEALTH_PORT=8081 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A number, so that Kubernetes can check that it is not root.
USER 1000
WORKDIR /data
STOPSIGNAL SIGTERM
EXPOSE 8081
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=120s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8081/healthz')"]
CMD ["clipfleet-worker", "run"]
