"""`a2tgpo methods`, and what the command line names beside it: estimators and turn rewards."""

import re
import sys

import pytest
from transformers import LlamaConfig, LlamaForTokenClassification

import tiny
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.cli.names import imported, load_estimator, load_rewards, load_turn_rewards
from a2tgpo_trl.credit import ESTIMATORS, Returns, options_read
from a2tgpo_trl.rewards import format_penalty, tool_reward

OWN = '''
from a2tgpo_trl.credit import Estimator, TurnCredit


class FirstTurn(Estimator):
    """A bonus for the first turn."""

    options = ("turn_gamma",)
    columns = ("first_turn",)

    def credit(self, turns, options):
        bonus = turns.outcome.new_zeros(len(turns.outcome), turns.max_turns)
        bonus[:, 0] = options.turn_gamma
        return TurnCredit(turns.outcome.unsqueeze(1) + bonus, columns={"first_turn": bonus})


class Rewarded(FirstTurn):
    signals = ("turn_rewards",)


def by_index(turns, **columns):
    return [[k + 0.5 for k in range(len(rollout))] for rollout in turns]


number = 1
'''


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory with a module of one's own, in it and in a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "inner").mkdir()
    for name in ("mine", "inner.mine"):
        (tmp_path / f"{name.replace('.', '/')}.py").write_text(OWN)
    yield tmp_path
    for name in ("mine", "inner", "inner.mine"):
        sys.modules.pop(name, None)


def printed(capsys, *words):
    assert main(["methods", *words]) == 0
    return capsys.readouterr().out


def test_the_table_has_a_row_for_each_method(capsys):
    text = printed(capsys)
    assert max(map(len, text.splitlines())) <= 100
    rows = re.split(r"\n(?=\w)", text.partition("\n\n")[0])[1:]
    assert [row.split()[0] for row in rows] == list(ESTIMATORS)
    for row, cls in zip(rows, ESTIMATORS.values(), strict=True):
        assert (cls.paper or "in no paper") in row
        assert {word.strip(",") for word in row.split() if word.startswith(("turn_c", "turn_g", "gain"))} == {
            option for option in cls.options if option.startswith(("turn_c", "turn_g", "gain"))
        }
    reads = {row.split()[0]: re.split(r"  +", row.splitlines()[0])[1] for row in rows}
    assert reads["grpo"] == "nothing" and reads["a2tgpo"] == "beliefs"
    assert reads["gigpo"] == "states (turn_rewards)" and reads["gtpo"] == "(turn_rewards, states)"
    assert reads["mt_grpo"] == "turn_rewards (states)"  # by its defaults


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_method_has_its_docstring_and_all_options(name, capsys):
    text, cls = printed(capsys, name), ESTIMATORS[name]
    assert max(map(len, text.splitlines())) <= 100
    assert " ".join(cls.__doc__.split())[:60] in " ".join(text.split())
    assert re.findall(r"^(\w+), default", text, flags=re.MULTILINE) == list(dict.fromkeys(options_read(cls)))


def test_defaults_are_the_methods_own(capsys):
    gtpo, mt_grpo = printed(capsys, "gtpo"), printed(capsys, "mt_grpo")
    assert "turn_gamma, default 0.9\n    Discount γ" in gtpo and "turn_gamma, default 0.0\n" in mt_grpo
    assert "importance_sampling_level token" in gtpo
    assert "importance_sampling_level turn, epsilon 0.003" in printed(capsys, "a2tgpo")


@pytest.mark.parametrize("name", ["mine.FirstTurn", "mine:FirstTurn", "mine.py:FirstTurn", "inner/mine.py:FirstTurn"])
def test_a_method_of_ones_own(name, workplace, capsys):
    text = printed(capsys, name)
    assert text.startswith(f"{name} (in no paper)\n\nA bonus for the first turn.\n")
    assert re.search(r"^records +first_turn$", text, flags=re.MULTILINE) and "turn_gamma, default 1.0" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", r"'best' is none of a2tgpo, igpo, .*, belief_bonus, and no dotted name such as my_module\.best\."),
        ("mine.number", r"'mine\.number' is a int: name a subclass of a2tgpo_trl\.credit\.Estimator"),
        ("mine.by_index", r"'mine\.by_index' is a function: name a subclass"),
        ("mine.absent", r"'mine\.absent' cannot be imported \(AttributeError"),
        ("absent.py:FirstTurn", r"names the file absent\.py, which is not in the working directory .* PYTHONPATH"),
        ("../elsewhere.py:FirstTurn", r"which is not in the working directory"),
    ],
)
def test_what_is_no_method(name, message, workplace, capsys):
    (workplace.parent / "elsewhere.py").write_text(OWN)
    with pytest.raises(ValueError, match=f"^advantage_estimator: .*{message}"):
        load_estimator(name)
    assert main(["methods", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_names_of_the_package_stay_names():
    assert [load_estimator(name) for name in ESTIMATORS] == list(ESTIMATORS)
    assert load_estimator("a2tgpo_trl.credit.Returns") is Returns


# ---- turn rewards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_rewards, load_turn_rewards])
def test_functions_of_a_file(load, workplace):
    (function,) = load(["mine.py:by_index"])
    assert function([[1, 2], [3]]) == [[0.5, 1.5], [0.5]]


def test_turn_rewards_by_name(workplace):
    (workplace / "judge").mkdir()
    LlamaConfig(architectures=["LlamaForTokenClassification"]).save_pretrained("judge")
    names = ["format_penalty", "tool_reward", "mine.by_index", "inner/mine.py:by_index", "judge", "./judge"]
    first, second, dotted, filed, *models = load_turn_rewards(names)
    assert (first, second) == (format_penalty, tool_reward) and models == ["judge", "./judge"]
    assert dotted is imported("mine.by_index", "turn_reward_funcs") and filed([[1, 2]]) == [[0.5, 1.5]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("penalty", "'penalty' is none of format_penalty, tool_reward, and no dotted name such as my_module.penalty"),
        ("mine.absent", "'mine.absent' cannot be imported"),
        ("mine.number", "'mine.number' is a int: name a function"),
        ("no/such", "'no/such': there is no such folder of a model, nor can the Hub give one"),
    ],
)
def test_what_gives_no_turn_rewards(name, message, workplace):
    with pytest.raises(ValueError, match=f"^turn_reward_funcs: {message}"):
        load_turn_rewards([name])


@pytest.fixture
def train(workplace, capsys):
    """`train(*words)`: what `a2tgpo train` prints on a tiny model and the embedded questions."""
    tiny.model().save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    shared = "--use_cpu --bf16 false --report_to none --max_completion_length 40 --tools search --search_index atlas"
    size = "--num_generations 4 --per_device_train_batch_size 4 --max_steps 1 --output_dir run --logging_steps 1"

    def run(*words, status=0):
        command = ["train", "--dataset", "atlas", "--model_name_or_path", "model", *shared.split(), *size.split()]
        assert main([*command, *words]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return run


def test_training_with_a_method_and_rewards_of_ones_own(train):
    text = train(
        "--advantage_estimator", "mine.Rewarded", "--turn_reward_funcs", "inner/mine.py:by_index", "tool_reward"
    )
    assert "'turn_rewards/by_index/turn_0': '0.5'" in text or "'turn_rewards/by_index/turn_0': 0.5" in text
    assert "first_turn/mean" in text and "Trained 1 steps" in text


def test_the_dry_run_shows_turn_rewards(train):
    names = ["mine.by_index", "format_penalty"]
    text = train("--dry_run", "--advantage_estimator", "mine.py:Rewarded", "--turn_reward_funcs", *names)
    assert "turn_reward_funcs:\n- mine.by_index\n- format_penalty\n" in text
    assert "advantage_estimator: mine.Rewarded\n" in text
    header, _, first, *_ = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    credit = {title.strip(): cell.strip() for title, cell in zip(header, first, strict=True)}
    # the tiny model calls nothing: 0.5 for the first turn, -0.1 for its format; the method's own column is 1, its γ
    expected = {
        "turn reward": "+0.40",
        "reward by_index": "+0.50",
        "reward format_penalty": "−0.10",
        "first_turn": "+1.00",
    }
    assert expected.items() <= credit.items()


def test_a_model_rewards_turns(train):
    small = dict(vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    LlamaForTokenClassification(LlamaConfig(**small, pad_token_id=0)).save_pretrained("judge")
    tiny.tokenizer().save_pretrained("judge")
    text = train("--advantage_estimator", "gtpo", "--turn_reward_funcs", "judge", "--turn_reward_weights", "0.5")
    assert "turn_rewards/judge/mean" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--advantage_estimator mt_grpo", "'mt_grpo' compares turn rewards, and there are none"),
        ("--turn_reward_funcs format_penalty", "turn_reward_funcs have no effect with advantage_estimator='a2tgpo'"),
        ("--advantage_estimator best", "advantage_estimator: 'best' is none of a2tgpo"),
        ("--advantage_estimator mine.number", "advantage_estimator: 'mine.number' is a int"),
        ("--advantage_estimator gtpo --turn_reward_funcs penalty", "turn_reward_funcs: 'penalty' is none of"),
        ("--advantage_estimator gtpo --turn_reward_funcs model", "a2tgpo train: error: A process reward model is for"),
    ],
)
def test_errors_are_one_line(words, message, train):
    (line,) = (line for line in train(*words.split(), status=2).splitlines() if line.startswith("a2tgpo"))
    assert message in line


def test_files_name_methods_too_and_eval_takes_them(train, workplace, capsys):
    (workplace / "run.yaml").write_text(
        "advantage_estimator: mine.Rewarded\nturn_reward_funcs: mine.by_index\nturn_reward_weights: 2.0\n"
    )
    assert "turn_reward_funcs:\n- mine.by_index\n" in train("--config", "run.yaml", "--dry_run")
    words = "eval --config run.yaml --datasets atlas --limit 1 --model_name_or_path model --use_cpu --bf16 false "
    words += "--report_to none --max_completion_length 20 --tools search --search_index atlas"
    assert main(words.split()) == 0
    assert "exact match" in capsys.readouterr().out.lower()
