"""Training loops on Ray Train."""
