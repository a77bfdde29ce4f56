"""A²TGPO for TRL: per-turn credit for tool-using language models, as a drop-in for `GRPOTrainer`."""

import importlib
import importlib.metadata
import os
import warnings

from packaging.version import Version

__version__ = "0.1.0"
__all__ = ["A2TGPOConfig", "A2TGPOTrainer", "EndRollout", "ToolReward", "not_thread_safe"]

ANY_TRL = "A2TGPO_ANY_TRL"
"""The environment variable with which another TRL is tried."""

_MODULES = {
    "A2TGPOConfig": ".config",
    "A2TGPOTrainer": ".trainer",
    "EndRollout": ".rollout",
    "ToolReward": ".rollout",
    "not_thread_safe": ".rollout",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_trl_version(importlib.metadata.version("trl"))
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _check_trl_version(version: str) -> None:
    if Version(version).release[:2] == (1, 16):
        return
    problem = f"a2tgpo-trl overrides private methods of TRL and supports trl>=1.16,<1.17; trl {version} is installed. "
    if not os.environ.get(ANY_TRL):
        raise ImportError(f"{problem}Run: pip install 'trl>=1.16,<1.17'")
    warnings.warn(f"{problem}It is tried all the same, as {ANY_TRL} says.", stacklevel=3)
