"""The command `a2tgpo`: train, eval, report, retriever, recipe, demo."""
