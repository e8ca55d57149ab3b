"""Where products, users and events come from: the sample catalogue, H&M, and generic files."""
