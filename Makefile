# One short command per chore; each sets up what it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# ip, chroot, nginx and HTCondor's daemons are in places that users of some distributions do not search.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help demo pool pool-demo pilot-demo test lint fix docs bench soak fuzz system-tools clean

help:
	@echo "make demo        the main job: packages by signed torrent to several worker nodes"
	@echo "make pool-demo   the same under a real HTCondor pool"
	@echo "make pilot-demo  from a compute element to a bare node to a payload"
	@echo "make test        all tests        make lint   ruff, mypy, import-linter"
	@echo "make bench       all benchmarks   make soak   long random fault runs"
	@echo "make docs        generated pages  make fix    what ruff can mend by itself"
	@echo "make fuzz        every reader of strangers' bytes, by coverage; property tests with new examples"

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Stock clients and tools that some tests and demos run against; nothing of the agent itself needs them.
system-tools:
	@sh tests/system-tools.sh

demo: $(READY)
	@$(BIN)/python -m demo.main_job

pool: $(READY)
	@$(BIN)/python -m jobagent.testing.pool run

pool-demo: $(READY) system-tools
	@$(BIN)/python -m demo.pool

pilot-demo: $(READY) system-tools
	@$(BIN)/python -m demo.pilot

test: $(READY) system-tools
	@$(BIN)/python -m pytest -q -n 4 --dist loadfile --max-worker-restart=0 --acceptance=docs/acceptance.md

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(READY)
	@COLUMNS=100 $(BIN)/python docs/generate.py

bench: $(READY)
	@$(BIN)/python -m bench

soak: $(READY) system-tools
	@$(BIN)/python -m pytest -q -m soak --override-ini addopts= tests

# By coverage, so many seconds for each reader of strangers' bytes; then property tests with examples of their own.
FUZZ_SECONDS ?= 20
fuzz: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)
	@$(BIN)/python -m pytest -q -n 2 -m 'hypothesis and not condor and not soak' --hypothesis-profile=search

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache
