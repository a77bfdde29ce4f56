"""What the recipe `text-to-sql` names: the tool and the rewards, on the tables in the working directory's `outputs`."""

from pathlib import Path

from ...sql import SQLRewards
from .tables import open_database

FOLDER = Path("outputs/text-to-sql")
DATABASE = open_database(FOLDER / "atlas.db")
REWARDS = SQLRewards(DATABASE)

query = DATABASE.query
execution_match = REWARDS.execution_match
query_reward = REWARDS.query_reward
