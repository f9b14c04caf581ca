# `make help` lists the targets. The first one called makes a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install sample test test-fast slow-tests check format client screenshots docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; found = sys.version_info[:2]; (3, 11) <= found <= (3, 13) or sys.exit( \
	"$(PYTHON) is Python %d.%d; name one of 3.11 to 3.13: make $(MAKECMDGOALS) PYTHON=python3.13" % found)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

.venv/examples: .venv/installed requirements-examples.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-examples.lock
	touch $@

install: .venv/installed ## Set up .venv with the pinned packages

sample: install ## Set up, and run the main job on the built-in sample
	$(BIN)/routerretriever run jobs/recipes/sample.yaml

test: install .venv/examples check ## Set up, check the code, and run every test
	$(BIN)/python -m pytest tests/unit -n 2 --cov
	# One Ray and one service at a time: two would wait for each other's CPUs.
	$(BIN)/python -m pytest tests/integration tests/end_to_end

test-fast: install ## Tests that start nothing and are not in tests/slow.txt (under a minute)
	$(BIN)/python -m pytest tests/unit -m "not component" --fast -n 2

slow-tests: install ## Measure which tests are slow
	$(BIN)/python -m pytest tests/unit --write-slow -n 2

check: install ## Style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

client: install ## Write the synchronous client anew from the asynchronous one
	PYTHONPATH=tests $(BIN)/python -m support.synchronous

screenshots: docs ## Take the documentation's pictures anew; needs Chromium and what `make sample` leaves
	PYTHONPATH=tests $(BIN)/python -m support.screenshots

docs: install ## Write the generated pages, and build the documentation into site/
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/benchmarks/generate.py
	$(BIN)/mkdocs build --strict

clean: ## Remove what runs have left
	rm -rf runs
