# A worker: docker build --file ops/docker/worker.Dockerfile --tag clipfleet-worker .
# Everything is pinned by hash. pip's default torch brings CUDA and runs on a CPU as well; PIP_EXTRA_INDEX_URL
# chooses another build of the same version, which is then pinned by its version only.
FROM python:3.12-slim-bookworm

ARG PIP_EXTRA_INDEX_URL
RUN useradd --create-home --uid 1000 clipfleet \
    && install --directory --owner clipfleet --group clipfleet /home/clipfleet/.cache

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

# By its number: so Kubernetes can tell that it is not root.
USER 1000
WORKDIR /data
STOPSIGNAL SIGTERM
CMD ["clipfleet-worker", "run"]
