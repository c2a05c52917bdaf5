"""Removing what an owner left behind."""

from collections.abc import Collection

from drawloom.sandbox.api.provider import Provider


async def sweep(provider: Provider, wanted: Collection[str]) -> list[str]:
    """Remove the owner's environments, then its snapshots, whose ids nobody wants; which they
    were."""
    boxes = [box.id for box in await provider.owned() if box.id not in wanted]
    for box in boxes:
        await provider.destroy(box)
    snapshots = [kept.id for kept in await provider.snapshots() if kept.id not in wanted]
    for snapshot in snapshots:
        await provider.discard(snapshot)
    return boxes + snapshots


__all__ = ["sweep"]
