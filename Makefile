# Each target sets itself up: it needs Python 3.11 or newer, make and a package registry.
# The virtual environment in .venv is made once and again only when pyproject.toml has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/digits
DATA ?= data
# One thread per process: pytest runs one process per core, and one more, as many tests wait for other processes.
# Where a test has more threads, those that wait for another leave the core to it.
THREADS := OMP_NUM_THREADS=1
WAITING := OMP_WAIT_POLICY=passive
JOBS = $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')

.PHONY: help demo demo-detection demo-superresolution test lint types layers docs tests notebooks test-faults test-zoo survey-table bench-alpha bench-checkpoints bench-chain bench-cifar10 bench-controls bench-criteria bench-depth bench-digits bench-evaluation bench-fitness bench-gpu bench-latency bench-latency-winners bench-old-runs bench-packages bench-peers bench-prepared bench-racing bench-scaling bench-searchers bench-slicing bench-wide bench-widths bench-zoo clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

$(VENV)/.installed: pyproject.toml
	@echo "== virtual environment with abcsearch in $(VENV) (the first time this downloads PyTorch)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "abcsearch needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "== tools for tests and notebooks"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,notebooks]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "== torch-pruning and ONNX Runtime, for comparison"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

demo: $(VENV)/.installed ## the whole job on scikit-learn's digits: train, search, fine-tune, export, report
	@echo "== search"
	@$(BIN)/abcsearch search experiments/digits/config.toml --run-dir $(RUN)
	@echo "== fine-tuning"
	@$(BIN)/abcsearch finetune $(RUN)
	@echo "== export"
	@$(BIN)/abcsearch export $(RUN) --format safetensors
	@echo "== report"
	@$(BIN)/abcsearch report $(RUN)

$(VENV)/.installed-detection: $(VENV)/.installed
	@echo "== torchmetrics and pycocotools, for mAP"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[detection]'
	@touch $@

demo-detection: $(VENV)/.installed-detection ## the same with a small detector on drawn shapes (a few minutes)
	@echo "== search"
	@$(BIN)/abcsearch search experiments/detection/config.toml --run-dir runs/detection
	@echo "== fine-tuning"
	@$(BIN)/abcsearch finetune runs/detection
	@echo "== export"
	@$(BIN)/abcsearch export runs/detection --format safetensors
	@echo "== report"
	@$(BIN)/abcsearch report runs/detection

demo-superresolution: $(VENV)/.installed ## the same with a network that enlarges images, on scikit-learn's photos (a few minutes)
	@echo "== search"
	@$(BIN)/abcsearch search experiments/superresolution/config.toml --run-dir runs/superresolution
	@echo "== fine-tuning"
	@$(BIN)/abcsearch finetune runs/superresolution
	@echo "== export"
	@$(BIN)/abcsearch export runs/superresolution --format safetensors
	@echo "== report"
	@$(BIN)/abcsearch report runs/superresolution

test: lint types layers docs tests ## everything that CI checks
	@echo "== all checks passed"

lint: $(VENV)/.installed-dev ## format and style
	@echo "== lint"
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .

types: $(VENV)/.installed-dev ## types
	@echo "== types"
	@$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/.installed-dev ## which module may import which
	@echo "== layers"
	@$(BIN)/lint-imports --no-cache > $(VENV)/layers.log 2>&1 || { cat $(VENV)/layers.log >&2; exit 1; }

docs: $(VENV)/.installed-dev ## the documentation's site, docs/_build/docs/index.html; warnings are errors
	@echo "== docs"
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs . docs/_build

tests: $(VENV)/.installed-dev ## tests, README examples and notebooks, warnings as errors
	@echo "== tests"
	@$(THREADS) $(WAITING) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-faults: $(VENV)/.installed-dev ## runs survive whatever is killed, and no damage to a file changes a result in silence (an hour and a half; not part of test)
	@echo "== faults"
	@$(THREADS) $(WAITING) $(BIN)/python -m pytest -m faults tests

$(VENV)/.installed-zoo: $(VENV)/.installed-dev
	@echo "== packages whose networks are checked"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[zoo]'
	@touch $@

test-zoo: $(VENV)/.installed-zoo ## slicing is exact on 175 networks of all families, and on whole packages (an hour, 5 GB; not part of test)
	@echo "== zoo"
	@$(THREADS) $(BIN)/python -m pytest -m zoo tests/zoo tests/experiments -n 1

bench-cifar10: $(VENV)/.installed-bench ## searchers on CIFAR-10 at equal budget, with its images and weights (hours); ARGS="searchers --help"
	@$(THREADS) $(BIN)/python -m experiments.cifar10.search $(ARGS)

bench-digits: $(VENV)/.installed ## the table of experiments/digits/README.md: the demo with seeds 0 to 4
	@$(BIN)/python -m experiments.digits.seeds

bench-alpha: $(VENV)/.installed ## whether layers should be able to keep all their channels (minutes); ARGS="--name small_resnet", ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.alpha $(or $(ARGS),--redraw)

bench-depth: $(VENV)/.installed ## what every command takes with networks of 500 and 2000 layers (half an hour); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.depth $(ARGS)

bench-evaluation: $(VENV)/.installed ## what an evaluation costs above its forward passes; ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.evaluation $(ARGS)

bench-chain: $(VENV)/.installed ## what each link of a chain is worth: low rank, int8, sparsity, codebooks (20 minutes); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.chain.links $(ARGS)

bench-controls: $(VENV)/.installed ## the winner, its structure with other weights, and other structures, five seeds of digits (10 minutes); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.controls $(ARGS)

bench-criteria: $(VENV)/.installed ## what each criterion is worth, with and without repair: the tables of what is measured; ARGS="--name NETWORK --config FILE" measures (hours), ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.criteria $(or $(ARGS),--redraw)

bench-fitness: $(VENV)/.installed ## how well each fitness ranks structures as fine-tuning would (half an hour); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.fitness $(ARGS)

bench-gpu: $(VENV)/.installed-dev $(VENV)/.installed-bench ## what only a GPU shows, in ten minutes; ARGS="--data FOLDER --weights FILE", ARGS=--tiny on a CPU
	@$(THREADS) $(BIN)/python -m experiments.gpu $(ARGS)

bench-latency: $(VENV)/.installed-bench ## how well forward time is predicted, by network, runtime and batch (an hour; what there is, is not measured again); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.latency $(ARGS)

bench-latency-winners: $(VENV)/.installed-bench ## whether winners of searches for half the time measure inside: the table of what is measured; ARGS="--seeds 0 1 2" measures (half an hour), ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.latency_winners $(or $(ARGS),--only-table)

bench-old-runs: $(VENV)/.installed ## how soon a run of 200 000 trials is looked at and goes on (3 minutes); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.old_runs $(ARGS)

bench-peers: $(VENV)/.installed-bench ## our search beside Torch-Pruning, and ModelOpt's FastNAS where that is installed: one network, one fine-tuning: the tables of what is measured; ARGS="--name NETWORK --config FILE" measures (hours), ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.peers $(or $(ARGS),--redraw)

bench-racing: $(VENV)/.installed ## what scoring in stages saves and loses, on one search in full; ARGS="CONFIG --out FOLDER", ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.racing $(ARGS)

bench-scaling: $(VENV)/.installed ## how busy many workers are kept, and how soon a long run goes on (an hour); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.scaling $(ARGS)

bench-zoo: $(VENV)/.installed-zoo ## the table of docs/networks.md: groups, shares and tracing time by family
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.zoo

bench-packages: $(VENV)/.installed-zoo ## of whole packages: how many networks are sliced exactly, and what can be pruned; ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.packages $(ARGS)

bench-checkpoints: $(VENV)/.installed ## public CIFAR-10 checkpoints: accuracy, and zero channels removed (DATA=folder)
	@$(BIN)/python experiments/benchmarks/checkpoints.py --data $(DATA)

bench-searchers: $(VENV)/.installed ## how many evaluations every searcher needs (DATA=folder with nats_sss.csv.gz)
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.searchers --data $(DATA)

bench-slicing: $(VENV)/.installed-bench ## time of one candidate against copy.deepcopy and torch-pruning, of a shared slice, and of tracing
	@$(THREADS) $(BIN)/python experiments/benchmarks/slicing.py

bench-prepared: $(VENV)/.installed ## recipes of training before the search, at equal epochs (20 minutes); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.prepared $(ARGS)

survey-table: $(VENV)/.installed-bench ## every method of the survey on digits: equal epochs, one recipe (two hours); ARGS="digits --seeds 0", ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.survey $(or $(ARGS),digits --controls --times)

bench-wide: $(VENV)/.installed ## what searchers cost with 300 dimensions of 1000 choices (10 minutes); ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.wide $(ARGS)

bench-widths: $(VENV)/.installed-bench ## forward times at equal MACs by what multiples widths are of; ARGS=--help for options
	@$(THREADS) $(BIN)/python -m experiments.benchmarks.widths $(ARGS)

clean: ## removes the virtual environment, the runs and the built documentation
	rm -rf $(VENV) runs docs/_build
