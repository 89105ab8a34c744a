"""The Triton source of a region: one program computes some rows of every result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fisopt.codegen.emit.expression import (
    Call,
    Const,
    Expr,
    Load,
    Select,
    Sum,
    axes,
    parts,
    walk,
)
from fisopt.codegen.emit.index import (
    Axis,
    Div,
    Guard,
    Index,
    Lookup,
    Mod,
    Range,
    Var,
    bounds,
    flatten,
)
from fisopt.codegen.emit.pull import Pulled, reduced

NAME = "KERNEL"
_LONG = 72
_OK: dict[Axis, str] = {"row": "row_ok", "column": "c_ok"}


class Writer:
    """Writes one region's kernel.

    Attributes:
        strides: the (operand, dimension) pairs whose strides the kernel takes, in order.
    """

    def __init__(
        self,
        pulled: Pulled,
        operands: Sequence[tuple[int, ...]],
    ) -> None:
        self.pulled, self.tile, self.operands = pulled, pulled.tile, operands
        self.exprs = walk(*pulled.exprs)
        self.strides = sorted(
            {
                (e.operand, d)
                for e in self.exprs
                if isinstance(e, Load)
                for d, index in enumerate(e.index)
                if index != Index()
            }
        )
        self.uses = Counter(id(part) for e in self.exprs for part in parts(e))
        self.uses.update(id(e) for e in pulled.exprs)
        self.names: dict[int, str] = {}
        self.lines: list[str] = []
        self._count: Counter[str] = Counter()
        self._loads = Counter(e.operand for e in self.exprs if isinstance(e, Load))

    def write(self) -> str:
        """The kernel's source under the name `NAME`."""
        for expr in self.exprs:
            self._statement(expr)
        body = [*self._coordinates(), "", *self.lines, "", *self._stores()]
        text = [
            "import triton",
            "import triton.language as tl",
            "",
            "",
            "@triton.jit",
            f"def {NAME}(",
            *(f"    {line}" for line in self._parameters()),
            "):",
            *(f"    {line}" if line else "" for line in body),
            "",
        ]
        return "\n".join(text)

    def _parameters(self) -> list[str]:
        lines = []
        for i, sizes in enumerate(self.operands):
            own = [f"x{i}_s{d}" for operand, d in self.strides if operand == i]
            lines.append(f"{', '.join([f'x{i}_ptr', *own])},  # {list(sizes)}")
        lines += [f"y{i}_ptr,  # {list(self.tile.sizes)}" for i in range(len(self.pulled.exprs))]
        lines.append("WIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,")
        return lines

    def _coordinates(self) -> list[str]:
        tile = self.tile
        lines = [
            "row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]",
            "c = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]",
            "if WIDE:  # offsets of 2**31 and more",
            "    row, c = row.to(tl.int64), c.to(tl.int64)",
            f"row_ok, c_ok = row < {tile.row_count}, c < {tile.column_count}",
        ]
        for var in sorted({v for e in self.exprs for v in _reduced_of(e)}, key=lambda v: v.size):
            padded = 1 << (var.size - 1).bit_length()
            lines.append(f"{var.name} = tl.arange(0, {padded})[None, :]")
            lines.append(f"{var.name}_ok = {var.name} < {var.size}")
        stride = tile.row_count
        for d, var in tile.row_vars.items():
            if var.size == 1:
                continue
            inner = stride // var.size
            text = f"row // {inner}" if inner > 1 else "row"
            if stride != tile.row_count:
                text += f" % {var.size}"
            lines.append(f"{var.name} = {text}  # of dimension {d}")
            stride = inner
        return lines

    def _stores(self) -> list[str]:
        offset = self._index(flatten(self.tile.coords(), self.tile.sizes))
        lines = [f"at = {offset}"]
        for i, expr in enumerate(self.pulled.exprs):
            to = f"y{i}_ptr"
            text = f"{self._text(expr)}.to({to}.dtype.element_ty)"
            if not isinstance(expr, Const) and id(expr) not in self.names:
                text = f"({self._text(expr)}).to({to}.dtype.element_ty)"
            if isinstance(expr, Const):
                text = self._text(expr)
            lines.append(f"tl.store({to} + at, {text}, mask=row_ok & c_ok)")
        return lines

    def _statement(self, expr: Expr) -> None:
        if isinstance(expr, Const):
            return
        text = self._form(expr)
        single = self.uses[id(expr)] == 1 and not isinstance(expr, (Load, Sum))
        if single and len(text) < _LONG and not self._repeated(expr):
            return
        name = self._name(expr)
        self.names[id(expr)] = name
        self.lines.append(f"{name} = {text}  # {self._shape(expr)}")

    def _repeated(self, expr: Expr) -> bool:
        """Whether a user's text would hold this expression's more than once."""
        for user in self.exprs:
            if isinstance(user, Call) and expr in user.args:
                return user.name.count(f"{{{user.args.index(expr)}}}") > 1
        return False

    def _name(self, expr: Expr) -> str:
        if isinstance(expr, Load):
            name = f"x{expr.operand}"
            if self._loads[expr.operand] > 1:
                self._count[name] += 1
                name += f"_{self._count[name] - 1}"
            return name
        stem = "sum" if isinstance(expr, Sum) else "v"
        self._count[stem] += 1
        return f"{stem}{self._count[stem] - 1}"

    def _text(self, expr: Expr) -> str:
        """An expression as an operand of another's text."""
        if id(expr) in self.names:
            return self.names[id(expr)]
        if isinstance(expr, Const):
            return repr(expr.value)
        return self._form(expr)

    def _form(self, expr: Expr) -> str:
        if isinstance(expr, Load):
            return self._load(expr)
        if isinstance(expr, Sum):
            ok = "c_ok" if expr.var.axis == "column" else f"{expr.var.name}_ok"
            inside = f"tl.where({ok}, {self._text(expr.body)}, 0.0)"
            return f"tl.sum({inside}, axis=1, keep_dims=True)"
        if isinstance(expr, Select):
            return (
                f"tl.where({self._guard(expr.guard)}, {self._text(expr.yes)}, "
                f"{self._text(expr.no)})"
            )
        assert isinstance(expr, Call)
        args = []
        for arg in expr.args:
            text = self._text(arg)
            simple = id(arg) in self.names or isinstance(arg, Const)
            negative = isinstance(arg, Const) and not text[0].isalnum()
            alone = expr.name.startswith("tl.")
            args.append(text if (simple and not negative) or alone else f"({text})")
        return expr.name.format(*args)

    def _load(self, load: Load) -> str:
        offsets = [
            f"{_product(self._index(index))} * x{load.operand}_s{d}"
            for d, index in enumerate(load.index)
            if index != Index()
        ]
        over = {axis for index in load.index for axis in index.axes}
        masks = [_OK[a] for a in ("row", "column") if a in over]
        masks += sorted({f"{var.name}_ok" for index in load.index for var in reduced(index)})
        masks += [self._guard(guard) for guard in load.guards]
        pointer = " + ".join([f"x{load.operand}_ptr", *offsets])
        other = {"float": "0.0", "int": "0", "bool": "False"}[load.kind]
        text = f"tl.load({pointer}" + (
            f", mask={' & '.join(masks)}, other={other})" if masks else ")"
        )
        if load.kind == "float":
            return f"{text}.to(tl.float32)"
        return f"{text}.to(tl.int1)" if load.kind == "bool" else text

    def _guard(self, guard: Guard) -> str:
        text = self._index(guard.index)
        if not isinstance(guard, Range):
            low, high = bounds(guard.index)
            rest = text if low >= 0 and high < guard.step else f"{_product(text)} % {guard.step}"
            return f"({rest} == {guard.phase})"
        low, high = bounds(guard.index)
        sides = [f"({text} >= {guard.low})"] if low < guard.low else []
        sides += [f"({text} < {guard.high})"] if high >= guard.high else []
        return " & ".join(sides) or "True"

    def _index(self, index: Index) -> str:
        texts = []
        for atom, factor in index.terms:
            text = self._atom(atom)
            texts.append(text if factor == 1 else f"{text} * {factor}")
        if index.const or not texts:
            texts.append(str(index.const))
        return " + ".join(texts).replace("+ -", "- ")

    def _atom(self, atom: Var | Div | Mod | Lookup) -> str:
        if isinstance(atom, Var):
            return atom.name
        if isinstance(atom, Lookup):
            return self.names[id(atom.load)]
        sign = "//" if isinstance(atom, Div) else "%"
        return f"({_product(self._index(atom.of))} {sign} {atom.by})"

    def _shape(self, expr: Expr) -> str:
        over = axes(expr)
        last = "columns" if "column" in over else "1"
        if "reduced" in over:
            last = next(v.name for e in walk(expr) for v in _reduced_of(e))
        return f"[{'rows' if 'row' in over else '1'}, {last}]"


def _product(text: str) -> str:
    """A text as a factor."""
    return f"({text})" if " + " in text or " - " in text or " * " in text else text


def _reduced_of(expr: Expr) -> set[Var]:
    if isinstance(expr, Sum):
        return {expr.var} if expr.var.axis == "reduced" else set()
    if isinstance(expr, Load):
        return {var for index in expr.index for var in reduced(index)}
    return set()
