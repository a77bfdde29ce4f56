"""Going on from checkpoints: torn ones, and those of runs that are finished."""

import inspect
import json
import logging
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer

import tiny
import tiny_vision
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.integrations.checkpoints import damage_of, last_checkpoint, load_renamed

SAVING = dict(save_strategy="steps", save_steps=1, max_steps=2)


def without_state(folder):
    (folder / "trainer_state.json").unlink()


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


DAMAGES = {
    "it has no trainer_state.json": without_state,
    "trainer_state.json is cut off": cut("trainer_state.json"),
    "model.safetensors is cut off": cut("model.safetensors"),
    "optimizer.pt is cut off": cut("optimizer.pt"),
    "rng_state.pth is cut off": cut("rng_state.pth"),
}


def experts():
    sizes = dict(hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=2, vocab_size=50)
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads))


RENAMED = {
    "experts": experts,
    "Qwen2.5-VL": partial(tiny_vision.model, "qwen2_5_vl"),
    "Gemma 3": partial(tiny_vision.model, "gemma3"),
}


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}], ids=["whole", "shards"])
@pytest.mark.parametrize("name", RENAMED)
def test_weights_that_are_saved_under_other_names(tmp_path, name, shards):
    saved, model = (RENAMED[name]().bfloat16() for _ in range(2))
    for one in (saved, model):
        one.get_output_embeddings().float()
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.normal_()
    saved.save_pretrained(tmp_path, **shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(shards)
    assert load_renamed(model, tmp_path)
    for key, weight in saved.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], weight, rtol=0, atol=0)


def test_weights_that_are_saved_under_their_own_names_are_left_to_transformers(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    assert not load_renamed(tiny.model(), tmp_path) and not load_renamed(torch.nn.Linear(1, 1), tmp_path)


@pytest.fixture
def run(build, tmp_path):
    """The folder of a finished run of two steps, with a checkpoint of each."""
    build(**SAVING).train()
    return tmp_path / "run"


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    return caplog


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_complete_checkpoint_is_taken(run, damage, warnings):
    assert damage_of(run / "checkpoint-2") is None and last_checkpoint(run) == str(run / "checkpoint-2")
    DAMAGES[damage](run / "checkpoint-2")
    assert damage_of(run / "checkpoint-2") == damage
    assert last_checkpoint(run) == str(run / "checkpoint-1")
    assert f"checkpoint-2 is skipped: it is not a complete checkpoint ({damage})" in warnings.text


def test_checkpoints_are_told_apart_by_their_numbers(run):
    for name in ("checkpoint-10", "checkpoint-best", "checkpoint-old-99"):
        shutil.copytree(run / "checkpoint-2", run / name)
    assert last_checkpoint(run) == str(run / "checkpoint-10")
    assert last_checkpoint(run / "nowhere") is None


def test_an_empty_file_is_cut_off(run):
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    assert damage_of(run / "checkpoint-2") == "optimizer.pt is cut off"


def test_torchs_older_format_is_whole(run):
    state = torch.load(run / "checkpoint-2" / "optimizer.pt", weights_only=True)
    torch.save(state, run / "checkpoint-2" / "optimizer.pt", _use_new_zipfile_serialization=False)
    assert damage_of(run / "checkpoint-2") is None


def test_folders_are_no_files(run):
    folder = run / "checkpoint-2"
    for name in ("other.safetensors", "global_step2.pt"):
        (folder / name).mkdir()
    assert damage_of(folder) is None


def test_a_trainer_goes_on_from_the_last_complete_one(run, build):
    without_state(run / "checkpoint-2")
    resumed = build(**SAVING | dict(max_steps=3))
    resumed.train(resume_from_checkpoint=True)
    assert [log["step"] for log in resumed.state.log_history if "loss" in log] == [1, 2, 3]
    assert damage_of(run / "checkpoint-2") is None  # written again


def test_one_that_was_being_written_over_is_not_complete(run, build, monkeypatch):
    def killed(trainer, folder):
        raise KeyboardInterrupt

    assert damage_of(run / "checkpoint-2") is None
    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        build(**SAVING, seed=5).train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert damage_of(run / "checkpoint-2") == "it has no trainer_state.json"


def test_a_trainer_refuses_a_torn_one_that_is_named(run, build):
    without_state(run / "checkpoint-2")
    with pytest.raises(
        ValueError, match=r"checkpoint-2', which is not a complete checkpoint: it has no trainer_state"
    ):
        build(**SAVING).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    without_state(run / "checkpoint-1")
    with pytest.raises(ValueError, match="run has no complete checkpoint"):
        build(**SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("limit", [dict(max_steps=2), dict(max_steps=1), dict(max_steps=-1, num_train_epochs=0.05)])
def test_a_finished_run_is_not_trained_further(run, build, warnings, limit):
    resumed = build(**SAVING | limit)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert not (run / "checkpoint-3").exists()
    assert "Nothing was left to train" in warnings.text and "set max_steps or num_train_epochs higher" in warnings.text


def test_the_weights_of_a_finished_run_are_loaded(run, build):
    resumed = build(**SAVING, seed=5)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    saved = load_file(run / "checkpoint-2" / "model.safetensors")
    weights = resumed.model.state_dict()
    assert saved and all(torch.equal(weights[name], value) for name, value in saved.items())


def test_transformers_writes_the_state_last():
    source = inspect.getsource(Trainer._save_checkpoint)
    places = [
        source.index(call)
        for call in ("self.save_model(", "self._save_optimizer", "self._save_rng_state(", "self.state.save_to_json(")
    ]
    assert places == sorted(places)


# ---- the command


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """`train(*flags)`: exit status of a toy run, and what it printed."""
    monkeypatch.chdir(tmp_path)
    tiny.model().save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    words = "train --dataset atlas --model_name_or_path model --num_generations 4 --per_device_train_batch_size 4 --use_cpu "
    words += (
        "--bf16 false --report_to none --max_completion_length 8 --save_steps 1 --logging_steps 1 --output_dir run"
    )

    def run(*flags):
        status = main([*words.split(), *flags])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_the_command_goes_on_from_the_last_complete_one(train, tmp_path, warnings):
    assert train("--max_steps", "2")[0] == 0
    without_state(tmp_path / "run" / "checkpoint-2")
    status, said = train("--max_steps", "3", "--resume_from_checkpoint", "run/checkpoint-2")
    assert status == 2
    assert (
        "which is not a complete checkpoint (it has no trainer_state.json): name the folder of another, or 'last'"
        in said
    )
    status, said = train("--max_steps", "3", "--resume_from_checkpoint", "last")
    assert status == 0 and "Trained 3 steps" in said
    assert "checkpoint-2 is skipped" in warnings.text
    log = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log] == [1, 2, 3]


def test_the_command_saves_the_model_of_a_finished_run_again(train, tmp_path):
    weights = tmp_path / "run" / "model.safetensors"
    train("--max_steps", "2")
    trained = weights.read_bytes()
    tiny.model(seed=1).save_pretrained(tmp_path / "other")
    earlier = (tmp_path / "other" / "model.safetensors").read_bytes()
    for left in (earlier, trained[:100]):  # the run was killed before the model was saved, and while it was
        weights.write_bytes(left)
        status, said = train("--max_steps", "2", "--resume_from_checkpoint", "last")
        assert status == 0 and "This run was finished after 2 steps; the model is in run." in said
        assert weights.read_bytes() == trained


def test_the_command_goes_on_where_old_checkpoints_are_deleted(train, tmp_path):
    train("--max_steps", "1", "--save_total_limit", "1")
    status, said = train("--max_steps", "2", "--save_total_limit", "1", "--resume_from_checkpoint", "last")
    assert status == 0 and "Trained 2 steps; the model is in run." in said
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
