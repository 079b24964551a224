"""The page of `regard app`: a picture, two panels, a click. It shows what the rooms below compute."""
