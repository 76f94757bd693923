# make demo   draws four synthetic CT volumes with the shipped weights
# make test   runs the tests; make slow runs those that take minutes
# make lint   checks style and types
# make release builds the zip of HEAD in dist/
# make clean  removes what the above made, .venv included
# Each sets up .venv first; it is kept until setup.cfg or constraints.txt changes.

PY = .venv/bin/python
CODE = bundle/prdit.py bundle/scripts tests benchmarks tools
BLACK = $(PY) -m black --line-length 120 --skip-magic-trailing-comma   # as the Model Zoo runs it
# what makes .venv: `python3`, or the first other one that is 3.11 or newer
PYTHON = $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
INSTALL = $(PY) -m pip install -qq -c constraints.txt

.PHONY: demo test slow lint release clean

demo: .venv/stamp
	@$(PY) bundle/prdit.py demo

# a worker per core, each with one thread; the tests of a file stay together, for they share what they train
test: .venv/stamp
	@OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

slow: .venv/stamp
	@$(PY) -m pytest -m slow

lint: .venv/stamp
	@$(PY) -m flake8 $(CODE)
	@$(PY) -m isort --check-only --quiet $(CODE)
	@$(BLACK) --check --quiet $(CODE) || { $(BLACK) --diff --quiet $(CODE); exit 1; }
	@$(PY) -m mypy bundle/scripts bundle/prdit.py

release: .venv/stamp
	@$(PY) tools/release.py

# torch goes first and alone, so that pip takes a CPU build where it has been told of one, and then leaves it in place
.venv/stamp: setup.cfg constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "Python 3.11 or newer with the venv module is needed" >&2; exit 1; }; \
		$(PYTHON) -m venv .venv; }
	@echo "Setting up .venv: 3 GB, two to four minutes. 1 of 2: PyTorch"
	@$(INSTALL) torch
	@echo "2 of 2: MONAI and the rest"
	@$(INSTALL) -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build demo dist *.egg-info .mypy_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
