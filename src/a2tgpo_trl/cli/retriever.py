"""`a2tgpo retriever`: a corpus behind a port."""

from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from ..search.bounds import Limits
from .main import as_bad_usage
from .parser import parse

DESCRIPTION = "Serve a corpus in Search-R1's protocol, POST /retrieve. The index is built once and reused."


@dataclass
class RetrieverArguments(Limits):
    """What to serve, and where; and bounds on requests."""

    corpus: str | None = field(default=None, metadata={"help": "JSONL with id and contents, or title and text."})
    index: str | None = field(default=None, metadata={"help": "Folder of the index. Default: beside the corpus."})
    kind: Literal["bm25", "dense"] = field(default="bm25", metadata={"help": "Kind of index."})
    encoder: str | None = field(
        default=None, metadata={"help": "sentence-transformers model of a dense index: a name or a folder."}
    )
    query_prefix: str = field(default="", metadata={"help": "Put before each query, where the encoder wants it."})
    passage_prefix: str = field(default="", metadata={"help": "Put before each passage, likewise."})
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 is for other machines too."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 takes a free one."})
    top_k: int = field(default=3, metadata={"help": "Passages for a query that does not say."})

    def __post_init__(self):
        super().__post_init__()
        if self.corpus is None:
            raise ValueError("the following arguments are required: --corpus, JSONL of one passage a line.")


def run(options: list[str]) -> int:
    """Serve until Ctrl-C; returns the exit status."""
    (arguments,) = parse("retriever", DESCRIPTION, (RetrieverArguments,), options)
    from ..search.retriever import run_retriever

    chosen = asdict(arguments)
    limits = Limits(**{option.name: chosen.pop(option.name) for option in fields(Limits)})
    with as_bad_usage():
        run_retriever(**chosen, limits=limits)
    return 0
