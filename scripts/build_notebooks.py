"""Runs the notebooks at their default size and stores them with their outputs; prints the minutes that each took.

    python scripts/build_notebooks.py            # all of them
    python scripts/build_notebooks.py 3 4        # those whose names begin so

They run in `outputs/notebooks`, which keeps what they make from one run to the next. What libraries write to stderr is not stored.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "outputs" / "notebooks"


def build(path: Path) -> None:
    """Run a notebook, and store it if no cell failed."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=3600, record_timing=False, coalesce_streams=True, resources=where).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    kept = ("accelerator", "colab", "kernelspec")
    notebook.metadata = {name: notebook.metadata[name] for name in kept} | {"language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def main(chosen: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not chosen or path.name.startswith(tuple(chosen)):
            start = time.monotonic()
            build(path)
            print(f"{path.name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
