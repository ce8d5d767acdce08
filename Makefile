# The commands of this project; `make` alone lists them.
#
# VERSION   the model version that a command is about (models/<version>/)
# PYTHON    the interpreter that .venv/ is created from

VERSION ?= 3.0
# Versions that are trained and evaluated.
VERSIONS := $(patsubst models/%/golden.json,%,$(wildcard models/*/golden.json))
PYTHON ?= python3
BIN := .venv/bin
# Commands that change what clients get need VERSION on the command line.
NAMED = $(if $(filter file,$(origin VERSION)),$(error Name a version: make $@ VERSION=3.0),$(VERSION))
# Tests that share a started service stay in one process: see tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help js run edge stop status deploy promote canary rollback apply doctor setup mar data train \
	sweep curve evaluate served drill bench page test test-all screenshots lint clean audit nodes chaos soak fuzz

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/run.stamp mar  ## install, build the archives, start TorchServe and the page
	@$(BIN)/python -m serving run

edge: .venv/run.stamp  ## serve a network: TLS, API keys and limits (nginx), beside `make run`
	@$(BIN)/python -m serving edge

stop:  ## stop the running service
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m serving stop; else echo "not running"; fi

status: .venv/run.stamp  ## show the versions that serve, and their health
	@$(BIN)/python -m serving status

deploy: .venv/run.stamp  ## serve VERSION beside the others, after its known answers are checked
	@$(MAKE) --no-print-directory model_store/bloodcells-$(NAMED).mar
	@$(BIN)/python -m serving deploy $(NAMED)

promote: .venv/run.stamp  ## make VERSION the default
	@$(BIN)/python -m serving promote $(NAMED)

canary: .venv/run.stamp  ## send PERCENT of the clients to VERSION; roll back if it fails
	@$(BIN)/python -m serving canary $(NAMED) $(if $(PERCENT),--percent $(PERCENT))

rollback: .venv/run.stamp  ## end the canary, or undo the last promotion
	@$(BIN)/python -m serving rollback

apply: .venv/run.stamp  ## apply deployment.yaml after you edit it
	@$(BIN)/python -m serving apply

doctor: .venv/run.stamp  ## check the installation and the running service; suggest fixes
	@$(BIN)/python -m serving doctor

setup: .venv/run.stamp  ## create the virtual environment

mar: $(VERSIONS:%=model_store/bloodcells-%.mar)  ## build the archive of each version

data: .venv/dev.stamp  ## download the photographs from Kaggle, and list the cells of each laboratory
	@$(BIN)/python -m training data

train: .venv/dev.stamp  ## train VERSION; with FROM and CELLS: adapt FROM to the cells in a folder
ifdef CELLS
	@$(BIN)/python -m training adapt --from "$$FROM" --cells "$$CELLS" --version $(VERSION)
else
	@$(BIN)/python -m training train --version $(VERSION)
	@$(BIN)/python -m training crossvalidate --version $(VERSION)
	@$(BIN)/python -m training calibrate --version $(VERSION)
endif

sweep: .venv/dev.stamp  ## compare network designs by cross-validation
	@$(BIN)/python -m training sweep

evaluate: .venv/dev.stamp  ## evaluate VERSION; write its model card and plots
	@$(BIN)/python -m training evaluate --version $(VERSION)

curve: .venv/dev.stamp  ## measure what a few labelled cells of a laboratory add to VERSION
	@$(BIN)/python -m training few-cells --version $(VERSION)
	@$(BIN)/python -m training curve --version $(VERSION)

served: .venv/dev.stamp  ## evaluate VERSION through the running service
	@$(BIN)/python -m training served --version $(VERSION)

drill: .venv/dev.stamp mar  ## change versions under load; write a report
	@$(BIN)/python -m benchmarks.drill

nodes: .venv/dev.stamp mar  ## fail one of three nodes under load; write a report (needs root)
	@$(BIN)/python -m benchmarks.nodes

chaos: .venv/dev.stamp mar  ## inject faults under load; write a report
	@$(BIN)/python -m benchmarks.chaos

soak: .venv/dev.stamp mar  ## run a mixed load for 30 minutes; write a report on memory growth
	@$(BIN)/python -m benchmarks.soak

fuzz: .venv/dev.stamp  ## feed damaged inputs to decoder, worker and edge for an hour; write a report
	@$(BIN)/python -m testing.fuzz

bench: .venv/dev.stamp mar  ## measure speed and cost beside other servers; QUICK=1: only what changed
	@$(BIN)/python -m benchmarks.bench

test: .venv/dev.stamp mar lint  ## run lint and all tests but the long ones
	@$(PYTEST) -m "not long"

test-all: .venv/dev.stamp mar lint  ## run lint and every test, with more random examples
	@$(PYTEST) --hypothesis-profile full

audit: .venv/dev.stamp  ## write the SBOM; look for known vulnerabilities
	@$(BIN)/python -m scripts.audit

screenshots: .venv/dev.stamp mar  ## take the screenshots for the docs
	@$(BIN)/python -m scripts.screenshots

page: .venv/dev.stamp mar  ## measure the page: 100 images at once, memory, first load
	@$(BIN)/python -m benchmarks.page

lint: .venv/dev.stamp js  ## check style, types, spelling and links
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell
	@$(BIN)/python -m scripts.check_links

js:  ## check and test the page's scripts: ESLint, tsc, node --test
	@if command -v npm >/dev/null && node -e '[a, b] = process.versions.node.split("."); process.exit(a > 20 || a == 20 && b > 18 ? 0 : 1)' 2>/dev/null; \
	then $(MAKE) -s frontend/node_modules/.package-lock.json \
		&& npm --prefix frontend run --silent lint && npm --prefix frontend run --silent test; \
	else echo "skipped ESLint, tsc and node --test: they need Node 20.19 or later"; fi

frontend/node_modules/.package-lock.json: frontend/package-lock.json
	@npm --prefix frontend ci --silent
	@touch $@

clean: stop  ## remove .venv/, .run/, node_modules and the archives
	rm -rf .venv .run frontend/node_modules model_store/*.mar model_store/*.mar.sha256

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.14 is needed: set PYTHON.") if not (3, 11) <= sys.version_info < (3, 15) else None'
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python has no venv module (Debian: apt install python3-venv)." >&2; exit 1; }

.venv/run.stamp: requirements.txt constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@touch $@

model_store/bloodcells-%.mar: models/%/card.json models/%/golden.json models/%/model-config.yaml \
		$(wildcard models/*/*.onnx) $(wildcard handler/*.py) \
		scripts/build_mar.sh scripts/reproducible_zip.py | .venv/run.stamp
	@PYTHON=$(BIN)/python scripts/build_mar.sh $*
