"""Removal of orphans: what an owner left on a host and no row names."""

from collections.abc import Collection

from drawloom.sandbox.api.provider import Provider


async def remove_orphans(provider: Provider, wanted: Collection[str]) -> list[str]:
    """Remove the owner's environments, then its snapshots, except for wanted ids.

    Args:
        wanted: ids of environments and snapshots that a program may come back to.

    Returns:
        The ids of what was removed.
    """
    sandboxes = [found.id for found in await provider.owned() if found.id not in wanted]
    for id in sandboxes:
        await provider.destroy(id)
    snapshots = [found.id for found in await provider.snapshots() if found.id not in wanted]
    for id in snapshots:
        await provider.discard(id)
    return sandboxes + snapshots


__all__ = ["remove_orphans"]
