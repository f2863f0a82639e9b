"""Minimum vertex cuts: the cheapest set of values to save or to store.

The nodes are the variables of a step's jaxpr, about fifty. An edge leads from an
operand of an equation to its result, where the equation is cheap enough to repeat. A
node's capacity is its bytes. If the values of a cut are saved, every sink can be
recomputed from them.
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
    """Find the nodes of least total size that every path from source to sink meets.

    By max-flow min-cut (Ford & Fulkerson 1956): each node is split into an "in" and an
    "out" node, joined by an edge whose capacity is the size of the node; all other
    edges have infinite capacity. Of several minimum cuts the one nearest the sinks is
    taken, from which least is recomputed.

    Args:
        sources: the nodes at which paths begin.
        sinks: the nodes at which paths end. A node may be both.
        edges: pairs of nodes.
        size: the capacity of a node.

    Returns:
        The nodes of the cut, sources first, then in the order of the edges.

    Example:
        >>> sizes = {"x": 4, "y": 1, "z": 4}
        >>> min_vertex_cut(["x"], ["z"], [("x", "y"), ("y", "z")], sizes.get)
        ['y']
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

    # Augment shortest paths until none is left (Edmonds & Karp 1972).
    while path := _path(capacity, "source", "sink"):
        amount = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= amount
            capacity[b][a] += amount

    # The cut nearest the sinks separates the nodes from which a sink can still be
    # reached in the residual graph.
    backwards = {b: {a: capacity[a][b] for a in capacity[b]} for b in list(capacity)}
    reaching = _reached(backwards, "sink")
    return [n for n in nodes if (n, "out") in reaching and (n, "in") not in reaching]


def _path(
    capacity: dict[Any, dict[Any, float]], start: Any, end: Any
) -> list[tuple[Any, Any]]:
    """Return the edges of a shortest path with capacity left, or an empty list."""
    before = _reached(capacity, start)
    if end not in before:
        return []
    path = []
    while end != start:
        path.append((before[end], end))
        end = before[end]
    return path


def _reached(capacity: dict[Any, dict[Any, float]], start: Any) -> dict[Any, Any]:
    """Return the nodes that can be reached from ``start``, with their predecessors."""
    before, queue = {start: None}, collections.deque([start])
    while queue:
        a = queue.popleft()
        for b, remaining in capacity.get(a, {}).items():
            if remaining > 0 and b not in before:
                before[b] = a
                queue.append(b)
    return before
