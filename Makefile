# Two commands from an empty machine: make report, make test.  They need git, make and Python 3.11 or newer.

PROFILE ?= pocket
JOBS    ?=
PYTHON  ?= python3
DATA    ?=
HUB     ?= hub
OUT     ?=
# These go to the commands by the environment, as they were typed: neither make nor a shell reads more into them.
GPU_JOBS := $(or $(value JOBS),1)
override JOBS    := $(or $(value JOBS),$(shell nproc 2>/dev/null || sysctl -n hw.ncpu))
override PROFILE := $(value PROFILE)
override DATA    := $(value DATA)
override HUB     := $(value HUB)
override OUT     := $(value OUT)
override AGAINST := $(value AGAINST)
export JOBS GPU_JOBS PROFILE DATA HUB OUT AGAINST
ifdef ALIGNKIT_BUILD
override ALIGNKIT_BUILD := $(value ALIGNKIT_BUILD)
export ALIGNKIT_BUILD
endif

BIN   := .venv/bin
# The environment is ready when it was built from this very lock and project file, whatever their file times.
READY := .venv/ready-$(shell cat requirements.lock pyproject.toml | $(PYTHON) -c "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:12])")

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM := false
# The kernel of this environment, not one that the user registered elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: report gpu-report replicate tune test test-fast torture verify smoke check bench html clean environment
.DELETE_ON_ERROR:

## re-execute every notebook with params/$(PROFILE), write figures/$(PROFILE)
report: environment
	@python -m alignkit check params/"$$PROFILE" --reach $${DATA:+--data "$$DATA"}
	@python -m alignkit done "$$PROFILE" $${DATA:+--data "$$DATA"}; status=$$?; [ $$status = 1 ] || exit $$status; \
	$(SNAKEMAKE) --config profile="$$PROFILE"; status=$$?; [ $$status != 2 ] || exit 2; \
	python -m alignkit publish "$$PROFILE" && exit $$status

## the report with fresh seeds (params/$(PROFILE)_replica), and which findings of figures/$(PROFILE) hold again
replicate: environment
	@$(MAKE) --no-print-directory report PROFILE="$${PROFILE}_replica"
	@python -m alignkit replicate "$$PROFILE"

## the report without a network: by this machine's Python, models and reviews from $(HUB); an archive in $(OUT)
gpu-report:
	@test ! -f "$$HUB/site-packages.tar.xz" || test -d "$$HUB/site-packages" || \
	$(PYTHON) -m tarfile -e "$$HUB/site-packages.tar.xz" "$$HUB"
	@PYTHONPATH="$$(cd "$$HUB" 2>/dev/null && pwd)/site-packages:$$PYTHONPATH" \
	$(PYTHON) -m alignkit report "$$PROFILE" --jobs "$$GPU_JOBS" --hub "$$HUB" $${OUT:+--out "$$OUT"}

## all notebooks with tiny sizes, then again under nbval
smoke: environment
	@python -m alignkit check params/smoke
	@DATA= $(SNAKEMAKE) --config profile=smoke
	@pytest --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:cacheprovider "$${ALIGNKIT_BUILD:-build}"/smoke/*.ipynb

## everything that needs no training: parameters, style, notebook lint
check: environment
	@python -m alignkit check params
	@ruff check . && ruff format --check .
	@pytest tests/report/test_notebooks.py tests/report/test_text_cells.py tests/workflow/test_project.py

## all tests, the end-to-end smoke run among them
test: environment
	@$(PYTEST)

## the tests that neither run notebooks nor take several seconds each
test-fast: environment
	@$(PYTEST) -m "not batch and not slow"

## faults at random, many of each: files damaged, processes killed, any value at any key; up to half an hour
torture: environment
	@ALIGNKIT_TORTURE=1 pytest tests/workflow/test_torture.py tests/workflow/test_parameters.py tests/workflow/test_hosted.py

## the report in figures/$(PROFILE) against the committed one, and which findings no longer hold
verify: environment
	@python -m alignkit verify "$$PROFILE" $${AGAINST:+--against "$$AGAINST"}

## four settings of every method on two seeds of their own; writes figures/$(PROFILE)/tuning.csv; half an hour
tune: environment
	@python -m alignkit tune "$$PROFILE"

## speed beside transformers and TRL: prints ratios, writes benchmarks/peers.csv and growth.csv; minutes, idle machine
bench: environment
	@python benchmarks/peers.py

## the report as web pages, in site/
html: environment
	@python -m alignkit html

clean:
	rm -rf build site .snakemake

environment: $(READY)

$(READY):
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0])"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements.lock into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# pip compiles on one core; some of what is installed are templates that nothing could compile
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib alignkit || true
	@rm -f .venv/ready-*
	@touch $@

SNAKEMAKE = snakemake --cores "$$JOBS" --keep-going --rerun-triggers params --rerun-incomplete --nolock --quiet host rules
# Files of tests side by side; each stays with one process, which makes what its tests share once.
PYTEST = pytest -n "$$JOBS" --dist loadfile --no-loadscope-reorder
