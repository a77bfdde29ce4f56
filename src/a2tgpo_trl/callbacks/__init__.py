"""Callbacks of training: updates that are left out, turn records, what checkpoints lack, and the end by Ctrl-C."""
