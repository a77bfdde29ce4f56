"""What this library asks of TRL, transformers, wandb and the terminal: attributes, checkpoints, architectures, a workspace, progress."""
