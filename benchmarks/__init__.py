"""Each method timed against its peers, side by side in one run, as ratios of medians."""
