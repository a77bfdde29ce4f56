"""A tiny model learns to check its SQL: a task without beliefs, with rewards of turns and of queries that are executed beside a reference."""
