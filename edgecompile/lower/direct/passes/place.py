"""Decides how every tensor lies in memory, so that as little as possible is moved.

Before::                                          After::

    x  N,C,H,W   (lies N,H,W,C: the file's input)     x  (0, 2, 3, 1)
    y = Conv2D(x)                                     y  (0, 2, 3, 1)
    z = Transpose(y, 0, 2, 3, 1)                      z  (0, 1, 2, 3): no data moves
    f = Reshape(z, N, H*W*C)                          f  (0, 1)

Every node has a placement, the layouts it takes and gives. First each node, in order, takes the placement that costs
least given its operands; then nodes are asked again, backward and forward, given all their neighbours, until none
changes its mind. Where a reader demands another layout than the tensor has, a `Relayout` is put in between, one for
all readers that demand the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from edgecompile.lower.direct import ir, layouts
from edgecompile.lower.direct.ir import Graph, Layout, Node, Value, identity
from edgecompile.lower.direct.layouts import Hint, Placement

#: What a transpose costs beside the elements it moves, and a reshape that only moves axes of size 1, in elements.
_TRANSPOSE_COST = 512
_RESHAPE_COST = 64
_SWEEPS = 6


def place(graph: Graph, *, channels_last: bool) -> None:
    """Set the layouts of all values and insert the `Relayout` nodes that they need.

    With ``channels_last``, inputs of rank 4 lie N, H, W, C in the file, and outputs of rank 4 may.
    """
    _Placer(graph, channels_last=channels_last).run()
    graph.placed = True


class _Placer:
    def __init__(self, graph: Graph, *, channels_last: bool) -> None:
        self.graph = graph
        self.channels_last = channels_last
        self.chosen: dict[Node, Placement] = {}
        self.home: dict[str, Layout] = {}
        for name in graph.inputs:
            self.home[name] = self._file_layout(graph.values[name])

    def run(self) -> None:
        nodes = list(self.graph.nodes)
        for node in nodes:
            self._choose(node)
        for sweep in range(_SWEEPS):
            changes = [self._choose(node) for node in (nodes if sweep % 2 else reversed(nodes))]
            if not any(changes):
                break
        self._commit(nodes)

    def _file_layout(self, value: Value) -> Layout:
        return ir.CHANNELS_LAST if self.channels_last and value.rank == 4 else identity(value.rank)

    # -- cost

    def _move_cost(self, value: Value, old: Layout, new: Layout) -> int:
        if old == new or value.data is not None:
            return 0
        if layouts.same_order(value.shape, old, new):
            return _RESHAPE_COST + value.elements // 16
        return _TRANSPOSE_COST + value.elements

    def _demands(self, name: str, but: Node) -> Iterator[Layout]:
        """The layouts in which the other readers of a value want it."""
        for reader in self.graph.consumers(name):
            placement = self.chosen.get(reader)
            if placement is not None and reader is not but:
                for operand, layout in zip(reader.inputs, placement.inputs, strict=True):
                    if operand == name:
                        yield layout

    def _value_cost(self, name: str, home: Layout, demands: Iterable[Layout]) -> int:
        value = self.graph.values[name]
        wanted = dict.fromkeys(demands)
        if self.graph.is_output(name) and home not in (identity(value.rank), self._file_layout(value)):
            wanted[identity(value.rank)] = None
        return sum(self._move_cost(value, home, layout) for layout in wanted)

    def _cost(self, node: Node, placement: Placement) -> int:
        total = 0
        asked: dict[str, list[Layout]] = {}
        for name, layout in zip(node.inputs, placement.inputs, strict=True):
            asked.setdefault(name, []).append(layout)
        for name, demands in asked.items():
            if self.graph.values[name].data is None:
                total += self._value_cost(name, self.home[name], [*self._demands(name, node), *demands])
        for name, layout in zip(node.outputs, placement.outputs, strict=True):
            total += self._value_cost(name, layout, self._demands(name, node))
        return total

    # -- choice

    def _choose(self, node: Node) -> bool:
        """Give a node its cheapest placement; whether that is another one than it had."""
        current = self.chosen.get(node)
        candidates = dict.fromkeys([*([current] if current else []), *self._candidates(node)])
        best = min(candidates, key=lambda placement: self._cost(node, placement))
        if best == current:
            return False
        self.chosen[node] = best
        self.home.update(zip(node.outputs, best.outputs, strict=True))
        return True

    def _candidates(self, node: Node) -> list[Placement]:
        inputs = [self._at_home(name) for name in node.inputs]
        outputs = [self._at_home(name) for name in node.outputs]
        sources = [(i, v.layout) for i, v in enumerate(inputs) if v.data is None]
        targets: list[tuple[int, Layout]] = []
        for i, name in enumerate(node.outputs):
            value = self.graph.values[name]
            final = [self._file_layout(value)] if self.graph.is_output(name) else []
            targets += [(i, layout) for layout in dict.fromkeys([*self._demands(name, node), *final])]
        # Of equal cost the first is taken: what follows the operands before what the model says.
        hints = [Hint(source=s, target=t) for s in sources for t in targets]
        hints += [*(Hint(source=s) for s in sources), *(Hint(target=t) for t in targets), Hint()]
        found = [layouts.place(node, inputs, outputs, hint) for hint in hints]
        return [placement for placement in found if placement is not None]

    def _at_home(self, name: str) -> Value:
        value = self.graph.values[name]
        return replace(value, layout=self.home.get(name, identity(value.rank)))

    # -- result

    def _commit(self, nodes: Sequence[Node]) -> None:
        graph = self.graph
        for name, layout in [*self.home.items(), *self._constant_layouts(nodes)]:
            graph.set_layout(name, layout)
        moved: dict[tuple[str, Layout], str] = {}
        for node in nodes:
            wanted = self.chosen[node].inputs
            inputs = tuple(self._in_layout(n, want, moved) for n, want in zip(node.inputs, wanted, strict=True))
            if inputs != node.inputs:
                graph.swap(node, inputs=inputs)
        for i, (name, value_name) in enumerate(graph.outputs):
            value = graph.values[value_name]
            if value.layout not in (identity(value.rank), self._file_layout(value)):
                graph.outputs[i] = (name, self._in_layout(value_name, identity(value.rank), moved))

    def _constant_layouts(self, nodes: Sequence[Node]) -> list[tuple[str, Layout]]:
        """Each constant lies as its first reader wants it; other layouts of it are other constants."""
        wanted: dict[str, Layout] = {}
        for node in nodes:
            for name, layout in zip(node.inputs, self.chosen[node].inputs, strict=True):
                if self.graph.values[name].data is not None and not self.graph.is_output(name):
                    wanted.setdefault(name, layout)
        return list(wanted.items())

    def _in_layout(self, name: str, layout: Layout, moved: dict[tuple[str, Layout], str]) -> str:
        """The value in the wanted layout: itself, a constant laid out anew, or the result of a `Relayout`."""
        graph, value = self.graph, self.graph.values[name]
        if value.layout == layout:
            return name
        if (name, layout) not in moved:
            copy = replace(value, name=graph.fresh(f"{name}/{_label(layout)}"), layout=layout)
            moved[name, layout] = graph.add_value(copy).name
            if value.data is None:
                maker = graph.producer(name)
                origin = maker.origin if maker else ("Input", name)
                graph.add(ir.Node(op=ir.Relayout(), inputs=(name,), outputs=(copy.name,), origin=origin))
        return moved[name, layout]


def _label(layout: Layout) -> str:
    return "layout" + "".join(map(str, layout))
