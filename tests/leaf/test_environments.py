"""Declarations of environments."""

from drawloom import Env


def test_keys_are_those_of_earlier_versions() -> None:
    site = Env("s", memory="64m", warm=3)
    paired = Env("a", sidecars=(("x", site), ("y", Env("y"))))
    assert Env("a").key == "d23fdd277a65f7d9"  # stored programs are resumed by them
    assert paired.key == "24034740fec0df86"
