# Verbs only. Each does everything it needs from a bare clone: Python 3.11 to 3.13, git and make.
PYTHON ?= python3
BIN := .venv/bin

# what `make run` runs: a recipe of book/recipes, and what to change in it
DATASET ?= glyphs
LOSS ?= multi_similarity
MIX ?= feature
SEED ?= 0
SET ?=
# what `make sweep` runs, and where: here, local or slurm, with the options of dml.sweep
GRID ?= book/recipes/grid-glyphs.yaml
ON ?= here

.DEFAULT_GOAL := help
.PHONY: help book test lab run sweep results bench sync lint lock clean

help: ## list the verbs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1	\2/p' Makefile | expand -t 10

book: .venv/.installed ## make the missing smoke-size runs, then render the book
	$(BIN)/python -m dml.sweep book/recipes/grid-smoke.yaml --at-once 2
	$(BIN)/jupyter-book build book -W -n --keep-going
	@echo "To read it with search: $(BIN)/python -m http.server -d _build/html"

test: .venv/.installed ## run the tests
	$(BIN)/python -m pytest -n auto

lab: .venv/.installed ## open the notebooks in JupyterLab, paired with their scripts
	$(BIN)/jupyter lab --notebook-dir=book

run: .venv/.installed ## one run: DATASET=glyphs LOSS=multi_similarity MIX=feature SEED=0 SET="epochs=20"
	$(BIN)/python -m dml.runs run --recipe $(DATASET) --set loss=$(LOSS) mix=$(MIX) seed=$(SEED) $(SET)

sweep: .venv/.installed ## a grid of runs: GRID=book/recipes/grid-glyphs.yaml ON="slurm --slurm slurm_partition=gpu"
	$(BIN)/python -m dml.sweep $(GRID) --on $(ON)

results: .venv/.installed ## make tables and figures anew from the records in results/
	$(BIN)/python -m pytest tests/test_parity.py --parity results/parity.csv
	$(BIN)/python -m dml.report

# glibc keeps freed memory: fresh pages would cost a large batch more than its share
bench: export MALLOC_TRIM_THRESHOLD_ = 17179869184
bench: export MALLOC_TOP_PAD_ = 268435456
bench: export MALLOC_MMAP_THRESHOLD_ = 4294967296
bench: .venv/.installed ## measure costs, each beside the library that people know
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.txt -e ".[bench]"
	$(BIN)/python benchmarks/losses.py --out results/benchmarks/losses.csv
	$(BIN)/python benchmarks/steps.py --out results/benchmarks/steps.csv
	$(BIN)/python benchmarks/steps.py --backbone resnet50 --size 224 --batches 16 --losses multi_similarity \
	  --rounds 3 --out results/benchmarks/steps-resnet50.csv
	$(BIN)/python benchmarks/training.py --out results/benchmarks/training.csv
	$(BIN)/python benchmarks/space.py --out results/benchmarks/space.csv
	$(BIN)/python benchmarks/data.py --out results/benchmarks/data.csv
	$(BIN)/python benchmarks/evaluate.py --json results/benchmarks/evaluate.json
	$(BIN)/python benchmarks/proxygml.py --out results/benchmarks/proxygml.csv
	$(BIN)/python benchmarks/nngk.py --json results/benchmarks/nngk.json

sync: .venv/.installed ## derive book/*.ipynb, without outputs, from book/*.py
	$(BIN)/jupytext --quiet --update --to ipynb book/[0-9]*.py
	$(BIN)/jupyter nbconvert --log-level=WARN --clear-output --inplace book/[0-9]*.ipynb

lint: .venv/.installed ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lock: .venv/.installed ## pin the whole tree anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra book --extra test --extra cluster --extra bench --universal --upgrade \
	  --python-version 3.11 --no-emit-index-url --no-annotate --no-header -o requirements.txt

clean: ## remove what was rendered, not the runs and not the environment
	rm -rf _build .pytest_cache .ruff_cache

.venv/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.txt -e ".[book,test]"
	touch $@
