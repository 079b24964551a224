"""What every room may use: errors, files, images as files, declared shapes of JSON. It knows nothing of attention."""
