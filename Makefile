# make demo   pre-train, select, fine-tune, evaluate and report on synthetic people (CPU; 12 to 17 minutes on 2 cores)
# make test   the test suite; make test-slow: the faults on a whole cluster, the rare variants and, on a CPU if there is no GPU,
#             the tests of GPUs, about as long again
# make EXTRA=gpu test-gpu   the tests that need a GPU, on a machine that has one
# make bench  speed and memory against what one would install instead, into benchmarks/RESULTS.md (13-22 minutes on 2 idle cores;
#             make bench BENCH=--full: the published sizes, hours)
# make study DATA=folder   the comparison of the starts on images of real people, three seeds: docs/evidence.md has the layout of
#             the folder (57 to 78 minutes on 2 cores; the same command continues)
# make lint   ruff (rules and format) and mypy
# make docs   the guides, the configuration reference and the library's API as a site in site/
# make lock   the locks of locks/ from requirements.lock
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
STUDY_RUN ?= runs/study
SOURCE ?= cuhk01
TARGET ?= cuhk03
BENCH ?=
LOCK := locks/$(if $(filter gpu,$(EXTRA)),dev-gpu,dev).lock
# torch and what only torch needs come from locks/torch.txt: their wheels differ between CPUs and GPUs.
TORCH := torch torchvision triton $(shell grep -oE '^(nvidia-[a-z0-9-]+|cuda-[a-z]+)' requirements.lock)
compile = uv pip compile pyproject.toml $(2) --python-version 3.11 --python-platform linux --generate-hashes --no-annotate \
	--no-header --constraint requirements.lock $(addprefix --no-emit-package ,$(TORCH)) --output-file locks/$(1).lock

.PHONY: demo test test-slow test-gpu bench study lint docs lock env clean check

demo: env
	$(RUN) -m platform.pipeline experiment=demo output=$(DEMO_RUN)

test: env
	$(RUN) -m pytest --numprocesses 2

test-slow: env
	GPU_TESTS_ANYWHERE=1 $(RUN) -m pytest -m "slow or gpu"

test-gpu: env
	$(RUN) -m pytest -m gpu -rs

bench: env
	$(RUN) -m benchmarks.results $(BENCH)

# The three sets below DATA: images in folders, and two sets in the layout of Market-1501.
study: env
	@for set in unlabelled $(SOURCE) $(TARGET); do test -d "$(DATA)/$$set" || { echo "error: there is no folder '$(DATA)/$$set': make study DATA=<folder with unlabelled/, $(SOURCE)/ and $(TARGET)/>, see docs/evidence.md; SOURCE= and TARGET= give other names"; exit 2; }; done
	$(RUN) -m platform.pipeline experiment=people_small output=$(STUDY_RUN) pretrain_set.path="$(DATA)/unlabelled" \
		source_set.path="$(DATA)/$(SOURCE)" target_set.path="$(DATA)/$(TARGET)"

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: env
	$(RUN) -m mkdocs build --strict

# Makes the locks anew from requirements.lock, which pins every version; needs uv (pip install uv).
lock:
	$(call compile,run,--extra cpu)
	$(call compile,gpu,--extra gpu)
	$(call compile,dev,--extra cpu --extra dev --extra docs)
	$(call compile,dev-gpu,--extra gpu --extra dev --extra docs)

env: $(STAMP)

$(STAMP): pyproject.toml $(LOCK) locks/torch.txt | check
	@echo "Installing the locked dependencies into $(VENV) (once; a few minutes)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@# Both builds of FAISS have the same files: the one that goes would leave the other one broken.
	@$(VENV)/bin/pip uninstall --quiet --yes faiss-cpu faiss-gpu 2>/dev/null; rm -f $(VENV)/.installed-*
	@$(VENV)/bin/pip install --quiet --no-input --require-hashes --no-deps --requirement $(LOCK)
	@$(VENV)/bin/pip install --quiet --no-input --requirement locks/torch.txt
	@$(VENV)/bin/pip install --quiet --no-input --no-deps --editable .
	@touch $@

check:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11, 3.12 or 3.13, or name it: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: this Python cannot make environments: install its venv module (Debian: python3-venv)"; exit 2; }
	@for tool in gcc git; do command -v $$tool >/dev/null || { echo "error: $$tool not found: install it"; exit 2; }; done

clean:
	rm -rf $(VENV) $(DEMO_RUN) site
