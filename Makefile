# The commands of this project. `make` alone lists them.
#
# VERSION names a version of the model (models/<version>/), PYTHON the interpreter that the virtual
# environment in .venv/ is made from.

VERSION ?= 2.0
# Those that are finished: trained and evaluated.
VERSIONS := $(patsubst models/%/golden.json,%,$(wildcard models/*/golden.json))
PYTHON ?= python3
BIN := .venv/bin
# What answers people is changed only to a version that was named.
NAMED = $(if $(filter file,$(origin VERSION)),$(error Name a version: make $@ VERSION=2.0),$(VERSION))

.DEFAULT_GOAL := help
.PHONY: help run edge stop status deploy promote canary rollback apply doctor setup mar data train \
	sweep curve evaluate served drill bench page test screenshots lint clean audit nodes chaos soak

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/run.stamp mar  ## set up, build the archives, start TorchServe and the page
	@$(BIN)/python -m serving run

edge: .venv/run.stamp  ## open the service, which runs, to a network: TLS, API keys, bounds (nginx)
	@$(BIN)/python -m serving edge

stop:  ## stop what `make run` started elsewhere
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m serving stop; else echo "nothing runs"; fi

status: .venv/run.stamp  ## tell which versions serve, and how they fare
	@$(BIN)/python -m serving status

deploy: .venv/run.stamp  ## let VERSION serve beside the others, once it answers rightly
	@$(MAKE) --no-print-directory model_store/bloodcells-$(NAMED).mar
	@$(BIN)/python -m serving deploy $(NAMED)

promote: .venv/run.stamp  ## let VERSION answer by default
	@$(BIN)/python -m serving promote $(NAMED)

canary: .venv/run.stamp  ## let VERSION answer PERCENT of the clients, on trial
	@$(BIN)/python -m serving canary $(NAMED) $(if $(PERCENT),--percent $(PERCENT))

rollback: .venv/run.stamp  ## end the canary, or undo the last promotion
	@$(BIN)/python -m serving rollback

apply: .venv/run.stamp  ## bring the service to deployment.yaml, as after editing it
	@$(BIN)/python -m serving apply

doctor: .venv/run.stamp  ## look at everything that can be wrong, and tell what to do
	@$(BIN)/python -m serving doctor

setup: .venv/run.stamp  ## make the virtual environment of the service

mar: $(VERSIONS:%=model_store/bloodcells-%.mar)  ## build the archive of each version

data: .venv/dev.stamp  ## fetch the images from Kaggle, and check them
	@$(BIN)/python -m training data

train: .venv/dev.stamp  ## train VERSION; with FROM and CELLS: teach it a laboratory's own cells
ifdef CELLS
	@$(BIN)/python -m training adapt --from "$$FROM" --cells "$$CELLS" --version $(VERSION)
else
	@$(BIN)/python -m training train --version $(VERSION)
	@$(BIN)/python -m training crossvalidate --version $(VERSION)
	@$(BIN)/python -m training calibrate --version $(VERSION)
endif

sweep: .venv/dev.stamp  ## compare networks by grouped cross-validation within TRAIN
	@$(BIN)/python -m training sweep

evaluate: .venv/dev.stamp  ## measure VERSION, write its card and plots
	@$(BIN)/python -m training evaluate --version $(VERSION)

curve: .venv/dev.stamp  ## measure how many cells of its own a laboratory must teach VERSION
	@$(BIN)/python -m training curve --version $(VERSION)

served: .venv/dev.stamp  ## measure VERSION as the running service answers it
	@$(BIN)/python -m training served --version $(VERSION)

drill: .venv/dev.stamp mar  ## change versions and break things under load; write what users saw
	@$(BIN)/python -m benchmarks.drill

nodes: .venv/dev.stamp mar  ## let one of three nodes fail under load, and count what they bring (root)
	@$(BIN)/python -m benchmarks.nodes

chaos: .venv/dev.stamp mar  ## break the service in all ways under load; write what clients saw
	@$(BIN)/python -m benchmarks.chaos

soak: .venv/dev.stamp mar  ## put a mixed load on it for 30 minutes; write how memory grows
	@$(BIN)/python -m benchmarks.chaos --soak 30

bench: .venv/dev.stamp mar  ## measure speed and cost beside other servers; QUICK=1: what changed since
	@$(BIN)/python -m benchmarks.bench

test: .venv/dev.stamp mar lint  ## check the code and run every test
	@$(BIN)/python -m pytest

audit: .venv/dev.stamp  ## list what the service is made of; ask what weaknesses are known of it
	@$(BIN)/python -m scripts.audit

screenshots: .venv/dev.stamp mar  ## photograph every state of the page for the docs
	@$(BIN)/python -m scripts.screenshots

page: .venv/dev.stamp mar  ## measure the page: a hundred images at once, memory, first load
	@$(BIN)/python -m benchmarks.page

lint: .venv/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: stop  ## remove what was built: .venv/, .run/, the archives
	rm -rf .venv .run model_store/*.mar model_store/*.mar.sha256

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 to 3.13 is needed: set PYTHON.") if not (3, 10) <= sys.version_info < (3, 14) else None'
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python lacks venv (Debian: apt install python3-venv)." >&2; exit 1; }

.venv/run.stamp: requirements.txt constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@touch $@

model_store/bloodcells-%.mar: models/%/weights.pt $(wildcard models/*/*.onnx) \
		models/%/card.json models/%/golden.json models/%/model-config.yaml $(wildcard handler/*.py) \
		handler/index_to_name.json scripts/build_mar.sh scripts/reproducible_zip.py | .venv/run.stamp
	@PYTHON=$(BIN)/python scripts/build_mar.sh $*
