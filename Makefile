# The two commands are `make book` and `make test`; each starts from a bare machine with Python 3.11 to 3.13 and git.
PROFILE ?= demo
REGION ?=
PYTHON ?= python3
# One word of the shell, whatever it holds.
quoted = '$(subst ','\'',$(1))'
# Chapters side by side: as many as the cores and the memory that this process may use allow.
CORES ?= $(shell "$(PYTHON)" workflow/machine.py)
VENV := .venv
RUN := $(VENV)/bin/python
NPM := _build/npm
BUILD = --profile $(PROFILE) --region "$(REGION)" --cores $(CORES)
export TF_CPP_MIN_LOG_LEVEL ?= 3
# A hub's own settings of pip and Python, which would pass by the environment made here.
export PIP_USER := 0
export PYTHONNOUSERSITE := 1
export PYTHONUTF8 := 1
unexport PYTHONHOME PIP_TARGET PIP_PREFIX

.DEFAULT_GOAL := help
.PHONY: help book smoke test pages live lint data plan products picture bench lab run status lock clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

book: $(VENV)/.ready  ## run the chapters and render the book (PROFILE=smoke, demo or paper; REGION=your.yaml)
	@$(RUN) workflow/build.py $(BUILD)

smoke:  ## the book at its smallest, in minutes
	@$(MAKE) --no-print-directory book PROFILE=smoke

test: $(VENV)/.ready lint  ## check style and run the tests
	@echo "Running the tests."
	@$(RUN) -m pytest -q -n auto

lint: $(VENV)/.ready
	@echo "Checking style and spelling of code and chapters."
	@$(RUN) workflow/lint.py

pages: $(VENV)/.ready $(NPM)/.ready  ## look at the rendered pages of PROFILE in headless Chromium, and follow their links
	@$(RUN) workflow/links.py _build/$(PROFILE)/html
	@$(RUN) -m pytest -q tests/pages.py --profile-built $(PROFILE)

live: $(VENV)/.ready $(NPM)/.ready  ## rerun chapters of the built PROFILE, and open one on a JupyterHub of its own
	@$(RUN) -m pytest -q tests/reruns.py tests/hub.py --profile-built $(PROFILE)

data: $(VENV)/.ready  ## fetch all data sets, with checksums
	@$(RUN) -m cropnb.data

plan: $(VENV)/.ready  ## list the products of REGION in a lock file beside it, fetching nothing
	@$(RUN) -m cropnb.sentinel plan "$(REGION)"

products: $(VENV)/.ready  ## fetch what the lock file of REGION lists
	@$(RUN) -m cropnb.sentinel fetch "$(REGION)"

bench: $(VENV)/.ready  ## measure, as ratios in one run
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(RUN) $$file || exit 1; done

picture: $(VENV)/.ready  ## refresh the README's map from the demo build
	@$(RUN) workflow/picture.py _build/demo

lab: $(VENV)/.ready  ## open the chapters in JupyterLab
	@JUPYTER_CONFIG_PATH="$(CURDIR)/jupyterhub" $(RUN) -c "import cropnb; from jupyterlab import labapp; labapp.main()" --LabApp.default_url=/lab/tree/notebooks

run: $(VENV)/.ready  ## one chapter anew: make run CHAPTER=05_tcnn PARAMS="features=backscatter seed=3"
	@$(RUN) workflow/rerun.py $(BUILD) $(call quoted,$(CHAPTER)) $(call quoted,$(PARAMS))

status: $(VENV)/.ready  ## what is done, running, stale, failed or to do
	@$(RUN) workflow/status.py $(BUILD)

lock:  ## pin the dependencies of pyproject.toml anew
	uv pip compile pyproject.toml --extra dev --extra sentinel --extra hub --universal --python-version 3.11 --no-emit-index-url \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" --upgrade -q -o requirements.txt

clean:  ## remove everything generated but the data cache
	rm -rf $(VENV) $(filter-out _build/data,$(wildcard _build/*)) .snakemake

# Compiled once here, as pip does: where PYTHONDONTWRITEBYTECODE is set, every kernel would compile TensorFlow anew.
$(VENV)/.ready: requirements.txt pyproject.toml
	@"$(PYTHON)" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || { \
	  echo "cropnb needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); try make PYTHON=python3.12"; exit 1; }
	@if command -v uv >/dev/null; then \
	  echo "Installing the pinned packages into $(VENV) with uv."; \
	  { [ -d "$$HOME" ] && [ -w "$$HOME" ]; } || export UV_NO_CACHE=1; \
	  uv venv -q --allow-existing --python "$(PYTHON)" $(VENV) && \
	  uv pip install -q --python $(VENV) --no-deps --compile-bytecode -r requirements.txt && \
	  uv pip install -q --python $(VENV) --no-deps -e .; \
	else \
	  echo "Installing the pinned packages into $(VENV) with pip; this takes some minutes."; \
	  "$(PYTHON)" -m venv $(VENV) && \
	  $(RUN) -m pip install -q --disable-pip-version-check --no-deps -r requirements.txt && \
	  $(RUN) -m pip install -q --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $@

$(NPM)/.ready: tests/package.json
	@echo "Installing what the browser and hub tests take from npm into $(NPM)."
	@mkdir -p $(NPM) && cp tests/package.json $(NPM) && npm install --silent --no-audit --no-fund --prefix $(NPM)
	@touch $@
