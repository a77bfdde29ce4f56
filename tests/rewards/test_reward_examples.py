"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["shaping", "turns"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"a2tgpo_trl.rewards.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
