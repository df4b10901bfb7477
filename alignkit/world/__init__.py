"""Where texts and models come from."""
