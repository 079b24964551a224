"""attend: values weighed by how well their keys answer a query."""
