"""What attention costs: timing, parameters and memory; `advise`, before a network is trained; `bench`, against lower
bounds and other libraries."""
