# A worker: docker build --file ops/docker/worker.Dockerfile --tag clipfleet-worker .
# pip's default torch brings CUDA and runs on a CPU as well; PIP_EXTRA_INDEX_URL chooses another build.
FROM python:3.12-slim-bookworm

ARG PIP_EXTRA_INDEX_URL
RUN useradd --create-home --uid 1000 clipfleet \
    && install --directory --owner clipfleet --group clipfleet /home/clipfleet/.cache

WORKDIR /opt/clipfleet
COPY pyproject.toml README.md LICENSE ./
COPY producer producer
COPY worker worker
RUN pip install --no-cache-dir ".[worker]"

# By its number: so Kubernetes can tell that it is not root.
USER 1000
WORKDIR /data
STOPSIGNAL SIGTERM
CMD ["clipfleet-worker", "run"]
