"""What advantage estimators read beside the outcome: each a [`~signals.base.Signal`]."""
