"""What this library asks of TRL, transformers and the terminal: attributes, checkpoints, architectures, progress."""
