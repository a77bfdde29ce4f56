"""A tiny model learns to check its SQL: a task without true answers, with rewards of turns and by execution."""
