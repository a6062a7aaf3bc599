# From a fresh clone: `make study` sets up .venv and runs the default study, `make test` runs every check and test.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
SETUP := .venv/installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install study check test planted forecast chaos bench clean

install: $(SETUP)

# torch comes first and alone: whatever build it is, the rest then finds it there.
$(SETUP): pyproject.toml constraints.txt
	@echo "setting up .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

study: $(SETUP)
	$(BIN)/mmdistill run search_spaces/quickstart.toml $(ARGS)

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Files of tests side by side, then what wants the machine for itself; 5 is "no test selected by ARGS".
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not chaos and not alone" $(ARGS) || test $$? -eq 5
	OMP_NUM_THREADS=1 $(BIN)/pytest -m alone $(ARGS) || test $$? -eq 5

# Are the verdicts right where the truth is known? 40 studies each of three files; half an hour of CPU time.
planted: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/planted_verdicts.py $(ARGS)
# Does `forecast` tell where soft labels gain something? Three studies each on every data set at hand.
forecast: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/forecast_gains.py $(ARGS)
# What kills drivers, workers and nodes: about a quarter of an hour, with nothing else running.
chaos: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m chaos tests/chaos $(ARGS)

# What a study costs beside its training, and against the plain pattern. With nothing else running.
bench: $(SETUP)
	for script in tests/benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script $(ARGS) || failed=1; done; test -z "$$failed"

clean:
	rm -rf build platform/mmdistill.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find platform tests -name __pycache__ -type d -prune -exec rm -rf {} +
