# `make demo` and `make test` do all that a new checkout needs; either may be run first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Waiting threads sleep: on a busy machine spinning ones slow torch down many times over.
export OMP_WAIT_POLICY := PASSIVE
# The checks, the book and the tests go side by side: neither alone keeps two cores busy throughout.
MAKEFLAGS += --jobs=3

.PHONY: demo test units check browser docs coverage reproduce clean

# The demo takes the environment of the tests where there is one, and else a smaller one of its own.
DEMO := $(if $(wildcard $(VENV)/.ready),$(VENV),.venv-demo)

demo: $(DEMO)/.ready
	@echo "Twelve samplers draw 30 digits each, on one core: about half a minute."
	@OMP_NUM_THREADS=1 $(DEMO)/bin/python examples/demo.py --out demo.png

test: check docs units

units: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The report of a study is tested in Chromium, where there is one. CI installs it.
ifdef CI
units: browser
endif

browser:
	command -v chromium || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The book, offline and strict, into docs/_build/html; the examples of its gallery run.
docs: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

coverage: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=scoreflow --cov-report=term-missing:skip-covered

# Every figure and table of REPRODUCE.md: hours.
reproduce: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reproduce.py

$(VENV)/.ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps fugue-icons  # its one requirement is a tool of long ago
	$(BIN)/python -m pip install --quiet --no-deps k-diffusion torchcfm flow_matching azula einops  # to compare with; they ask for much
	touch $@

.venv-demo/.ready: pyproject.toml requirements-demo.txt
	@echo "Setting up .venv-demo once, for the demo alone: about a minute; 1.5 GB, half of it torch."
	@$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python -m pip install --disable-pip-version-check --requirement requirements-demo.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-demo demo.png docs/_build docs/gallery docs/reference docs/sampler docs/tutorial
