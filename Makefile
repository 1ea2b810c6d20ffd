# `make help` lists the targets. Needs Python >= 3.10 with venv, a C++17 compiler and make.
.DELETE_ON_ERROR:
.PHONY: help install demo test sanitize lint format clean FORCE

PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CORES := $(shell nproc 2>/dev/null || echo 1)
# Stamps: each is the time when a step was last done.
REQUIREMENTS := $(VENV)/.requirements
BUILT := $(VENV)/.built
DEVELOPING := $(VENV)/.developing
ASKED := $(VENV)/.cuda-archs
BUILD_INPUTS := setup.py pyproject.toml CMakeLists.txt \
    $(shell find csrc cmake -type f 2>/dev/null)
CPP := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

help:
	@echo "make demo     pre-train, fine-tune and evaluate a small model on synthetic records; the report is in $(RUNS)/demo"
	@echo "make test     run all tests on all cores (PYTEST_ARGS=... for pytest's own arguments)"
	@echo "make sanitize run the op tests on CPU kernels, and those of the emulated CUDA kernels, built with sanitizers"
	@echo "make lint     ruff and clang-format, changing nothing"
	@echo "make format   ruff and clang-format, changing files"
	@echo "make install  only the virtual environment and the build, in $(VENV)"
	@echo "make clean    remove build outputs and $(VENV); $(RUNS) stays"

# Python compiles modules when they are first imported: most of the packages' never are.
$(REQUIREMENTS): requirements-dev.txt
	@echo "== creating $(VENV) with PyTorch and the build's tools (downloads: 0.3 GB, or 2 GB where pip takes PyTorch with CUDA)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -r requirements-dev.txt
	@touch $@

# What the last build was asked for: make builds again when ECGFAST_CUDA_ARCHS changes.
$(ASKED): $(if $(ECGFAST_CUDA_ARCHS),FORCE) | $(REQUIREMENTS)
	@test "$$(cat $@ 2>/dev/null)" = "$(ECGFAST_CUDA_ARCHS)" && test -e $@ || echo "$(ECGFAST_CUDA_ARCHS)" >$@
FORCE:

# An editable install: changes to Python files need no rebuild. setup.py is run by itself first, because pip
# does not show how a build proceeds; under pip it finds nothing left to build.
$(BUILT): $(REQUIREMENTS) $(ASKED) $(BUILD_INPUTS)
	@echo "== building the kernels (a first build of the CPU's takes 4 minutes of one core; cores here: $(CORES))"
	$(BIN)/python setup.py --quiet build_ext --inplace
	@echo "== installing ecgfast with the packages that it uses"
	$(PIP) install --no-compile --no-build-isolation -c requirements-dev.txt -e '.[evaluation]'
	@touch $@

$(DEVELOPING): $(BUILT)
	@echo "== installing what tests and style checks use"
	$(PIP) install --no-compile --no-build-isolation -c requirements-dev.txt -e '.[dev]'
	@touch $@

install: $(DEVELOPING)

DEMO_RECORDS := $(RUNS)/demo-data/records
DEMO_STORE := $(RUNS)/demo-data/store

$(DEMO_RECORDS)/synthetic.json: | $(BUILT)
	@echo "== writing 512 synthetic records of 10 s"
	$(BIN)/ecgfast synth $(DEMO_RECORDS) --patients 256 --records 2 --seconds 10

$(DEMO_STORE)/store.json: $(DEMO_RECORDS)/synthetic.json
	@echo "== importing them into a store (for the first time, some six seconds of compiling Numba functions)"
	$(BIN)/ecgfast prepare $(DEMO_RECORDS) $(DEMO_STORE)

demo: $(BUILT) $(DEMO_STORE)/store.json
	@echo "== pre-training a small model (500 updates; 40 seconds on 2 cores)"
	$(BIN)/ecgfast pretrain $(DEMO_STORE) $(RUNS)/demo-pretrain --preset demo --max-steps 500
	@echo "== fine-tuning it to tell the labels, with leads masked at random"
	$(BIN)/ecgfast finetune $(DEMO_STORE) $(RUNS)/demo-pretrain $(RUNS)/demo-finetune $(DEMO_FINETUNING)
	@echo "== evaluating it with 12, 6, 4, 3, 2 and 1 leads, beside probes and a random encoder"
	$(BIN)/ecgfast evaluate $(DEMO_STORE) $(RUNS)/demo-finetune $(RUNS)/demo --leads all --draws 200

DEMO_FINETUNING := --freeze none --lead-mask-prob 0.5 --optim.lr 1e-3 --optim.schedule cosine --epochs 20 \
    --batch-size 32 --validation-fraction 0.15 --test-fraction 0.25

# A process per core, each with the tests of one half, third, ... of the files at first: drivers and fixtures
# are then made once. tests/conftest.py divides the threads among them.
PARALLEL := -n auto --dist worksteal

# Builds and runs the emulated CUDA kernels once more under AddressSanitizer: `make sanitize` does it.
UNDER_ASAN := tests/cuda_on_cpu/test_under_asan.py

test: $(DEVELOPING)
	$(BIN)/python -m pytest $(PARALLEL) --ignore $(UNDER_ASAN) $(PYTEST_ARGS)

# A second copy of the package with instrumented CPU kernels; --import-mode=append lets it precede the checkout.
SANITIZED := build/sanitized
$(SANITIZED)/.built: $(REQUIREMENTS) $(BUILD_INPUTS) $(shell find ecgfast -name '*.py')
	@echo "== building the CPU kernels with sanitizers"
	CMAKE_ARGS=-DECGFAST_SANITIZE=ON ECGFAST_CUDA_ARCHS=none ECGFAST_BUILD_DIR=$(SANITIZED)/cmake \
	    $(BIN)/python setup.py --quiet build --build-base $(SANITIZED)/base --build-lib $(SANITIZED)/lib
	touch $@

# What is about precision, compilers and processes: the other tests run the same kernels over more shapes.
NOT_SANITIZED := $(patsubst %,--ignore tests/ops/test_%.py,compile transforms real_records hard_inputs \
    precision global_contrastive_ranks)

sanitize: $(DEVELOPING) $(SANITIZED)/.built
	$(BIN)/python -m pytest $(PARALLEL) -q $(UNDER_ASAN)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/lib $(BIN)/pytest --import-mode=append \
	    $(PARALLEL) -p no:cacheprovider -q tests/ops $(NOT_SANITIZED) -k "not opcheck and not gradcheck"

lint: $(DEVELOPING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(DEVELOPING)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find ecgfast tests -name __pycache__ -prune -exec rm -rf {} +
	find ecgfast -name '*.so' -delete
