# Everything is one command: `make dev` runs a cluster, `make test` checks it all. Both set up what they need first.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Every node and command that a test starts would compile all of kvnode anew where this is set: a third of its start.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Touched after a complete installation: a second `make` installs nothing, a changed pyproject.toml installs again.
STAMP := $(VENV)/.installed
# What `make compose-up` and `make compose-test` call; `make COMPOSE=podman-compose compose-test` works as well.
COMPOSE ?= docker compose
# Handed on: `make test PYTEST_ARGS='-x tests/haproxy'`, `make fuzz FUZZ_ARGS='--schedules 5000' WHOLE_ARGS='--seed 7'`, `make dev DEV_ARGS='--nodes 5'`.
PYTEST_ARGS ?=
# A worker that simulates fills a core; one with real nodes mostly waits: two halve the time. A file stays in one worker.
TEST_WORKERS ?= 2
FUZZ_ARGS ?=
WHOLE_ARGS ?=
BENCH_ARGS ?=
DEV_ARGS ?=
CHAOS_ARGS ?=
LOADERS_ARGS ?=
ROLLING_ARGS ?=
MUTANTS_ARGS ?=
PATRONI_ARGS ?=
HOSTILE_ARGS ?=
SCREENSHOTS_ARGS ?=

.PHONY: help setup haproxy proxies browser dev test lint format fuzz measure mutants hostile-loaders chaos hostile pages patroni rolling screenshots bench cost bench-failover bench-million compose-up compose-up-secure compose-down compose-test clean

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

setup: $(STAMP) ## the virtual environment in .venv, with everything in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kvnode needs Python 3.11 or later, and $(PYTHON) is older or does not run: name another one with make PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Never fails: without HAProxy a cluster still runs, and the tests that need it are skipped and say so.
haproxy: ## installs HAProxy where that takes no more than apt-get as root
	@if PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v haproxy >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing HAProxy with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get install -y -qq haproxy || { apt-get update -qq && apt-get install -y -qq haproxy; }; } >/dev/null 2>&1 && exit 0; \
	  echo "HAProxy could not be installed with apt-get." >&2; \
	fi; \
	echo "HAProxy is missing (Debian and Ubuntu: sudo apt-get install haproxy; macOS: brew install haproxy): going on without it." >&2

# Likewise, for the tests of deploy/ alone.
proxies: ## installs Caddy and nginx where that takes no more than apt-get as root
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; missing=; \
	command -v caddy >/dev/null || missing="$$missing caddy"; command -v nginx >/dev/null || missing="$$missing nginx-light"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get install -y -qq --no-install-recommends $$missing || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }; } >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "Missing:$$missing (Debian and Ubuntu: sudo apt-get install$$missing): their tests are skipped." >&2

# For the tests of the console alone: the browser from the system's packages, and what looks for barriers in pages.
browser: $(STAMP) ## installs Chromium and axe-core where that takes no more than apt-get as root, and npm
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Chromium with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get install -y -qq --no-install-recommends chromium || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }; } >/dev/null 2>&1 || \
	  echo "Chromium could not be installed with apt-get: the tests of the console are skipped." >&2; \
	else echo "Chromium is missing (Debian and Ubuntu: sudo apt-get install chromium): the tests of the console are skipped." >&2; fi; \
	if [ ! -e $(VENV)/node_modules/axe-core/axe.min.js ]; then \
	  npm install --silent --no-audit --no-fund --prefix $(VENV) axe-core@4 >/dev/null 2>&1 || \
	  echo "axe-core is missing (npm install --prefix $(VENV) axe-core@4): its test is skipped." >&2; \
	fi

dev: $(STAMP) haproxy ## a cluster of three on this machine, HAProxy in front; Ctrl-C stops it
	@exec $(BIN)/kvnode dev $(DEV_ARGS)

# Two runs: what measures real nodes has the machine to itself. 5 is pytest's word for "none of these tests is chosen".
test: $(STAMP) haproxy proxies browser lint ## everything: format, lint, types, tests
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile -m 'not alone' $(PYTEST_ARGS) || test $$? = 5
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS) || test $$? = 5

.PHONY: test-aiohttp test-lowest coverage lock
test-aiohttp: $(STAMP) ## the HTTP tests with the lowest and the highest aiohttp that is allowed
	$(BIN)/python -m tests.aiohttp_range $(PYTEST_ARGS)

test-lowest: $(STAMP) ## the tests that need no cluster with the lowest versions of the dependencies that are allowed
	$(BIN)/python -m tests.lowest_versions $(PYTEST_ARGS)

# Apart from `make test`, which would be slower for it; nodes that run as processes of their own are not counted.
COVERED := state storage config logs metrics watch net
# Its reader races a writer, and lost in one of two measured runs. `make test` runs it.
UNCOVERED := tests/storage/test_verify.py::test_a_directory_that_is_written_compacted_and_read_at_once_is_whole
coverage: $(STAMP) ## the lines of the parts that need no cluster that their tests run, in percent
	$(BIN)/python -m pytest -q --numprocesses $(TEST_WORKERS) $(COVERED:%=--cov kvnode/%) \
	  --cov-report term:skip-covered --deselect $(UNCOVERED) $(COVERED:%=tests/%) $(PYTEST_ARGS)

# For all systems and Pythons from the oldest that is supported on: environment markers say what is for which.
lock: $(STAMP) ## requirements.lock anew: what the image installs, with hashes
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.5,<1'
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' \
	  --output-file requirements.lock pyproject.toml

.PHONY: man
man: $(STAMP) ## a manual page for each command, in man/man1, made from the help: man -M man kvnode-put
	$(BIN)/python -m kvnode.cli.manual man/man1

lint: $(STAMP) ## format, lint and types, nothing changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## puts the code into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(STAMP) ## simulated schedules, of replicas and of whole nodes; a failure prints the seed that repeats it
	$(BIN)/python -m tests.simulation.fuzz $(FUZZ_ARGS)
	$(BIN)/python -m tests.virtual.fuzz $(WHOLE_ARGS)

measure: $(STAMP) ## the shape of the code: files and lines of each room, circles, Protocols, and what a PUT passes
	$(BIN)/python -m tests.measure
	$(BIN)/python -m tests.node.path_of_a_put

mutants: $(STAMP) ## small faults in a copy of the source: the tests must find each within three minutes
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

hostile-loaders: $(STAMP) ## a million crafted backups and snapshots: each is refused, or as good as any (half an hour)
	$(BIN)/python -m tests.hostile.loaders --count 1000000 $(LOADERS_ARGS)

chaos: $(STAMP) ## real nodes under load and faults of every kind; nothing may be lost; adds the run to docs/CHAOS.md
	$(BIN)/python -m tests.chaos.run $(CHAOS_ARGS)

hostile: $(STAMP) ## crafted files, frames, JSON, HTTP, transactions and slow readers at a real cluster for two minutes
	$(BIN)/python -m tests.hostile.run $(HOSTILE_ARGS)

pages: $(STAMP) ## does what docs/OPERATIONS.md says, from the first cluster on, and compares what is printed
	$(BIN)/python -m pytest tests/test_operating.py

# Patroni has a virtual environment of its own: what it depends on is no business of kvnode's.
patroni: $(STAMP) ## PostgreSQL under Patroni on three nodes, as etcd's client: failovers, faults of kvnode, and their times
	@if [ ! -x /usr/lib/postgresql/15/bin/postgres ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing PostgreSQL 15 with apt-get"; export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get install -y -qq --no-install-recommends postgresql-15 || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-15; }; } >/dev/null; \
	fi
	@test -x $(VENV)/patroni/bin/patroni || { $(PYTHON) -m venv $(VENV)/patroni && \
	  $(VENV)/patroni/bin/pip install --quiet --disable-pip-version-check 'patroni[etcd3]==4.1.5' 'psycopg[binary]==3.3.9'; }
	$(BIN)/python -m pytest -v -s tests/gateway/test_patroni.py $(PATRONI_ARGS)

rolling: $(STAMP) haproxy ## restarts three nodes behind HAProxy one by one, under load; nothing may fail or be lost
	$(BIN)/python -m tests.rolling.run $(ROLLING_ARGS)

screenshots: $(STAMP) browser ## the console in every state, from real nodes under load, into screenshots/
	$(BIN)/python -m tests.console.screenshots $(SCREENSHOTS_ARGS)

# etcd is the installed one; ETCD=PATH is another: its executable, or the folder that it was unpacked to.
ETCD ?=
WITH_ETCD = $(if $(ETCD),--etcd '$(ETCD)')
bench: $(STAMP) ## requests per second and CPU time for each, beside etcd (ETCD=PATH) and aiohttp doing nothing; writes docs/THROUGHPUT.md
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check '.[bench]'
	$(BIN)/python -m benchmarks.throughput $(WITH_ETCD) $(BENCH_ARGS)

# The commit that `make cost` compares this checkout with.
BASE ?= HEAD~1
cost: $(STAMP) ## CPU time for each request, this checkout beside the commit BASE=REV, in turns
	$(BIN)/python -m benchmarks.cost $(BASE) $(BENCH_ARGS)

bench-failover: $(STAMP) ## how long writes stop when the leader goes, beside etcd where it is installed; writes docs/FAILOVER.md
	$(BIN)/python -m benchmarks.failover $(WITH_ETCD) $(BENCH_ARGS)

bench-million: $(STAMP) ## snapshots, restarts and catching up with 1,000,000 keys; writes docs/MILLION.md
	$(BIN)/python -m benchmarks.millionkeys $(BENCH_ARGS)

# Compose reads .env by itself. The secret is made once and kept: the nodes' volumes belong to it.
.env:
	@umask 077; echo "KVNODE_CLUSTER_SECRET=$$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" >$@
	@echo "made .env with a fresh KVNODE_CLUSTER_SECRET"

compose-up: .env ## three containers and HAProxy on http://127.0.0.1:8080
	$(COMPOSE) up --build --detach

compose-up-secure: .env ## the same with TLS and tokens on https://127.0.0.1:8080; the token is in secrets/token
	sh deploy/compose-secrets.sh
	KVNODE_SECRETS_GID=$$(ls -dn secrets | awk '{print $$4}') $(COMPOSE) -f docker-compose.yml -f docker-compose.secure.yml up --build --detach

compose-down: .env ## stops the containers; the data stays in its volumes
	$(COMPOSE) down

compose-test: ## brings the containers up, kills the leader's, restarts all, checks the data; then once more, secured
	COMPOSE='$(COMPOSE)' $(PYTHON) tests/compose/run.py

clean: ## takes away what make made (not kvnode-data, not .env)
	rm -rf man $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build *.egg-info
	find kvnode tests -name __pycache__ -type d -prune -exec rm -rf {} +
