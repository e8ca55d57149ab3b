"""The Ray Serve application: `serve run serve.app:graph`."""
