import html
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from polypfed.report.html import el, esc, join, raw


@given(st.text())
def test_escaped_text_is_inert_and_comes_back(text: str) -> None:
    safe = esc(text)
    assert not set("<>\"'") & set(safe)
    assert html.unescape(safe) == html.unescape(html.escape(text)) == text


def test_only_markup_passes_unescaped() -> None:
    assert el("b", "<i>", raw("<i></i>")) == "<b>&lt;i&gt;<i></i></b>"
    assert join("a&", el("br")) == "a&amp;<br>"
    assert esc(esc("<")) == "&lt;", "escaping is not repeated"


@given(st.text(alphabet=st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])))
def test_attributes_cannot_be_left(text: str) -> None:
    seen: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, attrs))

    Reader().feed(el("td", "x", title=text))
    assert seen == [("td", [("title", text)])]
