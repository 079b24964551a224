"""What a network looks at: `record` reads its attention, `explain` its evidence for a class, `judge` says what a map
is worth."""
