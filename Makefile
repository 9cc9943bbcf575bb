# make run    the server on http://127.0.0.1:3000, with a PostgreSQL of its own
# make test   all tests, browser tests included (BROWSER=0 leaves those out); needs a C compiler
# make smoke  the CLI script against a running server
# make bench  this server beside its peers, about 15 minutes (QUICK=1: 1, SMOKE=1: seconds); needs a C compiler, better
#             also Node
# make faults kills, cuts and floods it for the better part of an hour
# make conformance CLIENT='node client.js'  what your client makes of broken streams (ONLY=cuts: of some)
# make soak   streams that break at random, for MINUTES=10; after that nothing may be left
# make lint   ruff and mypy
# make screenshot  takes the README's picture anew

PYTHON ?= python3
PORT ?= 3000
BROWSER ?= 1
MINUTES ?= 10
export PORT
# To the shell as it is, whatever quotes are in it.
export CLIENT

# Each file of tests in one process, so that its tests share a PostgreSQL or a browser. Most of them wait for something,
# so four keep two cores busy; in the order of their names, which has the long ones (faults/) first.
AT_ONCE := -n 4 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
WITH_CHROMIUM = CHROMIUM="$$(PATH="$(CURDIR)/$(BIN):$$PATH" tests/chromium.sh)" && export CHROMIUM &&
SOURCES := setup.cfg pyproject.toml

.PHONY: run test smoke bench faults soak conformance lint screenshot clean

run: $(VENV)/run.done
	@exec $(BIN)/python -m app

test: $(VENV)/test.done
ifeq ($(BROWSER),0)
	@echo "BROWSER=0: THE BROWSER TESTS ARE LEFT OUT"
	@$(BIN)/python -m pytest $(AT_ONCE) -m "not browser" $(ARGS)
else
	@$(WITH_CHROMIUM) $(BIN)/python -m pytest $(AT_ONCE) $(ARGS)
endif

smoke:
	@tests/test-streaming.sh 00000000-0000-0000-0000-000000000001 00000000-0000-0000-0000-000000000002 \
		http://127.0.0.1:$(PORT)

bench: $(VENV)/bench.done
	@$(BIN)/python -m tests.bench $(ARGS)

faults: $(VENV)/faults.done
	@$(WITH_CHROMIUM) FAULTS=full $(BIN)/python -m pytest tests/faults $(ARGS)

conformance: $(VENV)/run.done
	@$(BIN)/python -m tests.conformance $(if $(ONLY),--only '$(ONLY)') $(ARGS) "$$CLIENT"

soak: $(VENV)/test.done
	@$(BIN)/python -m tests.load.soak --minutes $(MINUTES) $(ARGS)

lint: $(VENV)/lint.done
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

screenshot: $(VENV)/test.done
	@$(WITH_CHROMIUM) $(BIN)/python tests/screenshot.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
		sys.exit(0 if v >= (3, 11) else "$(PYTHON) is Python %d.%d, expected 3.11 or newer: make PYTHON=python3.11 run" % v[:2])'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: EXTRAS = embedded
$(VENV)/bench.done: EXTRAS = embedded
$(VENV)/test.done: EXTRAS = embedded,test
$(VENV)/faults.done: EXTRAS = embedded,test,judges
$(VENV)/lint.done: EXTRAS = embedded,lint
$(VENV)/%.done: $(SOURCES) | $(BIN)/pip
	@echo "Installing what make $* needs into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@# Faster, where there is a wheel for this machine.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --editable '.[speed]' \
		2>/dev/null || echo "Going on without uvloop"
	@touch $@
