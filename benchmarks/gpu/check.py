"""
Everything that is to be seen on one GPU, in order of worth: run by check.sh.

Each part is a process of its own with a limit of its own, writes NAME.json into the folder for results, what it has measured and
if it failed the end of its traceback or where it stood at its limit, and is skipped when NAME.json is there.
"""

import argparse
import faulthandler
import functools
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMITS = {
    "suite": 200,
    "beliefs": 120,
    "training": 120,
    "demo": 300,
    "memory": 300,
    "scaling": 100,
    "history": 120,
}
"""Most seconds of each part, in the order in which they run."""
NEEDS_MODEL = {"demo"}
ENOUGH_TO_START = 25
"""Seconds: a part imports for some ten of them."""
BEFORE_THE_END = 2
"""Seconds before its limit at which a part writes where it stands."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"those to run, of {', '.join(LIMITS)}; all by default"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="models of one layer and little of everything")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "gpu", help="where results are kept")
    parser.add_argument("--model", type=Path, default=ROOT / ".model", help=f"folder of {GGUF}, or of its pieces")
    parser.add_argument("--seconds", type=float, default=570, help="most that all parts take together")
    parser.add_argument("--commit", help="what is measured, where git does not know it")
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - LIMITS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = parse()
    if options.in_process:
        run_here(options.in_process, options)
        return 0
    options.output_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    outcomes = {name: outcome(name, options, deadline) for name in options.parts or LIMITS}
    print("\n".join(f"{name:10}{text}" for name, text in outcomes.items()), flush=True)
    return int(not all(text.startswith("done") for text in outcomes.values()))


def outcome(name: str, options: argparse.Namespace, deadline: float) -> str:
    """Run a part unless it is done, or cannot be; what became of it."""
    result = options.output_dir / f"{name}.json"
    if not result.is_file():
        left = deadline - time.monotonic()
        if name in NEEDS_MODEL and not options.toy and not find_gguf(options.model):
            return f"skipped: {options.model} holds neither {GGUF} nor all its pieces ({GGUF}.00, .01)"
        if left < ENOUGH_TO_START:
            return f"not started: {left:.0f} seconds are left"
        run(name, options, min(LIMITS[name], left))
    found = json.loads(result.read_text())
    seconds = f"{found['seconds_in_all']} s"
    return f"failed after {seconds}: {found['error'][-1]}" if "error" in found else f"done in {seconds}"


def run(name: str, options: argparse.Namespace, limit: float) -> None:
    """Run a part in a process that is ended at its limit; what it had measured by then is kept."""
    print(f"\n=== {name}, {limit:.0f} s at most", flush=True)
    start = time.monotonic()
    partial, stack = (options.output_dir / f"{name}.{kind}" for kind in ("partial", "stack"))
    partial.unlink(missing_ok=True)
    command = [sys.executable, *sys.argv]
    try:
        status = subprocess.run([*command, "--in-process", name, "--seconds", str(limit)], timeout=limit).returncode
        error = [f"the process ended with status {status}"] if status else None
    except subprocess.TimeoutExpired:
        error = [*main_thread(stack), f"ended after {limit:.0f} seconds"]
    stack.unlink(missing_ok=True)
    content = json.loads(partial.read_text()) if partial.is_file() else {"part": name}
    if error:
        content.setdefault("error", error)
    content["seconds_in_all"] = round(time.monotonic() - start, 1)
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(options.output_dir / f"{name}.json")


def main_thread(stack: Path) -> list[str]:
    """Where a part's main thread stood shortly before its limit, the most recent call first."""
    if not stack.is_file():
        return []
    return without_folders(stack.read_text().rpartition("Thread ")[2].splitlines()[1:26])


def without_folders(lines: list[str]) -> list[str]:
    """Of a traceback, which names neither this machine's checkout nor where its packages are."""
    return [re.sub(r'"[^"]*/site-packages/', '"', line.replace(f"{ROOT}/", "")) for line in lines]


def run_here(name: str, options: argparse.Namespace) -> None:
    """Run a part, and write after each of its figures."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    partial = options.output_dir / f"{name}.partial"
    content = {"part": name, "toy": options.toy}
    stack = (options.output_dir / f"{name}.stack").open("w")
    faulthandler.dump_traceback_later(max(options.seconds - BEFORE_THE_END, 0.1), file=stack)

    def write(**figures) -> None:
        content.update(figures)
        partial.write_text(json.dumps(content, indent=1) + "\n")

    try:
        import parts

        write(**described(options))
        for figure, value in getattr(parts, name)(options):
            write(**{figure: value})
            print(f"{figure}: {json.dumps(value)}", flush=True)
    except Exception:
        traceback.print_exc()
        write(error=without_folders(traceback.format_exc().splitlines()[-25:]))
    finally:
        faulthandler.cancel_dump_traceback_later()
        stack.close()


def described(options: argparse.Namespace) -> dict:
    """What the figures were measured on."""
    import torch
    from measuring import versions

    machine = {"device": platform.processor() or platform.machine(), "python": platform.python_version()}
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {"device": properties.name, "megabytes": properties.total_memory >> 20, "cuda": torch.version.cuda}
        machine["capability"] = list(torch.cuda.get_device_capability())
    return {"machine": machine, "versions": versions(), "commit": options.commit or commit()}


def commit() -> str | None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return None
    told = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return told.stdout.strip() or None


@functools.cache
def find_gguf(folder: Path) -> Path | None:
    """The folder that holds the model's file, put together from its pieces if need be; `None` without all of it."""
    whole = folder / GGUF
    pieces = [whole] if whole.is_file() else sorted(folder.glob(f"{GGUF}.[0-9]*"))
    content = b"".join(piece.read_bytes() for piece in pieces)
    if hashlib.sha256(content).hexdigest() != GGUF_SHA256:
        return None
    if not whole.is_file():
        whole.write_bytes(content)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
