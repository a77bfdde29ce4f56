"""The README is short, and its training script runs."""

import re
from pathlib import Path

import tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_training_script_runs(tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(script.splitlines()) <= 20
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    tiny.chat_tokenizer().save_pretrained(folder)
    for readme, toy in {
        "Qwen/Qwen3-0.6B": str(folder),
        "max_completion_length=1024": "max_completion_length=16, max_steps=2, use_cpu=True, bf16=False, report_to=[]",
        'A2TGPOConfig("outputs/search-agent"': f'A2TGPOConfig("{tmp_path}/run"',
    }.items():
        assert readme in script
        script = script.replace(readme, toy)
    namespace = {}
    exec(script, namespace)
    assert namespace["trainer"].state.global_step == 2


def test_it_fits_two_screens():
    assert len(README.splitlines()) <= 130 and len(README.split()) <= 1450
    assert "<!--" not in README
