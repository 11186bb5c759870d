# make demo   pre-train, select, fine-tune, evaluate and report on synthetic people (CPU; sized for 20 minutes on 2 idle cores)
# make test   the test suite; make test-slow: the faults on a whole cluster and the rare variants, about as long again
# make test-gpu   the tests that need a GPU, on a machine that has one
# make bench  speed and memory against what one would install instead, into benchmarks/RESULTS.md (under 20 minutes on 2 idle cores;
#             make bench BENCH=--full: the published sizes, hours)
# make lint   ruff (rules and format) and mypy
# make docs   the guides, the configuration reference and the library's API as a site in site/
# make clean  remove the environment, the demo's run and the site
#
# The first call makes .venv with the locked dependencies; later calls reuse it.
# GPU machines: make EXTRA=gpu env; make EXTRA=gpu test-gpu; .venv/bin/python -m benchmarks.gpu

PYTHON ?= $(or $(shell command -v python3.11),python3)
EXTRA ?= cpu
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(EXTRA)
DEMO_RUN ?= runs/demo
BENCH ?=

.PHONY: demo test test-slow test-gpu bench lint docs env clean check

demo: env
	$(RUN) -m platform.pipeline experiment=demo output=$(DEMO_RUN)

test: env
	$(RUN) -m pytest

test-slow: env
	$(RUN) -m pytest -m slow

test-gpu: env
	$(RUN) -m pytest -m gpu -rs

bench: env
	$(RUN) -m benchmarks.results $(BENCH)

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: env
	@$(VENV)/bin/pip install --quiet --no-input --constraint requirements.lock --editable '.[docs]'
	$(RUN) -m mkdocs build --strict

env: $(STAMP)

$(STAMP): pyproject.toml requirements.lock | check
	@echo "Installing the locked dependencies into $(VENV) (once; a few minutes)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --no-input torch==$$(sed -n 's/^torch==//p' requirements.lock) torchvision==$$(sed -n 's/^torchvision==//p' requirements.lock)
	@$(VENV)/bin/pip install --quiet --no-input --constraint requirements.lock --editable '.[$(EXTRA),dev]'
	@touch $@

check:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11, 3.12 or 3.13, or name it: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: this Python cannot make environments: install its venv module (Debian: python3-venv)"; exit 2; }
	@for tool in gcc git; do command -v $$tool >/dev/null || { echo "error: $$tool not found: install it"; exit 2; }; done

clean:
	rm -rf $(VENV) $(DEMO_RUN) site
