"""The page of `regard app`: a picture, two panels, a click. It shows what the rooms below compute."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, which files of this room do
