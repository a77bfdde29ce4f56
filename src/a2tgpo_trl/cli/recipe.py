"""`a2tgpo recipe`: a recipe or a launch file to read, and to keep and change."""

from importlib import resources
from pathlib import Path

from .main import BadUsage, OptionParser

DESCRIPTION = (
    "Print a recipe or a launch file, to read it or keep it: a2tgpo recipe NAME > FILE. Without a name, list them."
)
FOLDER = Path(str(resources.files("a2tgpo_trl"))) / "recipes"


def run(options: list[str]) -> int:
    """Print the file of a name, or all names with what their files are for; returns the exit status."""
    parser = OptionParser(prog="a2tgpo recipe", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", help="such as paper-multihop or launch/zero3")
    name = parser.parse_args(options).name
    files = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in sorted(FOLDER.rglob("*.yaml"))}
    texts = {known: file.read_text(encoding="utf-8") for known, file in files.items()}
    if name is None:
        width = max(map(len, texts))
        print(*(f"{known:{width}} {_first_line(text)}" for known, text in texts.items()), sep="\n")
    elif name in texts:
        print(texts[name], end="")
    else:
        raise BadUsage(f"{name!r} is no recipe; there are {', '.join(texts)}.")
    return 0


def _first_line(text: str) -> str:
    """What a file says of itself, in its first comment."""
    return text.partition("\n")[0].removeprefix("#").strip()
