"""The tasks by the names that a grid file gives them."""

from facts import FactsTask
from task import Task
from world_task import WorldTask

TASKS: dict[str, type[Task]] = {"world": WorldTask, "facts": FactsTask}


def make_task(settings: dict) -> Task:
    """The task of a grid's settings: `task` names its class, and the rest goes to it."""
    options = dict(settings)
    return TASKS[options.pop("task", "world")](**options)
