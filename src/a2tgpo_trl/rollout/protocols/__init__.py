"""How a model calls a tool: with its chat template, or with text tags."""
