"""How tasks run: progress for people, retries."""
