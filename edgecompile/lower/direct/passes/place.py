"""Decides how every tensor lies in memory, so that as little as possible is moved.

Before::                                          After::

    x  N,C,H,W   (lies N,H,W,C: the file's input)     x  (0, 2, 3, 1)
    y = Conv2D(x)                                     y  (0, 2, 3, 1)
    z = Transpose(y, 0, 2, 3, 1)                      z  (0, 1, 2, 3): no data moves
    f = Reshape(z, N, H*W*C)                          f  (0, 1)

Every node has a placement, the layouts it takes and gives. Each node, in order, takes the placement that costs least
given its operands; then nodes are asked again, backward and forward, given all their neighbours, and regions of nodes
that work in any layout are asked together, until none changes its mind. That is done twice, the second time with wishes
that the operators that work in one layout only pass back before; the cheaper outcome is taken. Where a reader demands
another layout than the tensor has, a `Relayout` is put in between, one for all readers that demand the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from edgecompile.lower.direct import ir, layouts
from edgecompile.lower.direct.ir import Graph, Layout, Node, Shape, Value, identity, inverse
from edgecompile.lower.direct.layouts import Hint, Placement

#: What a transpose costs beside the elements it moves, and a reshape that only moves axes of size 1, in elements.
_TRANSPOSE_COST = 512
_RESHAPE_COST = 64
_SWEEPS = 8
#: Copies of fewer elements at a time than this are slow, the slower the fewer: a single one costs so many moves.
_SHORT_RUN = 16
_SHORT_RUN_COST = 8


def place(graph: Graph, *, channels_last: bool) -> None:
    """Set the layouts of all values and insert the `Relayout` nodes that they need.

    With ``channels_last``, inputs of rank 4 lie N, H, W, C in the file, and outputs of rank 4 may.
    """
    placers = [_Placer(graph, channels_last=channels_last) for _ in range(2)]
    costs = [placer.choose(wishing=bool(i)) for i, placer in enumerate(placers)]
    placers[costs[1] < costs[0]].commit()
    graph.placed = True


_IN_ONE_LAYOUT = (
    ir.Conv2D, ir.DepthwiseConv2D, ir.TransposeConv2D, ir.Pool2D, ir.Resize, ir.DepthToSpace, ir.SpaceToDepth,
)  # fmt: skip


class _Placer:
    def __init__(self, graph: Graph, *, channels_last: bool) -> None:
        self.graph = graph
        self.channels_last = channels_last
        self.chosen: dict[Node, Placement] = {}
        #: What a node that has not chosen yet would like, given what its readers would like.
        self.wishes: dict[Node, Placement] = {}
        self.home: dict[str, Layout] = {}
        for name in graph.inputs:
            self.home[name] = self._file_layout(graph.values[name])

    def choose(self, *, wishing: bool) -> int:
        """Choose all placements; what they cost."""
        nodes = list(self.graph.nodes)
        for node in reversed(nodes) if wishing else ():
            self._wish(node)
        for node in nodes:
            self._choose(node)
        regions = self._regions(nodes)
        for sweep in range(_SWEEPS):
            changes = [self._choose(node) for node in (nodes if sweep % 2 else reversed(nodes))]
            if not any(changes):
                changes = [self._switch(region) for region in regions]
            if not any(changes):
                break
        moves = sum(self._value_cost(name, home, self._demands(name, None)) for name, home in self.home.items())
        return moves + sum(self._work_cost(node, self.chosen[node]) for node in nodes)

    def _file_layout(self, value: Value) -> Layout:
        return ir.CHANNELS_LAST if self.channels_last and value.rank == 4 else identity(value.rank)

    # -- cost

    def _move_cost(self, value: Value, old: Layout, new: Layout) -> int:
        if old == new or value.data is not None:
            return 0
        if layouts.same_order(value.shape, old, new):
            return _RESHAPE_COST + value.elements // 16
        return _TRANSPOSE_COST + value.elements

    def _demands(self, name: str, but: Node | None) -> Iterator[Layout]:
        """The layouts in which the other readers of a value want it; transposes take any."""
        for reader in self.graph.consumers(name):
            placement = self.chosen.get(reader) or self.wishes.get(reader)
            if placement is not None and reader is not but and not isinstance(reader.op, ir.Transpose):
                for operand, layout in zip(reader.inputs, placement.inputs, strict=True):
                    if operand == name:
                        yield layout

    def _value_cost(self, name: str, home: Layout, demands: Iterable[Layout]) -> int:
        value = self.graph.values[name]
        wanted = dict.fromkeys(demands)
        if self.graph.is_output(name) and home not in (identity(value.rank), self._file_layout(value)):
            wanted[identity(value.rank)] = None
        return sum(self._move_cost(value, home, layout) for layout in wanted)

    def _work_cost(self, node: Node, placement: Placement) -> int:
        """What an operator that copies takes more where it copies a few elements at a time."""
        if not isinstance(node.op, ir.Concat | ir.Split | ir.Slice):
            return 0
        pieces = node.inputs if isinstance(node.op, ir.Concat) else node.outputs
        layouts_of = placement.inputs if isinstance(node.op, ir.Concat) else placement.outputs
        whole = self.graph.values[(node.outputs if isinstance(node.op, ir.Concat) else node.inputs)[0]].shape
        total = 0
        for name, layout in zip(pieces, layouts_of, strict=True):
            value = self.graph.values[name]
            run = _run_length(value.shape, whole, layout)
            total += value.elements * _SHORT_RUN_COST // run if run < _SHORT_RUN else 0
        return total

    def _cost(self, node: Node, placement: Placement) -> int:
        total = self._work_cost(node, placement)
        asked: dict[str, list[Layout]] = {}
        for name, layout in zip(node.inputs, placement.inputs, strict=True):
            asked.setdefault(name, []).append(layout)
        for name, demands in asked.items():
            if self.graph.values[name].data is None:
                total += self._value_cost(name, self.home[name], [*self._demands(name, node), *demands])
        for name, layout in zip(node.outputs, placement.outputs, strict=True):
            total += self._result_cost(name, layout, node)
        return total

    def _result_cost(self, name: str, home: Layout, maker: Node | None) -> int:
        """What moving a result costs, that of its transposes included, which lie as it lies."""
        total = self._value_cost(name, home, self._demands(name, maker))
        for turned, permutation in self._transposes(name):
            total += self._result_cost(turned, tuple(inverse(permutation)[axis] for axis in home), maker)
        return total

    def _transposes(self, name: str) -> Iterator[tuple[str, Layout]]:
        """The transposes of a value, and their permutations."""
        for reader in self.graph.consumers(name):
            if isinstance(reader.op, ir.Transpose):
                yield reader.outputs[0], reader.op.permutation

    # -- choice

    def _wish(self, node: Node) -> None:
        """Without this, a node in front of a long way would not know that there are convolutions at its end."""
        if isinstance(node.op, ir.Transpose):
            return
        inputs, outputs = ([self._at_home(name) for name in names] for names in (node.inputs, node.outputs))
        hints = [Hint(target=target) for target in self._targets(node)] or [Hint()]
        wish = layouts.place(node, inputs, outputs, hints[0])
        if wish is not None and (hints[0].target is not None or isinstance(node.op, _IN_ONE_LAYOUT)):
            self.wishes[node] = wish

    def _targets(self, node: Node) -> list[tuple[int, Layout]]:
        """How the results should lie, by all that is known of their readers; axes of size 1 may also stand as usual."""
        targets: list[tuple[int, Layout]] = []
        for i, name in enumerate(node.outputs):
            wanted, shape = list(self._wanted(name, node)), self.graph.values[name].shape
            listed = [*wanted, *(layouts.usual(shape, layout) for layout in wanted)]
            targets += [(i, layout) for layout in dict.fromkeys(listed)]
        return targets

    def _wanted(self, name: str, maker: Node) -> Iterator[Layout]:
        """The layouts in which the readers of a value, and those of its transposes, want it."""
        yield from self._demands(name, maker)
        if self.graph.is_output(name):
            yield self._file_layout(self.graph.values[name])
        for turned, permutation in self._transposes(name):
            for layout in self._wanted(turned, maker):
                yield tuple(permutation[axis] for axis in layout)

    def _choose(self, node: Node) -> bool:
        """Give a node its cheapest placement; whether that is another one than it had."""
        if isinstance(node.op, ir.Transpose):
            self._follow(node.inputs[0])
            return False
        current = self.chosen.get(node)
        candidates = dict.fromkeys([*([current] if current else []), *self._candidates(node)])
        best = min(candidates, key=lambda placement: self._cost(node, placement))
        if best == current:
            return False
        self._set({node: best})
        return True

    def _follow(self, name: str) -> None:
        """Let all transposes of a value lie as it lies."""
        for reader in self.graph.consumers(name):
            if isinstance(reader.op, ir.Transpose):
                back = inverse(reader.op.permutation)
                turned = tuple(back[axis] for axis in self.home[name])
                self.chosen[reader] = Placement(inputs=(self.home[name],), outputs=(turned,))
                self.home[reader.outputs[0]] = turned
                self._follow(reader.outputs[0])

    def _candidates(self, node: Node) -> list[Placement]:
        inputs = [self._at_home(name) for name in node.inputs]
        outputs = [self._at_home(name) for name in node.outputs]
        sources = [(i, v.layout) for i, v in enumerate(inputs) if v.data is None]
        targets = self._targets(node)
        # Of equal cost the first is taken: what follows the operands before what the model says.
        hints = [Hint(source=s, target=t) for s in sources for t in targets]
        hints += [*(Hint(source=s) for s in sources), *(Hint(target=t) for t in targets), Hint()]
        found = [layouts.place(node, inputs, outputs, hint) for hint in hints]
        return [placement for placement in found if placement is not None]

    def _at_home(self, name: str) -> Value:
        value = self.graph.values[name]
        return replace(value, layout=self.home.get(name, identity(value.rank)))

    # -- regions

    def _regions(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """Neighbours that work in any layout, all in the same one."""
        found = {node: [node] for node in nodes if layouts.works_alike(node.op)}
        for name in self.home:
            maker = self.graph.producer(name)
            around = [*([maker] if maker else []), *self.graph.consumers(name)]
            together = [node for node in around if node in found]
            for node in together[1:]:
                region, other = found[together[0]], found[node]
                if region is not other:
                    region.extend(other)
                    found.update(dict.fromkeys(other, region))
        unique = {id(region): region for region in found.values()}
        return [region for region in unique.values() if len(region) > 1]

    def _switch(self, region: Sequence[Node]) -> bool:
        """Let a region work in another layout where that is cheaper; node by node, each would be held by the others."""
        names = dict.fromkeys(name for node in region for name in (*node.inputs, *node.outputs))
        names = {name: None for name in names if self.graph.values[name].data is None}
        rank = self.graph.values[region[0].outputs[0]].rank
        candidates = {self.home[name]: None for name in names}
        for name in names:
            candidates.update(dict.fromkeys(self._demands(name, None)))
        before = {node: self.chosen[node] for node in region}
        cheapest, changed = self._region_cost(region, names), False
        for layout in [*candidates]:
            if len(layout) != rank:
                continue
            self._set({node: self._alike(node, layout) for node in region})
            cost = self._region_cost(region, names)
            if cost < cheapest:
                cheapest, changed = cost, True
                before = {node: self.chosen[node] for node in region}
        self._set(before)
        return changed

    def _alike(self, node: Node, layout: Layout) -> Placement:
        return Placement(inputs=(layout,) * len(node.inputs), outputs=(layout,) * len(node.outputs))

    def _set(self, placements: Mapping[Node, Placement]) -> None:
        for node, placement in placements.items():
            self.chosen[node] = placement
            for name, layout in zip(node.outputs, placement.outputs, strict=True):
                self.home[name] = layout
                self._follow(name)

    def _region_cost(self, region: Sequence[Node], names: Iterable[str]) -> int:
        moves = sum(self._result_cost(name, self.home[name], None) for name in names)
        return moves + sum(self._work_cost(node, self.chosen[node]) for node in region)

    # -- result

    def commit(self) -> None:
        """Set the layouts that were chosen, and put in the moves between them."""
        graph = self.graph
        nodes = list(graph.nodes)
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


def _run_length(piece: Shape, whole: Shape, layout: Layout) -> int:
    """How many elements of a piece lie together in the whole."""
    run = 1
    for axis in reversed(layout):
        run *= piece[axis]
        if piece[axis] != whole[axis]:
            break
    return max(run, 1)


def _label(layout: Layout) -> str:
    return "layout" + "".join(map(str, layout))
