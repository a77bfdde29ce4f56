"""A tiny model learns to check its SQL: a task without beliefs, whose queries are run beside a reference."""
