"""HTML and SVG that cannot be injected into: text is escaped unless it is `Markup`, which only `el` and `raw` make."""

import html

_VOID = frozenset({"meta", "br", "hr", "img"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def raw(text: str) -> Markup:
    """Trust `text` as HTML. For constants of this room only, never for anything read from a run."""
    return Markup(text)


def esc(text: object) -> Markup:
    """Any value as harmless HTML text, also inside a quoted attribute.

    >>> esc("<a & 'b'>")
    '&lt;a &amp; &#x27;b&#x27;&gt;'
    """
    return text if isinstance(text, Markup) else Markup(html.escape(str(text), quote=True))


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element. Children that are not Markup are escaped; attributes always are.

    A trailing underscore of an attribute is dropped (`class_`), the others become dashes (`aria_label`); a value of
    None leaves the attribute out. Floats are written with at most two decimals.

    >>> el("td", "a<b", class_="x", title=None)
    '<td class="x">a&lt;b</td>'
    >>> el("g", el("rect", x=1.25, stroke_width=2), "")
    '<g><rect x="1.25" stroke-width="2"></rect></g>'
    """
    shown = "".join(f' {_name(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(*children)}</{name}>")


def join(*parts: object) -> Markup:
    """The parts one after the other, each escaped unless it is Markup."""
    return Markup("".join(esc(part) for part in parts))


def _name(key: str) -> str:
    return "viewBox" if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(str(value), quote=True)
