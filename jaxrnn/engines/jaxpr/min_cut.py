"""The cheapest set of values to keep: a minimum vertex cut (Ford & Fulkerson 1956)
in a graph of some fifty nodes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable
from typing import Any

Node = Hashable


def min_vertex_cut(
    sources: Iterable[Node],
    sinks: Iterable[Node],
    edges: Iterable[tuple[Node, Node]],
    size: Callable[[Any], int],
) -> list[Any]:
    """The nodes of least total ``size`` that every path from ``sources`` to ``sinks``
    meets, in the order of the edges.

    Each node becomes two, joined by an edge of its size; all other edges are endless.
    Of several least cuts the one nearest the sinks is taken: what lies there needs
    least work to go on from.
    """
    sources, sinks, edges = list(sources), set(sinks), list(edges)
    nodes = dict.fromkeys([*sources, *(n for edge in edges for n in edge)])
    capacity: dict[Any, dict[Any, float]] = collections.defaultdict(dict)

    def join(a, b, amount):
        capacity[a][b] = amount
        capacity[b].setdefault(a, 0)

    for node in nodes:
        join((node, "in"), (node, "out"), size(node))
    for a, b in edges:
        join((a, "out"), (b, "in"), float("inf"))
    for node in sources:
        join("source", (node, "in"), float("inf"))
    for node in sinks & nodes.keys():
        join((node, "out"), "sink", float("inf"))

    while path := _path(capacity, "source", "sink"):
        amount = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= amount
            capacity[b][a] += amount

    backwards = {b: {a: capacity[a][b] for a in capacity[b]} for b in list(capacity)}
    reaching = _reached(backwards, "sink")
    return [n for n in nodes if (n, "out") in reaching and (n, "in") not in reaching]


def _path(
    capacity: dict[Any, dict[Any, float]], start: Any, end: Any
) -> list[tuple[Any, Any]]:
    """A shortest path with room left, as edges."""
    before = _reached(capacity, start)
    if end not in before:
        return []
    path = []
    while end != start:
        path.append((before[end], end))
        end = before[end]
    return path


def _reached(capacity: dict[Any, dict[Any, float]], start: Any) -> dict[Any, Any]:
    """Nodes that can be reached from ``start``, each with the one before it."""
    before, queue = {start: None}, collections.deque([start])
    while queue:
        a = queue.popleft()
        for b, room in capacity.get(a, {}).items():
            if room > 0 and b not in before:
                before[b] = a
                queue.append(b)
    return before
