PYTHON ?= python3
PY := .venv/bin/python
.PHONY: test
test:
	$(PY) -m pytest -n 2
