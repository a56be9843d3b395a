# Needs make and Python 3.11. `make demo` goes from a fresh clone to a report; a second call reuses what is there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= all,dev
JOBS   ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
STRICT := polypfed/core/*,polypfed/federation*,polypfed/strategies/*

# ultralytics neither asks the network for updates nor installs packages behind our back.
export YOLO_OFFLINE := true
export YOLO_AUTOINSTALL := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test check sbom format bench studies docs clean

help:
	@echo "make demo    install into $(VENV) and run the demonstration: data, training at several sites, report"
	@echo "make test    all tests, JOBS=2 at a time, with coverage (core, federation and strategies: at least 95 % of lines)"
	@echo "make check   lint, format, types, import layers"
	@echo "make sbom    what is installed as CycloneDX (sbom.json), and known weaknesses; needs no network"
	@echo "make format  let ruff rewrite what it can"
	@echo "make bench   the measurements behind the figures of the README"
	@echo "make docs    these pages into site/, which need no network"
	@echo "make studies the studies on real images, a few hours; what is done is not repeated"
	@echo "make clean   remove the environment and all caches"

install: $(STAMP)

# The stamp is written last, so an interrupted installation is taken up again. opencv-python, which ultralytics
# brings, needs libGL and glib of the system; where they are missing, its headless twin takes its place.
$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@! $(BIN)/python -m pip show --quiet opencv-python 2>/dev/null || $(BIN)/python -c 'import cv2' 2>/dev/null || { \
	    echo "opencv-python does not load (no libGL or glib on this machine): installing opencv-python-headless over it"; \
	    $(BIN)/python -m pip install --quiet --force-reinstall --no-deps -c constraints.txt opencv-python-headless; }
	@touch $@

demo: $(STAMP)
	$(BIN)/polypfed demo

test: $(STAMP)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report=
	@echo "All of polypfed:"
	@$(BIN)/python -m coverage report --skip-covered
	@echo "core, federation, strategies (at least 95 %):"
	@$(BIN)/python -m coverage report --include='$(STRICT)' --fail-under=95

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sbom: $(STAMP)
	$(BIN)/python -m pip check
	$(BIN)/polypfed sbom -o sbom.json

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@set -e; for script in rounds kernels strategies privacy fit_cost synth scale; do \
	    echo "== $$script"; $(BIN)/python benchmarks/$$script.py; done

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

studies: $(STAMP)
	@set -e; for study in gap communication fewer-rounds active federated-sim generalise central federated-real peers; do \
	    $(BIN)/polypfed bench $$study; done; cd benchmarks; ../$(BIN)/python page.py

clean:
	rm -rf $(VENV) build dist site *.egg-info .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache
	find polypfed tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
