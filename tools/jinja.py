"""Jinja as chat templates need it: what transformers offers, in a sandbox with limits.

Every operation that a sandboxed template can make passes through the environment: calls, filters,
operators, output, and, by a statement put into each loop, every turn of a loop. There it is charged
to the meter of the rendering, so an endless template ends after a fixed amount of work and a huge
value is refused before it is made; and there its result is tracked (`tools/tracked_text.py`). The
limits are counted, not timed: a rendering ends the same way on every machine, in any thread.
"""

import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import escape

from drawloom.tools.template_limits import CHARS_A_UNIT, PART, STEP, VALUE, WORK, Meter
from drawloom.tools.tracked_text import Tracked, concat, join, spans_of

_AT_ONCE = frozenset("attr count d default first last length".split())
_PASSES_ON = frozenset(
    "batch dictsort groupby items list map max min random reject rejectattr reverse select "
    "selectattr slice sort sum unique".split()
)

_PLAIN = (str, bytes, int, float, complex, type(None), Undefined)


class _Generator(CodeGenerator):
    """Hands ``~`` and the containers of a template to the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.tilde((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.built(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.built(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":
            return super().visit_Tuple(node, frame)
        self.write("environment.built(")
        super().visit_Tuple(node, frame)
        self.write(")")


class _Generation(Extension):
    """``{% generation %}`` marks what the model said, for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    @staticmethod
    def body(caller: Callable[[], str]) -> str:
        return caller()


class _Space(Namespace):
    """Hold a template's namespace without private names, as transformers does."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *rest = args
        for name in dict(*rest, **named):
            _public(name)
        Namespace.__init__(self, *rest, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders chat templates. Rendering needs a `metered` block around it."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self._local = threading.local()
        self.finalize = self.text
        self.filters |= {"tojson": _tojson, "join": self._join, "safe": _same}
        self.filters |= {name: _escape for name in ("e", "escape", "forceescape")}
        for name in ("pprint", "striptags", "urlize", "xmlattr", "wordwrap"):
            del self.filters[name]  # not for prompts, and slow or HTML
        for name, filter_ in self.filters.items():
            self.filters[name] = self._metered_filter(name, filter_)
        del self.globals["lipsum"]

        def strftime_now(format: str) -> str:
            moment: datetime = self._local.now or datetime.now()
            self.meter.form(format, ())
            return moment.strftime(format)

        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": strftime_now,
            "namespace": _Space,
        }

    @contextmanager
    def metered(
        self, values: int = 0, chars: int = 0, work: int = WORK, now: datetime | None = None
    ) -> Iterator[None]:
        """Limit the work of this thread's rendering of so many values and characters.

        `now` is the time that the template sees, by default the present.
        """
        before = getattr(self._local, "meter", None), getattr(self._local, "now", None)
        self._local.meter, self._local.now = Meter(values, chars, work), now
        try:
            yield
        finally:
            self._local.meter, self._local.now = before

    @property
    def meter(self) -> Meter:
        meter: Meter = self._local.meter
        return meter

    # --- what compiled templates call -----------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if tree.find(nodes.EvalContextModifier) or tree.find(nodes.ScopedEvalContextModifier):
            raise TemplateError("{% autoescape %} has no use in a chat template")
        for loop in tree.find_all(nodes.For):
            turn = nodes.EnvironmentAttribute("turn")  # looking at it charges for it
            loop.body.insert(0, nodes.ExprStmt(turn).set_lineno(loop.lineno))
        tree.set_environment(self)
        return tree

    @property
    def turn(self) -> None:
        """Charge a turn of a loop."""
        self.meter.spend(STEP)

    def concat(self, parts: Iterable[str]) -> str:
        texts, size = [], 0
        for text in parts:
            size += len(text)
            self.meter.spend(STEP)
            if size > self.meter.chars:
                self.meter.fits(size)
            texts.append(text)
        self.meter.fits(size)
        return concat(texts)

    def tilde(self, values: tuple[Any, ...]) -> str:
        return self.concat([self.text(value) for value in values])

    def built(self, container: Any) -> Any:
        self.meter.weigh(container)
        return container

    def text(self, value: Any) -> str:
        """Return the text of a value in the output."""
        if isinstance(value, str):
            return value
        self.meter.weigh(value)
        text: str = self._stained(str(value), value)
        return text

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.spend(STEP)
        found = super().getitem(obj, argument)
        if isinstance(argument, slice) and isinstance(found, str | list | tuple):
            self.meter.fits(len(found))
        return found

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        meter.spend(STEP)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.concat((left, right))
        meter.operator(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, str | list | tuple):
            meter.weigh(result)
        return self._stained(result, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **named: Any) -> Any:
        self, called = __self, __obj
        self.meter.spend(STEP)
        inner = getattr(called, "__wrapped__", called)  # str.format comes wrapped
        owner, name = getattr(inner, "__self__", None), getattr(inner, "__name__", "")
        if isinstance(owner, str | bytes | int):
            self.meter.method(owner, name, args, named)
        if isinstance(owner, str) and name == "join":
            return self._join_texts(owner, *args)
        if isinstance(owner, str) and name == "replace":
            return Tracked(owner, spans_of(owner)).replace(*args)
        result = super().call(__context, __obj, *args, **named)
        if isinstance(called, Macro | LoopContext) or inner is _Generation.body:
            return result  # all of it went through concat
        if isinstance(result, dict | bytes):
            self.meter.weigh(result)
        return self._stained(result, owner, args, named)

    # --- limits and tracking --------------------------------------------------------------

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        at_once, passes_on = name in _AT_ONCE, name in _PASSES_ON

        @functools.wraps(function)
        def metered(*args: Any, **named: Any) -> Any:
            meter = self.meter
            meter.spend(STEP)
            values = args[1:] if hasattr(function, "jinja_pass_arg") else args
            meter.filter(name, values, named)
            for value in () if at_once else (*values, *named.values()):
                if isinstance(value, str) or (passes_on and hasattr(value, "__len__")):
                    meter.spend(len(value) // (CHARS_A_UNIT if isinstance(value, str) else 1))
                else:
                    meter.weigh(value)
            return self._stained(function(*args, **named), values, named)

        return metered

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        items = list(value)
        if attribute is not None:
            items = [self.getitem(item, attribute) for item in items]
        return self._join_texts(self.text(d), [self.text(item) for item in items])

    def _join_texts(self, separator: str, parts: Iterable[Any]) -> str:
        self.meter.spend(PART * len(parts) if isinstance(parts, str) else 0)
        texts = list(parts)
        if any(not isinstance(text, str) for text in texts):
            raise TypeError("join takes strings")
        self.meter.fits(len(separator) * len(texts) + sum(map(len, texts)))
        return join(separator, texts)

    def _stained(self, result: Any, *made_of: Any) -> Any:
        """Mark text that was made of tracked text in an unknown way as content as a whole."""
        if not isinstance(result, str) or isinstance(result, Tracked):
            return result
        self.meter.fits(len(result))
        return Tracked(result) if self._tracked(made_of) else result

    def _tracked(self, value: Any) -> bool:
        self.meter.spend(VALUE)
        if isinstance(value, Tracked):
            return bool(spans_of(value))
        if isinstance(value, dict):
            return any(self._tracked(k) or self._tracked(v) for k, v in value.items())
        if isinstance(value, list | tuple):
            return any(map(self._tracked, value))
        return not isinstance(value, _PLAIN)  # views, iterators: they may hold anything


def prepared(value: Any) -> tuple[Any, int, int]:
    """Make plain, tracked data of a template's input; count its values and characters.

    Only plain JSON types reach a template: methods of other objects are not for its sandbox.
    """
    sizes: list[int] = []
    return _plain(value, sizes), len(sizes), sum(sizes)


def _plain(value: Any, sizes: list[int]) -> Any:
    kind = type(value)
    if kind is str:
        sizes.append(len(value))
        return Tracked(value)
    if kind is dict:
        sizes.append(1)
        return {_plain(key, sizes): _plain(item, sizes) for key, item in value.items()}
    if kind is list:
        sizes.append(1)
        return [_plain(item, sizes) for item in value]
    sizes.append(1)
    if value is None or kind is bool or kind is int or kind is float or kind is Tracked:
        return value
    if isinstance(value, str):
        return _plain(str.__str__(value), sizes)
    if isinstance(value, Mapping):
        return _plain(dict(value), sizes)
    if isinstance(value, list | tuple):
        return _plain(list(value), sizes)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    return Tracked(f"<{kind.__name__}>")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    widths = [indent if isinstance(indent, int) else len(indent or "")]
    if max([*widths, *map(len, separators or ())]) > 16:
        raise TemplateError("tojson with more than 16 characters between values is too much")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _same(value: Any) -> Any:
    return value


def _escape(value: Any) -> str:
    return str(escape(str(value)))


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no private names: {name!r}")


__all__ = ["TemplateEnvironment", "prepared"]
