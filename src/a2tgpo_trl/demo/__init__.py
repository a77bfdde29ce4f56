"""A real model learns to search twice: `python -m a2tgpo_trl.demo`."""
