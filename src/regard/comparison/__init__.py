"""Compare arms fairly on images: data, hosts, training, grid, statistics, report; `question` leads through them."""
