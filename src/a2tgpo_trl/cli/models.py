"""Models by name: whole ones and adapters, in a folder or on the Hub."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.utils import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from .. import A2TGPOConfig
from ..integrations.loading import naming_torchvision

PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Files that describe a processor, of which a model has one."""
FINGERPRINTED = ("*.safetensors", "*.bin", "*config.json", "tokenizer*", "*.jinja")
"""Files of a model's folder that its answers depend on."""


@dataclass(frozen=True)
class ModelSource:
    """
    Where a model is.

    Attributes:
        name (`str`): A folder, or a name on the Hub.
        options (`dict`): How it is loaded, for `from_pretrained`.
        base (`str`, *optional*): Where it is an adapter, the model that it belongs to: a folder, or a name on the Hub.
        base_revision (`str`, *optional*): Of the base.
    """

    name: str
    options: dict[str, Any]
    base: str | None = None
    base_revision: str | None = None

    def tokenizer(self):
        """The model's tokenizer, of a model for pictures or audio too. An adapter without one has its base's."""
        return self._loaded(AutoTokenizer, "tokenizer_config.json")

    def processor(self):
        """
        The processor of a model for pictures. An adapter without one has its base's.

        Raises:
            ImportError: If it needs torchvision.
            ValueError: If it is no such model.
        """
        with naming_torchvision(self.name):
            processor = self._loaded(AutoProcessor, *PROCESSORS)
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(
                f"model_name_or_path is {self.name!r}, a model without a processor, and there are pictures: name a model for pictures, "
                "or leave them out of the questions: --columns '{\"images\": null}'."
            )
        return processor

    def _loaded(self, loader, *files: str):
        """What a loader makes of the model's folder, or of that of its base if it has none of the files."""
        name, revision = self.name, self.options["revision"]
        if self.base and not any(_find(name, file, revision) for file in files):
            name, revision = self.base, self.base_revision
        return loader.from_pretrained(
            name,
            revision=revision,
            truncation_side="left",
            padding_side="left",
            trust_remote_code=self.options["trust_remote_code"],
        )

    def load(self, model: ModelConfig, is_trainable: bool = False):
        """
        The model. An adapter is merged into its base, unless that is quantized or the adapter is to be trained.

        Raises:
            ImportError: If it is an adapter and peft is not installed.
        """
        options = {"device_map": None, **self.options, "quantization_config": get_quantization_config(model)}
        if self.base is None:
            return create_model_from_path(self.name, **options)
        try:
            from peft import PeftModel
        except ImportError as error:
            raise ImportError(
                f"model_name_or_path is {self.name!r}, an adapter, which needs peft: pip install 'a2tgpo-trl[peft]'."
            ) from error
        base = create_model_from_path(self.base, **{**options, "revision": self.base_revision})
        size = len(self.tokenizer())
        if size > base.get_input_embeddings().weight.shape[0]:  # tokens that came with the adapter
            base.resize_token_embeddings(size)
        adapted = PeftModel.from_pretrained(
            base, self.name, is_trainable=is_trainable, revision=self.options["revision"]
        )
        adapted.peft_config["default"].base_model_name_or_path = self.base  # as it is found from here
        return adapted if is_trainable or options["quantization_config"] else adapted.merge_and_unload()

    def fingerprint(self) -> str | None:
        """Changes with the files of a model in a folder, by names, sizes and times; `None` for names on the Hub."""
        folders = [Path(name) for name in (self.name, self.base) if name and Path(name).is_dir()]
        files = {file for folder in folders for pattern in FINGERPRINTED for file in folder.glob(pattern)}
        marks = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12] if folders else None


def find_model(model: ModelConfig, config: A2TGPOConfig) -> ModelSource:
    """
    Look for the model that options name.

    Raises:
        ValueError: If none is named, or there is none of that name.
    """
    name = model.model_name_or_path
    if name is None:
        raise ValueError("model_name_or_path is missing: name a model on the Hub, a folder, or a trained adapter.")
    options = loading_options(model, config)
    adapter = _find(name, ADAPTER_CONFIG_NAME, options["revision"])
    if adapter is None:
        check_model(name, options["revision"], f"model_name_or_path is {name!r}")
        return ModelSource(name, options)
    described = json.loads(Path(adapter).read_text(encoding="utf-8"))
    recorded, revision = described["base_model_name_or_path"], described.get("revision") or "main"
    base = _base_folder(Path(name), recorded)
    check_model(base, revision, f"model_name_or_path is {name!r}, an adapter of {recorded!r}")
    return ModelSource(name, options, base, revision)


def loading_options(model: ModelConfig, config: A2TGPOConfig) -> dict[str, Any]:
    """How a model is loaded: ModelConfig's options, under those of `model_init_kwargs`."""
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "trust_remote_code": config.trust_remote_code,
    }
    return {**options, **(config.model_init_kwargs or {})}


def _base_folder(adapter: Path, recorded: str) -> str:
    """The base of an adapter. A relative path counts from where training was started: here, or above the adapter."""
    places = (place / recorded for place in (Path(), *adapter.resolve().parents))
    return str(next((place for place in places if (place / "config.json").is_file()), recorded))


def check_model(name: str, revision: str, what: str) -> None:
    """
    Refuse what is no model.

    Args:
        name (`str`): A folder, or a name on the Hub.
        revision (`str`): Of it.
        what (`str`): The option and its value, with which the error begins.

    Raises:
        ValueError: If there is no such model.
    """
    try:
        if cached_file(name, "config.json", revision=revision) is None:
            raise FileNotFoundError("it has no config.json")
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{what}: there is no such folder of a model, nor can the Hub give one ({reason})."
        ) from error


def _find(name: str, file: str, revision: str) -> str | None:
    """A file of a model, on this machine; `None` if it has none of that name."""
    try:
        return cached_file(name, file, revision=revision)
    except (OSError, ValueError):
        return None
