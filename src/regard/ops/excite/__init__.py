"""excite: the small network that turns what was squeezed into a gate."""
