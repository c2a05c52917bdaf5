"""`drawloom bench rivals`: real servers beside ours, on the same cores, weights and KV memory."""

from drawloom.errors import ConfigError

try:
    import httpx as httpx
except ImportError:
    raise ConfigError("agents speak HTTP here: pip install 'drawloom[dev]'") from None
