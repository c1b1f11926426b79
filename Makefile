# Everything a newcomer runs. Each target does its own set-up: the virtual environment is made once and kept.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check chaos simulation setup setup-engines setup-test bench-coevolution bench-overlap docs clean

demo: $(VENV)/.installed  ## train the arithmetic example on this machine, then print before and after
	$(BIN)/spark up examples/arithmetic/run.toml

test: setup-test check  ## everything that CI runs
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/configuration.py --check
	$(BIN)/python docs/telemetry.py --check

chaos: $(VENV)/.installed  ## every row of the fault table, then 1,000 faults over 30,000 items; docs/reliability.md
	PYTHONPATH=.:tests:tests/helpers $(BIN)/python -m chaos --seed 1 --items 30000 --faults 1000

setup: $(VENV)/.installed  ## the base install: enough for the demo
setup-engines: $(VENV)/.installed-engines  ## vLLM and DeepSpeed for CPUs
setup-test: $(VENV)/.installed-test $(VENV)/.installed-engines

# constraints.txt pins every package, so that nothing pulls another torch.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-engines: $(VENV)/.installed infra/engines/install_cpu.sh infra/engines/cpu-packages.txt
	bash infra/engines/install_cpu.sh $(VENV)
	touch $@

bench-%: $(VENV)/.installed
	$(BIN)/python -m bench.$*

docs: $(VENV)/.installed-test  ## regenerate docs/configuration.md and the tables of docs/telemetry.md
	$(BIN)/python docs/configuration.py
	$(BIN)/python docs/telemetry.py

clean:
	rm -rf $(VENV)

simulation: export PYTHONPATH := .:tests:tests/helpers
simulation: $(VENV)/.installed-test  ## whole runs under faults in virtual time; ends with a table and the seeds that failed
	$(BIN)/python -m simulation --schedules 100000 --processes 2
