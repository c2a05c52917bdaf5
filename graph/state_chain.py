"""States, and how often programs went from one to another: an absorbing Markov chain.

An observation costs the same whatever was observed before it. When the chain has changed by one
part in 32 it is solved again, but no oftener than its size pays for; not when somebody asks, so
that asking changes nothing. States and what follows each are
bounded, since clients choose their names: what is new beyond that is one state, ``other``.
"""

from dataclasses import dataclass, field

import numpy as np

START, END, FORK = "start", "end", "fork:"
OTHER = "other"
STATES, NEXT = 128, 64  # states that are told apart, and those that follow one of them
_PRIOR_WEIGHT = 4.0
_DECAY = 0.995
_MAX_STEPS = 1000.0
_TOO_HEAVY = 1e100
_ALWAYS = {START, END, OTHER, f"{FORK}{OTHER}"}  # beside the bound


@dataclass(slots=True)
class Moves:
    """Count the moves out of one state. `counts` are in units of `scale`, which grows with each
    observation: so all older ones fade at once.

    Attributes:
        visits: how often programs went on from it.
        forks: branches that began there.
    """

    counts: dict[str, float] = field(default_factory=dict)
    priors: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    total: float = 0.0
    visits: float = 0.0
    forks: float = 0.0

    def add(self, target: str) -> None:
        """Count a move to `target`."""
        self.scale /= _DECAY
        self.counts[target] = self.counts.get(target, 0.0) + self.scale
        self.total += self.scale
        self.visits += 1.0
        if self.scale > _TOO_HEAVY:
            self.counts = {target: n / self.scale for target, n in self.counts.items()}
            self.total, self.scale = self.total / self.scale, 1.0

    def chances(self) -> dict[str, float]:
        """Return the probability of each state that follows."""
        whole = self.total / self.scale + sum(self.priors.values())
        if not whole:
            return dict.fromkeys(self.counts.keys() | self.priors.keys(), 0.0)
        found = {target: n / self.scale / whole for target, n in self.counts.items()}
        for target, prior in self.priors.items():
            found[target] = found.get(target, 0.0) + prior / whole
        return found


class Chain:
    """Moves between states, and the calls that are to be expected of them.

    Attributes:
        changes: grows with everything that is learned.
    """

    def __init__(self) -> None:
        self.moves: dict[str, Moves] = {}
        self.changes = 0
        self._solved_at = -1
        self._names: set[str] = set()
        self._left: dict[str, float] = {}
        self._branches: dict[str, float] = {}

    def named(self, state: str) -> str:
        """Return the state that stands for this one: itself, or what new ones are beyond the
        bound."""
        if state in self._names or len(self._names) < STATES or state in _ALWAYS:
            return state
        return f"{FORK}{OTHER}" if state.startswith(FORK) else OTHER

    def _known(self, state: str) -> str:
        state = self.named(state)
        if state not in _ALWAYS:
            self._names.add(state)
        return state

    def _at(self, state: str) -> Moves:
        found = self.moves.get(state)
        if found is None:
            found = self.moves[state] = Moves()
        return found

    def declare(self, source: str, target: str, p: float) -> None:
        """Expect `target` after `source` with probability `p`, until observations outweigh it."""
        self._names |= {source, target} - _ALWAYS
        self._at(source).priors[target] = p * _PRIOR_WEIGHT
        self._changed()

    def observe(self, source: str, target: str) -> None:
        """Count a program that went from one state to another."""
        moves, target = self._at(self._known(source)), self._known(target)
        if target not in moves.counts and len(moves.counts) >= NEXT and target not in _ALWAYS:
            target = OTHER
        moves.add(target)
        self._changed()

    def forked(self, state: str) -> str:
        """Count a branch; return the state in which it begins."""
        branch = self._known(f"{FORK}{state}")
        self._at(self._known(state)).forks += 1.0
        self._changed()
        return branch

    def chances(self, state: str) -> dict[str, float]:
        """Return the probability of each state that follows one; empty when nothing is known."""
        moves = self.moves.get(self.named(state))
        return {} if moves is None else moves.chances()

    def left(self, state: str) -> float | None:
        """Return the calls until the end, this state's own included; None when nothing is known.

        Expected visits of the absorbing chain, ``(I - Q)^-1 1``; a state that forks has its
        branches' visits as well. As new as the last time that the chain was solved.
        """
        return self._left.get(self.named(state))

    def branches(self, state: str) -> float:
        """Return the calls of the branches that a state is expected to have."""
        return self._branches.get(self.named(state), 0.0)

    def _changed(self) -> None:
        """Solve the chain anew if it has changed by one part in 32 since, and by one part in 8 of
        its states: to solve it takes longer the more it has."""
        self.changes += 1
        if self.changes > self._solved_at + max(self._solved_at // 32, len(self.moves) // 8):
            self._solve()

    def _solve(self) -> None:
        self._left, self._branches, self._solved_at = {}, {}, self.changes
        states = sorted(self._ending())
        place = {state: at for at, state in enumerate(states)}
        matrix = np.eye(len(states))
        for at, state in enumerate(states):
            moves = self.moves[state]
            for target, p in moves.chances().items():
                if target in place:
                    matrix[at, place[target]] -= p
            branch = place.get(self.named(f"{FORK}{state}"))
            if moves.forks and branch is not None:
                matrix[at, branch] -= moves.forks / max(1.0, moves.visits)
        costs = np.array([0.0 if s == START or s.startswith(FORK) else 1.0 for s in states])
        try:
            left = np.linalg.solve(matrix, costs)
        except np.linalg.LinAlgError:  # branches that multiply for ever
            return
        # less than one call: by what was seen so far, branches multiply for ever
        self._left = {state: _bounded(float(left[at])) for state, at in place.items()}
        for state in states:
            if forks := self.moves[state].forks:
                each = self._left.get(self.named(f"{FORK}{state}"), 0.0)
                self._branches[state] = each * forks / max(1.0, self.moves[state].visits)

    def _ending(self) -> set[str]:
        """Return the states with moves from which a way out has been seen; of the others nothing is
        known, and where only rounding leads out the chain has no solution."""
        before: dict[str, list[str]] = {}
        known = {s for s, m in self.moves.items() if s != END and (m.counts or m.priors or m.forks)}
        reached: list[str] = []
        for state in known:
            for target in self.moves[state].chances():
                if target in known:
                    before.setdefault(target, []).append(state)
                else:
                    reached.append(state)
        found = set(reached)
        while reached:
            for state in before.get(reached.pop(), ()):
                if state not in found:
                    found.add(state)
                    reached.append(state)
        return found

    # --- kept across restarts -------------------------------------------------------------

    @property
    def edges(self) -> list[tuple[str, str, float]]:
        """Moves that were observed and their decayed counts."""
        return sorted(
            (source, target, n / moves.scale)
            for source, moves in self.moves.items()
            for target, n in moves.counts.items()
        )

    def restore(
        self,
        edges: list[tuple[str, str, float]],
        visits: dict[str, float],
        forks: dict[str, float],
    ) -> None:
        """Read what was saved; beyond the bounds it is put together."""
        for source, target, count in edges:
            moves, target = self._at(self._known(str(source))), self._known(str(target))
            if target not in moves.counts and len(moves.counts) >= NEXT:
                target = OTHER
            moves.counts[target] = moves.counts.get(target, 0.0) + float(count)
            moves.total += float(count)
        for state, seen in visits.items():
            self._at(self._known(str(state))).visits += float(seen)
        for state, seen in forks.items():
            self._known(f"{FORK}{state}")
            self._at(self._known(str(state))).forks += float(seen)
        self.changes += len(self.moves)
        self._solve()


def _bounded(steps: float) -> float:
    return min(_MAX_STEPS, steps) if steps > 1 - 1e-6 else _MAX_STEPS


__all__ = ["END", "FORK", "OTHER", "START", "Chain", "Moves"]
