"""Where a run stands and why it stopped, read from the files in its folder alone; imports no torch."""
