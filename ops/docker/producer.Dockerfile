# The image of producers, of the exporter and of the gateway, without torch:
# docker build --file ops/docker/producer.Dockerfile --tag clipfleet .
FROM python:3.12-slim-bookworm AS build

RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/clipfleet
COPY ops/locks ops/locks
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement ops/locks/producer.txt
COPY pyproject.toml README.md LICENSE ./
COPY producer producer
COPY worker worker
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm

RUN useradd --create-home --uid 1000 clipfleet \
    && install --directory --owner 1000 --group 1000 /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CLIPFLEET_HEALTH_HOST=0.0.0.0 \
    CLIPFLEET_HEALTH_PORT=8081

# A number, so that Kubernetes can check that it is not root.
USER 1000
WORKDIR /data
STOPSIGNAL SIGTERM
EXPOSE 8080 8081
CMD ["clipfleet", "--help"]
