"""cross: values of a pixel's row and column weighed by how well their keys answer its query."""
