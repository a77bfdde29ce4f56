"""What the library can do here: precision, generation, attention, tools and the Hub. Imports all that a run does."""

import asyncio
import tempfile
import time
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers.utils import (
    is_flash_attn_2_available,
    is_torch_bf16_available_on_device,
    is_torch_flex_attn_available,
    is_torch_fp16_available_on_device,
    is_triton_available,
)

from ...rollout.tools.calls import ToolCall
from ...rollout.tools.executor import ToolExecutor
from ..parser import defaults_of_this_machine
from . import hardware
from .findings import Finding, Sections, short
from .packages import install_command

PATIENCE = 20.0
"""Seconds in which a tool that does nothing is to answer."""


def look(packages: dict[str, Finding]) -> Sections:
    """
    Sections of what works.

    Args:
        packages (`dict[str, Finding]`): What was found of packages, by name.
    """
    return {
        "precision": _precision(),
        "generation": _generation(packages["vllm"]),
        "attention": _attention(),
        "tools": _tools(),
        "hub": _hub(),
    }


def _device() -> str:
    return str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"


def _precision() -> list[Finding]:
    device, defaults = _device(), defaults_of_this_machine()
    chosen = next((name for name in ("bf16", "fp16") if defaults.get(name, name == "bf16")), "that of the weights")
    return [
        Finding("a2tgpo train", chosen, note="by default"),
        _unless(
            "bf16", "" if is_torch_bf16_available_on_device(device) else f"{device} has no bfloat16", f"on {device}"
        ),
        _unless(
            "fp16", "" if is_torch_fp16_available_on_device(device) else f"{device} has no float16", f"on {device}"
        ),
    ]


def _generation(vllm: Finding) -> list[Finding]:
    return [
        Finding("transformers", "works", True, "the default"),
        Finding("continuous batching", "works", True, "use_transformers_continuous_batching"),
        _vllm("vllm colocate", vllm, "takes new weights after each update"),
        _vllm("vllm server", vllm, "sends it new weights by NCCL"),
    ]


def _vllm(name: str, vllm: Finding, needs_a_gpu: str) -> Finding:
    """vLLM in one of its modes, for training."""
    reasons = [] if vllm.ok else [f"vllm {vllm.value}" + ("" if vllm.value == "not installed" else f", {vllm.note}")]
    if not torch.cuda.is_available():
        reasons.append(f"training {needs_a_gpu}, which takes a GPU, and torch finds none")
    if reasons:
        return Finding(
            name, "cannot run", False, "; ".join(reasons), "" if vllm.ok else vllm.mend or install_command("vllm")
        )
    return Finding(name, "can run", True, "use_vllm")


def _attention() -> list[Finding]:
    cuda = torch.cuda.is_available()
    no_cuda = "" if cuda else "it takes CUDA, and torch finds none"
    no_triton = "" if is_triton_available() and is_torch_flex_attn_available() else "it takes triton"
    no_flash = "" if is_flash_attn_2_available() else "flash-attn is not installed"
    return [
        Finding("eager, sdpa", "work", True, "histories are kept between turns"),
        _unless("flex_attention", no_cuda or no_triton, "scores beliefs, whichever attention the model has"),
        _unless(
            "flash_attention_2",
            no_cuda or no_flash,
            "each turn reads its whole history again",
            "" if no_cuda else install_command("flash-attn"),
        ),
    ]


def _unless(name: str, reason: str, note: str, mend: str = "") -> Finding:
    """What works unless there is a reason why not."""
    return Finding(name, "cannot run", False, reason, mend) if reason else Finding(name, "works", True, note)


def _tools() -> list[Finding]:
    """Calls on a thread and on the event loop, as rollouts make them; no processes are started for tools."""

    def function() -> str:
        return "done"

    async def coroutine() -> str:
        await asyncio.sleep(0)
        return "done"

    tools = {"function": function, "coroutine": coroutine}
    executor, start = ToolExecutor(timeout=PATIENCE), time.perf_counter()
    try:
        executor.submit("doctor", [ToolCall(name, {}) for name in tools], tools)
        ((_, results),) = executor.collect()
    except RuntimeError as error:  # no thread could be started
        return [Finding("calls", "fail", False, str(error), "ulimit -u unlimited", required=True)]
    if failed := [result for result in results if result.content != "done"]:
        return [Finding("calls", "fail", False, str(failed[0].content), "ulimit -u unlimited", required=True)]
    took = f"a function and a coroutine answered in {time.perf_counter() - start:.3f} s"
    return [Finding("calls", "work", True, f"{took}; tools run on threads", required=True)]


def _hub() -> list[Finding]:
    folder = Path(constants.HF_HUB_CACHE)
    reason = _why_not_writable(folder)
    mend = f"export HF_HOME=FOLDER   # one that can be written; now {short(folder.parent)}"
    offline = "HF_HUB_OFFLINE is set: models and data come from the cache" if constants.HF_HUB_OFFLINE else ""
    return [
        Finding(
            "cache",
            short(folder),
            not reason,
            reason or f"can be written, {hardware.free(_existing(folder))} free",
            mend if reason else "",
        ),
        Finding("offline mode", "on" if constants.HF_HUB_OFFLINE else "off", note=offline),
    ]


def _existing(folder: Path) -> Path:
    """The folder, or what is nearest to it on the way there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _why_not_writable(folder: Path) -> str:
    """Why no file can be made in a folder, or in one that is to hold it; empty if one can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"
