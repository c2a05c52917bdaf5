"""The simulator: the scheduler core and the engine's KV cache under a virtual clock."""
