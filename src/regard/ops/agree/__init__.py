"""agree: pixels weighed by how well they agree with the average of their group of channels."""
