# Two commands do all the set-up on a fresh machine: `make book` and `make test`. Each creates .venv if it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SCALE  ?= laptop
MAKEFLAGS += --jobs=2  # two pages at a time: much of a page is scoring and plotting, on one core
HALF   := OMP_NUM_THREADS=$(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )))
# Each of the two gets half the threads: with all of them in both, they mostly wait for each other.

.DEFAULT_GOAL := help
.PHONY: help book pdf table1 results test lint bench scores train lab lock clean

help:           ## show this list
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "csist needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@mkdir -p $(VENV)/etc/ipython && echo "c.IPKernelApp.log_level = 40  # no warning that a kernel on this machine does without encryption" > $(VENV)/etc/ipython/ipython_kernel_config.py
	@touch $@

# The results pages are notebooks that papermill runs: one depends on code, weights, results and the paper's numbers.
SOURCES := $(shell find csist reproduce -name '*.py' -o -name '*.yaml' -o -path '*results/*.json' -o -name '*.safetensors' -o -name '*.csv' | grep -v checkpoints | grep -v output)

book/results/%.ipynb: reproduce/%.ipynb $(SOURCES) | $(READY)
	@mkdir -p book/results reproduce/output
	@echo "running $<"
	@$(HALF) $(BIN)/papermill $< $@.part.ipynb -p scale $(SCALE) -p output_dir reproduce/output --cwd . --no-progress-bar --log-level WARNING
	@$(BIN)/nbstripout --keep-output --keep-count --extra-keys "cell.metadata.papermill cell.metadata.execution metadata.language_info" $@.part.ipynb
	@mv $@.part.ipynb $@

PAGES := table1 table2_ablation table3_grid_ratio figure7_hyperparameters figure5_gallery sr_plus_detector leaderboard beyond

table1: book/results/table1.ipynb   ## re-evaluate the committed weights and write Table 1 (minutes)

results: $(PAGES:%=book/results/%.ipynb)   ## the same for every results page

book: $(READY) results  ## build the book, all set-up included; prints what to open
	$(HALF) $(BIN)/jupyter-book build book -W -n --keep-going --all $(if $(CI),-q)
	@echo "Open $(CURDIR)/book/_build/html/index.html"

pdf: $(READY) results   ## print the whole book into book/_build/pdf/csist.pdf; needs Chromium and a Chinese font
	$(BIN)/python book/print_pdf.py --check
	$(HALF) $(BIN)/jupyter-book build book --builder singlehtml -W -n --keep-going --all $(if $(CI),-q)
	$(BIN)/python book/print_pdf.py book/_build/singlehtml/index.html book/_build/pdf/csist.pdf
	@echo "Open $(CURDIR)/book/_build/pdf/csist.pdf"

test: $(READY)  ## run the tests on up to four processors, all set-up included
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(READY)  ## check the style
	$(BIN)/ruff check .

bench: $(READY) ## measure rendering, metric, training and inference beside naive references; writes reproduce/results/bench.json
	$(BIN)/python reproduce/bench.py

scores: $(READY) ## after a training: read-outs and polish of RUN=ista-net-c3-seed0, say; brings ceilings and README up to date
	@test -n "$(RUN)" || { echo "name the run: make scores RUN=ista-net-c3-seed0"; exit 2; }
	$(BIN)/python reproduce/score_readouts.py --only $(RUN)
	$(BIN)/python reproduce/score_polish.py --only $(RUN)
	$(BIN)/python reproduce/ceilings.py
	$(BIN)/python reproduce/readme_table.py

train: $(READY) ## work through the training queue; BUDGET=25m limits it
	$(BIN)/python reproduce/queue.py $(if $(BUDGET),--time-budget $(BUDGET))

# The setting that opens .md files as notebooks is written into the environment, not into the reader's home.
lab: $(READY)   ## open the book's chapters, and all other notebooks, in JupyterLab
	$(BIN)/python -m pip install --quiet "jupyterlab>=4.2" "jupyterlab-myst>=2.4"
	$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json set-default-viewer markdown myst
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/book/intro.md

lock: $(READY)  ## recompute requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	bash .ci/lock.sh $(BIN)/uv

clean:          ## remove what make built (the environment and the data cache stay)
	rm -rf book/_build book/results reproduce/output .pytest_cache
