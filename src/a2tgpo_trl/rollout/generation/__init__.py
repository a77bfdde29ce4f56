"""Turns of the model, on any backend of TRL."""
