# Two commands are all there is to know: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-all lint types check bench clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## Create .venv with the package, the CPU engine and the test tools; nothing if it is there.

$(READY): pyproject.toml tools/setup.sh tools/vllm-metadata/pyproject.toml
	@bash tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $(READY)

demo: setup ## Calibrate the shipped model, then choose among 4 answers to problems it has not seen.
	@$(BIN)/nex-vllm demo

# Two at a time: an engine under test is one thread, and takes up to 3 GB.
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder --benchmark-disable

test: setup ## Run the tests that need no GPU, each claim's fastest; ten minutes on two cores.
	@$(PYTEST) -m "not slow"

test-all: setup ## Run the slow tests too. (Plain pytest runs the same, one at a time.)
	@$(PYTEST)

lint: setup ## Check style.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## Check types, strictly.
	@$(BIN)/mypy

check: lint types test ## Everything that must hold before a change lands.

bench: setup ## Measure what selecting costs on this machine.
	@$(BIN)/python benchmarks/overhead.py

clean: ## Remove the environment and everything that was built.
	rm -rf $(VENV) build demo-output .pytest_cache .mypy_cache .ruff_cache *.egg-info
