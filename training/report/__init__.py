"""The report of a run as one HTML file, made of the files in its folder alone."""
