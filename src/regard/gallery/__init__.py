"""`look`: what networks attend to on the user's pictures, and whether that means anything, on one page."""
