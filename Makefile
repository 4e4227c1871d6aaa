# Every target sets up all that it needs, and says what it is doing.
#   make demo    the shop, stock OpenTelemetry against tracefill, on embedded defaults
#   make test    everything, with the servers that can be started here

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Whatever changes what is installed or compiled.
SOURCES := pyproject.toml setup.py src/_codec.pyx $(wildcard src/*.h)
COUNT ?= 1000000
SECONDS ?= 600

.PHONY: demo test servers jaeger bench bench-quick instructions lint typecheck fuzz soak soak-messages suites pythons wheel coverage clean

demo: $(VENV)/.demo
	@$(BIN)/tracefill demo $(DEMO)

test: servers $(VENV)/.mysqlclient
	@echo "== boundary programs, two at a time"
	@$(BIN)/python -m pytest tests/boundaries -q -n 2 $(PYTEST)
	@echo "== everything else, two files at a time"
	@$(BIN)/python -m pytest --ignore tests/boundaries -n 2 --dist loadfile $(PYTEST)

servers: $(VENV)/.test
	@echo "== servers for the tests: Kafka, RabbitMQ, PostgreSQL, MariaDB, Redis, nginx (installed where root on Debian allows)"
	@$(BIN)/python -m tests.servers install || true

jaeger: $(VENV)/.test
	@echo "== Jaeger from its Go module, once, into the cache (about seven minutes)"
	@$(BIN)/python -m tests.servers jaeger

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks $(BENCH)

bench-quick: $(VENV)/.bench
	@$(BIN)/python -m pytest benchmarks --benchmark-only $(PYTEST)

instructions: $(VENV)/.bench
	@$(BIN)/python -m benchmarks --instructions

lint: $(VENV)/.lint
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src/_codec.pyx

typecheck: $(VENV)/.test $(VENV)/.lint
	@$(BIN)/mypy

fuzz: $(VENV)/.test
	@$(BIN)/python -m tests.codec.fuzz --count $(COUNT)

soak: $(VENV)/.test
	@$(BIN)/python -m tests.handoff.soak --seconds $(SECONDS) --threads 8

soak-messages: $(VENV)/.test
	@$(BIN)/python -m tests.messages.soak --messages 100000
	@$(BIN)/python -m tests.messages.soak_rabbitmq --messages 20000

suites: $(VENV)/.test
	@$(BIN)/python -m tests.suites

pythons: $(VENV)/.test
	@$(BIN)/python -m tests.pythons $(PYTHONS)

wheel: $(VENV)/.test
	@$(BIN)/python -m tests.wheel

coverage: $(VENV)/.test
	@$(BIN)/python -m tests.coverage_run

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info src/tracefill/_codec*.so src/_codec.c

# -- set-up: one stamp a kind of work, so that a second run starts at once

$(BIN)/python:
	@echo "== a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.core: $(SOURCES) | $(BIN)/python
	@echo "== compiling the core and installing tracefill"
	@$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.demo: $(VENV)/.core
	@echo "== what the demo needs (uvicorn, kafka-python, confluent-kafka, OpenTelemetry and contrib)"
	@$(BIN)/python -m pip install -q -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "== the libraries that the tests meet for real (a few minutes the first time)"
	@$(BIN)/python -m pip install -q -e '.[demo]' --group test --group bench
	@touch $@

$(VENV)/.mysqlclient: $(VENV)/.test
	@echo "== mysqlclient, where the MariaDB client's headers are (its tests are left out elsewhere)"
	@$(BIN)/python -m pip install -q mysqlclient 2> /dev/null || echo "   not here"
	@touch $@

$(VENV)/.bench: $(VENV)/.core
	@echo "== the peers of the benchmarks"
	@$(BIN)/python -m pip install -q -e '.[demo]' --group test --group bench
	@touch $@

$(VENV)/.lint: | $(BIN)/python
	@echo "== linters and type checker"
	@$(BIN)/python -m pip install -q --group lint --group types
	@touch $@
