"""Build and speak to the helper that runs in an environment."""
