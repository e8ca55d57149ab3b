"""Model definitions: plain torch modules and encoders that a test calls without Ray."""
