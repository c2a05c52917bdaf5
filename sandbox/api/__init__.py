"""Define the sandbox seam: providers, environments, and what tools do in them."""
