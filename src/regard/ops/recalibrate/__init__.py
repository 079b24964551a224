"""recalibrate: every channel weighed by what a few weights make of the channels' means."""
