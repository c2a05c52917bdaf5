"""Transition counts between the states of an agent: an absorbing Markov chain.

An observation costs the same whatever was observed before it. When the counts have changed by one
part in 32 the chain is solved again, but no oftener than its size pays for; not when a result is
read, so that reading changes nothing. The states, and the successors of each, are bounded, since
clients choose their names: beyond the bound, new ones are counted as one state, ``other``.
"""

from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np

START, END, FORK = "start", "end", "fork:"
OTHER = "other"
STATES, SUCCESSORS = 128, 64  # distinct states of an agent, and distinct successors of each
_PRIOR_WEIGHT = 4.0
_DECAY = 0.995
_MAX_CALLS = 1000.0
_RESCALE_ABOVE = 1e100
_UNBOUNDED = {START, END, OTHER, f"{FORK}{OTHER}"}  # not counted against the bound


@dataclass(slots=True)
class Transitions:
    """Count the transitions out of one state.

    Attributes:
        counts: decayed counts by next state, in units of `scale`.
        priors: declared weight of each next state.
        scale: weight of the newest observation. It grows with each one, so that all older ones
            decay at once.
        total: sum of `counts`.
        visits: how often programs left the state.
        forks: branches that began in the state.
    """

    counts: dict[str, float] = field(default_factory=dict)
    priors: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    total: float = 0.0
    visits: float = 0.0
    forks: float = 0.0

    def add(self, target: str) -> None:
        """Count a transition to `target`."""
        self.scale /= _DECAY
        self.counts[target] = self.counts.get(target, 0.0) + self.scale
        self.total += self.scale
        self.visits += 1.0
        if self.scale > _RESCALE_ABOVE:
            self.counts = {target: n / self.scale for target, n in self.counts.items()}
            self.total, self.scale = self.total / self.scale, 1.0

    def probabilities(self) -> dict[str, float]:
        """Return the probability of each next state."""
        whole = self.total / self.scale + sum(self.priors.values())
        if not whole:
            return dict.fromkeys(self.counts.keys() | self.priors.keys(), 0.0)
        found = {target: n / self.scale / whole for target, n in self.counts.items()}
        for target, prior in self.priors.items():
            found[target] = found.get(target, 0.0) + prior / whole
        return found


class TransitionModel:
    """Learn transitions between states, and compute how many calls follow each state.

    Attributes:
        by_state: transitions out of each state.
        changes: a number that grows with everything that is learned.
        has_forks: programs of the agent have branches.
    """

    def __init__(self) -> None:
        self.by_state: dict[str, Transitions] = {}
        self.changes = 0
        self.has_forks = False
        self._solved_at = -1
        self._names: set[str] = set()
        self._calls_left: dict[str, float] = {}
        self._branch_calls: dict[str, float] = {}

    def canonical(self, state: str) -> str:
        """Return the name that a state is counted under: its own, or ``other`` beyond the bound."""
        if state in self._names or len(self._names) < STATES or state in _UNBOUNDED:
            return state
        return f"{FORK}{OTHER}" if state.startswith(FORK) else OTHER

    def _register(self, state: str) -> str:
        state = self.canonical(state)
        if state not in _UNBOUNDED:
            self._names.add(state)
        return state

    def _out_of(self, state: str) -> Transitions:
        found = self.by_state.get(state)
        if found is None:
            found = self.by_state[state] = Transitions()
        return found

    def knows(self, source: str, target: str) -> bool:
        """Return True if `target` was declared or observed after `source`."""
        found = self.by_state.get(source)
        return found is not None and (target in found.counts or target in found.priors)

    def declare(self, source: str, target: str, p: float) -> None:
        """Expect `target` after `source` with probability `p`, until observations outweigh it."""
        self._names |= {source, target} - _UNBOUNDED
        self._out_of(source).priors[target] = p * _PRIOR_WEIGHT
        self._changed()

    def observe(self, source: str, target: str) -> None:
        """Count a transition from `source` to `target`."""
        found, target = self._out_of(self._register(source)), self._register(target)
        if target not in found.counts and len(found.counts) >= SUCCESSORS:
            target = target if target in _UNBOUNDED else OTHER
        found.add(target)
        self._changed()

    def forked(self, state: str) -> str:
        """Count a conversation that was forked in `state`, and return the branch's first state."""
        self.has_forks = True
        branch = self._register(f"{FORK}{state}")
        self._out_of(self._register(state)).forks += 1.0
        self._changed()
        return branch

    def probabilities(self, state: str) -> dict[str, float]:
        """Return the probability of each state after `state`; empty when nothing is known."""
        found = self.by_state.get(self.canonical(state))
        return {} if found is None else found.probabilities()

    def calls_left(self, state: str) -> float | None:
        """Return the expected LLM calls until the end, the state's own included.

        These are the visits of the absorbing chain, ``(I - Q)^-1 1``; a state that forks has its
        branches' visits as well. The result is as new as the last time that the chain was solved.

        Returns:
            None when nothing is known.
        """
        return self._calls_left.get(self.canonical(state))

    def branch_calls(self, state: str) -> float:
        """Return the expected LLM calls of the branches that begin in a state."""
        return self._branch_calls.get(self.canonical(state), 0.0)

    @property
    def nx(self) -> "nx.DiGraph[str]":
        """Return the graph with decayed counts `n` and probabilities `p` on its edges."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for source, found in self.by_state.items():
            graph.add_node(source)
            for target, p in found.probabilities().items():
                graph.add_edge(source, target, n=found.counts.get(target, 0.0) / found.scale, p=p)
        return graph

    def _changed(self) -> None:
        """Solve the chain again if enough has changed.

        That is one part in 32 of the observations, and in 8 of the states: solving takes longer the
        more states there are.
        """
        self.changes += 1
        if self.changes > self._solved_at + max(self._solved_at // 32, len(self.by_state) // 8):
            self._solve()

    def _solve(self) -> None:
        self._calls_left, self._branch_calls, self._solved_at = {}, {}, self.changes
        states = sorted(self._absorbed())
        row = {state: at for at, state in enumerate(states)}
        matrix = np.eye(len(states))
        for at, state in enumerate(states):
            transitions = self.by_state[state]
            for target, p in transitions.probabilities().items():
                if target in row:
                    matrix[at, row[target]] -= p
            branch = row.get(self.canonical(f"{FORK}{state}"))
            if transitions.forks and branch is not None:
                matrix[at, branch] -= transitions.forks / max(1.0, transitions.visits)
        costs = np.array([0.0 if s == START or s.startswith(FORK) else 1.0 for s in states])
        try:
            left = np.linalg.solve(matrix, costs)
        except np.linalg.LinAlgError:  # branches that multiply for ever
            return
        # less than one call: by what was seen so far, branches multiply for ever
        self._calls_left = {state: _bounded(float(left[at])) for state, at in row.items()}
        for state in states:
            if forks := self.by_state[state].forks:
                each = self._calls_left.get(self.canonical(f"{FORK}{state}"), 0.0)
                self._branch_calls[state] = each * forks / max(1.0, self.by_state[state].visits)

    def _absorbed(self) -> set[str]:
        """Return the states from which an end has been seen to be reachable.

        Nothing is known of the others, and the chain has no solution with them.
        """
        before: dict[str, list[str]] = {}
        known = {
            s for s, m in self.by_state.items() if s != END and (m.counts or m.priors or m.forks)
        }
        reached: list[str] = []
        for state in known:
            for target in self.by_state[state].probabilities():
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

    def saved(self) -> dict[str, Any]:
        """Return the observed transitions as JSON; declared ones are declared anew."""
        edges = sorted(
            (source, target, n / found.scale)
            for source, found in self.by_state.items()
            for target, n in found.counts.items()
        )
        return {
            "edges": [list(edge) for edge in edges],
            "visits": {
                state: found.visits for state, found in self.by_state.items() if found.visits
            },
            "forks": {state: found.forks for state, found in self.by_state.items() if found.forks},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Add the transitions that `saved` returned; states beyond the bound become ``other``.

        Raises:
            KeyError, TypeError, ValueError: `saved` is something else.
        """
        for source, target, count in saved["edges"]:
            found = self._out_of(self._register(str(source)))
            target = self._register(str(target))
            if target not in found.counts and len(found.counts) >= SUCCESSORS:
                target = OTHER
            found.counts[target] = found.counts.get(target, 0.0) + float(count)
            found.total += float(count)
        for state, visits in saved["visits"].items():
            self._out_of(self._register(str(state))).visits += float(visits)
        for state, forks in saved["forks"].items():
            self._register(f"{FORK}{state}")
            self._out_of(self._register(str(state))).forks += float(forks)
        self.has_forks = bool(saved["forks"])
        self.changes += len(self.by_state)
        self._solve()


def _bounded(calls: float) -> float:
    return min(_MAX_CALLS, calls) if calls > 1 - 1e-6 else _MAX_CALLS


__all__ = [
    "END",
    "FORK",
    "OTHER",
    "START",
    "STATES",
    "SUCCESSORS",
    "TransitionModel",
    "Transitions",
]
