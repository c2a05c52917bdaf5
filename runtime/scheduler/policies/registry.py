"""Registry of policies by name; an argument follows a colon, as in ``static-cap:16``."""

from collections.abc import Callable

from drawloom.errors import ConfigError
from drawloom.runtime.scheduler.policy import Policy


def _makers() -> dict[str, Callable[..., Policy]]:
    from drawloom.runtime.scheduler.policies.atlas import Atlas
    from drawloom.runtime.scheduler.policies.cap_order import CapOrder
    from drawloom.runtime.scheduler.policies.continuum import Continuum
    from drawloom.runtime.scheduler.policies.drawloom import Drawloom
    from drawloom.runtime.scheduler.policies.fcfs_lru import FcfsLru, OffloadLru
    from drawloom.runtime.scheduler.policies.infercept import Infercept
    from drawloom.runtime.scheduler.policies.kvflow import Kvflow
    from drawloom.runtime.scheduler.policies.saga import Saga
    from drawloom.runtime.scheduler.policies.static_cap import StaticCap
    from drawloom.runtime.scheduler.policies.thunder import Thunder, ThunderDecay, ThunderDynamo

    found: list[type[Policy]] = [
        Atlas,
        CapOrder,
        Continuum,
        Drawloom,
        FcfsLru,
        Infercept,
        Kvflow,
        OffloadLru,
        Saga,
        StaticCap,
        Thunder,
        ThunderDecay,
        ThunderDynamo,
    ]
    return {kind.name: kind for kind in found}


def policy_names() -> list[str]:
    """Return the names of all policies, sorted."""
    return sorted(_makers())


def make_policy(name: str) -> Policy:
    """Make a policy by its name.

    Args:
        name: as in `policy_names`, with an argument after a colon where the policy takes one.

    Raises:
        ConfigError: the policy is not known, or does not take the argument.
    """
    kind, _, argument = name.partition(":")
    maker = _makers().get(kind)
    if maker is None:
        raise ConfigError(
            f"policy {name!r} is not known; choose one of {', '.join(policy_names())}"
        )
    if not argument:
        return maker()
    try:
        return maker(float(argument))
    except (TypeError, ValueError):
        raise ConfigError(f"policy {kind!r} does not take the argument {argument!r}") from None


__all__ = ["make_policy", "policy_names"]
