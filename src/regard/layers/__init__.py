"""What mechanisms are made of beside ops: taps, norms and convolutions over any number of axes."""
