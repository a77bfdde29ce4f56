"""A real model learns to search twice: `a2tgpo demo`."""
