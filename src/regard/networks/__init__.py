"""A user's network: opened by a word, borrowed, and given back as it was."""
