"""squeeze: what stands along some axes, in one number."""
