"""The Ray Serve applications: `serve run serve.app:graph`, and `serve.app:whole` for one machine."""
