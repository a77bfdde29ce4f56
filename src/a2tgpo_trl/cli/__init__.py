"""The command `a2tgpo`: train, eval, retriever, demo."""
