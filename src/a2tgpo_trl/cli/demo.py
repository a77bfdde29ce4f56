"""`a2tgpo demo`: what `make demo` runs."""


def run(options: list[str]) -> int:
    """Run the demo; returns the exit status."""
    from ..demo.__main__ import main

    return main(options)
