"""gate: a map times its gates."""
