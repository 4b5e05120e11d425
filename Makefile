# `make` alone lists what there is. Needs make and Python 3.11 or newer; all else goes into $(VENV).

SHELL := /bin/bash
.DEFAULT_GOAL := help

WINDOWS := $(filter Windows_NT,$(OS))
PYTHON ?= $(if $(WINDOWS),python,python3)
VENV ?= .venv
BIN := $(VENV)/$(if $(WINDOWS),Scripts,bin)

# Real models for the tests that want them; those tests are skipped where the folder is absent.
GRAPHOPT_ZOO ?= $(abspath $(wildcard ../shared/zoo))
export GRAPHOPT_ZOO

# The demo needs the runtime only; where the development environment stands already, it serves as well.
DEMO_STAMP := $(VENV)/$(if $(wildcard $(VENV)/.dev),.dev,.demo)
DIGITS := examples/digits
DEMO := build/demo

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(VENV)/.%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(if $(filter demo,$*),cpu,$*)]"
	@touch $@

.PHONY: demo
demo: $(DEMO_STAMP) ## optimize the example models and compare each with its original (about a minute)
	@mkdir -p $(DEMO)
	@set -e; for model in conv conv_torchscript attention; do \
	  echo; echo "== $$model"; \
	  $(BIN)/graphopt optimize $(DIGITS)/$$model.onnx -o $(DEMO)/$$model.onnx --data $(DIGITS)/calib.npz --report $(DEMO)/$$model.html; \
	  $(BIN)/graphopt compare $(DIGITS)/$$model.onnx $(DEMO)/$$model.onnx --data $(DIGITS)/eval.npz; \
	done

.PHONY: test
test: lint types ## lint, types and all quick tests
	$(BIN)/python -m pytest -n 2 -m "not slow"

.PHONY: test-slow
test-slow: $(VENV)/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

.PHONY: lint
lint: $(VENV)/.dev ## style and likely bugs (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.dev ## types (mypy, strict)
	$(BIN)/mypy

.PHONY: bench
bench: $(VENV)/.dev ## measure all, beside other tools (two hours; MODELS="digits resnet": only these)
	$(BIN)/python benchmarks/peers.py $(MODELS)
	$(if $(MODELS),,$(BIN)/python benchmarks/scale.py)
	$(if $(MODELS),,$(BIN)/python benchmarks/gptq.py)
	$(BIN)/python benchmarks/speed.py $(MODELS)
	$(BIN)/python benchmarks/gains.py $(MODELS)
	$(BIN)/python benchmarks/firing.py $(MODELS)
	$(if $(MODELS),,$(if $(GRAPHOPT_ZOO),$(BIN)/python benchmarks/quantization.py))

.PHONY: docs
docs: $(VENV)/.docs ## build the documentation's site into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: clean
clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
