# Everything runs in .venv, which is made from the first Python 3.11 or newer that is found (or PYTHON=...).
# The versions are those of constraints.txt.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# More words for pip, such as an index with a CPU-only torch (pytorch.org names it): PyPI's torch for Linux brings CUDA.
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed
# torch would otherwise start as many threads as there are cores in every test process.
TEST_THREADS ?= 1
TEST_WORKERS ?= 2

.PHONY: help install demo test check bench clean

help:
	@echo "make install  set up .venv"
	@echo "make demo     check, train, evaluate and predict on the bundled sample (minutes on a CPU)"
	@echo "make test     the tests"
	@echo "make check    lint, types, spelling, generated documents"
	@echo "make bench    the benchmarks against Hugging Face's model, about 20 minutes; results in benchmarks/results"
	@echo "make clean    remove .venv and caches"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 or newer with venv (Debian: apt install python3-venv), found none;" \
		"install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up .venv by constraints.txt, a minute or more"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install
	OMP_WAIT_POLICY=passive $(BIN)/mask2former-dinov3 demo --output runs/demo

test: install
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --max-worker-restart 0 $(TESTS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python tools/make_configuration.py --check

bench: install
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist
