"""convolve: a wide kernel over a few channels, with one result."""
