"""What can be known about a run before it costs queue hours: here, in seconds, and on the nodes themselves."""
