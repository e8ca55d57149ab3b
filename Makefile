# Everything is installed into .venv; artifacts and the embedded Postgres lie in .rec.
#
#   make demo     set up, run the whole chain on the sample catalogue, open the shop on 127.0.0.1:$(PORT)
#   make stop     end the shop and what it started
#   make test     lint, types, tests
#   make test-long  the tests that take a minute or more each, most of them kills
#   make audit    PyPI's advisories on constraints.txt
#   make bill     the tool that writes a bill of materials, into .venv/bill

PORT ?= 8000
RECIPE ?= demo
BIN := .venv/bin
# The first interpreter on the PATH that is Python 3.11 or later.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)

.PHONY: setup demo stop test test-long lint format audit bill clean

setup: .venv/complete

.venv/complete: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later on the PATH: install one, or make PYTHON=/path/to/python" >&2; exit 2; }
	@echo "setup: $(PYTHON) -> .venv (a few minutes the first time)"
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	@$(BIN)/python -m pip uninstall --disable-pip-version-check -q -y rfc3987-syntax 2>/dev/null  # of an older setup
	@touch $@

demo: setup
	@$(BIN)/python jobs/shop.py check --recipe $(RECIPE) --port $(PORT)
	$(BIN)/python jobs/pipeline.py --recipe $(RECIPE)
	$(BIN)/python jobs/shop.py start --recipe $(RECIPE) --port $(PORT)
	@echo "The shop is at http://127.0.0.1:$(PORT)/ ; make stop ends it."

stop:
	@test -x $(BIN)/python || { echo "nothing to stop: there is no .venv"; exit 0; }; $(BIN)/python jobs/shop.py stop --recipe $(RECIPE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rec jobs serve

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint bill
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=15

# One after the other: each has processes of its own for all processors, and limits on how long they may take.
test-long: setup
	$(BIN)/python -m pytest -v --durations=25 -m long

# Apart from .venv: a package that it brings would have every process that imports Ray start three seconds later.
bill: .venv/bill/complete

.venv/bill/complete: .venv/complete
	$(BIN)/python -m venv .venv/bill
	.venv/bill/bin/python -m pip install --disable-pip-version-check -c constraints.txt cyclonedx-bom
	@touch $@

audit: setup
	@$(BIN)/python .ci/audit.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -not -path './.venv/*' -exec rm -rf {} +
