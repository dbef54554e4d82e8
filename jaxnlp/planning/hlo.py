"""Reads the collectives of a compiled program from its HLO text (`compiled.as_text()`): kind, count and bytes.

Compilers print a collective in many forms, and all are counted:

- as one instruction, or as a `-start` and `-done` pair;
- in a computation called asynchronously (`async-start`, `call-start`);
- in several fusions that repeat it under one channel id;
- as an `all-reduce-scatter` fusion, which is a reduce-scatter although it contains an all-reduce;
- as the ring of collective-permutes that a windowed einsum makes of a gather or scatter; these count as permutes.

A TPU program has no collectives between slices: it sends to its host, whose runtime (Megascale) performs the transfer,
and the attributes of the `send` describe it. A collective in a loop counts once per iteration.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

KINDS = (
    *("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
CALLS = ("fusion", "call", "call-start", "async-start", "custom-call")
SCATTER = "all-reduce-scatter"  # the name of the fusions that are reduce-scatters
SLICE_ID = 100_000  # a device's id is its number in its slice plus this for each slice, counted from one

HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s.*->.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    kind: one of `KINDS`. members: one row of device numbers per group; for a permute, its (source, target) pairs;
        empty if all devices form one group.
    bytes: of the full array in one group: the output of an all-gather, the input of a reduce-scatter; for a permute,
        the bytes that one device sends.
    count: executions per run of the program. source: `op_name` of the model's operation that it comes from.
    between_slices: the transfer uses the network between hosts; `members` are then device ids, not mesh positions.
    """

    kind: str
    members: tuple[tuple[int, ...], ...]
    bytes: int
    count: int
    source: str = ""
    between_slices: bool = False

    def group_size(self, num_devices: int) -> int:
        if self.kind == "collective-permute":
            return 2
        return len(self.members[0]) if self.members else num_devices

    def sent(self, num_devices: int) -> float:
        """Bytes that each device sends per execution of a ring algorithm (Patarasuk and Yuan 2009)."""
        n = self.group_size(num_devices)
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * (2 if self.kind == "all-reduce" else 1) * (n - 1) / n

    def axes(self, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Mesh axes that its groups span. sizes: of the mesh axes, outermost first."""
        return tuple(sizes) and spanned_axes(self.members, sizes)


def spanned_axes(members: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes whose coordinate differs between members of a group. Devices are numbered in mesh order."""
    if not members:
        return tuple(axis for axis, size in sizes.items() if size > 1)
    shape = tuple(sizes.values())
    varies = np.zeros(len(shape), bool)
    for group in members:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        varies |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, differs in zip(sizes, varies, strict=True) if differs)


def collectives(hlo: str) -> list[Collective]:
    """All collectives of a program, in the order of its computations, except those whose groups have one device.

    Raises:
        ValueError: the text is not an HLO module, or a collective is in a loop whose trip count is unknown.
    """
    computations, entry = parse(hlo)
    if entry is None:
        raise ValueError("no ENTRY computation: expected the text of a compiled program")
    return [c for c in _Walk(computations).visit(entry, 1) if not c.members or any(len(set(g)) > 1 for g in c.members)]


MATMUL, COLLECTIVE, OTHER, LOOP = "matrix products", "collectives", "other operations", "loops"
PRODUCTS = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv|dot|attention)', re.IGNORECASE)


def instruction_classes(hlo: str) -> dict[str, str]:
    """Instruction name -> class, by the operations it contains: `MATMUL`, `COLLECTIVE` or `OTHER`.

    `LOOP` marks instructions that run other computations (while, conditional, call).
    """
    computations, _ = parse(hlo)

    @functools.cache
    def inside(name: str) -> frozenset[str]:
        return frozenset().union(*(kinds_of(op) for op in computations.get(name, ())))

    def kinds_of(op: Instruction) -> frozenset[str]:
        if op.opcode in ("dot", "convolution") or PRODUCTS.search(op.rest):
            return frozenset({MATMUL})
        if op.opcode.removesuffix("-start").removesuffix("-done") in (*KINDS, "send", "recv"):
            return frozenset({COLLECTIVE})
        return frozenset().union(*map(inside, CALLED.findall(op.rest))) if op.opcode in CALLS else frozenset()

    def classify(op: Instruction) -> str:
        if op.opcode in ("while", "conditional", "call"):
            return LOOP
        kinds = kinds_of(op)
        return MATMUL if MATMUL in kinds else COLLECTIVE if COLLECTIVE in kinds else OTHER

    return {op.name: classify(op) for body in computations.values() for op in body}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = type opcode(rest`, where `rest` holds the operands and attributes."""

    name: str
    type: str
    opcode: str
    rest: str
    root: bool = False

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", _type(f"({self.rest}")[0])

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.rest)
        return match and match[1]


def parse(hlo: str) -> tuple[dict[str, list[Instruction]], str | None]:
    """(computation name -> instructions, name of the entry computation)."""
    computations: dict[str, list[Instruction]] = {}
    entry, inside = None, None
    for line in hlo.splitlines():
        if header := HEADER.match(line):
            inside = computations.setdefault(header[2], [])
            if header[1]:
                entry = header[2]
        elif line == "}":  # any other line at the left margin continues the line before it
            inside = None
        elif inside is not None and (instruction := INSTRUCTION.match(line)):
            kind, rest = _type(instruction[3])
            if opcode := OPCODE.match(rest):
                inside.append(Instruction(instruction[2], kind, opcode[1], rest[opcode.end() :], bool(instruction[1])))
    return computations, entry


class _Walk:
    def __init__(self, computations: dict[str, list[Instruction]]):
        self.computations = computations

    def visit(
        self, name: str, count: int, fused: bool = False, counted: set[Any] | None = None
    ) -> Iterator[Collective]:
        """Collectives of a computation that runs `count` times.

        counted: keys of the collectives already counted in fusions of one loop.
        """
        counted = set() if counted is None else counted
        scatter = fused and SCATTER in name
        for op in self.computations.get(name, ()):
            kind = op.opcode.removesuffix("-start")
            if kind in KINDS:
                collective = _collective(op, kind, count, scatter)
                # Fusions that overlap a collective with compute repeat it. Outside fusions, equal ids are not copies.
                key = (op.attribute(r"channel_id=(\d+)"), collective.kind, collective.bytes, collective.members)
                if fused and not scatter:
                    if key in counted:
                        continue
                    counted.add(key)
                yield collective
            elif op.opcode == "send" and "xla_megascale_runtime" in op.rest:
                yield _between_slices(op, count)
            elif op.opcode == "while":
                body = op.attribute(r"body=%?([\w.\-]+)")
                assert body is not None
                trip_count = self.trip_count(op)
                nested = list(self.visit(body, count * (1 if trip_count is None else trip_count)))
                if nested and trip_count is None:
                    raise ValueError(f"{op.name}: a loop with collectives and an unknown trip count")
                yield from nested
            elif op.opcode == "conditional":
                yield from self.branch(op, count)
            elif op.opcode in CALLS:
                scattering = op.opcode == "fusion" and SCATTER in op.name
                for callee in CALLED.findall(op.rest):
                    nested = self.visit(callee, count, op.opcode == "fusion", counted)
                    yield from (
                        (dataclasses.replace(c, kind="reduce-scatter") if c.kind == "all-reduce" else c for c in nested)
                        if scattering
                        else nested
                    )

    def branch(self, op: Instruction, count: int) -> list[Collective]:
        """Collectives of the branch of a conditional that moves the most bytes."""
        names = re.findall(r"(?:true_computation|false_computation)=%?([\w.\-]+)", op.rest)
        if listed := op.attribute(r"branch_computations=\{([^}]*)\}"):
            names += [name.strip().lstrip("%") for name in listed.split(",")]
        branches = [list(self.visit(name, count)) for name in names]
        return max(branches, key=lambda branch: sum(c.bytes * c.count for c in branch), default=[])

    def trip_count(self, loop: Instruction) -> int | None:
        """Trip count of a loop, or None if unknown.

        It is the compiler's `known_trip_count`, or else the constant in the loop condition divided by the counter's
        increment per iteration (2 if the compiler has unrolled the loop once).
        """
        if noted := loop.attribute(r"known_trip_count[^\d}]*(\d+)"):
            return int(noted)
        condition, body = (loop.attribute(rf"{word}=%?([\w.\-]+)") or "" for word in ("condition", "body"))
        limits = list(self.constants(condition))
        return -(-max(limits) // self.stride(condition, body)) if limits else None

    def stride(self, condition: str, body: str) -> int:
        """Increment of the loop counter per iteration; 1 if it cannot be determined."""
        names = {op.name: op for op in self.computations.get(condition, ())}
        root = next((op for op in names.values() if op.root), None)
        counter = names.get(root.operands[0]) if root is not None and root.operands else None
        place = counter and counter.attribute(r"index=(\d+)")
        inside = {op.name: op for op in self.computations.get(body, ())}
        result = next((op for op in inside.values() if op.root and op.opcode == "tuple"), None)
        if place is None or result is None:
            return 1
        op = inside.get(result.operands[int(place)])
        while op is not None and op.opcode == "copy":
            op = inside.get(op.operands[0])
        if op is None or op.opcode != "add":
            return 1
        added = [inside[name] for name in op.operands if name in inside and inside[name].opcode == "constant"]
        return max([1, *(_constant(x) for x in added)])

    def constants(self, name: str) -> Iterator[int]:
        """Integer constants in a computation and in the computations it calls."""
        for op in self.computations.get(name, ()):
            if op.opcode == "constant" and re.match(r"[su](32|64)\[\]", op.type):
                yield _constant(op)
            elif op.opcode in CALLS:
                for callee in CALLED.findall(op.rest):
                    yield from self.constants(callee)


def _constant(op: Instruction) -> int:
    number = re.match(r"-?\d+", op.rest)
    return int(number[0]) if number else 0


def _collective(op: Instruction, kind: str, count: int, scatter: bool) -> Collective:
    parts, members = _parts(op.type), replica_groups(op.rest)
    if op.opcode in ("all-gather-start", "collective-permute-start") and len(parts) > 1:
        size = num_bytes(parts[1])  # (inputs, outputs, ...)
    else:
        size = num_bytes(op.type)
    if kind == "reduce-scatter":
        size *= len(members[0]) if members else 1
    kind = "reduce-scatter" if scatter and kind == "all-reduce" else kind
    return Collective(kind, members, size, count, op.attribute(r'op_name="([^"]*)"') or "")


def _between_slices(op: Instruction, count: int) -> Collective:
    """The collective that a Megascale `send` requests from the hosts.

    Its target is `"{1,2}x{0:3}"` (each device with the same device in each slice), groups of ids, or pairs of ids for
    a permute.

    Raises:
        ValueError: an unknown transfer type.
    """
    kind = (op.attribute(r'_xla_megascale_transfer_type="(\w+)"') or "").lower().replace("_", "-")
    kind = "collective-permute" if kind == "one-to-one" else kind
    if kind not in KINDS:
        raise ValueError(f"{op.name}: unknown transfer type {kind!r} between slices")
    target = op.attribute(r'_xla_megascale_target="?([^"_]*?)"?,_xla') or ""
    if match := re.match(r"\{([\d,]+)\}x\{(\d+)(?::(\d+))?\}", target):
        slices, (first, last) = map(int, match[1].split(",")), (int(match[2]), int(match[3] or match[2]))
        ids = [SLICE_ID * s for s in slices]
        members = tuple(tuple(i + n for i in ids) for n in range(first, last + 1))
    else:
        listed = re.findall(r"\{?([\d,]+)\}", target) if kind != "collective-permute" else []
        members = tuple(tuple(map(int, group.split(","))) for group in listed)
        members = members or tuple((int(a), int(b)) for a, b in re.findall(r"(\d{6,})\D+(\d{6,})", target))
    size = num_bytes(_parts(op.type)[0])  # (data, context, token)
    size *= len(members[0]) if kind == "all-gather" and members else 1
    source = op.attribute(r'op_name="([^"]*)"') or ""
    return Collective(kind, members, size, count, source, between_slices=True)


def replica_groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """Device numbers per group, from the attributes of an instruction.

    Reads every printed form: `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` and
    `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.
    """
    if match := re.search(r"source_target_pairs=\{(\{[\d,{}\s]*\})\}", rest):
        return tuple(tuple(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", match[1]))
    if match := re.search(r"replica_groups=\{((?:\{[\d,\s]*\},?\s*)*)\}", rest):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,\s]+)\}", match[1]))
    if match := re.search(r"replica_groups=(\[[^ ]*\](?:T\([\d,]+\))?)", rest):
        return tuple(map(tuple, iota(match[1]).tolist()))
    pattern = r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((.*?)\)\s)?\s*,?\s*\{([^}]*)\}"
    if match := re.search(pattern, rest):
        return _mesh_groups(*match.groups())
    return ()


def iota(text: str) -> np.ndarray:
    """Parses an iota list such as `[2,4]<=[4,2]T(1,0)`: 0 to 7 as 4 x 2, transposed, reshaped to 2 x 4."""
    match = IOTA.match(text)
    assert match is not None, text
    shape, source, order = ([int(n) for n in part.split(",")] if part else None for part in match.groups())
    assert shape is not None
    numbers = np.arange(math.prod(shape)).reshape(source or shape)
    numbers = numbers.transpose(order) if order else numbers
    return numbers.reshape(shape) if source else numbers


def _mesh_groups(mesh: str, ids: str | None, over: str) -> tuple[tuple[int, ...], ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    numbers = np.arange(math.prod(sizes.values()))
    if ids is not None:
        numbers = iota(ids).ravel() if ids.startswith("[") else np.asarray([int(n) for n in re.findall(r"\d+", ids)])
    # A mesh axis may be split: 'a':(2)4 is the sub-axis of size 4 after a sub-axis of size 2.
    parts = {name: [(size, False)] for name, size in sizes.items()}
    for name, outer_size, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over):
        total, outer, inner = sizes[name], int(outer_size or 1), int(size or sizes[name])
        parts[name] = [(outer, False), (inner, True), (total // outer // inner, False)]
    flat = [part for name in sizes for part in parts[name]]
    places = numbers.reshape([size for size, _ in flat])
    inside = [i for i, (_, selected) in enumerate(flat) if selected]
    outside = [i for i in range(len(flat)) if i not in inside]
    width = math.prod(flat[i][0] for i in inside)
    return tuple(map(tuple, places.transpose(outside + inside).reshape(-1, width).tolist()))


def num_bytes(kind: str) -> int:
    """Bytes of an HLO type; a tuple such as `(bf16[4,8]{1,0}, f32[])` is the sum of its elements."""
    total = 0
    for name, bits, shape in ARRAY.findall(kind):
        width = 8 if name == "pred" else int(bits)
        total += -(-width * math.prod(int(n) for n in shape.split(",") if n) // 8)
    return total


def _type(text: str) -> tuple[str, str]:
    """Splits the text to the right of the = sign into (type, rest)."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, f" {rest}"
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _parts(kind: str) -> list[str]:
    """Elements of a tuple type."""
    if not kind.startswith("("):
        return [kind]
    out, depth = [""], 0
    for letter in kind[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            out.append("")
        else:
            out[-1] += letter
    return out
