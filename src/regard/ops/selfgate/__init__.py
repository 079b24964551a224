"""selfgate: every number of a map weighed by how it stands to its channel."""
