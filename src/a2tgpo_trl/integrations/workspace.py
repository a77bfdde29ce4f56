"""Saves a workspace to a project on wandb: the panels of docs/tracking.md, in its order. Needs wandb-workspaces.

python -m a2tgpo_trl.integrations.workspace ENTITY PROJECT
"""

import argparse
import re
from importlib.util import find_spec

LAYOUT = {
    "Is it learning?": {
        "reward": ["reward"],
        "rewards by function": ["rewards/{name}/mean"],
        "prompts with equal rewards": ["frac_reward_zero_std"],
        "rollouts that answered": ["rollout/stop/answered"],
        "turns": ["turns/mean"],
        "entropy": ["entropy"],
    },
    "Is the credit alive?": {
        "information gain": ["information_gain/mean"],
        "information gain by turn": ["information_gain/turn_{k}"],
        "beliefs": ["belief/first", "belief/last"],
        "gains and outcomes": ["information_gain/outcome_correlation"],
        "size of the advantages": ["advantages/outcome_abs_mean", "advantages/turn_part_abs_mean"],
        "tokens at a clip": ["clip_ratio/region_mean"],
    },
    "Is something broken?": {
        "updates left out": ["updates/empty", "updates/non_finite"],
        "gradient": ["grad_norm"],
        "tools": ["tools/failure_frequency", "tools/abandoned"],
        "rollouts cut off": [
            "rollout/stop/max_turns",
            "rollout/stop/length",
            "rollout/stop/overlong_observation",
        ],
        "not scored": [
            "rollout/unscored",
            "information_gain/rows_without_answer",
            "information_gain/unscorable_turns",
        ],
        "seconds of an update": ["step_time"],
    },
}
"""Questions to a run, the panels that answer each, and the metrics of each panel, as docs/metrics.md names them."""
STEPS = "train/global_step"


def pattern(metrics: list[str]) -> str:
    """A regular expression for metrics of training, `{name}` and `{k}` standing for any."""
    names = (re.sub(r"\\{(\w+)\\}", r"[^/]+", re.escape(metric)) for metric in metrics)
    return f"^train/({'|'.join(names)})$"


def build(entity: str, project: str):
    """
    The workspace, without asking wandb for anything.

    Args:
        entity (`str`): User or team on wandb.
        project (`str`): Whose runs it shows.

    Returns:
        `wandb_workspaces.workspaces.Workspace`: not saved.
    """
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=question, is_open=True, panels=[_plot(title, *panel) for title, *panel in panels.items()]
        )
        for question, panels in LAYOUT.items()
    ]
    settings = workspaces.WorkspaceSettings(x_axis=STEPS)
    return workspaces.Workspace(entity=entity, project=project, name="A2TGPO", sections=sections, settings=settings)


def _plot(title: str, metrics: list[str]):
    import wandb_workspaces.reports.v2 as reports

    if any("{" in metric for metric in metrics):
        return reports.LinePlot(title=title, x=STEPS, metric_regex=pattern(metrics))
    return reports.LinePlot(title=title, x=STEPS, y=[f"train/{metric}" for metric in metrics])


def main() -> None:
    """Build and save; wandb prints the address."""
    parser = argparse.ArgumentParser(
        prog="python -m a2tgpo_trl.integrations.workspace", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("entity", help="user or team on wandb")
    parser.add_argument("project")
    options = parser.parse_args()
    if find_spec("wandb_workspaces") is None:
        parser.error("wandb-workspaces is not installed: pip install 'a2tgpo-trl[tracking]'")
    build(**vars(options)).save()


if __name__ == "__main__":
    main()
