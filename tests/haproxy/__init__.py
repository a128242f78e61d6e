"""Real nodes behind a real HAProxy."""
