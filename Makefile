# Everything needs only Python 3.11 or newer and make; the rest is installed into .venv.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' requirements/constraints.txt)
JOBS ?= 2
PYTEST_ARGS ?=
BROWSERS := chromium-headless-shell chromium chromium-browser google-chrome
GPU_PYTHON ?= $(BIN)/python
PROGRAMS ?= 2000
KILLS ?= 500
FILES ?= 5000

.DEFAULT_GOAL := help
.PHONY: help install browser docs results demo test test-all lint style types units crash fuzz hostile soak gpu gpu-dry format clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install fisopt into it, with the tools of development

browser: $(STAMP) ## A headless Chromium, which the tests of pages need: Debian's, or else Playwright's
	@for name in $(BROWSERS); do command -v $$name > /dev/null && exit 0; done; \
		(apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium-headless-shell) \
		|| $(BIN)/playwright install chromium-headless-shell

demo: $(STAMP) ## Generate clips dense and optimised, side by side, into out/
	$(BIN)/fisopt demo --out out

docs: $(STAMP) ## Build the documentation site into out/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

results: $(STAMP) ## Write every table and picture of README and docs from benchmarks/results
	$(BIN)/python benchmarks/report.py

test: style ## Check style, types, layers, and run every test but those that are slow
	$(MAKE) --no-print-directory -j2 types units

test-all: ## The same with every test: minutes more
	$(MAKE) --no-print-directory test PYTEST_ARGS='-m "slow or not slow" $(PYTEST_ARGS)'

lint: style types ## Check style, types and layers only

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/lint-imports

units: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

crash: $(STAMP) ## Kill processes while they write: minutes, run again to go on
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/crash.py --kills $(KILLS)

fuzz: $(STAMP) ## Compare random models under random passes with a plain oracle: hours, run again to go on
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --programs $(PROGRAMS) --workers $(JOBS)

soak: $(STAMP) ## Generate a thousand times in two threads, compiled, at fifty shapes: an hour
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_soak.py

hostile: $(STAMP) ## Read mutated files under an audit hook: minutes, run again to go on
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hostile.py --files $(FILES)

gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMP)) ## Measure and test on an NVIDIA GPU, in parts of nine minutes: PART=1, 2, 3 or all; goes on
	$(GPU_PYTHON) benchmarks/gpu/run.py $(if $(PART),--part $(PART))

gpu-dry: $(STAMP) ## The same on a CPU, tiny and in the interpreter, to see that all of it runs
	OMP_NUM_THREADS=1 OUT=$(or $(OUT),out/gpu-dry) $(BIN)/python benchmarks/gpu/run.py --dry-run

format: $(STAMP) ## Format the code and the pages, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/wrap.py

clean: ## Remove what was made: .venv, out, caches
	rm -rf $(VENV) out build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find fisopt tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and by its exact version: a machine without a GPU then gets the build for CPUs.
$(STAMP): pyproject.toml requirements/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is older; set PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, then the rest, into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	@touch $(STAMP)
