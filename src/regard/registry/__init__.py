"""What is known of a mechanism without building it: its name, its options, its card."""
