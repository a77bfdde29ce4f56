"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["advantage", "comparison", "credit", "ratio", "turns"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"a2tgpo_trl.functional.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
