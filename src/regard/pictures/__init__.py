"""How things are drawn: maps over pictures, curves, networks. It draws what it is given and measures nothing."""
