# Two commands are enough: `make demo` runs the main job, `make test` the tests.
# Everything they need comes by itself: tools/bootstrap.py makes .venv, and a Go where there is none.
PYTHON ?= python3
PY := .venv/bin/python
WORKERS ?= 2
PYTEST := PYTHONHASHSEED=random $(PY) -m pytest

.PHONY: help venv demo test slow check docs bench budgets vectors clean
help:
	@echo "make demo     build, serve and pull an example function, edit it, pull again"
	@echo "make test     the tests (under 5 minutes)"
	@echo "make check    lint, types, architecture, docs (under a minute)"
	@echo "make slow     the long tests"
	@echo "make docs     write docs/cli.md, docs/errors.md and the README's table anew"
	@echo "make bench    measure; results in bench/results/, page in docs/benchmarks.md"
	@echo "make budgets  write better numbers into budgets.toml"
	@echo "make vectors  write the golden vectors anew (they change only with a format version)"
	@echo "make clean    remove .venv and what tools left behind"

venv:
	@$(PYTHON) tools/bootstrap.py

demo: venv
	@$(PY) tools/demo.py

test: venv
	@$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not slow"

slow: venv
	@$(PYTEST) -n $(WORKERS) --dist loadgroup -m slow

check: venv
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PYTEST) tests/test_architecture.py tests/test_docs.py

docs: venv
	@$(PY) tools/make_docs.py

bench: venv
	@$(PY) -c "import bsdiff4, hdiffpatch" 2>/dev/null || $(PY) -m pip install -q -e ".[bench]"
	@nice $(PY) bench/run.py
	@$(PY) tools/demo.py --record
	@$(PY) tools/make_docs.py

budgets: venv
	@LAYERKIT_WRITE_BUDGETS=1 $(PYTEST) tests/test_budgets.py

vectors: venv
	@$(PY) tests/vectors/regenerate.py

clean:
	rm -rf .venv build dist bench/work .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find layerkit tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
