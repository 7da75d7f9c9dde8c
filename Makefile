# Everything from a fresh machine: `make demo` and `make test` make .venv first. Linux with make, gcc and Python >= 3.11.
SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help

# PyRadiomics, the second radiomics engine, builds on Python 3.11 only; so 3.11 comes first.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/.installed
LAB_SETTINGS := .venv/share/jupyter/lab/settings

# Where there is no display, one in memory; where there is neither, the tests that open a window are skipped and say so.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
SCREEN = $(if $(DISPLAY)$(WAYLAND_DISPLAY),,$(if $(shell command -v xvfb-run),xvfb-run -a -s '-screen 0 1600x1000x24'))
CASE ?= $(firstword $(wildcard experiments/*/results/*/))
MLFLOW_PORT ?= 5000
LAB_PORT ?= 8888

export QT_API := pyside6
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.PHONY: help .venv demo model evidence test lint sizes graph lab mlflow view bench clean

help: ## this list
	@grep -hE '^[.a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([.a-z]+):.*## /\1\t/' | expand -t 10

.venv: $(STAMP) ## the environment of requirements.lock (about 3 GB)

$(STAMP): pyproject.toml requirements.lock workbench/stages/radiomics/loops.c
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with the venv module. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv with $$($(PYTHON) --version); this takes some minutes."
	$(PYTHON) -m venv .venv
# First what PyRadiomics is built against, then PyRadiomics against exactly that, then the rest, then this package as it lies here.
	$(PIP) install -q $$(grep -E '^(torch|numpy|setuptools|wheel)==' requirements.lock)
	$(PIP) install -q --no-build-isolation "$$(grep '^pyradiomics==' requirements.lock)" || \
		echo "PyRadiomics did not build (it needs gcc, libc6-dev and python3-dev); going on without this second radiomics engine." >&2
	grep -v '^pyradiomics==' requirements.lock | $(PIP) install -q -r /dev/stdin
	$(PIP) install -q --no-build-isolation --no-deps -e .
	$(PIP) check
	@mkdir -p $(LAB_SETTINGS)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $(LAB_SETTINGS)/overrides.json
	@$(BIN)/python .ci/display.py || true
	@touch $@

demo: .venv ## a phantom cohort, all stages trained and evaluated, one report
	$(BIN)/workbench demo

model: .venv ## the model that comes with the workbench, trained again from phantoms and the scans of data/licensed (hours on two cores)
	$(BIN)/python benchmarks/clinical/model.py

EXPERIMENT ?= experiments/demo
REAL_CT ?= $(wildcard experiments/real_ct.json)
EDGES ?= $(wildcard experiments/blurred_edges.json)

evidence: .venv ## docs/evidence.md from the demo and from what benchmarks/real_ct.py and blurred_edges.py left in experiments/
	$(BIN)/workbench evidence $(EXPERIMENT) -o docs/evidence.md $(if $(REAL_CT),--real-ct $(REAL_CT)) $(if $(EDGES),--edges $(EDGES))
	$(if $(wildcard experiments/model_on_patients.json),$(BIN)/python benchmarks/model_on_patients.py --measured experiments/model_on_patients.json)

test: lint ## lints, then the tests
	OMP_NUM_THREADS=1 $(SCREEN) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		$(if $(shell $(BIN)/python -c 'import PySide6.QtWidgets' 2>&1),-p no:pytest-qt)

lint: .venv ## ruff, import directions, types
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

sizes: ## lines of each room, and what is too long
	@python3 .ci/house.py sizes

graph: ## docs/house.md: which room imports which, and the sizes
	@python3 .ci/house.py graph

lab: .venv ## JupyterLab on loopback
	$(BIN)/jupyter lab --ip 127.0.0.1 --port $(LAB_PORT) $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

mlflow: .venv ## MLflow's pages on loopback
	@mkdir -p mlruns/artifacts
	@echo "http://127.0.0.1:$(MLFLOW_PORT)/#/experiments/1/runs?workflowType=machine_learning"
	$(BIN)/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--backend-store-uri "sqlite:///$(CURDIR)/mlruns/mlflow.db" --artifacts-destination "$(CURDIR)/mlruns/artifacts"

view: .venv ## napari on a result folder: make view CASE=folder
	@test -n "$(CASE)" || { echo "No result folder yet: run make demo, or name one: make view CASE=folder" >&2; exit 1; }
	$(BIN)/workbench view "$(CASE)"

bench: .venv ## each benchmark, in its quick form
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python "$$b" --quick; done

clean: ## what tools left behind; experiments, data, mlruns and .venv stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
