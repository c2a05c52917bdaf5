"""Snapshots of Docker containers: images of this owner, each with the name of its snapshot."""

import contextlib
import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from docker.errors import APIError, ImageNotFound, NotFound

from drawloom.errors import SandboxError
from drawloom.sandbox.api.provider import (
    LABEL,
    MAX_SNAPSHOT,
    SNAPSHOT_LABEL,
    OwnedSandbox,
    Snapshot,
    snapshot_too_large,
)


def labels_of(kind: str, id: str, owner: str, key: str) -> dict[str, str]:
    """Return the labels by which an owner finds a container or an image again.

    Args:
        kind: the label that holds the id; it says what is labelled.
        key: of the environment.
    """
    created = str(time.time())
    return {
        kind: id,
        f"{LABEL}.owner": owner,
        f"{LABEL}.key": key,
        f"{LABEL}.created": created,
    }


class DockerSnapshots:
    """Make, find and remove the images of snapshots.

    Every method blocks, and raises the errors of docker-py.

    Args:
        client: a `docker.DockerClient`.
        owner: labels them; those of other owners count as absent.
        max_layers: layers of an image from which on a snapshot is flattened.
    """

    def __init__(self, client: Any, owner: str, max_layers: int) -> None:
        self._client, self._owner, self._max_layers = client, owner, max_layers

    def image(self, snapshot: str) -> Any:
        """Return the image of a snapshot. Raises `docker.errors.ImageNotFound`."""
        image = self._client.images.get(f"{SNAPSHOT_LABEL}:{snapshot}")
        if image.labels.get(f"{LABEL}.owner") != self._owner:
            raise ImageNotFound(f"No such image: {snapshot}")
        return image

    def commit(self, container: Any, id: str, name: str) -> Snapshot:
        """Make an image of a container, paused meanwhile.

        Raises:
            SandboxError: its files are in memory, or more than a snapshot takes.
        """
        if container.attrs["HostConfig"]["ReadonlyRootfs"]:
            raise SandboxError(f"environment {id} has its files in memory (strict): it is not kept")
        (row,) = self._client.api.containers(filters={"id": container.id}, size=True)
        size = int(row.get("SizeRw") or 0)
        if size > MAX_SNAPSHOT:
            raise SandboxError(snapshot_too_large(id, size))
        key, depth = container.labels[f"{LABEL}.key"], len(container.image.history()) + 1
        labels = labels_of(SNAPSHOT_LABEL, name, self._owner, key)
        if depth < self._max_layers:
            container.commit(repository=SNAPSHOT_LABEL, tag=name, conf={"Labels": labels})
            return Snapshot(name, key, size)
        config = container.image.attrs["Config"]
        changes = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
        for entry in config.get("Env") or []:
            variable, _, value = entry.partition("=")
            changes.append(f"ENV {variable}={json.dumps(value)}")
        container.pause()
        try:
            self._client.api.import_image_from_stream(
                _Stream(container.export()), repository=SNAPSHOT_LABEL, tag=name, changes=changes
            )
        finally:
            container.unpause()
        return Snapshot(name, key, size)

    def all(self) -> list[OwnedSandbox]:
        """Return the snapshots of this owner."""
        wanted = {"label": [SNAPSHOT_LABEL, f"{LABEL}.owner={self._owner}"]}
        found = self._client.api.images(filters=wanted)
        return [
            OwnedSandbox(
                row["Labels"][SNAPSHOT_LABEL],
                row["Labels"][f"{LABEL}.key"],
                float(row["Labels"][f"{LABEL}.created"]),
            )
            for row in found
        ]

    def remove(self, snapshot: str) -> bool:
        """Remove a snapshot's image; return False while a container uses it."""
        api = self._client.api
        with contextlib.suppress(NotFound):
            self.image(snapshot)
            api.remove_image(f"{SNAPSHOT_LABEL}:{snapshot}", force=True)
        ours = [f"{SNAPSHOT_LABEL}={snapshot}", f"{LABEL}.owner={self._owner}"]
        for row in api.images(filters={"label": ours}):
            try:
                api.remove_image(row["Id"])
            except NotFound:
                continue
            except APIError as error:
                if error.status_code == HTTPStatus.CONFLICT:
                    return False
                raise
        return True


class _Stream:
    """Iterate over an archive as the file object that docker-py reads."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


__all__ = ["DockerSnapshots", "labels_of"]
