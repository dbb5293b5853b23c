# One command a wish; each sets up what it needs from nothing and does nothing where it is done already.
PYTHON ?= python3
WORKERS ?= 2

BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile
# stamps carry a checksum of what they stand for, so that a rewritten but equal file changes nothing
sum = $(shell cat $(1) | cksum | cut -d' ' -f1)
PINS := .venv/.pins-$(call sum,requirements/*.txt)
SETUP := .venv/.project-$(call sum,requirements/*.txt settings.ini setup.py pyproject.toml)
# tests use nothing but this machine, and as many processes as WORKERS says with one thread each
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
QUICK := not slow and not gpu and not weights

.PHONY: help setup demo test test-slow test-all docs lab clean
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(SETUP) ## make .venv with the pinned packages and this project
	@mkdir -p _runs
	@echo "setup: ready in .venv (source .venv/bin/activate puts its commands on the path)"

$(PINS):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed and $(PYTHON) is %d.%d: install one and say make PYTHON=/path/to/python3.11" % v)'
	@echo "setup: .venv with the packages of requirements/ (a minute or two, about 3 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# the pip that Python brings takes twice as long to resolve and unpack
	@$(PIP) --upgrade pip==26.3
	@$(PIP) -r requirements/pins.txt
	@$(PIP) --no-deps -r requirements/pins-nodeps.txt
	@rm -f .venv/.pins-*; touch $@

$(SETUP): $(PINS)
	@echo "setup: javisdit, editable"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@# nbdev's git hooks, and its Jupyter hook inside .venv instead of the home directory; without git there is nothing to hook
	@if [ -d .git ] && command -v git >/dev/null; then HOME=$(CURDIR)/.venv $(BIN)/nbdev_install_hooks >/dev/null; fi
	@rm -f .venv/.project-*; touch $@

demo: demo/report.html ## train the tiny preset, generate a clip, write demo/report.html (about 15 minutes on 2 cores)
	@echo "demo: see demo/clip.mp4 and demo/report.html (make clean removes them)"

demo/report.html: | $(SETUP)
	@echo "demo: training the tiny preset (chapter 07), then generating and measuring (chapter 08)"
	@mkdir -p demo _runs
	@# ---- the demo: train, then report ----
	@$(BIN)/papermill --no-progress-bar nbs/07_train_joint.ipynb _runs/demo.ipynb -p preset tiny -p out_dir $(CURDIR)/demo/run
	@$(BIN)/javisdit_report demo/run --out demo/report.html
	@# --------------------------------------

test: $(SETUP) ## every notebook and every quick guard (about half an hour on 2 cores)
	@echo "test: undefined names, notebooks, guards"
	@$(BIN)/ruff check --quiet --isolated --select F821 javisdit tests .ci
	@$(TEST_ENV) $(BIN)/nbdev_test --n_workers $(WORKERS) --timing
	@$(TEST_ENV) $(BIN)/python -m pytest tests -q --durations 10 -m "$(QUICK)"

test-slow: $(SETUP) ## what test leaves out because it is slow
	@echo "test-slow: guards with the flag slow"
	@$(TEST_ENV) $(BIN)/python -m pytest tests -q --durations 10 -m "slow and not gpu and not weights"

test-all: test test-slow ## both (up to an hour on 2 cores)

docs: $(SETUP) ## the book as a site in _docs, readable offline
	@$(BIN)/python .ci/docs.py
	@$(BIN)/python .ci/check_docs.py

lab: $(SETUP) ## the notebooks in Jupyter, saved clean (ARGS="--no-browser" adds options)
	cd nbs && JUPYTER_CONFIG_DIR=$(CURDIR)/.venv/.jupyter $(BIN)/jupyter lab $(ARGS)

clean: ## remove what docs, demo and test made; .venv and _runs stay
	rm -rf _docs _proc demo build dist .pytest_cache .ruff_cache .hypothesis
