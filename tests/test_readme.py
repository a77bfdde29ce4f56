"""The README's training script runs, and its options are those that there are."""

import dataclasses
import re
from pathlib import Path

from trl import GRPOConfig

import tiny
from a2tgpo_trl import A2TGPOConfig

README = (Path(__file__).parents[1] / "README.md").read_text()


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


def test_options_table_is_complete():
    inherited = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    ours = {f.name for f in dataclasses.fields(A2TGPOConfig) if inherited.get(f.name, "absent") != f.default}
    table = README[README.index("| option |") : README.index("Each ablation")]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line)))
    assert ours - {"loss_type"} | {"epsilon_high"} == named  # its default is None in TRL too, and means something else
    assert "`loss_type`" in README


def test_files_that_are_named_exist():
    tree = README[README.index("## Files") : README.index("## What is known")]
    root = Path(__file__).parents[1]
    for name in re.findall(r"^  (\S+)\s{2,}", tree, flags=re.MULTILINE):
        assert (root / "src/a2tgpo_trl" / name).exists(), name
    for name in re.findall(r"\]\((\S+?)\)", README):
        assert (root / name).stat().st_size > 100, name
    assert "<!--" not in README
