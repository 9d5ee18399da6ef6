# Everything runs in .venv, which is made from the first Python 3.11 or newer that is found (or PYTHON=...).
# The versions are those of constraints.txt.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# More words for pip, such as an index with a CPU-only torch (pytorch.org names it): PyPI's torch for Linux brings CUDA.
PIP_ARGS ?=
BIN := .venv/bin
# Extras that the verbs in README need; pyproject.toml's `dev` includes the same ones.
EXTRAS := datasets,export,large,peft,ray,serve
# .venv grows in three steps, each of which contains the one before: demo, install, development.
WITH_PACKAGE := .venv/with-package
WITH_EXTRAS := .venv/with-extras
WITH_TOOLS := .venv/with-tools
# torch would otherwise start as many threads as there are cores in every test process.
TEST_THREADS ?= 1
TEST_WORKERS ?= 2
# Every thread of a process could otherwise keep freed memory of its own.
PYTEST = OMP_NUM_THREADS=$(TEST_THREADS) MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup \
	--max-worker-restart 0

.PHONY: help install demo test coverage check wheel bench clean

help:
	@echo "make demo     check, train, evaluate and predict on the bundled sample (minutes on a CPU); installs the package alone"
	@echo "make install  the package and the extras of README's verbs: $(EXTRAS)"
	@echo "make test     the tests; adds the development tools to .venv"
	@echo "make coverage the tests, and whether they reach enough lines of the package; slower"
	@echo "make check    lint, types, spelling, plain English, generated documents"
	@echo "make wheel    build the wheel, install it into an empty environment, run its demo"
	@echo "make bench    the benchmarks against Hugging Face's model, about 20 minutes; results in benchmarks/results"
	@echo "make clean    remove .venv and caches"

install: $(WITH_EXTRAS)

$(WITH_PACKAGE): WHAT = .
$(WITH_EXTRAS): WHAT = .[$(EXTRAS)]
$(WITH_TOOLS): WHAT = .[dev]
$(WITH_PACKAGE): DONE = $(WITH_PACKAGE)
$(WITH_EXTRAS): DONE = $(WITH_PACKAGE) $(WITH_EXTRAS)
$(WITH_TOOLS): DONE = $(WITH_PACKAGE) $(WITH_EXTRAS) $(WITH_TOOLS)

# pip is not quiet: it names each package and shows the progress of a download, of which torch is the longest.
$(WITH_PACKAGE) $(WITH_EXTRAS) $(WITH_TOOLS): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 or newer with venv (Debian: apt install python3-venv), found none;" \
		"install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "installing '$(WHAT)' into .venv with the versions of constraints.txt"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '$(WHAT)'
	@touch $(DONE)
	@echo "installed '$(WHAT)': $$(du -sm .venv | cut -f1) MB in .venv"

demo: $(WITH_PACKAGE)
	OMP_WAIT_POLICY=passive $(BIN)/mask2former-dinov3 demo --output runs/demo

test: $(WITH_TOOLS)
	$(PYTEST) $(TESTS)

# The same tests, a third slower: what measures the coverage sees every call of a function. The floor, `fail_under` in
# pyproject.toml, holds for the whole suite.
coverage: $(WITH_TOOLS)
	$(PYTEST) --cov --cov-report=term:skip-covered

check: $(WITH_TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python tools/check_language.py
	$(BIN)/python tools/make_configuration.py --check
	$(BIN)/python tools/make_api.py --check

wheel:
	PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" .ci/wheel

bench: $(WITH_TOOLS)
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .coverage build dist
