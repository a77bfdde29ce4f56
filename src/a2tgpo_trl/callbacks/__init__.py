"""Callbacks of training: updates that are left out, turn records, and the end by Ctrl-C."""
