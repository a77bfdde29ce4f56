"""Tool calls: what they are, and how those of all rollouts run at once."""
